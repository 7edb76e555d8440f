"""convert_tf_checkpoint_to_pytorch.py: names, numbers against TensorFlow and transformers, round trips, bad input."""
import json
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import convert_tf_checkpoint_to_pytorch as conversion
from common.command_line import UserError
from common.configuration import BertConfig
from conftest import ROOT
from finetuning import weights
from finetuning.data import pack
from finetuning.weights import load_weights, read_weights
from modeling import BertForPreTraining

CONFIG = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
                    max_position_embeddings=40, hidden_dropout_prob=0.3, initializer_range=0.1)
SCRIPT = "convert_tf_checkpoint_to_pytorch.py"


def random_variables(config=CONFIG, seed=0):
    """{name: array} of a checkpoint in which no tensor is trivial, LayerNorm's and biases included."""
    rng = np.random.default_rng(seed)
    shapes = {name: shape for name, (_, _, shape) in weights.names_and_shapes(config).items()}
    return {name: rng.normal(name.endswith("gamma"), 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, variables, config=CONFIG):
    """A folder as run_pretraining.py leaves it. Returns the checkpoint's prefix."""
    from pretraining.checkpoints import write_checkpoint
    folder.mkdir(parents=True)
    write_checkpoint(str(folder / "model.ckpt-7"), variables)
    config.write(str(folder / "bert_config.json"))
    (folder / "vocab.txt").write_text("".join(f"token{i}\n" for i in range(config.vocab_size)))
    return folder / "model.ckpt-7"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The prefix of a checkpoint with the optimizer's slots and global_step."""
    variables = random_variables()
    slots = {f"{name}/{slot}": np.ones_like(value) for slot in ("adam_m", "adam_v")
             for name, value in variables.items()}
    return write_folder(tmp_path_factory.mktemp("trained") / "run",
                        variables | slots | {"global_step": np.asarray(7, np.int64)})


def call(monkeypatch, *arguments):
    """Runs the script's main() in this process."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
    conversion.main()


def flags(prefix, target, config=None):
    return ("--tf_checkpoint_path", prefix, "--bert_config_file", config or prefix.parent / "bert_config.json",
            "--pytorch_dump_path", target)


@pytest.fixture
def converted(trained, tmp_path, monkeypatch):
    """A folder that the script wrote with the seed's flags, --safetensors and --verify."""
    call(monkeypatch, *flags(trained, tmp_path / "folder" / "pytorch_model.bin"), "--safetensors", "--verify")
    return tmp_path / "folder"


def outputs_of_transformers(model, sequences, segments):
    """What `run_tensorflow` returns, by transformers' BertForPreTraining, one sequence at a time."""
    model.eval()
    rows = [model(input_ids=torch.tensor(ids[None]), token_type_ids=torch.tensor(types[None]),
                  output_hidden_states=True) for ids, types in zip(sequences, segments)]
    return {"hidden states": np.stack([np.concatenate([row.hidden_states[layer][0].detach().numpy() for row in rows])
                                       for layer in range(len(rows[0].hidden_states))]),
            "pooled output": np.concatenate([model.bert.pooler(row.hidden_states[-1]).detach().numpy()
                                             for row in rows]),
            "masked LM": np.concatenate([row.prediction_logits[0].detach().numpy() for row in rows]),
            "next sentence": np.concatenate([row.seq_relationship_logits.detach().numpy() for row in rows])}


def assert_equal_to_1e5(ours, theirs):
    assert ours.keys() == theirs.keys()
    for output in theirs:
        assert ours[output].shape == theirs[output].shape
        assert np.abs(ours[output] - theirs[output]).max() <= 1e-5, output
        assert np.abs(theirs[output]).max() > 0.05, f"{output} is trivial"


def test_pytorch_equals_tensorflow_to_1e5():
    variables = random_variables()
    state, report = weights.tf_to_pytorch(variables, CONFIG)
    batch = weights.verification_batch(CONFIG)
    assert_equal_to_1e5(weights.run_pytorch(state, CONFIG, *batch),
                        weights.run_tensorflow(variables, CONFIG, *batch))
    assert len(report.converted) == len(variables) and not report.left_out and not report.absent_heads


def test_transformers_loads_the_folder_and_equals_tensorflow_to_1e5(converted, trained):
    from transformers import BertForPreTraining as TheirBert, BertModel
    variables = random_variables()
    batch = weights.verification_batch(CONFIG)
    expected = weights.run_tensorflow(variables, CONFIG, *batch)
    for use_safetensors in (True, False):
        model, info = TheirBert.from_pretrained(converted, use_safetensors=use_safetensors, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert_equal_to_1e5(outputs_of_transformers(model, *batch), expected)
    encoder = BertModel.from_pretrained(converted)
    assert torch.equal(encoder.pooler.dense.weight, torch.tensor(variables["bert/pooler/dense/kernel"].T))


def test_the_folder_is_complete_and_loads_here(converted, trained):
    assert sorted(os.listdir(converted)) == ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt"]
    assert (converted / "vocab.txt").read_bytes() == (trained.parent / "vocab.txt").read_bytes()
    written = json.loads((converted / "config.json").read_text())
    assert written["model_type"] == "bert" and written["architectures"] == ["BertForPreTraining"]
    assert BertConfig.from_json_file(str(converted / "config.json")).hidden_size == 32
    for path in (converted / "pytorch_model.bin", converted / "model.safetensors", trained):
        model = BertForPreTraining(CONFIG)
        matched, ignored, missing = load_weights(model, read_weights(str(path), model.bert.config), str(path))
        assert not ignored and set(missing) <= set(weights.TIED), path
        expected = random_variables()["bert/encoder/layer_1/intermediate/dense/kernel"]
        assert torch.equal(model.bert.encoder.layer[1].intermediate.dense.weight, torch.tensor(expected.T))


def test_a_file_named_safetensors_is_one(trained, tmp_path, monkeypatch):
    call(monkeypatch, *flags(trained, tmp_path / "weights.safetensors"))
    found = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    expected = random_variables()["bert/pooler/dense/kernel"]
    assert torch.equal(found["bert.pooler.dense.weight"], torch.tensor(expected.T))


def test_every_name_is_reported(trained, tmp_path, monkeypatch, capsys):
    call(monkeypatch, *flags(trained, tmp_path / "pytorch_model.bin"))
    printed = capsys.readouterr().out
    *lines, optimizer = [line for line in printed.splitlines() if line.startswith("  ")]
    lines = {line.split()[0]: line for line in lines}
    names = weights.read_tf_checkpoint(str(trained))
    assert lines.keys() == {name for name in names if not weights.is_training_state(name, names)}
    assert optimizer == f"  {2 * 62 + 1} variables of the optimizer (adam_m, adam_v, global_step): left out"
    assert lines["bert/pooler/dense/kernel"].endswith("[32, 32] -> bert.pooler.dense.weight (transposed)")
    assert f"62 tensors converted, {2 * 62 + 1} left out" in printed
    assert "next: python run_classifier_single_layer.py" in printed


def test_verify_prints_all_four_outputs_and_refuses_a_difference(trained, tmp_path, monkeypatch, capsys):
    call(monkeypatch, *flags(trained, tmp_path / "good" / "pytorch_model.bin"), "--verify")
    printed = capsys.readouterr().out
    assert all(f"verify: {output}: largest difference" in printed
               for output in ("hidden states", "pooled output", "masked LM", "next sentence"))
    honest = weights.run_pytorch
    for wrong in (1e-3, float("nan")):
        monkeypatch.setattr(weights, "run_pytorch",
                            lambda *a: honest(*a) | {"masked LM": honest(*a)["masked LM"] + wrong})
        with pytest.raises(UserError, match="differ in masked LM"):
            call(monkeypatch, *flags(trained, tmp_path / "wrong" / "pytorch_model.bin"), "--verify")
    assert not (tmp_path / "wrong").exists()


def test_round_trip_is_bit_equal(converted, tmp_path, monkeypatch):
    original = random_variables()
    for source in (converted / "pytorch_model.bin", converted / "model.safetensors", converted):
        target = tmp_path / f"from_{source.name}" / "bert_model.ckpt"
        call(monkeypatch, *flags(target, source, converted / "config.json"), "--reverse")
        back = weights.read_tf_checkpoint(str(target))
        assert back.keys() == original.keys()
        assert all(np.array_equal(back[name].view(np.int32), original[name].view(np.int32)) for name in original)
        assert sorted(os.listdir(target.parent)) == ["bert_config.json", "bert_model.ckpt.data-00000-of-00001",
                                                     "bert_model.ckpt.index", "vocab.txt"]
    call(monkeypatch, *flags(target, tmp_path / "again" / "pytorch_model.bin"))
    first, again = (torch.load(folder / "pytorch_model.bin", weights_only=True)
                    for folder in (converted, tmp_path / "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_reverse_verifies_and_reads_half_precision_and_old_names(tmp_path, monkeypatch, capsys):
    state, _ = weights.tf_to_pytorch(random_variables(), CONFIG)
    old = {name.removeprefix("bert."): value.half() for name, value in state.items() if name.startswith("bert.")}
    old = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): old[name] for name in old}
    old["embeddings.position_ids"] = torch.arange(40)
    torch.save(old, tmp_path / "old.bin")
    CONFIG.write(str(tmp_path / "config.json"))
    call(monkeypatch, *flags(tmp_path / "tf" / "bert_model.ckpt", tmp_path / "old.bin", tmp_path / "config.json"),
         "--reverse", "--verify")
    printed = capsys.readouterr().out
    assert "bert.embeddings.position_ids: left out" in printed and "the masked LM head: absent" in printed
    assert "verify: hidden states" in printed and "verify: masked LM" not in printed
    back = weights.read_tf_checkpoint(str(tmp_path / "tf" / "bert_model.ckpt"))
    assert not any(name.startswith("cls/") for name in back)
    expected = random_variables()["bert/embeddings/LayerNorm/gamma"].astype(np.float16).astype(np.float32)
    assert np.array_equal(back["bert/embeddings/LayerNorm/gamma"], expected)


def test_reverse_verifies_a_bias_that_is_there_as_the_decoder_s_alone(tmp_path, monkeypatch, capsys):
    state, _ = weights.tf_to_pytorch(random_variables(), CONFIG)
    del state["cls.predictions.bias"]
    torch.save(state, tmp_path / "x.bin")
    CONFIG.write(str(tmp_path / "config.json"))
    call(monkeypatch, *flags(tmp_path / "tf" / "x.ckpt", tmp_path / "x.bin", tmp_path / "config.json"), "--reverse", "--verify")
    assert "verify: masked LM" in capsys.readouterr().out
    back = weights.read_tf_checkpoint(str(tmp_path / "tf" / "x.ckpt"))
    assert np.array_equal(back["cls/predictions/output_bias"], random_variables()["cls/predictions/output_bias"])


def test_older_safetensors_do_not_stay_beside_new_weights(converted, trained, monkeypatch):
    """They would be the ones that are read."""
    target, before = converted / "pytorch_model.bin", (converted / "model.safetensors").read_bytes()
    (converted / "model.safetensors").write_bytes(b"old")
    target.unlink()
    with pytest.raises(UserError, match="model.safetensors is there from before, .*: add --safetensors"):
        call(monkeypatch, *flags(trained, target))
    assert not target.exists()
    call(monkeypatch, *flags(trained, target), "--safetensors")
    assert (converted / "model.safetensors").read_bytes() == before and target.exists()


@pytest.mark.parametrize("absent, architecture", [
    ("cls/predictions", "BertForNextSentencePrediction"), ("cls/seq_relationship", "BertForMaskedLM"),
    ("cls/", "BertModel")])
def test_a_checkpoint_without_heads_loads_in_transformers(absent, architecture, tmp_path, monkeypatch, capsys):
    import transformers
    variables = {name: value for name, value in random_variables().items() if not name.startswith(absent)}
    prefix = write_folder(tmp_path / "run", variables)
    call(monkeypatch, *flags(prefix, tmp_path / "run" / "pytorch_model.bin"), "--verify")
    assert "head: absent" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == [architecture]
    _, info = getattr(transformers, architecture).from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(name.startswith("bert.pooler.") for name in info["unexpected_keys"])  # BertForMaskedLM has no pooler


def without(name):
    return lambda variables: {key: value for key, value in variables.items() if key != name}


@pytest.mark.parametrize("change, words", [
    (without("bert/encoder/layer_1/output/dense/bias"), "lacks bert/encoder/layer_1/output/dense/bias"),
    (without("bert/pooler/dense/kernel"), "lacks bert/pooler/dense/kernel"),
    (without("cls/predictions/output_bias"), "lacks cls/predictions/output_bias"),
    (lambda v: v | {"output_weights": np.ones((3, 32))}, "has what this model has not: output_weights"),
    (lambda v: v | {"bert/pooler/dense/bias": np.ones(31)}, r"bert/pooler/dense/bias has the shape \[31\]"),
    (lambda v: v | {"layer/.ATTRIBUTES/VARIABLE_VALUE": np.ones(1)}, "object-based checkpoint")])
def test_other_variables_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        weights.tf_to_pytorch(change(random_variables()), CONFIG)


def test_leave_out_of_a_name_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="the TensorFlow checkpoint has no nothing, which --leave_out names"):
        weights.tf_to_pytorch(random_variables(), CONFIG, leave_out=["nothing"])


@pytest.mark.parametrize("reverse, target, words", [
    (False, "folder", "--pytorch_dump_path: .*folder is a folder, a file name is needed"),
    (False, "file/x.bin", "--pytorch_dump_path: .*file is a file, a folder is needed"),
    (True, "folder", "--tf_checkpoint_path: .*folder is a folder, a file name is needed"),
    (True, "x.ckpt.index", "--tf_checkpoint_path: .*x.ckpt.index is the name of one file of a checkpoint")])
def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, reverse, target, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    target, config = tmp_path / target, tmp_path / "absent.json"
    with pytest.raises(UserError, match=words):
        call(monkeypatch, *(flags(target, "absent.bin", config) if reverse else flags("absent.ckpt", target, config)),
             *(["--reverse"] if reverse else []))


def test_leave_out_drops_a_classifier():
    variables = random_variables() | {"output_weights": np.ones((3, 32)), "output_bias": np.ones(3)}
    _, report = weights.tf_to_pytorch(variables, CONFIG, leave_out=["output_weights", "output_bias"])
    assert report.left_out == ["output_bias", "output_weights"] and len(report.converted) == len(variables) - 2


def test_a_decoder_of_its_own_is_refused():
    state, _ = weights.tf_to_pytorch(random_variables(), CONFIG)
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    with pytest.raises(UserError, match="decoder.weight is not the same as bert.embeddings.word_embeddings.weight"):
        weights.pytorch_to_tf(state, CONFIG)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_configuration_of_another_depth_is_refused(depth, trained):
    import dataclasses
    other = dataclasses.replace(CONFIG, num_hidden_layers=depth)
    with pytest.raises(UserError, match="lacks bert/encoder/layer_3|has not: bert/encoder/layer_2"):
        weights.tf_to_pytorch(weights.read_tf_checkpoint(str(trained)), other)


@pytest.mark.parametrize("case, words", [
    ("no checkpoint", "there is no checkpoint"), ("a file of it", "give the prefix they share"),
    ("cut", "no whole checkpoint"), ("no config", "there is no file"),
    ("other config", "does not fit --bert_config_file"),
    ("other vocabulary", "has 61 tokens, the model's vocab_size is 60")])
def test_bad_input_is_refused_before_anything_is_written(case, words, trained, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(trained.parent, source)
    prefix = source / "model.ckpt-7"
    if case == "no checkpoint":
        prefix = source / "model.ckpt-8"
    elif case == "a file of it":
        prefix = source / "model.ckpt-7.index"
    elif case == "cut":
        data = source / "model.ckpt-7.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:1000])
    elif case == "no config":
        (source / "bert_config.json").unlink()
    elif case == "other config":
        BertConfig(**{**CONFIG.to_dict(), "intermediate_size": 64}).write(str(source / "bert_config.json"))
    else:
        with open(source / "vocab.txt", "a") as file:
            file.write("one more\n")
    with pytest.raises(UserError, match=words):
        call(monkeypatch, *flags(prefix, tmp_path / "target" / "pytorch_model.bin", source / "bert_config.json"))
    assert not (tmp_path / "target").exists()


def write_bytes(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize("write, words", [
    (write_bytes(b""), "is empty"), (write_bytes(b"not a pickle"), "no whole PyTorch checkpoint"),
    (write_bytes(pickle.dumps(pathlib.PurePosixPath("x"), protocol=2)), "no whole PyTorch checkpoint"),
    (lambda path: torch.save([1, 2], path), "a pickle, but no dictionary of tensors"),
    (lambda path: torch.save({"classifier.weight": torch.ones(2)}, path), "has what this model has not|lacks")])
def test_reverse_refuses_a_pickle_that_is_no_checkpoint(write, words, trained, tmp_path, monkeypatch):
    write(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=words):
        call(monkeypatch, *flags(tmp_path / "tf" / "bert_model.ckpt", tmp_path / "weights.bin",
                                 trained.parent / "bert_config.json"), "--reverse")
    assert not (tmp_path / "tf").exists()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_no_space_left_is_one_line_and_leaves_nothing(direction, converted, trained, tmp_path):
    """The limit on a file's size stands for a full disk: writing fails midway with an error of the system."""
    if direction == "forward":
        arguments = flags(trained, tmp_path / "full" / "pytorch_model.bin")
    else:
        arguments = (*flags(tmp_path / "full" / "bert_model.ckpt", converted, converted / "config.json"), "--reverse")
    done = subprocess.run([sys.executable, conversion.__file__, *map(str, arguments)], capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)),
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode not in (0, None) and "Traceback" not in done.stderr, done.stderr
    assert "error:" in done.stderr.strip().splitlines()[-1], done.stderr
    assert not any("ckpt" in name or "pytorch_model" in name for name in os.listdir(tmp_path / "full"))


def test_an_error_is_one_line_without_tensorflow_s_own(tmp_path):
    """TensorFlow's libraries write about GPUs and builds while they load."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, ROOT / "convert_tf_checkpoint_to_pytorch.py", "--tf_checkpoint_path",
                           tmp_path / "absent", "--bert_config_file", ROOT / "data" / "tiny_bert" / "bert_config.json",
                           "--pytorch_dump_path", tmp_path / "x.bin"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "there is no checkpoint" in done.stderr


def test_wrong_flags_are_refused_without_tensorflow(refused, trained):
    refused(SCRIPT, *flags(trained, "x.bin"), "--reverse", "--safetensors", words="leave one out")
    refused(SCRIPT, "--tf_checkpoint_path", trained, words="the following arguments are required")


def test_googles_checkpoint_converts_and_equals_tensorflow_to_1e5(shared, tmp_path, monkeypatch):
    from transformers import BertForPreTraining as TheirBert
    folder = shared / "goldens" / "pretraining"
    config = BertConfig.from_json_file(str(folder / "bert_config.json"))
    call(monkeypatch, *flags(folder / "pretrain_init.ckpt", tmp_path / "pytorch_model.bin",
                             folder / "bert_config.json"), "--verify")
    variables = weights.read_tf_checkpoint(str(folder / "pretrain_init.ckpt"))
    batch = weights.verification_batch(config)
    expected = weights.run_tensorflow(variables, config, *batch)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert_equal_to_1e5(weights.run_pytorch(state, config, *batch), expected)
    assert_equal_to_1e5(outputs_of_transformers(TheirBert.from_pretrained(tmp_path), *batch), expected)


FASTNLP_PROGRAM = """
import sys, torch
from fastNLP import Vocabulary
from fastNLP.embeddings import BertEmbedding
words = sys.argv[3].split()
vocabulary = Vocabulary()
vocabulary.add_word_lst(words)
embedding = BertEmbedding(vocabulary, model_dir_or_name=sys.argv[1], layers="0,1,2,3", pool_method="first",
                          include_cls_sep=True, pooled_cls=False, requires_grad=False)
embedding.eval()
with torch.no_grad():
    torch.save(embedding(torch.tensor([[vocabulary.to_index(word) for word in words]])), sys.argv[2])
"""


def test_fastnlps_bert_embedding_gives_the_same_hidden_states(converted, tmp_path):
    """fastNLP needs an environment of its own (README); FASTNLP_PYTHON is the Python of one."""
    python = os.environ.get("FASTNLP_PYTHON")
    if not python:
        pytest.skip("FASTNLP_PYTHON does not name the Python of an environment with fastNLP 0.7.0")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list("abcdefghij")
    tokens = special + letters + [f"word{letter}" for letter in letters]
    tokens += [f"x{i}" for i in range(CONFIG.vocab_size - len(tokens))]
    (converted / "vocab.txt").write_text("".join(token + "\n" for token in tokens))
    words = ["worda", "wordc", "b", "wordj", "wordc"]
    subprocess.run([python, "-c", FASTNLP_PROGRAM, converted, tmp_path / "out.pt", " ".join(words)], check=True)
    model = BertForPreTraining(CONFIG).eval()
    load_weights(model, read_weights(str(converted), model.bert.config), str(converted))
    ids = np.array([tokens.index(token) for token in ["[CLS]", *words, "[SEP]"]])
    with torch.no_grad():
        ours = torch.cat(model(pack([ids]))[0], dim=-1)
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)[0]
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1e-5
