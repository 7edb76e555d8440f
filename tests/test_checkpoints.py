"""Checkpoints as they are published: what a model says it is, vocabularies, case, optimizers, classifiers, names on the Hub."""
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import threading

import numpy as np
import pytest
import safetensors.torch
import torch

import modeling
import runs
from common.command_line import UserError
from common.configuration import OTHER_MODELS, PLAIN, BertConfig
from common.files import digest
from common.hub import find_on_hub
from common.names import is_training_state
from common.vocabulary import choose_case, find_vocab, read_fitting_vocab, read_vocab, write_tokenizer
from conftest import ROOT
from finetuning import weights
from runs import SINGLE, call, read_json
from tokenization import FullTokenizer

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "max_position_embeddings": 40}
CONVERTER = "convert_tf_checkpoint_to_pytorch"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_config(folder, **more):
    (folder / "config.json").write_text(json.dumps(SIZES | more))
    return folder / "config.json"


def write_vocab(folder, tokens, name="vocab.txt"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return str(folder / name)


def all_variables(config):
    return {name: np.zeros(shape, np.float32) for name, (_, _, shape) in weights.names_and_shapes(config).items()}


# A model says what it is

@pytest.mark.parametrize("values, words", [
    ({"model_type": "roberta"}, "is a model of the kind roberta, which computes other things than BERT; take bert-base-cased"),
    ({"model_type": "distilbert"}, "is a model of the kind distilbert, .* take bert-base-uncased, from which it was distilled"),
    ({"model_type": "electra"}, "is a model of the kind electra"), ({"model_type": "albert"}, "is a model of the kind albert"),
    ({"model_type": "xlm-roberta"}, "take bert-base-multilingual-cased"),
    ({"model_type": "deberta-v2"}, "bert-large-cased"),
    ({"model_type": "gpt2"}, "is a model of the kind gpt2, .* take a BERT, such as"),
    ({"model_type": "modernbert"}, "bert-base-cased"),
    # files that are older than model_type, or of Google's own code
    ({"architectures": ["RobertaForMaskedLM"]}, "is a model of the kind roberta"),
    ({"architectures": ["TFDistilBertModel"]}, "is a model of the kind distilbert"),
    ({"architectures": ["XLNetLMHeadModel"]}, "of the kind xlnet"),
    ({"num_hidden_groups": 1, "embedding_size": 16}, "is a model of the kind albert"),
    ({"n_heads": 2, "dim": 32}, "is a model of the kind distilbert"),
    # a BERT that computes something else
    ({"model_type": "bert", "position_embedding_type": "relative_key"},
     "position_embedding_type is 'relative_key', which is not"),
    ({"is_decoder": True}, "is_decoder is True"), ({"chunk_size_feed_forward": 8}, "chunk_size_feed_forward is 8"),
    ({"add_cross_attention": True}, "add_cross_attention is True"), ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
    ({"embedding_size": 16}, "embedding_size is 16, which is not implemented; BERT has 32"),
    ({"pooler_type": "mean"}, "pooler_type is 'mean'"), ({"directionality": "left"}, "directionality is 'left'"),
    ({"use_task_id": True}, "use_task_id is True")])
def test_a_model_that_is_no_plain_bert_is_refused_by_its_name(tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        BertConfig.from_json_file(write_config(tmp_path, **values))


@pytest.mark.parametrize("values", [
    {}, {"model_type": "bert"}, {"architectures": ["BertForMaskedLM"]}, {"architectures": ["FlaxBertModel"]}, PLAIN,
    dict.fromkeys(PLAIN), {"embedding_size": 32, "architectures": None}, {"architectures": ["MyBertClassifier"]},
    {"pooler_fc_size": 768, "pooler_num_attention_heads": 12, "directionality": "bidi"}], ids=str)  # Google's multilingual
def test_a_plain_bert_is_taken(tmp_path, values):
    assert BertConfig.from_json_file(write_config(tmp_path, **values)).hidden_size == 32


@pytest.mark.parametrize("kind, prefix", [
    ("Roberta", "roberta."), ("DistilBert", "distilbert."), ("Electra", "electra."),
    ("Albert", "albert."), ("Deberta", "deberta."),
    ("DistilBert", ""), ("Albert", "")])
def test_weights_of_another_model_are_refused_by_its_name_whatever_the_configuration(tmp_path, kind, prefix):
    """As transformers names them, of the bare model ('') or below a head."""
    import transformers
    sizes = {"DistilBert": {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}}.get(kind, SIZES)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    state = {prefix + name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"is a model of the kind {kind.lower()}"):
        weights.read_weights(str(tmp_path / "model.safetensors"), BertConfig(**SIZES))


def test_weights_beside_a_configuration_of_another_model_are_refused(tmp_path):
    """RobertaModel's bare names are BERT's to the letter: only its config.json says what they are."""
    import transformers
    transformers.RobertaModel(transformers.RobertaConfig(**SIZES, type_vocab_size=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="config.json is a model of the kind roberta"):
        weights.read_weights(str(tmp_path), BertConfig(**SIZES))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_quantized_weights_are_refused(tmp_path, kind):
    state = modeling.BertForPreTraining(BertConfig(**SIZES)).state_dict()
    state["bert.pooler.dense.weight"] = state["bert.pooler.dense.weight"].to(kind)
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(UserError, match="bert.pooler.dense.weight is of whole numbers .*quantized"):
        weights.read_weights(str(tmp_path / "x.bin"), BertConfig(**SIZES))


@pytest.mark.parametrize("name", ["albert", "ernie", "longformer"])
def test_tensorflow_variables_of_another_model_are_refused_in_steps_3_and_4(name):
    from pretraining.checkpoints import fitting_values
    other = {"albert": "bert/encoder/transformer/group_0/inner_group_0/attention_1/self/query/kernel",
             "ernie": "bert/embeddings/task_type_embeddings", "longformer": "longformer/embeddings/word_embeddings"}[name]
    config = BertConfig(**SIZES)
    variables = all_variables(config)
    for check in (lambda values: fitting_values(config, values, "here"), lambda values: weights.tf_to_pytorch(values, config)):
        check(variables)
        with pytest.raises(UserError, match=f"is a model of the kind {name}"):
            check(variables | {other: np.zeros(1)})
    assert name in OTHER_MODELS


# What is written is ours

FOREIGN = {"problem_type": "multi_label_classification", "dtype": "float16", "torch_dtype": "bfloat16", "num_labels": 7,
           "_num_labels": 7, "finetuning_task": "mnli",
           "architectures": ["BertForMaskedLM"], "id2label": {"0": "no", "1": "yes"},
           "label2id": {"no": 0, "yes": 1}, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
           "classifier_dropout": 0.5, "torchscript": True, "output_attentions": True, "output_hidden_states": True,
           "return_dict": False, "use_return_dict": False, "tie_word_embeddings": False, "attn_implementation": "eager",
           "_name_or_path": "elsewhere", "transformers_version": "4.6.0", "auto_map": {"AutoModel": "remote--code.Model"},
           "task_specific_params": {"x": 1}, "label_names": ["a"], "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def fine_tuned(tiny, tmp_path_factory):
    """A function that fine-tunes a BERT of which the configuration has these keys too: the folder of its last model."""
    def train(more, *flags):
        folder = tmp_path_factory.mktemp("start")
        (folder / "config.json").write_text(json.dumps(read_json(tiny / "bert_config.json") | {"model_type": "bert"} | more))
        shutil.copy(tiny / "pytorch_model.bin", folder)
        shutil.copy(tiny / "vocab.txt", folder)
        texts = [line.split(",", 1)[1].strip('"\n') for line in (tiny / "test.csv").read_text(encoding="utf-8").splitlines()]
        (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        call(SINGLE, "--task_name", "ag", "--data_dir", tiny, "--do_train", "--do_predict",
             "--predict_file", folder / "texts.txt",
             "--init_checkpoint", folder, "--max_seq_length", 64, "--train_batch_size", 8, "--learning_rate", 1e-3, "--no_cuda",
             "--num_train_epochs", 1, "--output_dir", folder / "out", "--save_models", "last", *flags)
        return folder / "out"
    return train


@pytest.mark.parametrize("more", [{}, FOREIGN, {"pad_token_id": 0, "problem_type": "regression"}],
                         ids=["none", "all", "regression"])
def test_transformers_pipeline_gives_our_probabilities_whatever_the_start_s_configuration_says(fine_tuned, more):
    from transformers import pipeline
    folder = fine_tuned(more)
    written = read_json(folder / "last" / "config.json")
    assert not (FOREIGN.keys() - {"architectures", "id2label", "label2id"}) & written.keys()
    header, *rows = [line.split("\t") for line in (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()]
    texts = (folder.parent / "texts.txt").read_text(encoding="utf-8").splitlines()
    classify = pipeline("text-classification", str(folder / "last"), device="cpu")
    answers = classify(texts, top_k=None, truncation=True)
    assert len(answers) == len(rows) == runs.NUM_TEST
    for row, answer in zip(rows, answers):
        theirs = {entry["label"]: entry["score"] for entry in answer}
        assert sum(theirs.values()) == pytest.approx(1, abs=1e-5)
        assert [theirs[label] for label in header[1:]] == pytest.approx([float(value) for value in row[1:]], abs=1e-5)


# Vocabularies

def test_fewer_tokens_than_embeddings_are_taken_and_said_more_are_refused(tmp_path):
    path = write_vocab(tmp_path, [*SPECIAL, *(f"t{i}" for i in range(95))])
    assert read_fitting_vocab(path, BertConfig(vocab_size=100)) == []
    for size, kind in ((104, "note"), (108, "note"), (300, "WARNING")):  # padded to a multiple of 8; of another model
        line, = read_fitting_vocab(path, BertConfig(vocab_size=size))
        assert line.startswith(kind)
        assert f"has 100 tokens, the model {size} embeddings: the last {size - 100} stay unused" in line
    with pytest.raises(UserError, match="has 100 tokens, the model's vocab_size is 99"):
        read_fitting_vocab(path, BertConfig(vocab_size=99))


@pytest.mark.parametrize("ends", ["", "\n", "\n\n\n", "\r\n\r\n", " \n \n"])
def test_empty_lines_at_the_end_are_no_tokens(tmp_path, ends):
    (tmp_path / "vocab.txt").write_bytes(("\n".join([*SPECIAL, "a", "", "b"]) + ends).encode())
    vocab, notes = read_vocab(str(tmp_path / "vocab.txt"))
    assert vocab == {**{token: i for i, token in enumerate(SPECIAL)}, "a": 5, "": 6, "b": 7} and notes == []


def test_a_token_that_occurs_twice_is_named_with_its_lines(tmp_path):
    vocab, notes = read_vocab(write_vocab(tmp_path, [*SPECIAL, "a", "b", "a", "c", "b", "a"]))
    assert vocab["a"] == 10 and vocab["b"] == 9 and vocab["c"] == 8
    assert len(notes) == 1 and "a (lines 6 and 8), b (lines 7 and 10), a (lines 8 and 11) twice" in notes[0]


TEXTS = ["Hello, World! ünïcode 中文 text", "a\tb", "", "ABC " * 3]


@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_json_of_transformers_is_read_and_ours_is_read_by_it(tmp_path, lower):
    import transformers
    shutil.copy(ROOT / "data" / "tiny_bert" / "vocab.txt", tmp_path)
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lower)
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "vocab.txt").exists()
    path = find_vocab(None, [str(tmp_path / "theirs")])
    ours = FullTokenizer.fitting(path, None)
    assert ours.vocab == FullTokenizer(str(tmp_path / "vocab.txt")).vocab and ours.do_lower_case is lower
    assert [ours.tokenize(text) for text in TEXTS] == [theirs.tokenize(text) for text in TEXTS]
    (tmp_path / "ours").mkdir()
    write_tokenizer(path, tmp_path / "ours", lower, 32)
    assert (tmp_path / "ours" / "vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    for file in (None, "vocab.txt", "tokenizer.json"):  # each alone, and both
        folder = shutil.copytree(tmp_path / "ours", tmp_path / f"without {file}")
        (folder / (file or "none")).unlink(missing_ok=True)
        again = transformers.AutoTokenizer.from_pretrained(folder)
        for pair in ((TEXTS[0],), (TEXTS[0], TEXTS[3])):
            assert again(*pair)["input_ids"] == theirs(*pair)["input_ids"]
            assert again(*pair)["token_type_ids"] == theirs(*pair)["token_type_ids"]
        assert again.model_max_length == 32


@pytest.mark.parametrize("change, words", [
    (lambda v: v["model"].update(type="BPE", merges=[]), "is a tokenizer of the kind BPE"),
    (lambda v: v["model"].update(type="Unigram", vocab=[["a", 0.0]]), "of the kind Unigram"),
    (lambda v: v["model"].update(continuing_subword_prefix="@@"), "with ## before the later pieces"),
    (lambda v: v["model"]["vocab"].update(x="1"), "where int is needed"), (lambda v: v.pop("model"), "has no model"),
    (lambda v: v["model"]["vocab"].pop("[CLS]"), r"has no line \[CLS\]"),
    (lambda v: v.update(added_tokens=["a"]), "added_tokens")])
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path, change, words):
    values = {"model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(SPECIAL)}}}
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words):
        FullTokenizer(str(tmp_path / "tokenizer.json"))


def test_tokens_that_were_added_keep_their_ids_and_a_gap_stays_one(tmp_path):
    values = {"model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(SPECIAL)}},
              "added_tokens": [{"id": 7, "content": "corona", "special": False}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    write_tokenizer(str(tmp_path / "tokenizer.json"), tmp_path, True)
    tokenizer = FullTokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.vocab["corona"] == 7 and tokenizer.convert_tokens_to_ids(tokenizer.tokenize("Corona")) == [7]
    with pytest.raises(UserError, match="has 8 tokens, the model's vocab_size is 7"):
        FullTokenizer.fitting(str(tmp_path / "vocab.txt"), None, BertConfig(vocab_size=7))


# Case

UNCASED, CASED = [*SPECIAL, "the", "##s", "é", "ℝ", "[unused1]"], [*SPECIAL, "the", "The", "##s"]


@pytest.mark.parametrize("tokens, files, asked, lower, words, warned", [
    (UNCASED, {}, None, True, "lower-cased: none of the 4 tokens", False), (CASED, {}, None, False, "1 of the 3 tokens", False),
    ([*SPECIAL, *"abcdefg", *(f"t{i}" for i in range(1990)), "<S>"], {}, None, True, "1 of the 1,998 tokens", False),
    (CASED, {"tokenizer_config.json": {"do_lower_case": False}}, None, False, "tokenizer_config.json says", False),
    (UNCASED, {"tokenizer_config.json": {"do_lower_case": True}}, None, True, "tokenizer_config.json says", False),
    (UNCASED, {"tokenizer_config.json": {"do_lower_case": False}}, None, False, "tokenizer_config.json says", True),
    (CASED, {"tokenizer.json": {"normalizer": {"lowercase": False}}}, None, False, "tokenizer.json says", False),
    (CASED, {"tokenizer.json": {"normalizer": {"lowercase": True}}, "tokenizer_config.json": {"do_lower_case": False}}, None,
     False, "tokenizer_config.json says", False),
    (UNCASED, {"tokenizer_config.json": {}}, None, True, "none of the 4", False),
    (UNCASED, {"tokenizer_config.json": {"do_lower_case": False}}, True, True, "as --do_lower_case says", False),
    (UNCASED, {}, False, False, "as --do_lower_case says", True), (CASED, {}, True, True, "as --do_lower_case says", True)])
def test_the_case_is_what_the_folder_says_else_what_the_vocabulary_shows(tmp_path, tokens, files, asked, lower, words, warned):
    path = write_vocab(tmp_path, tokens)
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    chosen, notes = choose_case(asked, path, read_vocab(path)[0])
    assert chosen is lower and words in notes[0]
    assert any("WARNING" in note and "cased vocabulary" in note for note in notes) is warned


def test_the_case_of_published_vocabularies(shared):
    for name in ("uncased", "chinese"):
        path = str(shared / "data" / "vocab" / f"bert-base-{name}.vocab.txt")
        assert choose_case(None, path, read_vocab(path)[0])[0] is True


@pytest.mark.parametrize("values", [{"strip_accents": False}, {"tokenize_chinese_chars": False}])
def test_a_normalization_that_is_not_done_here_is_warned_of(tmp_path, values):
    path = write_vocab(tmp_path, UNCASED)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True} | values))
    assert any(f"{next(iter(values))} False, which is not implemented" in note
               for note in choose_case(None, path, read_vocab(path)[0])[1])


def test_without_the_flag_both_steps_lower_case_for_an_uncased_vocabulary(tiny, tmp_path, capsys):
    """Today's [UNK] [UNK] [UNK]: the same command without --do_lower_case is the same run."""
    flags = [flag for flag in runs.train_flags(tiny, tmp_path / "run") if flag != "--do_lower_case"]
    call(SINGLE, *flags, "--num_train_epochs", 0.25, "--do_eval", "False")
    printed = capsys.readouterr().out
    assert "text is lower-cased: none of the 2,995 tokens" in printed and "% [UNK])" in printed and "WARNING" not in printed
    assert read_json(tmp_path / "run" / "last" / "tokenizer_config.json")["do_lower_case"] is True
    call(SINGLE, *flags, "--do_lower_case", "--num_train_epochs", 0.25, "--do_eval", "False")
    assert "this run is finished" in capsys.readouterr().out
    call(SINGLE, *flags, "--do_lower_case", "False", "--num_train_epochs", 0.25, "--do_eval", "False", "--overwrite_output_dir")
    printed = capsys.readouterr().out
    assert "it is an uncased vocabulary" in printed and "of the tokens of train data are [UNK]" in printed
    (tmp_path / "corpus.txt").write_text("The Police Said.\nIt Was Found.\n\nIn The City.\nOf London.\n")
    for more, share in (([], "0."), (["--do_lower_case=False"], "")):
        call("create_pretraining_data", f"--input_file={tmp_path}/corpus.txt", f"--output_file={tmp_path}/records",
             f"--vocab_file={tiny}", "--max_seq_length=16", *more)
        printed = capsys.readouterr().out
        assert ("text is lower-cased" in printed) is (not more) and ("are [UNK], which the model" in printed) is bool(more)


# Optimizer slots

@pytest.mark.parametrize("slots", [
    ("adam_m", "adam_v"), ("BERTAdam", "BERTAdam_1"), ("LAMB", "LAMB_1"), ("Momentum",),
    ("AdamWeightDecayOptimizer", "Adafactor_2"),
    ("shadow/ExponentialMovingAverage",)])
def test_slots_of_any_optimizer_are_left_out_and_counted(slots, capsys):
    config = BertConfig(**SIZES)
    variables = all_variables(config)
    more = {f"{name}/{slot}": np.ones(1) for name in variables for slot in slots} | {"global_step": 1, "loss_scale": 1.0}
    state, report = weights.tf_to_pytorch(variables | more, config)
    assert len(report.converted) == len(variables) and set(report.optimizer) == more.keys() and not report.left_out
    report.print()
    assert f"{len(more)} variables of the optimizer (" in capsys.readouterr().out
    assert not any(is_training_state(name, variables) for name in variables)


def test_leave_out_takes_patterns():
    config = BertConfig(**SIZES)
    variables = all_variables(config)
    more = {"cls/squad/output_weights": np.ones((2, 32)), "cls/squad/output_bias": np.ones(2)}
    with pytest.raises(UserError, match="has what this model has not: cls/squad/output_bias and 1 more"):
        weights.tf_to_pytorch(variables | more, config)
    report = weights.tf_to_pytorch(variables | more, config, ["cls/squad/*"])[1]
    assert report.left_out == sorted(more)
    assert weights.tf_to_pytorch(variables | more, config, ["cls/*"])[1].absent_heads == ("masked LM", "next sentence")
    with pytest.raises(UserError, match=r"has no cls/x\*, which --leave_out names"):
        weights.tf_to_pytorch(variables | more, config, ["cls/x*"])


def test_a_head_of_another_task_is_no_obstacle_to_fine_tuning(tiny, tmp_path, capsys):
    """Steps 3 and 5 take the encoder of a checkpoint that has one; the log names what is not used."""
    from pretraining.checkpoints import fitting_values, write_checkpoint
    config = BertConfig.from_json_file(tiny / "bert_config.json")
    values = tf_values(tiny, tmp_path) | {"cls/squad/output_bias": np.ones(2), "cls/squad/output_weights": np.ones((2, 32))}
    assert "cls/squad/output_bias" not in fitting_values(config, values, "")
    write_checkpoint(str(tmp_path / "squad.ckpt"), values)
    call(SINGLE, *runs.train_flags(tiny, tmp_path / "run"), "--init_checkpoint", tmp_path / "squad.ckpt", "--num_train_epochs",
         0.25, "--do_eval", "False")
    assert "cls/squad/output_bias, cls/squad/output_weights" in capsys.readouterr().out


def tf_values(tiny, tmp_path):
    """The tiny BERT's variables in TensorFlow."""
    from pretraining.checkpoints import read_checkpoint
    call(CONVERTER, "--reverse", "--pytorch_dump_path", tiny / "pytorch_model.bin", "--bert_config_file",
         tiny / "bert_config.json", "--tf_checkpoint_path", tmp_path / "tf" / "plain.ckpt")
    return read_checkpoint(str(tmp_path / "tf" / "plain.ckpt"), "")


# Google's fine-tuned classifiers

@pytest.mark.parametrize("classes, flags, labels", [
    (3, [], ["0", "1", "2"]), (2, ["--labels", "bad", "good"], ["bad", "good"])])
def test_google_s_classifier_predicts_here_and_in_transformers_as_in_tensorflow(
        tiny, tmp_path, capsys, monkeypatch, classes, flags, labels):
    import transformers

    from pretraining.checkpoints import write_checkpoint
    values = {name: value for name, value in tf_values(tiny, tmp_path).items() if name.startswith("bert/")}
    rng = np.random.default_rng(0)
    values |= {"output_weights": rng.normal(0, 1, (classes, 32)).astype(np.float32),
               "output_bias": rng.normal(0, 1, classes).astype(np.float32)}
    slots = {f"{name}/{slot}": np.ones(1, np.float32) for name in values for slot in ("adam_m", "adam_v")}
    write_checkpoint(str(tmp_path / "model.ckpt-1"), values | slots)
    folder = tmp_path / "classifier"
    (tmp_path / "here").mkdir()
    convert = [CONVERTER, "--tf_checkpoint_path", tmp_path / "model.ckpt-1", "--bert_config_file", tiny / "bert_config.json",
               "--vocab_file", tiny / "vocab.txt", "--pytorch_dump_path", folder / "pytorch_model.bin"]
    with pytest.raises(SystemExit):
        call(*convert, "--labels", *"abcd")
    assert f"--labels: 4 names, but {tmp_path}/model.ckpt-1 has a classifier of {classes} classes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(*convert, "--labels", *"aa")
    assert "--labels names a class twice" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "here")
    call(*convert[:-1], folder.name + ".bin")  # into the folder where one is
    assert (tmp_path / "here" / "classifier.json").exists()
    capsys.readouterr()
    call(*convert, "--verify", *flags)
    printed = capsys.readouterr().out
    assert "verify: classifier: largest difference" in printed and "--do_predict" in printed
    texts = ["the police said it was found", "in the city of london", "a"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    call(SINGLE, "--do_predict", "--predict_file", tmp_path / "texts.txt", "--init_checkpoint", folder, "--no_cuda",
         "--output_dir", tmp_path / "out")
    header, *rows = [line.split("\t") for line in (tmp_path / "out" / "predictions.tsv").read_text().splitlines()]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    config = BertConfig.from_json_file(tiny / "bert_config.json")
    expected = weights.run_tensorflow(values, config, ids, [np.zeros(len(row), np.int64) for row in ids])["classifier"]
    theirs = np.concatenate([model(torch.tensor(row[None])).logits.detach().numpy() for row in ids])
    assert np.abs(theirs - expected).max() <= 1e-5 and np.abs(expected).max() > 0.1
    ours = np.array([[float(value) for value in row[1:]] for row in rows])
    probabilities = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    assert np.abs(ours - probabilities).max() <= 1e-5 and header[1:] == labels
    call(CONVERTER, "--reverse", "--pytorch_dump_path", folder, "--bert_config_file", folder / "config.json",
         "--tf_checkpoint_path", tmp_path / "again" / "model.ckpt")
    from pretraining.checkpoints import read_checkpoint
    back = read_checkpoint(str(tmp_path / "again" / "model.ckpt"), "")
    assert back.keys() == values.keys() and all(np.array_equal(back[name], values[name]) for name in values)


def test_half_a_classifier_and_one_without_a_vocabulary_are_refused(tiny, tmp_path, capsys):
    from pretraining.checkpoints import write_checkpoint
    config = BertConfig(**SIZES)
    variables = all_variables(config)
    for name, value in (("output_weights", np.ones((3, 32))), ("output_bias", np.ones(3))):
        with pytest.raises(UserError, match=f"has what this model has not: {name}"):
            weights.tf_to_pytorch(variables | {name: value}, config)
    write_checkpoint(str(tmp_path / "x.ckpt"), variables | {"output_weights": np.ones((3, 32), np.float32),
                                                            "output_bias": np.ones(3, np.float32)})
    with pytest.raises(SystemExit):
        call(CONVERTER, "--tf_checkpoint_path", tmp_path / "x.ckpt", "--bert_config_file", write_config(tmp_path),
             "--pytorch_dump_path", tmp_path / "to" / "x.bin")
    assert "add --vocab_file" in capsys.readouterr().err and not (tmp_path / "to").exists()


# Names on the Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """What snapshot_download asks of the Hub, for one model, own/tiny: its commit, its files, each file."""
    folder, asked = None, []

    def do_GET(self):
        Hub.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path in ("/api/models/own/tiny", "/api/models/own/tiny/revision/main", f"/api/models/own/tiny/revision/{COMMIT}"):
            self.answer(json.dumps({"id": "own/tiny", "modelId": "own/tiny", "sha": COMMIT, "siblings": [
                {"rfilename": file.name} for file in Hub.folder.iterdir()]}).encode())
        elif path == f"/api/models/own/tiny/tree/{COMMIT}":
            self.answer(json.dumps([{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest(file.name)}
                                    for file in Hub.folder.iterdir()]).encode())
        elif path.startswith(f"/own/tiny/resolve/{COMMIT}/") and (file := Hub.folder / path.rpartition("/")[2]).exists():
            self.answer(file.read_bytes(), ETag=f'"{digest(file.name)}"')
        else:
            self.send_response(404)
            for name, value in (("X-Error-Code", "RepoNotFound"), ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(tiny, tmp_path):
    """The variables of a command that finds such a Hub; a model of transformers 5 lies there: no vocab.txt."""
    import transformers
    Hub.folder, Hub.asked = tmp_path / "hub", []
    Hub.folder.mkdir()
    shutil.copy(tiny / "bert_config.json", Hub.folder / "config.json")
    transformers.BertTokenizer(str(tiny / "vocab.txt"), do_lower_case=True).save_pretrained(Hub.folder)
    state = torch.load(tiny / "pytorch_model.bin")
    weights.write_safetensors(state, Hub.folder / "model.safetensors")
    (Hub.folder / "training_args.bin").write_bytes(b"not asked for")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
           "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_on_the_hub_is_a_start_pinned_in_run_json_and_then_needs_no_network(script, refused, tiny, tmp_path, hub, file):
    if file == "pytorch_model.bin":
        (Hub.folder / "model.safetensors").unlink()
        shutil.copy(tiny / "pytorch_model.bin", Hub.folder)
    flags = ["--task_name", "ag", "--do_train", "--data_dir", tiny, "--no_cuda", "--max_seq_length", 16,
             "--num_train_epochs", 0.1, "--num_datas", 16, "--save_models", "last"]

    def run(name, folder, **more):
        done = script("run_classifier_single_layer.py", *flags, "--init_checkpoint", name, "--output_dir", tmp_path / folder,
                      env=hub | more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return read_json(tmp_path / folder / "run.json"), done.stdout
    record, printed = run("own/tiny", "run")
    assert record["hub"] == f"own/tiny@{COMMIT}" and f"own/tiny@{COMMIT} from the Hub" in printed
    assert f"resolve/{COMMIT}/{file}" in "".join(Hub.asked) and "training_args" not in "".join(Hub.asked)
    recipe = {key: value for key, value in record["recipe"].items()}
    assert run(f"own/tiny@{COMMIT}", "pinned")[0]["recipe"] == recipe
    assert run("own/tiny", "offline", HF_HUB_OFFLINE="1")[0]["recipe"] == recipe
    assert run("own/tiny", "cut", HF_ENDPOINT="http://127.0.0.1:9")[0]["recipe"] == recipe
    shutil.copytree(Hub.folder, tmp_path / "own" / "tiny")  # an existing path wins
    asked = len(Hub.asked)
    local, _ = run("own/tiny", "local")
    assert local["recipe"] == recipe and "hub" not in local and len(Hub.asked) == asked
    for name, more in (("own/other", {}), ("nobody", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
                       ("nobody", {"HF_HUB_OFFLINE": "1"})):
        refused("run_classifier_single_layer.py", *flags, "--init_checkpoint", name, "--output_dir", tmp_path / "x",
                words=f"there is no file or folder {name}, and no model of that name came from the Hub", env=hub | more,
                cwd=tmp_path.parent)


@pytest.mark.parametrize("path", [
    "./own/tiny", "model.ckpt-8", "pytorch_model.bin", "a/b/c", "uncased/bert_model.ckpt", "", None,
    "~/x", "/tmp/x", "x.safetensors"])
def test_a_slip_in_a_path_is_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert find_on_hub(path, "--init_checkpoint") == (path, None)


def test_steps_2_to_4_take_a_name_on_the_hub(script, tiny, tmp_path, hub):
    """Its vocabulary; its weights, in TensorFlow, as step 4 makes them and as step 3 reads them itself."""
    (tmp_path / "corpus.txt").write_text("the police said .\nit was found .\n\nin the city .\nof london .\n" * 4)

    def run(name, *arguments):
        done = script(name, *arguments, env=hub, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout
    printed = run("create_pretraining_data.py", f"--input_file={tmp_path}/corpus.txt", f"--output_file={tmp_path}/records",
                  "--vocab_file=own/tiny", "--max_seq_length=16", "--max_predictions_per_seq=2")
    assert "tokenizer_config.json says" in printed and "WARNING" not in printed
    printed = run("convert_tf_checkpoint_to_pytorch.py", "--reverse", "--pytorch_dump_path", "own/tiny", "--tf_checkpoint_path",
                  tmp_path / "tf" / "bert_model.ckpt", "--verify")
    assert f"own/tiny@{COMMIT} from the Hub" in printed
    assert (tmp_path / "tf" / "vocab.txt").read_bytes() == (tiny / "vocab.txt").read_bytes()
    evaluated = {}
    for name, start in (("direct", "own/tiny"), ("reversed", tmp_path / "tf" / "bert_model.ckpt")):
        run("run_pretraining.py", f"--input_file={tmp_path}/records", f"--output_dir={tmp_path / name}", "--do_train",
            "--do_eval", f"--init_checkpoint={start}", "--max_seq_length=16", "--max_predictions_per_seq=2",
            "--num_train_steps=2",
            "--num_warmup_steps=0", "--train_batch_size=4")
        evaluated[name] = (tmp_path / name / "eval_results.txt").read_text()
        assert (tmp_path / name / "vocab.txt").read_bytes() == (tiny / "vocab.txt").read_bytes()
        assert read_json(tmp_path / name / "tokenizer_config.json")["do_lower_case"] is True  # the start's word goes along
    assert evaluated["direct"] == evaluated["reversed"]
    assert read_json(tmp_path / "direct" / "run.json")["hub"] == f"own/tiny@{COMMIT}"


@pytest.mark.parametrize("name", ["own/tiny", f"own/tiny@{COMMIT}"])
def test_the_next_command_after_a_vocabulary_from_the_hub_starts_with_its_model(script, tmp_path, hub, name):
    (tmp_path / "corpus.txt").write_text("the police said .\nit was found .\n\nin the city .\nof london .\n" * 4)
    done = script("create_pretraining_data.py", "--input_file=corpus.txt", "--output_file=records", f"--vocab_file={name}",
                  "--max_seq_length=16", "--max_predictions_per_seq=2", env=hub, cwd=tmp_path)
    words = shlex.split(done.stdout.rpartition("next: ")[2])
    assert {f"--init_checkpoint=own/tiny@{COMMIT}", "--output_dir=./tiny_pretrain"} <= set(words), done.stderr
    assert not [word for word in words if word.startswith("--bert_config_file")]


def test_what_step_3_reads_of_a_safetensors_file_is_step_4_s_to_the_bit(tiny, tmp_path):
    from pretraining.checkpoints import fitting_values, read_start
    config = BertConfig.from_json_file(tiny / "bert_config.json")
    state = torch.load(tiny / "pytorch_model.bin")
    weights.write_safetensors(state, tmp_path / "model.safetensors")
    expected = weights.pytorch_to_tf(state, config)[0]
    found = read_start(str(tmp_path), config)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    for kind in (torch.bfloat16, torch.float16):  # which become float32 in both
        half = {name: value.to(kind) for name, value in state.items()}
        weights.write_safetensors(half, tmp_path / "model.safetensors")
        found, expected = fitting_values(config, read_start(str(tmp_path), config), ""), weights.pytorch_to_tf(half, config)[0]
        assert all(found[name].dtype == np.float32 and np.array_equal(found[name], expected[name]) for name in expected)
    for change, words in (({"bert.encoder.layer.2.output.dense.bias": torch.ones(32)}, "has what this model has not"),
                          ({"cls.predictions.decoder.weight": torch.ones(2, 2)}, "is not the same as"),
                          ({"bert.pooler.dense.bias": torch.ones(32).to(torch.int8)}, "of whole numbers")):
        safetensors.torch.save_file({name: value.contiguous().clone() for name, value in state.items()
                                     if "decoder" not in name} | change, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=words):
            read_start(str(tmp_path), config)


def test_step_3_takes_the_decoder_s_bias_where_it_alone_is_there(tiny, tmp_path):
    from pretraining.checkpoints import fitting_values, read_start
    config = BertConfig.from_json_file(tiny / "bert_config.json")
    state = {name: value.clone() for name, value in torch.load(tiny / "pytorch_model.bin").items() if "decoder" not in name}
    bias = torch.arange(config.vocab_size, dtype=torch.float32)
    del state["cls.predictions.bias"]
    safetensors.torch.save_file(state | {"cls.predictions.decoder.bias": bias}, tmp_path / "model.safetensors")
    found = fitting_values(config, read_start(str(tmp_path), config), "")
    assert np.array_equal(found["cls/predictions/output_bias"], bias.numpy())


def test_a_bert_saved_as_a_masked_lm_alone_has_no_pooler_and_is_a_start_all_the_same(tmp_path, capsys):
    """As transformers' BertForMaskedLM is saved: step 3 initialises the pooler, step 4 converts there and back without it,
    step 5 says which layer to take."""
    import transformers

    from pretraining.checkpoints import fitting_values, read_checkpoint, read_start, start_of_run
    config = BertConfig(**SIZES)
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "hf")
    values = fitting_values(config, read_start(str(tmp_path / "hf"), config), "here")
    assert "cls/predictions/transform/dense/kernel" in values and not any("pooler" in name for name in values)
    start = start_of_run(config, 0, None, str(tmp_path / "hf"), True)
    assert {name for name in start.new if name.startswith("bert/")} == {"bert/pooler/dense/bias", "bert/pooler/dense/kernel"}
    call(CONVERTER, "--reverse", "--pytorch_dump_path", tmp_path / "hf", "--tf_checkpoint_path", tmp_path / "tf" / "x.ckpt",
         "--verify")
    back = read_checkpoint(str(tmp_path / "tf" / "x.ckpt"), "")
    assert back.keys() == values.keys() and all(np.array_equal(back[name], values[name]) for name in values)
    call(CONVERTER, "--tf_checkpoint_path", tmp_path / "tf" / "x.ckpt", "--pytorch_dump_path",
         tmp_path / "again" / "pytorch_model.bin", "--verify")
    printed = capsys.readouterr().out
    assert printed.count("verify: masked LM") == 2 and "verify: pooled output" not in printed
    again, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for lacking, check in (("bert/pooler/dense/bias", lambda some: fitting_values(config, some, "here")),
                           ("bert/pooler/dense/kernel", lambda some: weights.tf_to_pytorch(some, config))):
        half = {name: value for name, value in all_variables(config).items() if name != lacking and "seq_rel" not in name}
        with pytest.raises(UserError, match=f"lacks {lacking}"):
            check(half)


def test_your_data_takes_a_name_on_the_hub(hub, interpreter, tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("label,text\na,b\nb,c\n")

    def your_data(bert):
        return subprocess.run(["bash", str(ROOT / "scripts/your_data.sh")], capture_output=True, text=True, timeout=120, env={
            **os.environ, **hub, "VENV": str(interpreter.parent.parent), "DATA": str(tmp_path), "BERT": bert, "DRY_RUN": "1"})
    done = your_data("own/tiny")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"--reverse --pytorch_dump_path \S*/snapshots/{COMMIT} ", done.stdout)
    done = your_data("own/other")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and "own/other" in done.stderr
