"""Every flag of the fine-tuning scripts and of the converter has something to be seen by that is there only if it acts.

OBSERVED names the test that fails where a flag does nothing; tests/mutate_flags.py tries that.
"""
import ast
import importlib.machinery
import importlib.util
import json
import math
import shutil
import sys

import matplotlib.image
import numpy as np
import pytest
import torch

import modeling
import optimization
from common import run_folder
from conftest import ROOT
from finetuning import command, evaluation, training
from runs import (DISCRIMINATIVE, NUM_TEST, NUM_TRAIN, SINGLE, call, losses_of, make_bert, predictions_of, read_json,
                  read_metrics, start_together, train_flags, wait)
from runs import weights as weights_of

sys.path.append(str(ROOT / "scripts"))
from flags_table import parser_of  # noqa: E402

MULTITASK, CONVERTER = "run_classifier_multitask", "convert_tf_checkpoint_to_pytorch"
UPDATES = math.ceil(NUM_TRAIN / 8)  # of an epoch
OBSERVED = {  # flag -> file::test, a name alone being one of this file
    "task_name": "test_fine_tuning.py::test_a_file_of_ones_own_is_learnt_and_its_labels_are_stored",
    "data_dir": "test_fine_tuning.py::test_a_file_of_ones_own_is_learnt_and_its_labels_are_stored",
    "label_column": "test_the_columns_of_a_file_of_ones_own",
    "text_columns": "test_the_columns_of_a_file_of_ones_own",
    "text_pair_columns": "test_fine_tuning.py::test_pairs_are_learnt_evaluated_and_predicted_without_their_labels",
    "sep": "test_the_columns_of_a_file_of_ones_own",
    "encoding": "test_tables.py::test_tables_to_predict_may_be_written_in_another_way_than_those_of_training",
    "quoting": "test_tables.py::test_the_columns_of_predictions_are_those_asked_for",
    "unseen_labels": "test_tables.py::test_rows_of_unseen_labels_are_refused_or_left_out",
    "id_column": "test_tables.py::test_the_columns_of_predictions_are_those_asked_for",
    "write_text": "test_tables.py::test_the_columns_of_predictions_are_those_asked_for",
    "keep_html": "test_fine_tuning.py::test_imdb_s_html_is_kept_on_demand_and_the_model_knows",
    "text_pair": "test_fine_tuning.py::test_yahoo_s_title_and_question_are_a_pair_with_the_answer",
    "num_datas": "test_fine_tuning.py::test_num_datas_takes_exactly_so_many",
    "num_test_datas": "test_num_test_datas_takes_exactly_so_many_of_each_class",
    "dev_fraction": "test_fine_tuning.py::test_held_out_data_choose_the_best_and_the_test_set_is_evaluated_once",
    "predict_file": "test_fine_tuning.py::test_predictions_of_lines_of_text",
    "bert_config_file": "test_the_configuration_and_the_vocabulary_are_those_named",
    "vocab_file": "test_the_configuration_and_the_vocabulary_are_those_named",
    "init_checkpoint": "test_fine_tuning.py::test_fine_tuning_goes_on_from_a_saved_folder",
    "do_lower_case": "test_cased_text_has_other_ids",
    "never_split": "test_own_tokens_are_not_split_and_the_model_remembers_them",
    "max_seq_length": "test_what_is_kept_of_a_text",
    "trunc_medium": "test_what_is_kept_of_a_text",
    "max_fractions": "test_no_text_has_more_fractions_than_it_may",
    "layers": "test_layers_above_the_chosen_one_are_not_trained",
    "layer_pooling": "test_each_choice_is_a_run_of_its_own",
    "pooling_type": "test_each_choice_is_a_run_of_its_own",
    "hierarchical": "test_each_choice_is_a_run_of_its_own",
    "classifier": "test_the_classifier_has_the_sizes_asked_for",
    "lstm_hidden_size": "test_the_classifier_has_the_sizes_asked_for",
    "attention_size": "test_the_classifier_has_the_sizes_asked_for",
    "attention_hops": "test_the_classifier_has_the_sizes_asked_for",
    "do_train": "test_fine_tuning.py::test_a_run_writes_what_the_contract_says",
    "do_eval": "test_fine_tuning.py::test_a_run_writes_what_the_contract_says",
    "do_predict": "test_fine_tuning.py::test_predictions_of_lines_of_text",
    "frozen_bert": "test_fine_tuning.py::test_frozen_bert_trains_the_classifier_alone",
    "frozen_layers": "test_methods.py::test_frozen_layers_are_the_lowest_and_the_embeddings",
    "train_batch_size": "test_the_rate_of_each_update",
    "learning_rate": "test_the_rate_of_each_update",
    "num_train_epochs": "test_the_rate_of_each_update",
    "schedule": "test_the_rate_of_each_update",
    "warmup_proportion": "test_the_rate_of_each_update",
    "discr": "test_the_rate_of_each_part",
    "layer_learning_rate": "test_the_rate_of_each_part",
    "layer_learning_rate_decay": "test_the_rate_of_each_part",
    "embeddings_learning_rate": "test_the_rate_of_each_part",
    "weight_decay": "test_weight_decay_draws_matrices_alone_to_zero",
    "clip_grad": "test_what_is_held_to_norm_1",
    "bias_correction": "test_the_first_update_is_as_long_as_bias_correction_makes_it",
    "class_weights": "test_the_weights_of_classes_are_those_of_torch_s_cross_entropy",
    "best_metric": "test_the_best_epoch_is_the_metric_s",
    "patience": "test_fine_tuning.py::test_patience_stops_when_nothing_gets_better",
    "eval_epochs": "test_fine_tuning.py::test_eval_epochs_evaluates_some_epochs_and_trains_as_ever",
    "seed": "test_what_a_seed_draws",
    "task_sampling": "test_a_fixed_plan_has_whole_batches_alone",
    "task_sampling_alpha": "test_the_shares_of_tasks",
    "eval_batch_size": "test_so_many_sequences_are_evaluated_at_a_time",
    "gradient_accumulation_steps": "test_so_many_forward_passes_an_update",
    "fractions_at_once": "test_methods.py::test_fractions_in_parts_are_a_run_s_result_in_one_piece",
    "precision": "test_precision_bf16_computes_in_bfloat16",
    "compile": "test_fine_tuning.py::test_compile_compiles_each_layer_and_keeps_the_names",
    "gradient_checkpointing": "test_checkpointed_layers_are_computed_twice",
    "no_cuda": "test_the_device_is_the_one_asked_for",
    "num_processes": "test_fine_tuning.py::test_num_processes_starts_them",
    "local_rank": "test_the_device_is_the_one_asked_for",
    "rendezvous_timeout": "test_processes.py::test_a_partner_that_never_comes",
    "output_dir": "test_fine_tuning.py::test_a_run_writes_what_the_contract_says",
    "overwrite_output_dir": "test_fine_tuning.py::test_another_run_s_folder_is_refused_unless_it_may_be_overwritten",
    "save_checkpoints_steps": "test_checkpoints_are_written_after_so_many_updates",
    "save_models": "test_fine_tuning.py::test_the_models_asked_for_are_kept_and_the_next_command_names_one",
    "eval_every": "test_learning_curves.py::test_points_lie_where_the_flag_says_also_in_a_part_of_an_epoch",
    "eval_sample": "test_learning_curves.py::test_so_many_examples_are_evaluated_at_a_point",
    "allow_divergence": "test_learning_curves.py::test_a_run_that_diverges_is_a_finished_one_where_it_may",
    "report_to": "test_metrics_go_where_report_to_says",
    "log_steps": "test_a_line_of_the_log_is_the_mean_of_so_many_updates",
    # of the converter
    "tf_checkpoint_path": "test_convert.py::test_the_folder_is_complete_and_loads_here",
    "pytorch_dump_path": "test_convert.py::test_the_folder_is_complete_and_loads_here",
    "reverse": "test_convert.py::test_round_trip_is_bit_equal",
    "leave_out": "test_the_converter_s_vocabulary_and_what_it_leaves_out",
    "labels": "test_checkpoints.py::test_google_s_classifier_predicts_here_and_in_transformers_as_in_tensorflow",
    "verify": "test_convert.py::test_verify_prints_all_four_outputs_and_refuses_a_difference",
    "safetensors": "test_convert.py::test_the_folder_is_complete_and_loads_here",
}
OBSERVED_OF_CONVERTER = {  # where the flag of that name is another one there
    "vocab_file": "test_the_converter_s_vocabulary_and_what_it_leaves_out",
    "bert_config_file": "test_convert.py::test_the_folder_is_complete_and_loads_here"}


def observers():
    """{(script, flag): (test file, test)}"""
    found = {}
    for script in (SINGLE, DISCRIMINATIVE, MULTITASK, CONVERTER):
        table = OBSERVED | (OBSERVED_OF_CONVERTER if script == CONVERTER else {})
        for action in parser_of(script)._actions:
            if action.dest != "help":
                file, _, test = table.get(action.dest, "").rpartition("::")
                found[script, action.dest] = file or "test_flags.py", test
    return found


def test_every_flag_is_observed_by_a_test_that_exists():
    """And no flag is named that there is not."""
    found = observers()
    assert {flag for _, flag in found} == OBSERVED.keys()
    tests = {file: {node.name for node in ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
                    if isinstance(node, ast.FunctionDef)} for file, _ in set(found.values())}
    assert [(flag, test) for flag, (file, test) in found.items() if test not in tests[file]] == []


@pytest.fixture
def train(tiny, tmp_path):
    """A function that fine-tunes for one epoch, with more flags, into a folder of this name. Returns it."""
    def run(*flags, name="run", script=SINGLE):
        call(script, *train_flags(tiny, tmp_path / name), "--num_train_epochs", 1, *flags)
        return tmp_path / name
    return run


# Data

@pytest.fixture
def datasets(spy):
    """The finetuning.data.Datasets of the commands that a test calls."""
    return spy(command, "make_dataset", lambda dataset, *_: dataset)


def test_the_columns_of_a_file_of_ones_own(train, tmp_path, datasets):
    """Every other column, and every other separator, would give other labels or words."""
    rows = "id|right|wrong|a|b\n" + "".join(f"{i}|{'yn'[i % 2]}|{'pqr'[i % 3]}|the|police, the\n" for i in range(9))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(rows)
    folder = train("--task_name", "csv", "--data_dir", tmp_path, "--label_column", "right", "--text_columns", "b", "a",
                   "--sep", "|")
    tokens = (folder / "last" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert [tokens[i] for i in datasets[0].sequences(0)[0]] == ["[CLS]", "police", ",", "the", "the", "[SEP]"]
    assert datasets[0].labels.tolist() == [1, 0] * 4 + [1]
    assert read_json(folder / "last" / "config.json")["id2label"] == {"0": "n", "1": "y"}


@pytest.mark.parametrize("num, count", [(12, 12), (0.5, 18), ("1.0", NUM_TEST)])
def test_num_test_datas_takes_exactly_so_many_of_each_class(train, datasets, num, count):
    """The same ones for every seed."""
    folder = train("--num_test_datas", num, "--seed", 1, 2, "--num_datas", 8)
    for seed in (1, 2):
        assert len(predictions_of(folder / f"seed_{seed}" / "results_ep1.txt")) == count
    train("--num_datas", 8, name="whole")
    shares = [np.bincount(dataset.labels, minlength=4) / len(dataset) for dataset in (datasets[1], datasets[3])]
    assert len(datasets[1]) == count and np.abs(shares[0] - shares[1]).max() <= 1 / count
    train("--num_test_datas", num, "--seed", 2, "--num_datas", 8, name="alone")
    assert np.array_equal(datasets[5].ids, datasets[1].ids)


def test_the_configuration_and_the_vocabulary_are_those_named(train, tiny, tmp_path, datasets):
    """Each is a file of its own, and the folder of the weights has others: it does not matter."""
    first = train(name="first")
    values = read_json(tiny / "bert_config.json") | {"hidden_act": "relu"}
    (tmp_path / "relu.json").write_text(str(values).replace("'", '"'))
    other = train("--bert_config_file", tmp_path / "relu.json", name="other")
    assert losses_of(other) != losses_of(first)
    assert read_json(other / "last" / "config.json")["hidden_act"] == "relu"
    tokens = (tiny / "vocab.txt").read_text(encoding="utf-8").split("\n")
    one, two = (tokens.index(word) for word in ("the", "police"))
    tokens[one], tokens[two] = tokens[two], tokens[one]
    (tmp_path / "swapped.txt").write_text("\n".join(tokens), encoding="utf-8")
    swapped = train("--vocab_file", tmp_path / "swapped.txt", name="swapped")
    exchanged = np.arange(len(tokens))
    exchanged[[one, two]] = two, one
    assert (exchanged[datasets[0].ids] == datasets[-2].ids).all() and {one, two} <= set(datasets[0].ids)
    assert (swapped / "last" / "vocab.txt").read_text(encoding="utf-8") == "\n".join(tokens)


def test_cased_text_has_other_ids(train, datasets):
    """Of words that begin with a capital letter an uncased vocabulary knows nothing."""
    unknown = 1
    train()
    folder = train("--do_lower_case", False, name="cased")
    lowered, cased = datasets[0], datasets[2]
    assert (cased.ids == unknown).sum() > 61 + (lowered.ids == unknown).sum()
    assert read_json(folder / "last" / "tokenizer_config.json")["do_lower_case"] is False


def test_own_tokens_are_not_split_and_the_model_remembers_them(train, tiny, tmp_path, datasets, refused_here):
    """By their content: the file may be gone. In prediction they have the ids that they were trained with."""
    tokens = (tiny / "vocab.txt").read_text(encoding="utf-8").splitlines()
    rows = [len(tokens) - 2, len(tokens) - 1]
    tokens[-2:] = ["[unused0]", "[unused1]"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    (tmp_path / "own.txt").write_text("@User\n[URL]\n")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(f'"{1 + i % 4}","@user","see [URL]"\n' for i in range(8)))
    folder = train("--never_split", tmp_path / "own.txt", "--vocab_file", tmp_path / "vocab.txt", "--data_dir", tmp_path)
    assert datasets[0].ids.tolist().count(rows[0]) == datasets[0].ids.tolist().count(rows[1]) == 8
    assert read_json(folder / "last" / "classifier.json")["never_split"] == ["@User", "[URL]"]
    import transformers
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "last")
    expected = [2, tokens.index("the"), *rows, tokens.index("the"), 3]
    assert theirs("the @USER [url] the")["input_ids"] == expected and theirs("@users")["input_ids"] != [2, rows[0], 3]
    (tmp_path / "own.txt").write_text("[URL]\n@User\n")
    (tmp_path / "texts.txt").write_text("[url] @USER\n")
    flags = ["--do_predict", "--predict_file", tmp_path / "texts.txt", "--init_checkpoint", folder / "last", "--output_dir",
             tmp_path / "predicted"]
    call(SINGLE, *flags)
    assert datasets[-1].sequences(0)[0].tolist()[1:-1] == rows[::-1]
    refused_here(SINGLE, *flags, "--never_split", tmp_path / "own.txt", words="was trained with ['@User', '[URL]']")


@pytest.mark.parametrize("trunc_medium", [-2, -1, 0, 3])
def test_what_is_kept_of_a_text(train, datasets, trunc_medium):
    train("--max_seq_length", 64, "--num_datas", 8, name="whole")
    train("--max_seq_length", 13, "--num_datas", 8, "--trunc_medium", trunc_medium, name="cut")
    whole, cut = (dataset.sequences(0)[0][1:-1] for dataset in (datasets[0], datasets[2]))
    head = {-2: 11, -1: 0, 0: 5, 3: 3}[trunc_medium]
    assert len(whole) > 30 and datasets[2].lengths.max() == 13
    assert cut.tolist() == whole[:head].tolist() + whole[len(whole) - 11 + head:].tolist()


@pytest.mark.parametrize("flags, most", [([], 5), (["--max_fractions", 2], 2)])
def test_no_text_has_more_fractions_than_it_may(train, datasets, flags, most):
    train("--hierarchical", "mean", "--max_seq_length", 12, "--num_datas", 8, *flags)
    fractions = np.diff(datasets[0].document_offsets).max()
    assert fractions == most if flags else fractions >= most


@pytest.fixture(scope="module")
def two_tasks(tiny, tmp_path_factory):
    """A folder of two data sets: ag, the tiny one, and yelp_p, of 14 rows."""
    folder = tmp_path_factory.mktemp("two_tasks")
    shutil.copytree(tiny, folder / "ag")
    (folder / "yelp_p").mkdir()
    for split in ("train", "test"):
        (folder / "yelp_p" / f"{split}.csv").write_text("".join(f'"{1 + i % 2}","police {i}"\n' for i in range(14)))
    return folder


def test_the_shares_of_tasks(train, two_tasks, spy):
    """Of 30 updates: all of the larger task's where its share is near 1; about half; about 61 of 75. A bound is 3
    standard deviations."""
    drawn = spy(modeling.MultiTaskModel, "forward", lambda _, model, batch, task: task if model.training else None)
    for alpha, share in ((20, 1.0), (0, 0.5), (1, NUM_TRAIN / (NUM_TRAIN + 14))):
        drawn.clear()
        train("--task_name", "ag", "yelp_p", "--data_dir", two_tasks, "--task_sampling_alpha", alpha,
              "--num_train_epochs", 3, script=MULTITASK, name=str(alpha))
        updates = [task for task in drawn if task is not None]
        assert len(updates) == 3 * (UPDATES + 2)
        assert abs(updates.count(0) / len(updates) - share) <= 3 * math.sqrt(share * (1 - share) / len(updates)), alpha


def test_a_fixed_plan_has_whole_batches_alone(train, two_tasks, spy):
    """Of 61 and 14 examples in batches of 8, 7 + 1; drawn by size, 8 + 2 that hold the rest, too."""
    drawn = spy(modeling.MultiTaskModel, "forward", lambda _, model, batch, task: (task, len(batch.fractions)))
    train("--task_name", "ag", "yelp_p", "--data_dir", two_tasks, "--task_sampling", "fixed", "--do_eval", False,
          "--save_checkpoints_steps", 1000, "--save_models", "none", script=MULTITASK)
    assert sorted(drawn[:-1]) == [(0, 8)] * 7 + [(1, 8)]  # the last one looks at the model that is saved


# Model

def test_layers_above_the_chosen_one_are_not_trained(train, tiny):
    before = torch.load(tiny / "pytorch_model.bin")

    def trained(folder):
        after = weights_of(folder / "last")
        return {part for part in ("layer.0", "layer.1", "pooler")
                if any(part in name and not torch.equal(value, before[name]) for name, value in after.items()
                       if name.startswith("bert."))}
    assert trained(train(name="pooled")) == {"layer.0", "layer.1", "pooler"}
    assert trained(train("--layers", 1, name="last layer")) == {"layer.0", "layer.1"}
    assert trained(train("--layers", 0, name="lowest layer")) == {"layer.0"}
    assert weights_of(train("--layers", -1, name="all") / "last")["classifier.weight"].shape == (4, 64)


@pytest.mark.parametrize("flag, table, flags", [
    ("--pooling_type", modeling.POOLINGS, ["--layers", 1]),
    ("--layer_pooling", modeling.LAYER_POOLINGS, ["--layers", 0, 1]),
    ("--hierarchical", modeling.FRACTION_POOLINGS, ["--max_seq_length", 12])])
def test_each_choice_is_a_run_of_its_own(train, flag, table, flags):
    assert len({tuple(losses_of(train(*flags, flag, choice, name=choice))) for choice in table}) == len(table) > 2


@pytest.mark.parametrize("flags, shapes", [
    (["--layers", 0, 1, "--layer_pooling", "max"], {"classifier.weight": (4, 32)}),
    (["--hierarchical", "self_attention", "--attention_size", 6],
     {"pool_fractions.w1.weight": (6, 32), "pool_fractions.w2.weight": (1, 6)}),
    (["--classifier", "bilstm_attention", "--lstm_hidden_size", 5, "--attention_size", 7, "--attention_hops", 3],
     {"bilstm_attention.lstm.weight_hh_l0": (20, 5), "bilstm_attention.attention.w1.weight": (7, 10),
      "bilstm_attention.attention.w2.weight": (3, 7), "classifier.weight": (4, 30)}),
    (["--classifier", "bilstm_attention"],  # as Lin et al. 2017
     {"bilstm_attention.lstm.weight_hh_l0": (1200, 300), "bilstm_attention.attention.w1.weight": (350, 600),
      "bilstm_attention.attention.w2.weight": (30, 350)})])
def test_the_classifier_has_the_sizes_asked_for(train, flags, shapes):
    saved = weights_of(train("--num_train_epochs", 0.125, *flags) / "last")
    assert {name: tuple(saved[name].shape) for name in shapes} == shapes


# Recipe

@pytest.fixture
def rates(spy):
    """{name of a group: its rate} at each update."""
    return spy(optimization.BertAdam, "step", lambda _, optimizer: {group["name"]: group["lr"]
                                                                    for group in optimizer.param_groups})


def slanted(updates, warmup=0.1):
    return [optimization.slanted_triangular(update / updates, warmup) for update in range(updates)]


@pytest.mark.parametrize("flags, expected", [
    ([], slanted(UPDATES)),
    (["--learning_rate", 3e-3], [3 * factor for factor in slanted(UPDATES)]),
    (["--train_batch_size", 16], slanted(4)),
    (["--num_train_epochs", 1.5], slanted(12)),
    (["--warmup_proportion", 0.5], [0, 0.25, 0.5, 0.75, 0.5, 0.375, 0.25, 0.125]),
    (["--warmup_proportion", 0], [1 - update / 8 for update in range(8)]),
    (["--warmup_proportion", 0.5, "--schedule", "linear"], [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
    (["--warmup_proportion", 0.5, "--schedule", "constant"], [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])], ids=str)
def test_the_rate_of_each_update(train, rates, flags, expected):
    """Those that the optimizer takes, and those that metrics.jsonl tells."""
    folder = train(*flags)
    assert [rate["all"] for rate in rates] == pytest.approx([1e-3 * factor for factor in expected])
    assert [line["learning_rate"] for line in read_metrics(folder, "train")] == [rate["all"] for rate in rates]


@pytest.mark.parametrize("script, flags, expected", [
    (DISCRIMINATIVE, [], (1e-3, 0.95 * 2e-5, 2e-5, 1e-3)),
    (DISCRIMINATIVE, ["--layer_learning_rate", 4e-3], (1e-3, 0.95 * 4e-3, 4e-3, 1e-3)),
    (DISCRIMINATIVE, ["--layer_learning_rate", 3e-3, 5e-3], (1e-3, 3e-3, 5e-3, 1e-3)),
    (DISCRIMINATIVE, ["--layer_learning_rate_decay", 0.5], (1e-3, 1e-5, 2e-5, 1e-3)),
    (DISCRIMINATIVE, ["--embeddings_learning_rate", "decayed"], (0.95 ** 2 * 2e-5, 0.95 * 2e-5, 2e-5, 1e-3)),
    (DISCRIMINATIVE, ["--embeddings_learning_rate", 7e-4], (7e-4, 0.95 * 2e-5, 2e-5, 1e-3)),
    (DISCRIMINATIVE, ["--discr", False], None), (MULTITASK, [], None),
    (MULTITASK, ["--discr"], (1e-3, 0.95 * 2e-5, 2e-5, 1e-3))], ids=str)
def test_the_rate_of_each_part(train, rates, script, flags, expected):
    train("--warmup_proportion", 0, "--num_train_epochs", 0.125, *flags, script=script)
    names = ("embeddings", "layer 0", "layer 1", "pooler, classifier") if expected else ("all",)
    assert rates == [{f"{name}{more}": pytest.approx(rate) for name, rate in zip(names, expected or (1e-3,))
                      for more in ("", ", biases and LayerNorm")}]


ONE_UPDATE = ["--num_train_epochs", 0.125, "--warmup_proportion", 0]


def test_weight_decay_draws_matrices_alone_to_zero(train, tiny):
    """After one update at rate 1e-3 the matrices differ by 1e-3 x the decay x their initial values."""
    before = torch.load(tiny / "pytorch_model.bin")
    none, usual, strong = (weights_of(train(*ONE_UPDATE, *flags, name=str(flags)) / "last")
                           for flags in (["--weight_decay", 0], [], ["--weight_decay", 10]))
    for name in ("bert.encoder.layer.0.output.dense.weight", "bert.embeddings.word_embeddings.weight"):
        torch.testing.assert_close(none[name] - strong[name], 1e-2 * before[name], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(none[name] - usual[name], 1e-5 * before[name], rtol=0.1, atol=1e-7)
    for name in ("bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.1.output.LayerNorm.weight"):
        assert torch.equal(none[name], strong[name]) and not torch.equal(none[name], before[name])


def test_the_first_update_is_as_long_as_bias_correction_makes_it(train, tiny):
    """Adam's first step is its rate in each weight; without correction 0.1 / sqrt(0.001) times that. The largest steps
    are looked at, because the 1e-6 beside the second moment's root counts where a gradient is small."""
    before = torch.load(tiny / "pytorch_model.bin")["bert.pooler.dense.weight"]
    for flags, length in (([], 1e-4 * 0.1 / math.sqrt(1e-3)), (["--bias_correction"], 1e-4)):
        folder = train(*ONE_UPDATE, "--weight_decay", 0, "--learning_rate", 1e-4, *flags, name=str(flags))
        after = weights_of(folder / "last")
        assert (after["bert.pooler.dense.weight"] - before).abs().max() == pytest.approx(length, rel=1e-2)


@pytest.mark.parametrize("flags, together", [([], False), (["--clip_grad", "global"], True)])
def test_what_is_held_to_norm_1(train, monkeypatch, flags, together):
    """Each tensor's gradient, so that that of the whole may be longer; or the whole."""
    norms, update, step = [], optimization.BertAdam.update, optimization.BertAdam.step

    def noted(optimizer, group, params):
        norms[-1] += [p.grad.norm().item() for p in params]
        update(optimizer, group, params)
    monkeypatch.setattr(optimization.BertAdam, "update", noted)
    monkeypatch.setattr(optimization.BertAdam, "step", lambda optimizer: norms.append([]) or step(optimizer))
    unclipped = [line["gradient_norm"] for line in read_metrics(train("--learning_rate", 1e-2, *flags), "train")]
    assert len(norms) == UPDATES and max(unclipped) > 2
    for whole, each in zip(unclipped, norms):
        assert max(each) < 1 + 1e-5
        assert not together or math.hypot(*each) == pytest.approx(min(whole, 1), rel=1e-4)
    if not together:
        assert max(math.hypot(*each) for each in norms) > 1.5 and max(map(max, norms)) > 1 - 1e-4


def test_what_a_seed_draws(train, spy):
    """The classifier's first weights, the sample, what is held out of it, and the order of its examples."""
    heads = spy(command, "make_model", lambda made, *_: made[0].classifiers[0].classifier.weight.detach().clone())
    orders = spy(training, "plan_epoch", lambda updates, *_: np.concatenate([indices for _, indices in updates]))
    parts = spy(command, "task_run", lambda run, *_: (run.train.ids, run.evaluated.ids))
    flags = ["--num_datas", 40, "--dev_fraction", 0.25, "--seed", 1]
    train(*flags, 2)
    train(*flags, name="again")
    for one, two, again in (heads, orders[::2], *zip(*parts)):  # a plan is made to count its updates, and again for the epoch
        assert np.array_equal(one, again) and not np.array_equal(one, two)


@pytest.mark.parametrize("flag, metric, best", [
    ("--best_metric", "accuracy", 2), ("--best_metric", "loss", 1), ("--metric", "macro_f1", 3)])
def test_the_best_epoch_is_the_metric_s(train, monkeypatch, flag, metric, best):
    measured = iter([{"accuracy": 0.5, "loss": 0.1, "macro_f1": 0.2}, {"accuracy": 0.7, "loss": 0.3, "macro_f1": 0.2},
                     {"accuracy": 0.6, "loss": 0.2, "macro_f1": 0.3}])
    measure = training.measure
    monkeypatch.setattr(training, "measure", lambda *data: measure(*data) | {
        f"eval_{name}": value for name, value in next(measured).items()})
    folder = train(flag, metric, "--num_train_epochs", 3)
    assert read_json(folder / "results.json")["best"]["epoch"] == best


def write_weights(path, content="4\t2\n1\t0.5\n2\t1\n3\t1e-1\n"):
    path.write_text(content)
    return path


@pytest.mark.parametrize("wanted", ["balanced", "file"])
def test_the_weights_of_classes_are_those_of_torch_s_cross_entropy(train, tmp_path, spy, wanted):
    """The loss of each update, in micro-batches too, and balanced is scikit-learn's."""
    outputs = spy(modeling.BertForSequenceClassification, "forward",
                  lambda logits, model, batch: (logits.detach(), batch.labels) if model.training else None)
    path = write_weights(tmp_path / "weights.tsv")
    flags = "--class_weights", wanted if wanted == "balanced" else path, "--num_datas", 40, "--num_train_epochs", 2
    folder = train(*flags)
    outputs = [of_update for of_update in outputs if of_update]
    labels = torch.cat([labels for _, labels in outputs[:5]]).numpy()  # an epoch: the 40 that --num_datas takes
    weights = [0.5, 1, 0.1, 2] if wanted == "file" else len(labels) / (4 * np.bincount(labels))
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights, dtype=torch.float32))
    expected = [loss(*of_update).item() for of_update in outputs]
    assert losses_of(folder) == pytest.approx(expected, rel=1e-5) and len(expected) == 10
    assert losses_of(train(*flags, "--gradient_accumulation_steps", 3, name="parts")) == pytest.approx(expected, rel=1e-4)
    path.rename(tmp_path / "moved.tsv")
    if wanted == "file":  # another path to the same weights is the same run, other weights are another one
        train("--class_weights", tmp_path / "moved.tsv", *flags[2:])
        write_weights(path, "1\t1\n2\t1\n3\t1\n4\t1\n")
        with pytest.raises(SystemExit):
            train("--class_weights", path, *flags[2:])
        assert losses_of(train("--class_weights", path, *flags[2:], name="ones")) == losses_of(train(*flags[2:], name="plain"))


@pytest.mark.parametrize("content, words", [
    ("1\t1\n5\t1\n", "weights.tsv:2: '5\\t1' is not `class TAB weight`"), ("1\t1\n1\t2\n", "weights.tsv:2"),
    ("1\tone\n", ":1:"), ("1 2\n", ":1:"), ("1\t0\n", ":1:"), ("1\tnan\n", ":1:"), ("1\tinf\n", ":1:"),
    ("1\t1\n3\t1\n", "has no line for 2, 4"),
    ("", "is empty")])
def test_wrong_weights_of_classes_are_named(tiny, tmp_path, refused_here, content, words):
    path = write_weights(tmp_path / "weights.tsv", content)
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--class_weights", path, words=words)
    assert not (tmp_path / "run").exists()


def test_weights_of_classes_go_with_training_one_task(tiny, tmp_path, refused_here):
    flags = train_flags(tiny, tmp_path / "run")
    refused_here(SINGLE, *flags, "--do_train=False", "--class_weights", "balanced", words="add --do_train")
    refused_here(MULTITASK, *flags, "--class_weights", write_weights(tmp_path / "weights.tsv"), words="is for one task")


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    """No formula, no character without a picture, and no limit to their number ends a run."""
    for names in (["$\\frac{$", "电影"], [f"class {i}" for i in range(70)], ["a", "b"]):
        evaluation.draw_confusion_matrix(tmp_path / "a.png", names, np.eye(len(names), dtype=int))
        height, width = matplotlib.image.imread(tmp_path / "a.png").shape[:2]
        assert 300 < height == width <= 1500


# Speed

@pytest.fixture
def documents(spy):
    """(whether it is training, documents) of each forward pass of a classifier."""
    return spy(modeling.BertForSequenceClassification, "forward",
               lambda logits, model, batch: (model.training, len(batch.fractions)))


@pytest.mark.parametrize("flags, parts", [([], [8]), (["--gradient_accumulation_steps", 3], [3, 3, 2]),
                                          (["--accumulate_gradients", 2], [4, 4])])
def test_so_many_forward_passes_an_update(train, documents, flags, parts):
    train("--num_train_epochs", 0.375, *flags)
    assert [count for training_, count in documents if training_] == 3 * parts


@pytest.mark.parametrize("size, parts", [(37, [37]), (10, [7, 10, 10, 10])])
def test_so_many_sequences_are_evaluated_at_a_time(train, documents, size, parts):
    train("--num_train_epochs", 0.125, "--eval_batch_size", size)
    evaluated = [count for training_, count in documents if not training_]
    assert evaluated[1:] == parts  # the first one looks at the model that is saved


def test_a_look_at_a_model_takes_no_more_sequences_than_an_evaluation(train, spy):
    looks = spy(modeling.BertForSequenceClassification, "forward",
                lambda logits, model, batch: (model.training, batch.fractions))
    train("--num_train_epochs", 0.125, "--eval_batch_size", 20, "--hierarchical", "mean", "--max_seq_length", 8)
    fractions = next(fractions for training_, fractions in looks if training_)
    looked_at = next(fractions for training_, fractions in looks if not training_)
    assert max(fractions) > 1 and looked_at == fractions[:len(looked_at)]
    assert sum(looked_at) <= 20 < sum(fractions[:len(looked_at) + 1])


def test_precision_bf16_computes_in_bfloat16(train, spy):
    seen = spy(modeling.BertDense, "forward", lambda result, *_: result.dtype)
    plain = losses_of(train(name="plain"))
    assert set(seen) == {torch.float32}
    seen.clear()
    rounded = losses_of(train("--precision", "bf16", name="bf16"))
    assert set(seen) == {torch.bfloat16}
    assert all(ours != theirs for ours, theirs in zip(rounded, plain))


def test_checkpointed_layers_are_computed_twice(train, spy):
    computed = spy(modeling.BertSelfAttention, "forward", lambda _, attention, *rest: attention.training)
    train(name="plain")
    assert computed.count(True) == 2 * UPDATES
    computed.clear()
    train("--gradient_checkpointing", name="checkpointed")
    assert computed.count(True) == 4 * UPDATES


@pytest.mark.parametrize("flags, no_cuda, expected", [
    ([], True, (0, False)), (["--local_rank", 3], False, (3, True)),
    (["--local-rank=2"], False, (2, True)), ([], False, (0, True))])
def test_the_device_is_the_one_asked_for(tiny, tmp_path, monkeypatch, flags, no_cuda, expected):
    """(its number, whether it is a GPU), on a machine with GPUs."""
    seen = []

    def connect(local_rank, use_gpu, timeout):
        seen.append((local_rank, use_gpu))
        sys.exit(7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(command, "connect", connect)
    with pytest.raises(SystemExit, match="7"):
        call(SINGLE, *train_flags(tiny, tmp_path / "run"), f"--no_cuda={no_cuda}", *flags)
    assert seen == [expected]


def test_processes_draw_dropout_of_their_own(tiny, tmp_path, start):
    """All texts are the same, so two processes with one seed would draw the same numbers, to the same state."""
    make_bert(tmp_path, len((tiny / "vocab.txt").read_text().splitlines()), dropout=0.2)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(f'"{1 + i % 4}","The police","The police"\n' for i in range(16)))
    flags = [*train_flags(tiny, tmp_path / "run"), "--bert_config_file", tmp_path / "bert_config.json", "--data_dir",
             tmp_path]
    codes = wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log", {1: ("update", 1, "before", 15)}))
    assert codes == [143, 143], (tmp_path / "log.0").read_text()
    (one, _), (two, _) = torch.load(tmp_path / "run" / "checkpoint.pt")["random_states"]
    assert not torch.equal(one, two)


# Output

@pytest.mark.parametrize("steps, expected", [(3, [3, 6, 8, 8]), (1000, [8, 8])])
def test_checkpoints_are_written_after_so_many_updates(train, spy, steps, expected):
    """And after the last update of an epoch, before and after its evaluation."""
    written = spy(training, "save_checkpoint", lambda _, path, model, optimizer, scheduler, progress, world:
                  progress.global_step)
    train("--save_checkpoints_steps", steps)
    assert written == expected


def test_a_line_of_the_log_is_the_mean_of_so_many_updates(train):
    each, together = (read_metrics(train("--log_steps", steps, name=str(steps)), "train") for steps in (1, 3))
    assert [line["global_step"] for line in each] == list(range(1, 9))
    assert [line["global_step"] for line in together] == [3, 6, 8]
    for line, part in zip(together, (each[:3], each[3:6], each[6:])):
        for name in ("loss", "gradient_norm"):
            assert line[name] == pytest.approx(np.mean([other[name] for other in part]))


WANDB = """
import json, os
def init(**settings):
    class Run:
        def log(self, values, step):
            self.write({"step": step} | values)
        def finish(self):
            self.write("finished")
        def write(self, value):
            with open(os.environ["STAND_IN"], "a") as file:
                file.write(json.dumps(value) + "\\n")
    Run().write({key: settings[key] for key in ("id", "resume", "name")})
    return Run()
"""


@pytest.mark.parametrize("reporters", [["wandb", "tensorboard"], ["wandb"], ["none"]], ids=str)
def test_metrics_go_where_report_to_says(train, tmp_path, monkeypatch, reporters):
    """A stand-in takes down what wandb is told; a run that goes on is the same one there."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "told.jsonl"))
    sys.modules.pop("wandb", None)
    folder = train("--report_to", *reporters, "--num_train_epochs", 0.5)
    assert (folder / "tensorboard").exists() == ("tensorboard" in reporters)
    assert len(read_metrics(folder, "train")) == 4
    if "wandb" not in reporters:
        assert not (tmp_path / "told.jsonl").exists()
        return
    first, *told, last = map(json.loads, (tmp_path / "told.jsonl").read_text().splitlines())
    assert first["name"] == "run" and first["resume"] == "allow" and last == "finished"
    for line, logged in zip(told, read_metrics(folder, "train") + read_metrics(folder, "eval"), strict=True):
        kind, step, _ = logged.pop("kind"), logged.pop("global_step"), logged.pop("epoch")
        assert line == {"step": step} | {f"{kind}/{name}": value for name, value in logged.items()}
    with run_folder.MetricsLog(str(folder), report_to=["wandb"]) as log:
        log.write("eval", 9, {"epoch": 2, "loss": 1.0})
    sys.modules.pop("wandb", None)
    assert json.loads((tmp_path / "told.jsonl").read_text().splitlines()[-3]) == first


def test_a_reporter_that_is_not_installed_is_one_line(tiny, tmp_path, refused_here, monkeypatch):
    """Also where wandb left its folder of the same name."""
    flags = train_flags(tiny, tmp_path / "run")
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.PathFinder.find_spec(
        name, [str(tmp_path)]))
    refused_here(SINGLE, *flags, "--report_to", "wandb", words="--report_to wandb: the package is not installed")
    refused_here(SINGLE, *flags, "--report_to", "none", "wandb", words="none stands alone")
    assert not (tmp_path / "run").exists()


# The converter

def test_the_converter_s_vocabulary_and_what_it_leaves_out(tiny, tmp_path, capsys):
    from pretraining.checkpoints import read_checkpoint, write_checkpoint
    call(CONVERTER, "--reverse", "--pytorch_dump_path", tiny / "pytorch_model.bin", "--bert_config_file",
         tiny / "bert_config.json", "--tf_checkpoint_path", tmp_path / "tf" / "plain.ckpt")
    variables = read_checkpoint(str(tmp_path / "tf" / "plain.ckpt"), "")
    write_checkpoint(str(tmp_path / "tf" / "model.ckpt"), variables | {"output_weights": np.ones((3, 32), np.float32)})
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in range(2000)))
    flags = ["--tf_checkpoint_path", tmp_path / "tf" / "model.ckpt", "--bert_config_file",
             tmp_path / "tf" / "bert_config.json", "--pytorch_dump_path", tmp_path / "torch" / "pytorch_model.bin"]
    with pytest.raises(SystemExit):
        call(CONVERTER, *flags)
    assert "has what this model has not: output_weights" in capsys.readouterr().err
    call(CONVERTER, *flags, "--leave_out", "output_weights", "--vocab_file", tmp_path / "vocab.txt")
    assert "output_weights: left out" in capsys.readouterr().out
    assert (tmp_path / "torch" / "vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    assert not (tmp_path / "torch" / "model.safetensors").exists()
    ours, theirs = (torch.load(folder / "pytorch_model.bin") for folder in (tmp_path / "torch", tiny))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
