"""Hierarchical fractions, BERT-Feat's biLSTM, frozen layers, several tasks: the paper's methods beyond one sequence."""
import csv
import math
import types

import numpy as np
import pytest
import torch
from torch import nn

from common.configuration import BertConfig
from finetuning import data
from modeling import BertForSequenceClassification, BiLSTMAttention, MultiTaskModel, StructuredSelfAttention
from runs import (NUM_TEST, NUM_TRAIN, SINGLE, assert_equal_weights, call, losses_of, make_bert, predictions_of, read_json,
                  read_metrics, start_together, train_flags, wait, weights)

MULTITASK = "run_classifier_multitask"
COMBINERS = ("mean", "max", "self_attention")


@pytest.fixture(scope="module")
def config():
    return BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
                      max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                      initializer_range=0.3)


def dataset_of(lengths, max_seq_length=12, max_fractions=math.inf):
    """Texts of these many random ids."""
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 50, sum(lengths)).astype(np.int32)
    labels = generator.integers(0, 3, len(lengths))
    tokenizer = types.SimpleNamespace(encode_batch=lambda texts: (ids, np.cumsum([0, *lengths])), cls_id=2, sep_id=3)
    return data.make_dataset(tokenizer, None, labels, max_seq_length, -2, max_fractions)


def classifier(config, **features):
    torch.manual_seed(1)
    return BertForSequenceClassification(config, 3, **features)


# Hierarchical (paper, section 5.3.1)

@pytest.mark.parametrize("combiner", COMBINERS)
def test_one_fraction_equals_the_plain_model_on_the_last_cls_to_1e_5(config, combiner):
    batch = dataset_of([10, 1, 0, 7]).batch(np.arange(4))
    plain, hierarchical = classifier(config, layers=[2]), classifier(config, layers=[2], hierarchical=combiner)
    hierarchical.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(hierarchical(batch), plain(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("features", ({"layers": [2]}, {"layers": [-2]}, {"layers": [0, 2], "pooling_type": "mean"},
                                      {"layers": [1], "classifier": "bilstm_attention", "lstm_hidden_size": 4}))
def test_fractions_are_read_by_themselves_and_combined(config, combiner, features):
    """The features of a document are what its fractions' own features, each computed alone, combine to."""
    dataset = dataset_of([25, 3, 10, 11])
    model = classifier(config, hierarchical=combiner, **features)
    together = model.features(dataset.batch(np.arange(4)))
    for index in range(4):
        alone = torch.cat([model.sequence_features(data.pack([sequence])) for sequence in dataset.sequences(index)])
        assert len(alone) == [3, 1, 1, 2][index]
        expected = {"mean": alone.mean(0), "max": alone.max(0).values}.get(combiner)
        if combiner == "self_attention":
            scores = torch.tanh(alone @ model.pool_fractions.w1.weight.T) @ model.pool_fractions.w2.weight.T
            expected = (torch.softmax(scores, 0) * alone).sum(0)
        torch.testing.assert_close(together[index], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_fractions_in_another_batch_order_give_the_same(config, combiner):
    dataset = dataset_of([25, 3, 10, 40, 11])
    model = classifier(config, layers=[2], hierarchical=combiner)
    order = np.array([3, 0, 4, 2, 1])
    torch.testing.assert_close(model(dataset.batch(order)), model(dataset.batch(np.arange(5)))[order], rtol=1e-5,
                               atol=1e-5)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_a_gradient_reaches_bert_through_each_combiner(config, combiner):
    batch = dataset_of([25, 3, 40]).batch(np.arange(3))
    model = classifier(config, layers=[2], hierarchical=combiner)
    nn.functional.cross_entropy(model(batch), batch.labels).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith("key.bias"):  # softmax does not see a key's bias
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("at_once, parts", ((1, [1] * 11), (2, [2] * 5 + [1]), (4, [4, 4, 3]), (10, [10, 1]), (11, [11])))
@pytest.mark.parametrize("features", ({"layers": [0, 2], "pooling_type": "mean"}, {"layers": [-2], "hierarchical": "max"},
                                      {"layers": [1], "classifier": "bilstm_attention", "lstm_hidden_size": 4}))
def test_fractions_in_parts_give_the_logits_and_gradients_of_one_piece_to_1e_6(config, spy, features, at_once, parts):
    """A part may hold fractions of several documents. In evaluation all of them go together."""
    batch = dataset_of([25, 3, 40, 0, 11]).batch(np.arange(5))
    assert batch.fractions == [3, 1, 4, 1, 2]
    features = {"hierarchical": "self_attention"} | features
    whole, in_parts = (classifier(config, **features).double().train() for _ in range(2))
    in_parts.sequences_at_once = at_once
    computed = spy(BertForSequenceClassification, "sequence_features", lambda _, model, part: len(part.lengths))
    logits = [model(batch) for model in (whole, in_parts)]
    assert computed == [11, *parts]
    for values in logits:
        nn.functional.cross_entropy(values, batch.labels).backward()
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-6)
    for (name, one), (_, other) in zip(whole.named_parameters(), in_parts.named_parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-6, msg=lambda text: f"{name}: {text}")
    computed.clear()
    torch.testing.assert_close(in_parts.eval()(batch), logits[0], rtol=0, atol=1e-6)
    assert computed == [11]


def test_the_backward_pass_of_parts_draws_the_dropout_of_the_forward_pass(config):
    """The gradient of the loss is that of the drawn network: a step along it changes the loss, under the same draws, by
    what it says."""
    config = BertConfig(**{**config.to_dict(), "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3})
    batch = dataset_of([25, 3, 40]).batch(np.arange(3))
    model = classifier(config, layers=[2], hierarchical="mean").double().train()
    model.sequences_at_once = 2

    def loss():
        torch.manual_seed(5)
        features = model.features(batch)
        return features.pow(2).sum()
    value = loss()
    torch.manual_seed(99)  # not what the forward pass drew
    value.backward()
    bias = model.bert.encoder.layer[0].output.dense.bias
    step, gradient = 1e-6, bias.grad[0].item()
    with torch.no_grad():
        bias[0] += step
        assert (loss() - value).item() / step == pytest.approx(gradient, rel=1e-3)


PARTS = {"plain": [], "bf16": ["--precision", "bf16"], "checkpointed": ["--gradient_checkpointing"],
         "accumulated": ["--gradient_accumulation_steps", 2]}


@pytest.mark.parametrize("name", PARTS)
def test_fractions_in_parts_are_a_run_s_result_in_one_piece(tiny, tmp_path, spy, name):
    """Losses to 1e-5, under bfloat16 to 1e-2."""
    computed = spy(BertForSequenceClassification, "sequence_features",
                   lambda _, model, part: len(part.lengths) if model.training else 0)
    flags = [*train_flags(tiny, tmp_path / "whole"), "--hierarchical", "self_attention", "--max_seq_length", 16,
             "--num_train_epochs", 1, *PARTS[name]]
    call(SINGLE, *flags)
    whole = max(computed)
    computed.clear()
    call(SINGLE, *flags, "--fractions_at_once", 3, "--output_dir", tmp_path / "parts")
    assert max(computed) == 3 < whole and computed.count(3) > 3 * 8
    tolerance = 1e-2 if name == "bf16" else 1e-5
    np.testing.assert_allclose(losses_of(tmp_path / "parts"), losses_of(tmp_path / "whole"), rtol=tolerance)
    if name != "bf16":
        assert_equal_weights(tmp_path / "parts" / "last", tmp_path / "whole" / "last", 1e-5)


def test_two_processes_compute_fractions_in_parts(tiny, tmp_path, start):
    flags = [*train_flags(tiny, tmp_path / "one"), "--hierarchical", "mean", "--max_seq_length", 16,
             "--num_train_epochs", 1, "--fractions_at_once", 2]
    call(SINGLE, *flags)
    codes = wait(*start_together(start, 2, SINGLE, [*flags, "--output_dir", tmp_path / "two"], tmp_path / "log"))
    assert codes == [0, 0], (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    np.testing.assert_allclose(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-5)
    assert_equal_weights(tmp_path / "two" / "last", tmp_path / "one" / "last", 1e-5)


def test_a_hierarchical_run_reads_whole_texts_and_says_so(tiny, tmp_path, capsys):
    """Longer than the model has positions; predicted from the saved folder, whose flags are not repeated."""
    long = tmp_path / "long"
    long.mkdir()
    for split in ("train", "test"):
        with open(tiny / f"{split}.csv", newline="") as rows, open(long / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows((label, title, f"{text} " * 4) for label, title, text in csv.reader(rows))
    flags = [*train_flags(tiny, tmp_path / "run"), "--data_dir", long, "--hierarchical", "self_attention",
             "--num_train_epochs", 1]
    call(SINGLE, *flags)
    out = capsys.readouterr().out
    assert "fractions, 0 (0.0%) are truncated" in out
    assert read_json(tmp_path / "run" / "best" / "classifier.json")["layers"] == [1]  # the last of two
    call(SINGLE, "--do_predict", "--predict_file", long / "test.csv", "--init_checkpoint", tmp_path / "run" / "best",
         "--output_dir", tmp_path / "out", "--no_cuda")
    labels = [row.split("\t")[0] for row in (tmp_path / "out" / "predictions.tsv").read_text().splitlines()[1:]]
    assert [int(label) - 1 for label in labels] == predictions_of(tmp_path / "run" / "results_ep1.txt")
    call(SINGLE, *flags, "--max_fractions", 2, "--trunc_medium", -1, "--output_dir", tmp_path / "cut")
    assert "in 2.00 fractions" in (cut := capsys.readouterr().out) and f"{NUM_TRAIN} (100.0%) are truncated" in cut


# BERT-Feat (paper, section 5.4.3)

def test_structured_self_attention_is_its_formula():
    """Lin et al. 2017: A = softmax(W2 tanh(W1 H^T)) over the tokens, M = A H."""
    attention, rows = StructuredSelfAttention(6, 5, hops=3), torch.randn(4, 6)
    a = torch.softmax(attention.w2.weight @ torch.tanh(attention.w1.weight @ rows.T), dim=1)
    torch.testing.assert_close(attention(rows), (a @ rows).flatten(), rtol=1e-5, atol=1e-6)


def test_the_bilstm_reads_each_sequence_by_itself_both_ways():
    """Packed sequences of any order and length equal torch's LSTM on each alone."""
    torch.manual_seed(0)
    module, lengths = BiLSTMAttention(6, 4, 5, hops=2), [3, 7, 2]
    states = torch.randn(sum(lengths), 6)
    expected = [module.attention(module.lstm(part[:, None])[0][:, 0]) for part in states.split(lengths)]
    torch.testing.assert_close(module(states, lengths), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer_pooling, width", (("concat", 32), ("mean", 16), ("max", 16)))
def test_the_bilstm_s_input_is_the_chosen_layers_token_states(config, layer_pooling, width):
    model = classifier(config, layers=[0, 2], layer_pooling=layer_pooling, classifier="bilstm_attention",
                       lstm_hidden_size=4, attention_hops=2)
    assert model.bilstm_attention.lstm.input_size == width and model.classifier.in_features == 2 * 4 * 2
    batch = dataset_of([10, 4]).batch(np.arange(2))
    _, outputs = model.bert(batch)
    states = torch.stack([outputs[0], outputs[2]])
    joined = {"concat": torch.cat([outputs[0], outputs[2]], 1), "mean": states.mean(0), "max": states.amax(0)}
    torch.testing.assert_close(model.features(batch), model.bilstm_attention(joined[layer_pooling], batch.lengths))


def test_bert_feat_leaves_bert_bit_equal_and_learns(tiny, tmp_path, capsys):
    make_bert(tmp_path, len((tiny / "vocab.txt").read_text().splitlines()), dropout=0.2)
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--bert_config_file", tmp_path / "bert_config.json",
         "--frozen_bert", "--classifier", "bilstm_attention", "--lstm_hidden_size", 16, "--attention_size", 16,
         "--attention_hops", 2, "--learning_rate", 3e-3, "--num_train_epochs", 15)
    trained, initial = weights(tmp_path / "run" / "last"), torch.load(tiny / "pytorch_model.bin")
    assert trained["bilstm_attention.lstm.weight_ih_l0"].shape == (64, 32)
    for name, value in trained.items():
        if name.startswith("bert."):
            assert torch.equal(value, initial[name]), name
    losses = [epoch["loss"] for epoch in read_json(tmp_path / "run" / "results.json")["epochs"]]
    assert losses[-1] < 0.75 * losses[0]
    # biases of the LSTM are not decayed
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("all")]
    assert [(line[-4], line[-1]) for line in table] == [("7", "0.01"), ("5", "0")]


def test_a_frozen_part_runs_without_dropout(config):
    config = BertConfig(**{**config.to_dict(), "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5})
    model, batch = classifier(config), dataset_of([10, 4]).batch(np.arange(2))
    model.bert.freeze(2)
    model.train()
    (first, again) = (model.bert(batch)[1] for _ in range(2))
    assert torch.equal(first[1], again[1]) and not torch.equal(first[2], again[2])


@pytest.mark.parametrize("script", (SINGLE, "run_classifier_discriminative"))
def test_frozen_layers_are_the_lowest_and_the_embeddings(tiny, tmp_path, script):
    call(script, *train_flags(tiny, tmp_path / "run"), "--frozen_layers", 1, "--num_train_epochs", 1)
    trained, initial = weights(tmp_path / "run" / "last"), torch.load(tiny / "pytorch_model.bin")
    equal = {name for name, value in trained.items() if name in initial and torch.equal(value, initial[name])}
    fixed = {name for name in trained if name.startswith(("bert.embeddings", "bert.encoder.layer.0."))}
    assert equal == fixed


# Several tasks (paper, section 5.5)

@pytest.fixture(scope="module")
def data_sets(tiny, tmp_path_factory):
    """A folder of two tasks: ag, the tiny data, and yelp_p, 30 + 20 rows of it with two labels."""
    folder = tmp_path_factory.mktemp("data_sets")
    for split, count in (("train", 30), ("test", 20)):
        for name in ("ag", "yelp_p"):
            (folder / name).mkdir(exist_ok=True)
        rows = (tiny / f"{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "ag" / f"{split}.csv").write_text("".join(rows))
        (folder / "yelp_p" / f"{split}.csv").write_text("".join(
            f'"{1 + int(row[1]) % 2}",{row.split(",", 2)[2]}' for row in rows[-count:]))
    return folder


def multitask_flags(tiny, data_sets, output_dir):
    return [*train_flags(tiny, output_dir), "--task_name", "ag", "yelp_p", "--data_dir", data_sets]


@pytest.fixture(scope="module")
def multitask(tiny, data_sets, tmp_path_factory):
    """The folder of a finished run on ag and yelp_p."""
    folder = tmp_path_factory.mktemp("multitask") / "run"
    call(MULTITASK, *multitask_flags(tiny, data_sets, folder))
    return folder


def test_one_task_equals_the_single_task_run(tiny, tmp_path):
    call(MULTITASK, *train_flags(tiny, tmp_path / "multi"))
    call(SINGLE, *train_flags(tiny, tmp_path / "single"))
    assert losses_of(tmp_path / "multi") == losses_of(tmp_path / "single")
    assert_equal_weights(tmp_path / "multi" / "last", tmp_path / "single" / "last")
    assert predictions_of(tmp_path / "multi" / "results_ep3.txt") == predictions_of(tmp_path / "single" / "results_ep3.txt")


def test_a_multitask_run_keeps_each_task_s_model_on_one_encoder(multitask):
    results = read_json(multitask / "results.json")
    assert set(results["tasks"]) == {"ag", "yelp_p"}
    assert len(read_metrics(multitask, "train")) == 3 * (8 + 4)  # epochs x batches of both tasks
    for name, count, labels in (("ag", NUM_TEST, 4), ("yelp_p", 20, 2)):
        assert len(results["tasks"][name]["epochs"]) == 3
        assert len(predictions_of(multitask / name / "results_ep3.txt")) == count
        assert len(read_metrics(multitask, f"eval/{name}")) == 3
        assert weights(multitask / name / "last")["classifier.weight"].shape == (labels, 32)
        assert (multitask / name / "best" / "classifier.json").exists()
    ag, yelp_p = (weights(multitask / name / "last") for name in ("ag", "yelp_p"))
    for name in ag:
        assert name.startswith("classifier.") or torch.equal(ag[name], yelp_p[name]), name


def test_single_task_fine_tuning_goes_on_from_a_multitask_run(multitask, data_sets, tmp_path, capsys):
    """At rate 0 it predicts what the multi-task run predicted: encoder and head are taken."""
    call(SINGLE, "--task_name", "yelp_p", "--do_train", "--do_eval", "--do_lower_case", "--no_cuda", "--data_dir",
         data_sets / "yelp_p", "--init_checkpoint", multitask / "yelp_p" / "last", "--max_seq_length", 32,
         "--learning_rate", 0, "--num_train_epochs", 1, "--output_dir", tmp_path / "run")
    assert predictions_of(tmp_path / "run" / "results_ep1.txt") == predictions_of(multitask / "yelp_p" / "results_ep3.txt")
    assert "; 0 new and random" in capsys.readouterr().out


def test_a_multitask_run_s_folder_stands_for_the_best_model_of_the_task(multitask, data_sets, tmp_path):
    for name, folder in (("run", multitask), ("best", multitask / "yelp_p" / "best")):
        call(SINGLE, "--task_name", "yelp_p", "--do_eval", "--no_cuda", "--data_dir", data_sets / "yelp_p",
             "--init_checkpoint", folder, "--output_dir", tmp_path / name)
    best = read_json(multitask / "results.json")["tasks"]["yelp_p"]["best"]["epoch"]
    expected = predictions_of(multitask / "yelp_p" / f"results_ep{best}.txt")
    assert predictions_of(tmp_path / "run" / "results.txt") == predictions_of(tmp_path / "best" / "results.txt") == expected


def test_training_on_one_task_goes_on_from_the_last_model_of_a_multitask_run(multitask, data_sets, tmp_path, capsys):
    call(SINGLE, "--task_name", "yelp_p", "--do_train", "--no_cuda", "--data_dir", data_sets / "yelp_p", "--init_checkpoint",
         multitask, "--max_seq_length", 32, "--num_train_epochs", 1, "--learning_rate", 0, "--output_dir", tmp_path / "run")
    assert f"weights from {multitask / 'yelp_p' / 'last'}; " in capsys.readouterr().out
    assert_equal_weights(tmp_path / "run" / "last", multitask / "yelp_p" / "last")


def test_several_seeds_of_several_tasks_are_summed_up(tiny, data_sets, tmp_path):
    call(MULTITASK, *multitask_flags(tiny, data_sets, tmp_path / "run"), "--seed", 1, 2, "--dev_fraction", 0.2,
         "--num_train_epochs", 1)
    summary = read_json(tmp_path / "run" / "summary.json")["tasks"]
    for name in ("ag", "yelp_p"):
        results = [read_json(tmp_path / "run" / f"seed_{seed}" / "results.json")["tasks"][name] for seed in (1, 2)]
        assert summary[name]["test"]["values"] == [result["test"]["eval_accuracy"] for result in results]
        assert (tmp_path / "run" / "seed_1" / name / "results.txt").exists()


def test_layer_wise_rates_of_several_tasks(tiny, data_sets, tmp_path, capsys):
    call(MULTITASK, *multitask_flags(tiny, data_sets, tmp_path / "run"), "--discr", "--layer_learning_rate", 1e-3,
         "--layer_learning_rate_decay", 0.5, "--num_train_epochs", 1)
    table = {line[:44].strip(): line.split()[-4:-1] for line in capsys.readouterr().out.splitlines()
             if line[:5] in ("layer", "poole", "embed")}
    assert table["layer 0"][-1] == "0.0005" and table["layer 1"][-1] == "0.001"
    assert table["pooler, classifier"][0] == "3"  # the pooler's matrix and those of two classifiers


def test_tasks_are_drawn_by_size_to_the_power_alpha():
    """Each example once a pass, in fresh orders; shares of updates to 3 standard deviations."""
    sizes, batch_size = [600, 150], 1
    for alpha, share in ((1.0, 0.8), (0.5, 2 / 3), (0.0, 0.5)):
        draws = [task for epoch in range(4) for task, _ in data.plan_epoch(sizes, batch_size, "by_size", alpha, 7, epoch)]
        assert len(draws) == 4 * 750
        assert abs(draws.count(0) / len(draws) - share) < 3 * math.sqrt(share * (1 - share) / len(draws))
    updates = [update for epoch in range(3) for update in data.plan_epoch([50, 23], 4, "by_size", 0.5, 7, epoch)]
    for task, size in ((0, 50), (1, 23)):
        taken = np.concatenate([indices for drawn, indices in updates if drawn == task])
        passes = [taken[start:start + size] for start in range(0, len(taken) - size + 1, size)]
        assert len(passes) >= 2 and all(sorted(each) == list(range(size)) for each in passes)
        assert not np.array_equal(passes[0], passes[1])


def test_a_fixed_plan_is_each_task_s_whole_batches_in_a_shuffled_order():
    """As in the authors' run_classifier_multitask.py: of 50, 23 and 8 examples in batches of 8, 6 + 2 + 1 batches."""
    epochs = [data.plan_epoch([50, 23, 8], 8, "fixed", 1.0, 7, epoch) for epoch in range(3)]
    for updates in epochs:
        drawn = [task for task, _ in updates]
        assert [drawn.count(task) for task in range(3)] == [6, 2, 1] and drawn != sorted(drawn)
        assert all(len(indices) == 8 for _, indices in updates)
        for task, size in enumerate((50, 23, 8)):
            taken = np.concatenate([indices for own, indices in updates if own == task])
            assert len(set(taken)) == len(taken) and taken.min() >= 0 and taken.max() < size
    assert len({str([task for task, _ in updates]) for updates in epochs}) == 3
    assert len({str(sorted(np.concatenate([indices for task, indices in updates if task == 0]))) for updates in epochs}) == 3
    again, other = (data.plan_epoch([50, 23, 8], 8, "fixed", 0.0, seed, 2) for seed in (7, 8))  # alpha has no part
    assert str(again) == str(epochs[2]) != str(other)


@pytest.mark.parametrize("flags", (["--num_datas", 7], ["--train_batch_size", 31], ["--dev_fraction", 0.8]))
def test_a_task_without_a_whole_batch_is_refused_by_a_fixed_plan(tiny, data_sets, tmp_path, refused_here, flags):
    """yelp_p has 30 examples, or what is left of them; nothing is written. Drawn by size, they would be a batch."""
    flags = [*multitask_flags(tiny, data_sets, tmp_path / "run"), "--num_train_epochs", 0.1, *flags]
    size = {"--num_datas": 7, "--dev_fraction": 6}.get(flags[-2], 30)
    refused_here(MULTITASK, *flags, "--task_sampling", "fixed",
                 words=f"{'ag has 7' if size == 7 else f'yelp_p has {size}'} training examples, fewer than one batch")
    assert not (tmp_path / "run").exists()
    call(MULTITASK, *flags)


def test_a_task_of_pairs_beside_one_of_single_texts(tiny, tmp_path, spy, refused_here):
    """Yahoo! Answers' pairs are cut at the end of the longer text, AG's News where --trunc_medium says."""
    for split in ("train", "test"):
        for name in ("ag", "yahoo"):
            (tmp_path / name).mkdir(exist_ok=True)
        rows = (tiny / f"{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:16]
        (tmp_path / "ag" / f"{split}.csv").write_text("".join(rows))
        (tmp_path / "yahoo" / f"{split}.csv").write_text("".join(row.replace('","', '","","', 1) for row in rows))
    segments = spy(MultiTaskModel, "forward", lambda _, model, batch, task: (task, bool(batch.segment_ids.any())))
    flags = [*multitask_flags(tiny, tmp_path, tmp_path / "run"), "--task_name", "ag", "yahoo", "--text_pair",
             "--num_train_epochs", 1]
    refused_here(MULTITASK, *flags, "--hierarchical", "mean", words="--hierarchical is for single texts")
    refused_here(MULTITASK, *flags, "--task_name", "yahoo", "--trunc_medium", 4, words="--trunc_medium is for single texts")
    call(MULTITASK, *flags, "--trunc_medium", 4)
    assert set(segments) == {(0, False), (1, True)}
    for name in ("ag", "yahoo"):
        stored = read_json(tmp_path / "run" / name / "last" / "classifier.json")
        assert stored["trunc_medium"] == 4 and stored["task"]["num_second"] == (name == "yahoo")


def test_two_processes_learn_several_tasks_as_one(tiny, data_sets, multitask, tmp_path, start):
    flags = multitask_flags(tiny, data_sets, tmp_path / "run")
    codes = wait(*start_together(start, 2, MULTITASK, flags, tmp_path / "log"))
    assert codes == [0, 0], (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(multitask), rtol=1e-5)
    for name in ("ag", "yelp_p"):
        assert_equal_weights(tmp_path / "run" / name / "last", multitask / name / "last", 1e-5)


@pytest.mark.parametrize("sampling", data.SAMPLINGS)
def test_a_killed_multitask_run_ends_as_if_it_had_not_been(tiny, data_sets, tmp_path, start, sampling):
    flags = [*multitask_flags(tiny, data_sets, tmp_path / "undisturbed"), "--task_sampling", sampling]
    assert wait(start(MULTITASK, flags, tmp_path / "log.txt")) == [0]
    flags += ["--output_dir", tmp_path / "run"]
    for number in (5, 9, 14):
        assert wait(start(MULTITASK, flags, tmp_path / "log.txt", ("update", number, "after", 9))) == [-9]
    assert wait(start(MULTITASK, flags, tmp_path / "log.txt")) == [0], (tmp_path / "log.txt").read_text()
    assert "going on after update" in (tmp_path / "log.txt").read_text()
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "undisturbed")
    for name in ("ag", "yelp_p"):
        assert_equal_weights(tmp_path / "run" / name / "last", tmp_path / "undisturbed" / name / "last")


def test_overwriting_a_multitask_run_leaves_other_files(tiny, data_sets, tmp_path):
    flags = [*multitask_flags(tiny, data_sets, tmp_path / "run"), "--num_train_epochs", 1]
    call(MULTITASK, *flags)
    (tmp_path / "run" / "ag" / "notes.txt").write_text("mine")
    call(MULTITASK, *flags, "--task_name", "yelp_p", "--data_dir", data_sets / "yelp_p", "--overwrite_output_dir")
    assert [path.name for path in (tmp_path / "run" / "ag").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "run" / "yelp_p").exists() and (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("overwrite", ([], ["--overwrite_output_dir"]))
def test_runs_of_single_tasks_below_are_not_a_multitask_run_s_to_remove(tiny, data_sets, tmp_path, refused_here, overwrite):
    """A run into a folder above those of finished runs leaves them alone, or is refused where it would write into them."""
    flags = [*train_flags(tiny, tmp_path / "ag"), "--num_train_epochs", 0.25]
    call(SINGLE, *flags)
    before = {path: path.read_bytes() for path in (tmp_path / "ag").rglob("*") if path.is_file()}
    refused_here(MULTITASK, *multitask_flags(tiny, data_sets, tmp_path), *overwrite, words="ag holds a run of its own")
    call(SINGLE, *flags, "--output_dir", tmp_path, *overwrite)
    assert {path: path.read_bytes() for path in (tmp_path / "ag").rglob("*") if path.is_file()} == before


def test_files_of_a_run_without_its_record_are_refused(tiny, data_sets, tmp_path, refused_here):
    (tmp_path / "ag" / "best").mkdir(parents=True)
    refused_here(MULTITASK, *multitask_flags(tiny, data_sets, tmp_path), words="ag holds files of a run without a run.json")


# Speed flags change nothing but time

METHODS = {"hierarchical": ["--hierarchical", "self_attention", "--max_seq_length", 16],
           "bilstm_attention": ["--classifier", "bilstm_attention", "--lstm_hidden_size", 8, "--attention_hops", 2],
           "several tasks": ["--task_name", "ag", "yelp_p"]}


@pytest.mark.parametrize("name", METHODS)
def test_speed_flags_leave_the_result_of_each_method(tiny, data_sets, tmp_path, name):
    script, data = (MULTITASK, data_sets) if name == "several tasks" else (SINGLE, tiny)

    def losses(folder, *flags):
        call(script, *train_flags(tiny, tmp_path / folder), "--data_dir", data, "--num_train_epochs", 1, *METHODS[name],
             *flags)
        return losses_of(tmp_path / folder)
    plain = losses("plain")
    np.testing.assert_allclose(losses("accumulated", "--gradient_accumulation_steps", 3), plain, rtol=1e-5)
    np.testing.assert_allclose(losses("checkpointed", "--gradient_checkpointing"), plain, rtol=1e-6)
    np.testing.assert_allclose(losses("bf16", "--precision", "bf16"), plain, rtol=0.03)


# Refused

@pytest.mark.parametrize("script, flags, words", (
    (SINGLE, ["--max_fractions", 3], "--max_fractions belongs to --hierarchical"),
    (SINGLE, ["--hierarchical", "mean", "--trunc_medium", -1], "--trunc_medium has nothing to cut"),
    (SINGLE, ["--hierarchical", "mean", "--max_fractions", 2, "--trunc_medium", 61], "--trunc_medium 61 keeps more"),
    (SINGLE, ["--classifier", "bilstm_attention", "--layers", -2], "--classifier bilstm_attention reads the tokens'"),
    (SINGLE, ["--classifier", "bilstm_attention", "--pooling_type", "mean"], "--pooling_type mean is not used"),
    (SINGLE, ["--lstm_hidden_size", 8], "--lstm_hidden_size belongs to --classifier bilstm_attention"),
    (SINGLE, ["--attention_size", 8, "--hierarchical", "max"], "--attention_size belongs to"),
    (SINGLE, ["--frozen_layers", 3], "--frozen_layers 3: this model has 2 layers"),
    (SINGLE, ["--frozen_layers", 1, "--frozen_bert"], "leave --frozen_layers out"),
    (MULTITASK, ["--task_name", "ag", "ag"], "--task_name names a task twice"),
    (MULTITASK, ["--task_name", "ag", "trec", "imdb", "--data_dir", "a", "b"], "2 folders for 3 tasks"),
    (MULTITASK, ["--task_name", "ag", "yelp_p", "--data_dir", "absent"], "there is no folder absent/ag"),
    (MULTITASK, ["--do_train=False"], "this script trains"),
    (MULTITASK, ["--do_predict"], "unrecognized arguments: --do_predict"),
    (MULTITASK, ["--task_sampling_alpha", -1], "at least 0"),
    (MULTITASK, ["--task_sampling", "fixed", "--task_sampling_alpha", 1], "--task_sampling_alpha has no part in"),
    (SINGLE, ["--task_sampling", "fixed"], "unrecognized arguments: --task_sampling"),
    (SINGLE, ["--hierarchical", "mean", "--fractions_at_once", 0], "0 is not at least 1"),
))
def test_wrong_flags_are_refused_before_anything_is_written(tiny, tmp_path, refused_here, script, flags, words):
    refused_here(script, *train_flags(tiny, tmp_path / "run"), *flags, words=words)
    assert not (tmp_path / "run").exists()
