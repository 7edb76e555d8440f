"""run_pretraining.py on a tiny BERT: Google's 20 updates, resuming to the bit, whose run it is, replicas, records,
flags."""
import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

import pretraining.records
import run_pretraining
from common import precision
from common.command_line import UserError
from common.configuration import BertConfig
from common.run_folder import RunFolder
from conftest import ROOT
from pretraining import checkpoints, command, devices, training
from pretraining.checkpoints import fitting_values, read_checkpoint, write_checkpoint
from pretraining.modeling_tf import BertForPreTraining, initial_values, variable_shapes
from pretraining.optimization_tf import AdamWeightDecay
from pretraining.packing import pack
from pretraining.records import Records, epoch_order, evaluation_batch, split, training_batch
from runs import read_json, until

sys.path.append(str(ROOT / "scripts"))
from flags_table import parser_of  # noqa: E402

VOCAB, LENGTH, PREDICTIONS = 60, 16, 4
TINY = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EVAL_KEYS = ["global_step", "loss", "masked_lm_accuracy", "masked_lm_loss", "next_sentence_accuracy",
             "next_sentence_loss"]


def example(random, **changes):
    """A serialized record in which something can be learnt: ids count upwards, and so do the masked ones."""
    num_tokens, num_masked = random.integers(8, LENGTH + 1), random.integers(1, PREDICTIONS + 1)
    is_random = int(random.integers(0, 2))
    ids = np.zeros(LENGTH, np.int64)
    ids[:num_tokens] = 5 + random.integers(0, 3) + np.arange(num_tokens)
    ids[num_tokens // 2:num_tokens] += 10 * is_random
    positions, labels = np.zeros(PREDICTIONS, np.int64), np.zeros(PREDICTIONS, np.int64)
    positions[:num_masked] = np.sort(random.choice(num_tokens, num_masked, replace=False))
    labels[:num_masked] = ids[positions[:num_masked]]
    ids[positions[:num_masked]] = 3
    features = {"input_ids": ids, "input_mask": np.arange(LENGTH) < num_tokens,
                "segment_ids": (np.arange(LENGTH) >= num_tokens // 2) & (np.arange(LENGTH) < num_tokens),
                "masked_lm_positions": positions, "masked_lm_ids": labels,
                "masked_lm_weights": (np.arange(PREDICTIONS) < num_masked).astype(np.float32),
                "next_sentence_labels": [is_random]} | changes

    def feature(values):
        if np.asarray(values).dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))

    named = {name: feature(values) for name, values in features.items() if values is not None}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write_records(path, serialized):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized:
            writer.write(record)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two TFRecords (50 and 33 records), held-out.tfrecord (13), two tiny configs, a vocabulary."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("part-0", 50), ("part-1", 33), ("held-out", 13)):
        write_records(folder / f"{name}.tfrecord", [example(random) for _ in range(count)])
    for name, config in (("bert", TINY), ("no_dropout", TINY | NO_DROPOUT)):
        (folder / name).mkdir()
        (folder / name / "bert_config.json").write_text(json.dumps(config))
    (folder / "bert" / "vocab.txt").write_text("".join(f"token{i}\n" for i in range(VOCAB)))
    (folder / "other").mkdir()
    (folder / "other" / "vocab.txt").write_text("".join(f"other{i}\n" for i in range(VOCAB)))
    write_checkpoint(str(folder / "other" / "bert_model.ckpt"), initial_values(BertConfig(**TINY), 3))
    return folder


def flags_of(data, output_dir, *more, steps=12, config="bert"):
    return ["--input_file", f"{data}/part-*.tfrecord", "--output_dir", str(output_dir), "--bert_config_file",
            f"{data}/{config}/bert_config.json", "--do_train", "--max_seq_length", str(LENGTH),
            "--max_predictions_per_seq", str(PREDICTIONS), "--train_batch_size", "8", "--num_train_steps", str(steps),
            "--num_warmup_steps", "3", "--learning_rate", "1e-3", "--save_checkpoints_steps", "4", "--log_steps", "1",
            *map(str, more)]


@pytest.fixture
def pretrain(monkeypatch):
    """Runs the script in this process: pretrain(*flags). TensorFlow's start is not paid for again."""
    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["run_pretraining.py", *map(str, flags)])
        run_pretraining.main()
    return call


def logged(output_dir, key="loss", kind="train"):
    with open(output_dir / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["global_step"]: row[key] for row in rows if row["kind"] == kind}


def same_checkpoint(first, second):
    """Whether two checkpoints hold the same names with the same bits."""
    first, second = read_checkpoint(str(first)), read_checkpoint(str(second))
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.long
# ----------------------------------------------------------------------------------------------------- parity

@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_google_s_20_updates_are_reproduced_to_1e4_at_every_step(shared, gelu):
    """Losses, their two parts, gradient norms, rates; then all weights' and slots' absolute sums."""
    folder = shared / "goldens/pretraining"
    golden = json.loads((folder / f"losses_gelu_{gelu}.json").read_text())
    config = BertConfig.from_json_file(str(folder / "bert_config.json"))
    config.hidden_act = command.GELUS[gelu]
    values = fitting_values(config, read_checkpoint(str(folder / "pretrain_init.ckpt")), "golden")
    model = BertForPreTraining(config, values)
    optimizer = AdamWeightDecay(model.variables, golden["learning_rate"], golden["num_train_steps"],
                                golden["num_warmup_steps"])
    batches = dict(np.load(folder / "batches.npz"))
    batches["example_weights"] = np.ones(batches["input_ids"].shape[:2], np.float32)
    dataset = tf.data.Dataset.from_tensor_slices(batches).map(lambda batch: split(batch, 1, 1)).unbatch().map(pack)
    train_steps = training.make_train_steps(tf.distribute.get_strategy(), model, optimizer)
    rows = train_steps(iter(dataset), tf.constant(20), tf.constant(0.0)).numpy()
    keys = ("loss", "mlm", "nsp", "grad_global_norm_before_clip", "lr")
    expected = np.array([[step[key] for key in keys] for step in golden["losses"]])
    np.testing.assert_allclose(rows[:, :5], expected, rtol=1e-4, atol=1e-12)
    for name, total in golden["final_abs_sums"].items():
        np.testing.assert_allclose(np.abs(model.variables[name].numpy()).sum(dtype=np.float64), total, rtol=1e-4)
    for name, total in golden["final_adam_abs_sums"].items():
        if "/key/bias/" not in name:  # its exact gradient is 0 (softmax is blind to it): what there is, is rounding
            np.testing.assert_allclose(np.abs(optimizer.slots[name].numpy()).sum(dtype=np.float64), total, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ a whole run

@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The folder of a run of 12 steps with dropout that nothing stopped, in the format of the seed's command."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_pretraining.py", *flags_of(data, output_dir)])
        run_pretraining.main()
    return output_dir


def test_a_run_learns_and_writes_what_the_next_steps_expect(data, tmp_path, pretrain, capsys):
    out = tmp_path / "out"
    pretrain(*flags_of(data, out, "--do_eval=True", "--eval_file", data / "held-out.tfrecord", "--log_steps", 20,
                       "--save_checkpoints_steps", 20, "--keep_checkpoint_max", 2, "--learning_rate", "5e-3",
                       steps=120))
    printed = capsys.readouterr().out
    losses = logged(out)
    assert sorted(losses) == [20, 40, 60, 80, 100, 120] and losses[120] < 0.75 * losses[20]
    assert logged(out, "masked_lm_accuracy", "eval")[120] > 0.2  # of 60 tokens; the untrained model has about 0.02
    lines = (out / "eval_results.txt").read_text().splitlines()
    assert [line.split(" = ")[0] for line in lines] == EVAL_KEYS and lines[0] == "global_step = 120"
    assert sorted(path.name for path in out.glob("*.index")) == ["model.ckpt-100.index", "model.ckpt-120.index"]
    state = tf.train.get_checkpoint_state(str(out))
    assert state.model_checkpoint_path == str(out / "model.ckpt-120") and len(state.all_model_checkpoint_paths) == 2
    names = {name: tuple(shape) for name, shape in tf.train.list_variables(str(out / "model.ckpt-120"))}
    shapes = variable_shapes(BertConfig(**TINY))
    slots = {f"{name}/{slot}": shape for name, shape in shapes.items() for slot in ("adam_m", "adam_v")}
    assert names == shapes | slots | {"global_step": ()}
    assert (out / "vocab.txt").read_text() == (data / "bert/vocab.txt").read_text()
    assert json.loads((out / "bert_config.json").read_text()).items() >= TINY.items()
    assert list((out / "tensorboard").glob("events*"))
    for words in ("83 records", "13 records", "bert/pooler/dense/kernel [32, 32] initialised",
                  f"--tf_checkpoint_path {out}/model.ckpt-120"):
        assert words in printed


def test_weights_come_from_a_checkpoint_and_heads_it_lacks_are_new(data, tmp_path, pretrain, capsys):
    values = {name: value for name, value in initial_values(BertConfig(**TINY), 99).items()
              if not name.startswith("cls/")}
    write_checkpoint(str(tmp_path / "bert_model.ckpt"), values)
    out = tmp_path / "out"
    pretrain(*flags_of(data, out, "--init_checkpoint", tmp_path / "bert_model.ckpt", "--gelu", "tanh", "--random_seed",
                       7, steps=1))
    printed = capsys.readouterr().out
    assert "bert/embeddings/word_embeddings [60, 32] *INIT_FROM_CKPT*" in printed
    assert "cls/predictions/output_bias [60] initialised" in printed
    found = read_checkpoint(str(out / "model.ckpt-1"))  # the first update has rate 0
    heads = {name: value for name, value in initial_values(BertConfig(**TINY), 7).items() if name.startswith("cls/")}
    assert all(np.array_equal(found[name], value) for name, value in (values | heads).items())
    assert json.loads((out / "bert_config.json").read_text())["hidden_act"] == "gelu_new"


def contents(folder):
    """path -> content of every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_command_typed_again_changes_nothing_and_prints_its_results(data, undisturbed, tmp_path, pretrain,
                                                                               capsys):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    pretrain(*flags_of(data, out, "--do_eval"))
    printed, before = capsys.readouterr().out, contents(out)
    assert "the run is complete" in printed and "no --eval_file" in printed
    weights = ("model.ckpt-12.index", "model.ckpt-12.data-00000-of-00001")
    assert all((out / name).read_bytes() == (undisturbed / name).read_bytes() for name in weights)
    assert logged(out, "loss", "eval").keys() == {12}
    pretrain(*flags_of(data, out, "--do_eval"))
    assert (out / "eval_results.txt").read_text() in capsys.readouterr().out
    pretrain(*flags_of(data, out, "--do_eval", "--do_train=False"))
    pretrain(*flags_of(data, out, "--do_eval", "--do_train=False", "--bert_config_file", ""))  # is found in the run's folder
    assert contents(out) == before


def test_other_settings_evaluate_again_and_history_stays(data, undisturbed, tmp_path, pretrain, spy):
    """Also by --do_eval alone, and in a folder whose newest checkpoint is older than its log."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    pretrain(*flags_of(data, out, "--do_eval"))
    (out / "model.ckpt-12.index").unlink()
    before = (out / "metrics.jsonl").read_text()
    steps = spy(training, "evaluation_batch", lambda result, num_records, size, step, padded_size: step)
    pretrain(*flags_of(data, out, "--do_eval", "--do_train=False", "--max_eval_steps", 3))
    assert steps == [0, 1, 2]
    after = (out / "metrics.jsonl").read_text()
    assert after.startswith(before) and '"global_step": 8' in after.removeprefix(before).splitlines()[0]
    assert (out / "eval_results.txt").read_text().startswith("global_step = 8\n")


def test_an_evaluation_of_which_a_digit_was_changed_is_made_again(data, undisturbed, tmp_path, pretrain):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    pretrain(*flags_of(data, out, "--do_eval"))
    left = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    loss = json.loads(left["evaluation.json"])["results"]["loss"]
    (out / "evaluation.json").write_bytes(left["evaluation.json"].replace(repr(loss).encode(), repr(loss + 1).encode()))
    assert (out / "evaluation.json").read_bytes() != left["evaluation.json"]
    pretrain(*flags_of(data, out, "--do_eval"))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == left


def test_evaluation_counts_every_record_once_whatever_the_batch(data, undisturbed, tmp_path, pretrain, spy):
    """83 records do not fill the last batch of 8."""
    found, undisturbed = {}, shutil.copytree(undisturbed, tmp_path / "out")
    batches = spy(training, "evaluation_batch", lambda result, num_records, size, step, padded_size: (size, step))
    for batch_size in (8, 83):
        pretrain(*flags_of(data, undisturbed, "--do_train=False", "--do_eval", "--eval_batch_size", batch_size))
        found[batch_size] = dict(line.split(" = ") for line in
                                 (undisturbed / "eval_results.txt").read_text().splitlines())
    assert batches == [(8, step) for step in range(11)] + [(83, 0)]
    for key in EVAL_KEYS[2:]:  # `loss` is a mean of batches' masked means, as Google's
        assert float(found[8][key]) == pytest.approx(float(found[83][key]), rel=1e-5)
    config = BertConfig(**TINY)
    records = Records([f"{data}/part-0.tfrecord", f"{data}/part-1.tfrecord"], config, LENGTH, PREDICTIONS)
    batches = [evaluation_batch(len(records), 8, step, padded_size=9) for step in range(11)]
    assert np.concatenate([numbers[weights == 1] for numbers, weights in batches]).tolist() == list(range(83))


# ----------------------------------------------------------------------------------------------------- stopping

def test_stopped_by_sigterm_it_saves_and_goes_on_to_the_same_bits(data, undisturbed, tmp_path, pretrain, monkeypatch,
                                                                  capsys):
    out, save = tmp_path / "out", training.save_checkpoint
    with monkeypatch.context() as patch:
        def save_then_stop(*arguments):
            prefix = save(*arguments)
            if prefix.endswith("-4"):
                signal.raise_signal(signal.SIGTERM)
            return prefix
        patch.setattr(training, "save_checkpoint", save_then_stop)
        with pytest.raises(SystemExit) as stopped:
            pretrain(*flags_of(data, out, "--log_steps", 3, "--iterations_per_loop", 1))
    assert stopped.value.code == 143
    assert "stopped by SIGTERM after step 5 of 12, all of it saved" in capsys.readouterr().err
    assert (out / "model.ckpt-5.index").exists() and not (out / "model.ckpt-8.index").exists()
    pretrain(*flags_of(data, out, "--log_steps", 3))
    assert same_checkpoint(out / "model.ckpt-12", undisturbed / "model.ckpt-12")
    assert "resumed" in json.loads((out / "run.json").read_text())
    for key in ("loss", "gradient_norm"):  # step 6's line is of 4 to 6, of two processes
        each = list(logged(undisturbed, key).values())
        means = {last: float(np.mean(np.asarray(each[last - 3:last], np.float32))) for last in (3, 6, 9, 12)}
        assert logged(out, key) == means
    assert (out / "model.ckpt-8.window.json").exists() and not (out / "model.ckpt-12.window.json").exists()


def test_each_checkpoint_is_evaluated_and_a_stop_leaves_no_line_out_or_twice(data, undisturbed, tmp_path, pretrain,
                                                                             monkeypatch):
    """And the training is the same. First the run dies before its second checkpoint is whole, then it is stopped after it."""
    flags = ("--do_eval", "--eval_file", data / "held-out.tfrecord", "--eval_checkpoints", "--max_eval_steps", 1)
    whole, out, save = tmp_path / "whole", tmp_path / "out", training.save_checkpoint
    pretrain(*flags_of(data, whole, *flags))
    assert same_checkpoint(whole / "model.ckpt-12", undisturbed / "model.ckpt-12")
    assert sorted(logged(whole, "masked_lm_loss", "eval")) == [4, 8, 12]
    for dies in (True, False):
        def save_or_die(folder, step, *arguments, dies=dies):
            if step == 8 and dies:
                raise KeyboardInterrupt
            prefix = save(folder, step, *arguments)
            if step == 8:
                signal.raise_signal(signal.SIGTERM)
            return prefix
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(training, "save_checkpoint", save_or_die)
            pretrain(*flags_of(data, out, *flags))
    pretrain(*flags_of(data, out, *flags))
    for folder in (whole, out):
        lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
        assert len(lines) == 3
    assert logged(out, "masked_lm_loss", "eval") == logged(whole, "masked_lm_loss", "eval")
    # a checkpoint's line is what --do_eval gives for it
    (whole / "model.ckpt-12.index").unlink()
    pretrain(*flags_of(data, whole, *flags[:3], "--do_train=False", "--max_eval_steps", 1))
    assert json.loads((whole / "evaluation.json").read_text())["results"]["loss"] == logged(whole, "loss", "eval")[8]


def test_the_step_that_evaluates_checkpoints_is_compiled_once(data, tmp_path, pretrain, spy):
    traced = spy(BertForPreTraining, "pretraining_sums", lambda _, model, features, training=False, seed=None: training)
    pretrain(*flags_of(data, tmp_path / "out", "--do_eval", "--eval_file", data / "held-out.tfrecord", "--eval_checkpoints"))
    assert sorted(logged(tmp_path / "out", "loss", "eval")) == [4, 8, 12] and traced.count(False) == 1


DIE_WHILE_WRITING = """
import os, signal, sys
import run_pretraining
replace = os.replace
def deadly_replace(source, target):
    if str(target).endswith("{target}"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = deadly_replace
run_pretraining.main()
"""


@pytest.mark.long
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(data, undisturbed, tmp_path, pretrain):
    """SIGKILL before a checkpoint's index and before the `checkpoint` file get their names, and in mid-training."""
    out = tmp_path / "out"
    for target, last_whole in (("model.ckpt-4.index", []), ("/checkpoint", ["model.ckpt-4.index"])):
        killed = subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING.format(target=target), *flags_of(data, out)],
                                cwd=ROOT, capture_output=True, timeout=120)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert sorted(path.name for path in out.glob("*.index")) == last_whole
    process = subprocess.Popen([sys.executable, "run_pretraining.py", *flags_of(data, out)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "model.ckpt-8.index").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (out / "model.ckpt-8.index").exists()
    pretrain(*flags_of(data, out))
    assert same_checkpoint(out / "model.ckpt-12", undisturbed / "model.ckpt-12")
    assert logged(out) == logged(undisturbed)
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_what_a_killed_or_damaged_run_left_is_gone_after_the_next(data, undisturbed, tmp_path, pretrain, capsys):
    """A damaged newest checkpoint that would crowd out whole ones, half-written files, data without an index, lines of
    the log from after the checkpoint and half a line, a file `checkpoint` that names an older step."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    path = out / "model.ckpt-12.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-1000])
    (out / "model.ckpt-4.index").unlink()
    (out / ".model.ckpt-9.tmp").mkdir()
    for name in (".model.ckpt-9.tmp/model.ckpt-9.index", ".checkpoint.tmp", ".vocab.txt.tmp", ".notes.txt.tmp"):
        (out / name).write_text("half")
    (out / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-4"\n')
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra\n{"kind": "train", "global_st')
    pretrain(*flags_of(data, out, "--keep_checkpoint_max", 1))
    printed = capsys.readouterr().out
    assert "model.ckpt-12 is no whole checkpoint" in printed and "metrics.jsonl:13 is not whole JSON" in printed
    assert same_checkpoint(out / "model.ckpt-12", undisturbed / "model.ckpt-12") and logged(out) == logged(undisturbed)
    assert tf.train.get_checkpoint_state(str(out)).model_checkpoint_path == str(out / "model.ckpt-12")
    wanted = {path.name for path in undisturbed.iterdir() if not path.name.startswith(("model.ckpt-4", "model.ckpt-8"))}
    assert {path.name for path in out.iterdir()} == wanted | {".notes.txt.tmp"}


def test_checkpoint_is_repaired_and_old_ones_go_at_the_start_of_a_finished_run(data, undisturbed, tmp_path, pretrain):
    """The moments between the last model.ckpt, the file `checkpoint` and the removal of old ones; and what any file of the run
    was called while a killed process wrote it."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-8"\n')
    (out / ".model.ckpt-16.tmp").mkdir()
    for name in (".run.json.tmp", ".metrics.jsonl.tmp", ".model.ckpt-16.window.json.tmp", ".mine.tmp"):
        (out / name).write_text("half")
    pretrain(*flags_of(data, out, "--keep_checkpoint_max", 2))
    state = tf.train.get_checkpoint_state(str(out))
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["model.ckpt-8", "model.ckpt-12"]
    assert state.model_checkpoint_path.endswith("-12") and not list(out.glob("model.ckpt-4*"))
    assert [path.name for path in out.glob(".*")] == [".mine.tmp"]


@pytest.mark.parametrize("content", ["", "[1", "[[1, 2]]", '[["a", 1, 1, 1, 1]]', "[" * 5000, "9" * 5000])
def test_a_damaged_window_is_said_and_left_out(tmp_path, capsys, content):
    (tmp_path / "model.ckpt-3.window.json").write_text(content)
    assert checkpoints.read_window(str(tmp_path), 3, 5) == []
    assert "model.ckpt-3.window.json" in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_checkpoint_before(data, tmp_path, pretrain):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"step \d+: the loss is .*model.ckpt-1, is from before it; try a lower"):
        pretrain(*flags_of(data, out, "--learning_rate", "1e30", "--num_warmup_steps", 0,
                           "--save_checkpoints_steps", 1))
    kept = read_checkpoint(str(out / "model.ckpt-1"))
    assert all(np.isfinite(value).all() for value in kept.values())


# ------------------------------------------------------------------------------------------------ whose run it is

@pytest.mark.parametrize("flag, value, words", [
    ("--learning_rate", "2e-3", "--learning_rate was 0.001, now it is 0.002"),
    ("--num_train_steps", "24", "--num_train_steps was 12, now it is 24; name another folder .*with --init_checkpoint"),
    ("--random_seed", "1", "--random_seed was 12345, now it is 1"),
    ("--num_warmup_steps", "2", "--num_warmup_steps was 3, now it is 2"),
    ("--train_batch_size", "4", "--train_batch_size was 8, now it is 4"),
    ("--gelu", "tanh", "configuration hidden_act was gelu, now it is gelu_new"),
    ("--vocab_file", "{data}/other/vocab.txt", "--vocab_file was [0-9a-f]{{16}}, now it is [0-9a-f]{{16}}"),
    ("--init_checkpoint", "{data}/other/bert_model.ckpt", "--init_checkpoint was None, now it is [0-9a-f]{{16}}"),
    ("--input_file", "{data}/part-0.tfrecord", "--input_file was 83 records.*now it is 50 records")])
def test_the_folder_of_another_run_is_refused(data, undisturbed, pretrain, flag, value, words):
    before = contents(undisturbed)
    with pytest.raises(UserError, match=f"holds another run: {words.format()}.*--overwrite_output_dir"):
        pretrain(*flags_of(data, undisturbed, flag, value.format(data=data)))
    assert contents(undisturbed) == before


def test_the_same_files_under_another_path_are_the_same_run(data, undisturbed, tmp_path, pretrain, monkeypatch, capsys):
    moved, out = shutil.copytree(data, tmp_path / "My Drive"), shutil.copytree(undisturbed, tmp_path / "out")
    before = contents(out)
    monkeypatch.chdir(tmp_path)
    pretrain(*flags_of("My Drive", "out"))
    assert contents(out) == before
    assert "--tf_checkpoint_path out/model.ckpt-12" in capsys.readouterr().out
    (moved / "part-0.tfrecord").write_bytes((data / "part-1.tfrecord").read_bytes())
    with pytest.raises(UserError, match="--input_file was 83 records"):
        pretrain(*flags_of("My Drive", "out"))


def test_other_weights_under_the_same_path_are_another_run(data, tmp_path, pretrain):
    prefix, flags = tmp_path / "bert_model.ckpt", flags_of(data, tmp_path / "out", "--init_checkpoint",
                                                           tmp_path / "bert_model.ckpt", steps=1)
    write_checkpoint(str(prefix), initial_values(BertConfig(**TINY), 1))
    pretrain(*flags)
    write_checkpoint(str(prefix), initial_values(BertConfig(**TINY), 2))
    with pytest.raises(UserError, match="holds another run: --init_checkpoint was"):
        pretrain(*flags)


def test_a_resume_with_another_way_to_compute_is_said_and_recorded(data, tmp_path, pretrain, capsys, undisturbed):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "model.ckpt-12.index").unlink()
    pretrain(*flags_of(data, out, "--gradient_accumulation_steps", 2, "--precision", "bf16"))
    assert ("note: --gradient_accumulation_steps was 1, now it is 2, --precision was float32, now it is bf16: from here on"
            in capsys.readouterr().out)
    record = json.loads((out / "run.json").read_text())
    assert record["flags"]["strategy"] == "one with 1 replicas"
    assert record["precision"].startswith("float32 (a CPU with")
    assert [entry["flags"]["gradient_accumulation_steps"] for entry in record["resumed"]] == [2]
    (out / "model.ckpt-12.index").unlink()
    pretrain(*flags_of(data, out, "--gradient_accumulation_steps", 2))
    printed = capsys.readouterr().out
    assert "precision: bf16 (as the run began)" in printed and "note: --" not in printed
    del record["resumed"], record["flags"]["precision"]  # as of before there was the flag
    for bf16, found in ((True, "bf16"), (False, "float32")):
        (out / "run.json").write_text(json.dumps(record | {"flags": record["flags"] | {"bf16": bf16}}))
        pretrain(*flags_of(data, out, "--do_train=False", "--do_eval"))
        assert f"precision: {found} (as the run began)" in capsys.readouterr().out


def test_two_commands_do_not_write_into_one_folder(data, tmp_path, pretrain):
    out = tmp_path / "out"
    with RunFolder(str(out), command.KIND, command.OWNED).lock():
        for flags in (["--do_train"], ["--do_train=False", "--do_eval"], ["--overwrite_output_dir"]):
            with pytest.raises(UserError, match="another command is at work in .*out"):
                pretrain(*flags_of(data, out, *flags))


def test_overwriting_deletes_the_other_run_and_nothing_else(data, undisturbed, tmp_path, pretrain):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    victim = shutil.move(out / "tensorboard", tmp_path / "victim")
    (out / "tensorboard").symlink_to(victim)
    (out / "model.ckpt-7.index").symlink_to(out / "notes.txt")
    held = contents(victim)
    pretrain(*flags_of(data, out, "--learning_rate", "2e-3", "--overwrite_output_dir", steps=4))
    assert [path.name for path in out.glob("*.index")] == ["model.ckpt-4.index"]
    assert contents(victim) == held and not (out / "tensorboard").is_symlink()
    assert (out / "notes.txt").read_text() == "mine" and len(logged(out)) == 4


@pytest.mark.parametrize("flags", [["--overwrite_output_dir"], ["--do_eval", "--do_train=False"]])
@pytest.mark.parametrize("content, words", [
    ('{"kind": "fine-tuning", "recipe": {}, "flags": {}}', "holds a run of another script"),
    ('{"kind": "further pre-training", "flags": {}}', "run.json has no recipe"),
    ('{"kind": "further pre-training", "flags": {}, "recipe": {}, "resumed": [{}]}', "resumed, .0. has no flags"),
    ("", "run.json is not whole JSON")])
def test_a_run_of_another_script_is_not_overwritten(data, tmp_path, pretrain, flags, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=words):
        pretrain(*flags_of(data, tmp_path, *flags))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ------------------------------------------------------------------------------------- speed flags and devices

@pytest.fixture(scope="module")
def one_device(data, tmp_path_factory):
    """The losses of 6 steps without dropout on one device, at once; what every way to split the work must give."""
    output_dir = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", *flags_of(data, output_dir, "--do_eval", steps=6, config="no_dropout")])
        run_pretraining.main()
    return output_dir


def assert_same_run(found, expected, rtol=1e-5):
    for key in ("loss", "masked_lm_loss", "next_sentence_loss", "gradient_norm"):
        steps = logged(expected, key)
        assert len(steps) == 6
        np.testing.assert_allclose([logged(found, key)[step] for step in steps], list(steps.values()), rtol=rtol)
    np.testing.assert_allclose(logged(found, "loss", "eval")[6], logged(expected, "loss", "eval")[6], rtol=rtol)


@pytest.fixture
def seen(monkeypatch, spy):
    """What a run does that its flags for speed should change, by name, filled as it runs."""
    seen = {"micro-batches": spy(BertForPreTraining, "pretraining_sums",
                                    lambda result, model, features, *rest, **named: features["first_tokens"].shape[0]),
            "products": spy(BertForPreTraining, "dense", lambda result, model, x, name: x.dtype.name),
            "compiled": []}
    make_train_steps = training.make_train_steps

    def make_and_watch(*arguments):
        train_steps = make_train_steps(*arguments)

        def call(iterator, count, stop):
            if not seen["compiled"]:
                graph = train_steps.get_concrete_function(iterator, count, stop).graph.as_graph_def()
                seen["compiled"].append(sum(function.attr["_XlaMustCompile"].b for function in graph.library.function))
            return train_steps(iterator, count, stop)
        return call
    monkeypatch.setattr(training, "make_train_steps", make_and_watch)
    return seen


@pytest.mark.parametrize("flags, rtol, observed", [
    (["--gradient_accumulation_steps", 4, "--deterministic=False"], 1e-5, {"micro-batches": {2}}),
    (["--xla"], 1e-5, {"compiled": {2}}),
    (["--precision", "bf16"], 0.02, {"products": {"bfloat16"}})], ids=lambda value: str(value).strip("[]"))
def test_speed_flags_act_and_change_losses_by_rounding_only(data, one_device, tmp_path, pretrain, seen, flags, rtol,
                                                            observed):
    """observed: what was not so without them. --xla compiles two functions, gradients and update."""
    config.disable_op_determinism()
    pretrain(*flags_of(data, tmp_path / "out", "--do_eval", *flags, steps=6, config="no_dropout"))
    expected = {"micro-batches": {8}, "products": {"float32"}, "compiled": {0}} | observed
    found = {name: set(values) for name, values in seen.items()}
    if "--gradient_accumulation_steps" in flags:
        found["micro-batches"].remove(8)  # the evaluation's
    assert found == expected
    assert config.is_op_determinism_enabled() == ("--deterministic=False" not in flags)
    assert_same_run(tmp_path / "out", one_device, rtol)
    if "--precision" in flags:
        assert logged(tmp_path / "out") != logged(one_device)


GPU = "GPUs of compute capability "


@pytest.mark.parametrize("capabilities, flags, hidden_size, found", [
    ([], "avx512_bf16", 128, "bf16 (a CPU with avx512_bf16)"),
    ([], "amx_bf16", 127, "float32 (a CPU with amx_bf16, a model narrower than 128)"),
    ([], None, 768, "float32 (a CPU without bfloat16 instructions)"),
    ([(9, 0), (8, 0)], None, 32, f"bf16 ({GPU}8.0 or more)"), ([(9, 0), (7, 5)], "amx_bf16", 768, f"float32 ({GPU}below 8.0)")])
def test_auto_is_bfloat16_where_the_device_multiplies_it_natively(monkeypatch, capabilities, flags, hidden_size, found):
    monkeypatch.setattr(precision, "bf16_instructions", lambda: flags)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: capabilities)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpu})
    choose = functools.partial(devices.choose_precision, hidden_size=hidden_size, strategy=tf.distribute.get_strategy())
    assert "{} ({})".format(*choose("auto", None)) == found
    assert choose("auto", "float32") == ("float32", "as the run began")
    assert choose("bf16", "float32") == ("bf16", "--precision")
    assert not config.tensor_float_32_execution_enabled()
    if not capabilities or (7, 5) in capabilities:
        with pytest.raises(UserError, match="--precision tf32 is of GPUs of compute capability 8.0 or more"):
            choose("tf32", None)
    else:
        assert choose("tf32", None) == ("tf32", "--precision") and config.tensor_float_32_execution_enabled()


def test_the_loop_gets_what_the_flags_say(data, tmp_path, pretrain, monkeypatch):
    """Without training: with the default of --num_train_steps that would take an hour."""
    given = []
    monkeypatch.setattr(training, "train", lambda *arguments: given.extend(arguments[-4:]))
    pretrain(*flags_of(data, tmp_path / "out", "--random_seed", 7, "--gradient_accumulation_steps", 2, "--xla",
                       "--iterations_per_loop", 6, "--keep_checkpoint_max", 3, "--report_to", "none"))
    assert given == [training.Recipe(8, 1e-3, 12, 3, 7), training.Pace(2, True, 6, 1, 4, 3, ["none"]), str(tmp_path / "out"),
                     None]


RECIPE = {"input_file": "part-0", "init_checkpoint": "large", "gelu": "tanh", "train_batch_size": 5, "random_seed": 7}


def test_the_recipe_s_flags_make_the_first_loss_and_each_rate(data, tmp_path, pretrain):
    """The loss is that of the library's parts put together by hand; with any flag's other value it would be another one."""
    bert = BertConfig(**TINY, **NO_DROPOUT)
    large = initial_values(BertConfig(**TINY, initializer_range=0.3), 3)  # in small weights the two gelus are the same
    write_checkpoint(str(tmp_path / "large"), large)

    def loss_of(input_file, init_checkpoint, gelu, train_batch_size, random_seed):
        config = dataclasses.replace(bert, hidden_act=command.GELUS[gelu])
        values = read_checkpoint(str(tmp_path / init_checkpoint)) if init_checkpoint else initial_values(config, random_seed)
        records = Records(sorted(map(str, data.glob(f"{input_file}.tfrecord"))), config, LENGTH, PREDICTIONS)
        batch_of_step = functools.partial(training_batch, len(records), train_batch_size, seed=random_seed)
        batch, = records.batches(batch_of_step, range(1), train_batch_size)
        sums = BertForPreTraining(config, values).pretraining_sums({name: tensor[0] for name, tensor in batch.items()})
        return float(sums["masked_lm_loss"] / batch["masked_lm_denominator"][0] + sums["next_sentence_loss"] / train_batch_size)

    pretrain(*flags_of(data, tmp_path / "out", "--input_file", data / "part-0.tfrecord", "--init_checkpoint",
                       tmp_path / "large", "--gelu", "tanh", "--train_batch_size", 5, "--random_seed", 7, "--vocab_file",
                       data / "other/vocab.txt", "--learning_rate", "4e-3", "--num_warmup_steps", 2, steps=5,
                       config="no_dropout"))
    loss = logged(tmp_path / "out")[1]
    assert loss == pytest.approx(loss_of(**RECIPE), rel=2e-6)
    for change in ({"input_file": "part-*"}, {"init_checkpoint": None}, {"gelu": "erf"}, {"train_batch_size": 32},
                   {"random_seed": 12345}):
        assert abs(loss_of(**RECIPE | change) - loss) > 1e-5 * loss, change
    rates = [0, 2e-3, *(4e-3 * (1 - step / 5) for step in (2, 3, 4))]
    assert list(logged(tmp_path / "out", "learning_rate").values()) == pytest.approx(rates)
    assert (tmp_path / "out/vocab.txt").read_text() == (data / "other/vocab.txt").read_text()


def test_a_dropout_of_its_own_is_of_the_run_and_leaves_the_configuration_as_it_is(data, tmp_path, pretrain):
    start = "--init_checkpoint", data / "other/bert_model.ckpt"
    pretrain(*flags_of(data, tmp_path / "own", *start, "--dropout", "0"))
    pretrain(*flags_of(data, tmp_path / "without", *start, config="no_dropout"))
    pretrain(*flags_of(data, tmp_path / "with", *start))
    losses = {name: logged(tmp_path / name) for name in ("own", "without", "with")}
    assert losses["own"] == losses["without"] != losses["with"]
    configs = {name: json.loads((tmp_path / name / "bert_config.json").read_text()) for name in losses}
    assert configs["own"] == configs["with"] != configs["without"]
    with pytest.raises(UserError, match="--dropout was 0.0, now it is None"):
        pretrain(*flags_of(data, tmp_path / "own", *start))


@pytest.mark.parametrize("flags", [[], ["--gradient_accumulation_steps", 2, "--xla"]], ids=str)
def test_the_masked_lm_alone_leaves_the_pooler_and_the_other_head_as_they_are(data, tmp_path, pretrain, capsys, flags):
    """And takes records with and without labels of next sentences."""
    random = np.random.default_rng(1)
    kinds = {}, {"next_sentence_labels": None}, {"segment_ids": np.zeros(LENGTH, int)}
    write_records(tmp_path / "mixed.tfrecord", [example(random, **changes) for changes in kinds * 20])

    def flags_to(name, *more):
        return flags_of(data, tmp_path / name, "--input_file", tmp_path / "mixed.tfrecord", "--init_checkpoint",
                        data / "other/bert_model.ckpt", "--next_sentence=False", "--do_eval", *flags, *more)
    pretrain(*flags_to("out", "--learning_rate", "5e-3"))
    found, before = read_checkpoint(str(tmp_path / "out/model.ckpt-12")), read_checkpoint(str(data / "other/bert_model.ckpt"))
    same = {name for name in before if np.array_equal(found[name], before[name])}
    assert same == {name for name in before if name.startswith(("bert/pooler", "cls/seq_relationship"))}
    assert not any(found[f"{name}/{slot}"].any() for name in same for slot in ("adam_m", "adam_v"))
    losses = logged(tmp_path / "out")
    assert losses[12] < losses[1] and losses == logged(tmp_path / "out", "masked_lm_loss")
    lines = (tmp_path / "out/eval_results.txt").read_text().splitlines()
    assert [line.split(" = ")[0] for line in lines] == EVAL_KEYS[:4]
    assert not any("next_sentence" in line for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    capsys.readouterr()
    with pytest.raises(UserError, match="--next_sentence was False, now it is None"):
        pretrain(*flags_to("out", "--learning_rate", "5e-3", "--next_sentence=True", "--input_file", data / "part-0.tfrecord"))
    with pytest.raises(UserError, match="mixed.tfrecord, record 2: it is of the masked LM alone; pass --next_sentence=False"):
        pretrain(*flags_to("pairs", "--next_sentence=True"))
    assert not (tmp_path / "pairs/run.json").exists()


def test_the_loss_of_the_masked_lm_alone_is_that_of_transformers_to_1e5(data, tmp_path, pretrain, monkeypatch):
    """From a corpus of one-sentence documents by steps 2 to 4 to BertForMaskedLM."""
    import torch
    import transformers

    import convert_tf_checkpoint_to_pytorch
    import create_pretraining_data
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    random = np.random.default_rng(2)
    (tmp_path / "corpus.txt").write_text("\n\n".join(
        " ".join(f"w{i}" for i in random.integers(0, VOCAB - 5, random.integers(1, 30))) for _ in range(20)))

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        script.main()
    call(create_pretraining_data, f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt",
         f"--output_file={tmp_path}/mlm.tfrecord", f"--max_seq_length={LENGTH}", f"--max_predictions_per_seq={PREDICTIONS}",
         "--next_sentence=False", "--dupe_factor=2")
    pretrain(*flags_of(data, tmp_path / "out", "--input_file", tmp_path / "mlm.tfrecord", "--next_sentence=False", "--do_eval",
                       "--vocab_file", tmp_path / "vocab.txt"))
    call(convert_tf_checkpoint_to_pytorch, "--tf_checkpoint_path", tmp_path / "out/model.ckpt-12", "--bert_config_file",
         tmp_path / "out/bert_config.json", "--pytorch_dump_path", tmp_path / "torch/pytorch_model.bin")
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "torch").eval()
    total, count = 0.0, 0
    for serialized in tf.data.TFRecordDataset(str(tmp_path / "mlm.tfrecord")).as_numpy_iterator():
        feature = tf.train.Example.FromString(serialized).features.feature
        ids, mask, types, positions, masked = (torch.tensor(feature[name].int64_list.value)[None] for name in (
            "input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids"))
        num = int(sum(feature["masked_lm_weights"].float_list.value))
        labels = torch.full_like(ids, -100)
        labels[0, positions[0, :num]] = masked[0, :num]
        with torch.no_grad():
            total += num * model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels).loss.item()
        count += num
    results = json.loads((tmp_path / "out/evaluation.json").read_text())["results"]
    assert results["masked_lm_loss"] == pytest.approx(total / count, rel=1e-5)


TWO_CPUS = """
import tensorflow as tf, run_pretraining
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
run_pretraining.main()
"""


@pytest.mark.long
def test_two_replicas_give_the_losses_of_one(data, one_device, tmp_path):
    flags = flags_of(data, tmp_path / "out", "--do_eval", "--strategy", "mirrored", "--gradient_accumulation_steps", 2,
                     steps=6, config="no_dropout")
    done = subprocess.run([sys.executable, "-c", TWO_CPUS, *flags], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert "8 sequences an update = 2 replicas x 2 micro-batches x 2" in done.stdout
    assert_same_run(tmp_path / "out", one_device)


def test_replicas_and_micro_batches_draw_dropout_of_their_own(data, tmp_path, pretrain):
    """Of eight copies of one record, in two parts: were the parts' dropout the same, their loss would be that of one."""
    write_records(tmp_path / "copies.tfrecord", [example(np.random.default_rng(5))] * 8)

    def flags(name, batch_size, *more):
        return flags_of(data, tmp_path / name, "--input_file", tmp_path / "copies.tfrecord", "--train_batch_size",
                        batch_size, *more, steps=1)
    pretrain(*flags("one part", 4))
    pretrain(*flags("micro-batches", 8, "--gradient_accumulation_steps", 2))
    done = subprocess.run([sys.executable, "-c", TWO_CPUS, *flags("replicas", 8, "--strategy", "mirrored")], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, micro_batches, replicas = (logged(tmp_path / name)[1] for name in ("one part", "micro-batches", "replicas"))
    assert micro_batches == pytest.approx(replicas, rel=1e-5)
    assert abs(micro_batches - one) > 1e-3 * one


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@contextlib.contextmanager
def two_workers(data, folder, *flags, steps=6):
    """Two processes of one run, begun; they are killed as the block ends."""
    addresses, processes = [f"127.0.0.1:{port}" for port in free_ports(2)], []
    for index in range(2):
        role = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(subprocess.Popen(
            [sys.executable, "run_pretraining.py", *flags_of(data, folder / f"out{index}", *flags, steps=steps,
                                                             config="no_dropout")],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
            | {"TF_CONFIG": json.dumps(role)}))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.long
def test_two_processes_give_the_losses_of_one_and_the_first_writes(data, one_device, tmp_path):
    with two_workers(data, tmp_path, "--do_eval") as processes:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_run(tmp_path / "out0", one_device)
    assert not (tmp_path / "out1").exists()


@pytest.mark.long
def test_two_processes_agree_to_stop_by_sigterm_at_either_and_go_on(data, tmp_path):
    def begun():
        return two_workers(data, tmp_path, "--iterations_per_loop", 2, steps=1_000_000)

    def newest():
        return max((int(path.stem.partition("-")[2]) for path in tmp_path.glob("out0/model.ckpt-*.index")), default=0)
    with begun() as processes:
        until(lambda: newest() or processes[0].poll() is not None)
        processes[1].send_signal(signal.SIGTERM)  # not the one that writes
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, outputs
    saved = int(re.search(r"after step (\d+) of 1000000, all of it saved", outputs[0])[1])
    assert newest() == saved
    with begun() as processes:
        until(lambda: newest() > saved or processes[0].poll() is not None)
    assert newest() > saved and read_json(tmp_path / "out0/run.json")["resumed"][0]["global_step"] == saved


@pytest.mark.long
def test_a_worker_that_is_killed_is_told_in_one_line_by_the_other(data, tmp_path):
    with two_workers(data, tmp_path, steps=1_000_000) as processes:
        until(lambda: list(tmp_path.glob("out0/model.ckpt-*.index")) or processes[0].poll() is not None)
        processes[1].kill()
        output = processes[0].communicate(timeout=120)[0]
    assert processes[0].returncode == 1, output
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(("training:", "step "))]
    assert "error: another worker (worker 1) stopped or cannot be reached" in lines[-1], output
    assert lines[-2].startswith("  cls/seq_relationship/output_bias"), output  # the last of what is told at the start


# ------------------------------------------------------------------------------------------------------ records

def test_every_epoch_meets_every_record_once_in_an_order_of_its_own():
    met = np.concatenate([training_batch(50, 8, step, seed=3)[0] for step in range(25)])
    epochs = met[:200].reshape(4, 50)
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 4
    assert np.abs(np.diff(epochs[0])).mean() > 10  # neighbours in the file are not neighbours in the epoch
    epoch_order.cache_clear()
    assert np.array_equal(training_batch(50, 8, 7, seed=3)[0], met[7 * 8:8 * 8])
    assert not np.array_equal(epoch_order(50, 3, 0), epoch_order(50, 4, 0))


def test_a_corpus_smaller_than_a_batch_is_repeated_within_it():
    numbers, weights = training_batch(3, 8, step=0, seed=0)
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2] and weights.tolist() == [1.0] * 8


def test_records_are_read_by_number_across_files(data):
    paths = [str(data / "part-0.tfrecord"), str(data / "part-1.tfrecord")]
    records = Records(paths, BertConfig(**TINY), LENGTH, PREDICTIONS)
    all_of_them = [record for path in paths for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
    numbers = np.random.default_rng(0).permutation(83)
    assert records.read(numbers) == [all_of_them[number] for number in numbers]
    swapped = Records(paths[::-1], BertConfig(**TINY), LENGTH, PREDICTIONS)
    assert swapped.sha256 != records.sha256


def test_a_batch_is_split_without_loss_and_keeps_its_own_denominators(data):
    records = Records([str(data / "part-0.tfrecord")], BertConfig(**TINY), LENGTH, PREDICTIONS)
    batches = functools.partial(records.batches, functools.partial(training_batch, 50, 8, seed=0), range(2), 8)
    whole = list(batches().as_numpy_iterator())
    parts = list(batches(parts=2, accumulation=2).as_numpy_iterator())
    assert len(whole) == 2 and len(parts) == 4 and parts[0]["input_ids"].shape == (2, 2, LENGTH)
    joined = np.concatenate([part["input_ids"].reshape(-1, LENGTH) for part in parts[:2]])
    np.testing.assert_array_equal(joined, whole[0]["input_ids"][0])
    for part in parts[:2]:
        assert set(part["masked_lm_denominator"]) == {whole[0]["masked_lm_weights"].sum() + np.float32(1e-5)}
        assert set(part["num_examples"]) == {8.0}
    second = list(batches(parts=2, own_parts=slice(1, 2)).as_numpy_iterator())
    np.testing.assert_array_equal(second[0]["input_ids"][0], whole[0]["input_ids"][0, 4:])


WRONG_RECORDS = {
    "another length": ({"input_ids": np.zeros(32, int)}, "input_ids has 32 values, not 16; pass --max_seq_length=32"),
    "other predictions": ({"masked_lm_positions": np.zeros(20, int)},
                          "masked_lm_positions has 20 values, not 4; pass --max_predictions_per_seq=20"),
    "another vocabulary": ({"input_ids": np.full(LENGTH, 30000)},
                           "input_ids holds 30000, the model's vocab_size is 60"),
    "another label": ({"next_sentence_labels": [2]}, "next_sentence_labels holds 2"),
    "a position outside": ({"masked_lm_positions": np.full(PREDICTIONS, 16)}, "masked_lm_positions holds 16"),
    "NaN": ({"masked_lm_weights": np.full(PREDICTIONS, np.nan, np.float32)}, "masked_lm_weights holds nan"),
    "a feature missing": ({"segment_ids": None}, "it has no feature segment_ids"),
    "a feature of another kind": ({"masked_lm_ids": np.ones(PREDICTIONS)}, "it has no feature masked_lm_ids"),
}


@pytest.mark.parametrize("changes, words", WRONG_RECORDS.values(), ids=WRONG_RECORDS)
def test_a_wrong_record_is_named(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(pretraining.records, "EXAMINED_TOGETHER", 8)  # so that good batches precede the wrong record's
    random = np.random.default_rng(0)
    good = [example(random) for _ in range(20)]
    path = write_records(tmp_path / "x.tfrecord", [*good, example(random, **changes), *good])
    with pytest.raises(UserError, match=f"x.tfrecord, record 21: {words}"):
        Records([str(path)], BertConfig(**TINY), LENGTH, PREDICTIONS)


@pytest.mark.parametrize("damage, words", [
    (lambda content: content[:-100], "record 50: cut off"), (lambda content: content[:-1], "record 50: cut off"),
    (lambda content: content[:40], "record 1: cut off"), (lambda content: content + b"tail", "record 51: cut off"),
    (lambda content: b"PK\3\4" + content, "record 1: corrupted"),
    (lambda content: content[:-200] + b"!" + content[-199:], "record 50: corrupted"),
    (lambda content: b"text\n", "record 1: cut off.*if it is a TFRecord file at all")])
def test_a_damaged_file_is_named_with_the_record(data, tmp_path, damage, words):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(damage((data / "part-0.tfrecord").read_bytes()))
    with pytest.raises(UserError, match=f"x.tfrecord, {words}"):
        Records([str(path)], BertConfig(**TINY), LENGTH, PREDICTIONS)


def test_a_record_that_is_no_example_is_named(tmp_path):
    path = write_records(tmp_path / "x.tfrecord", [b"\xff\xff no protobuf"])
    with pytest.raises(UserError, match="record 1: no tf.train.Example"):
        Records([str(path)], BertConfig(**TINY), LENGTH, PREDICTIONS)


# ------------------------------------------------------------------------------------------------ wrong settings

WRONG_FLAGS = {
    "nothing to do": (["--do_train=False"], "pass --do_train, --do_eval or both"),
    "no such input": (["--input_file", "absent.tfrecord"], "--input_file: there is no file absent.tfrecord"),
    "a glob that fits nothing": (["--input_file", "absent*.tfrecord"], "there is no file absent"),
    "an empty input": (["--input_file", os.devnull], "is empty"),
    "too long": (["--max_seq_length", 33], "over the model's 32 positions"),
    "too short": (["--max_seq_length", 4], "leaves no room for text"),
    "TPU flags without TPU": (["--tpu_name", "x"], "--tpu_name needs --use_tpu"),
    "curve of nothing": (["--eval_checkpoints"], "--eval_checkpoints needs --do_train and --do_eval"),
    "two strategies": (["--use_tpu", "--strategy", "one"], "--use_tpu contradicts"),
    "an uneven split": (["--gradient_accumulation_steps", 3], "is no multiple of --gradient_accumulation_steps 3"),
    "no such checkpoint": (["--init_checkpoint", "absent.ckpt"], "there is no checkpoint absent.ckpt"),
    "no such config": (["--bert_config_file", "absent.json"], "there is no file absent.json"),
    "no config to find": (["--bert_config_file", ""], "there is no --init_checkpoint beside which it could lie"),
    "no such vocabulary": (["--vocab_file", "absent.txt"], "there is no file absent.txt"),
    "a TPU that is not there": (["--use_tpu"], "--use_tpu: no TPU can be reached"),
    "a TPU that does not answer": (["--use_tpu", "--master", "grpc://127.0.0.1:1"],
                                     "no TPU can be reached as 'grpc://127.0.0.1:1'"),
}


@pytest.mark.parametrize("flags, words", WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_a_wrong_setting_is_refused_before_anything_is_written(data, tmp_path, pretrain, flags, words):
    with pytest.raises(UserError, match=words):
        pretrain(*flags_of(data, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_size_is_refused(data, tmp_path, pretrain):
    (tmp_path / "vocab.txt").write_text("".join(f"{index}\n" for index in range(61)))
    with pytest.raises(UserError, match="has 61 tokens, the model's vocab_size is 60"):
        pretrain(*flags_of(data, tmp_path / "out", "--vocab_file", tmp_path / "vocab.txt"))


def test_a_config_that_does_not_fit_the_checkpoint_is_refused(data, tmp_path, pretrain):
    write_checkpoint(str(tmp_path / "x.ckpt"), initial_values(BertConfig(**TINY | {"hidden_size": 16}), 0))
    with pytest.raises(UserError, match="does not fit the config"):
        pretrain(*flags_of(data, tmp_path / "out", "--init_checkpoint", tmp_path / "x.ckpt"))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_the_source_s_files_is_refused(data, pretrain):
    with pytest.raises(UserError, match="--output_dir is the folder of --bert_config_file"):
        pretrain(*flags_of(data, data / "bert"))


def test_a_name_on_the_hub_is_no_file_of_the_current_folder(data, tmp_path, pretrain, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_pretraining, "pretrain", lambda args: False)
    pretrain(*flags_of(data, tmp_path, "--init_checkpoint", "bert-base-uncased"))
    (tmp_path / "x.ckpt.index").touch()
    with pytest.raises(UserError, match="--output_dir is the folder of --init_checkpoint"):
        pretrain(*flags_of(data, tmp_path, "--init_checkpoint", "x.ckpt"))


def test_overwriting_does_not_remove_the_vocabulary_that_is_named(data, tmp_path, pretrain):
    out = shutil.copytree(data / "bert", tmp_path / "out")
    before = contents(out)
    with pytest.raises(UserError, match="--output_dir is the folder of --vocab_file"):
        pretrain(*flags_of(data, out, "--vocab_file", out / "vocab.txt", "--overwrite_output_dir", steps=4))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "config.json"])
def test_weights_in_the_folder_that_are_from_before_the_run_are_said(data, tmp_path, pretrain, monkeypatch, capsys, name):
    monkeypatch.setattr(training, "train", lambda *arguments: None)
    pretrain(*flags_of(data, tmp_path / "empty"))
    assert "is from before this run" not in capsys.readouterr().out
    (tmp_path / name).touch()
    pretrain(*flags_of(data, tmp_path))
    assert f"note: {tmp_path / name} is from before this run: convert its checkpoint, too, before" in capsys.readouterr().out


def test_checkpoints_without_run_json_are_not_gone_on_from(data, tmp_path, pretrain):
    write_checkpoint(str(tmp_path / "model.ckpt-3"), {"a": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="holds files of a run without a run.json"):
        pretrain(*flags_of(data, tmp_path))


def test_a_checkpoint_without_slots_is_not_gone_on_from(data, undisturbed, tmp_path, pretrain):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    values = read_checkpoint(str(out / "model.ckpt-12"))
    values = {name: value for name, value in values.items() if "adam_v" not in name}
    write_checkpoint(str(out / "model.ckpt-12"), values)
    with pytest.raises(UserError, match="model.ckpt-12 lacks .*adam_v and cannot be gone on from"):
        pretrain(*flags_of(data, out))


@pytest.mark.parametrize("error, num_workers, words", [
    (tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\nOOM when allocating tensor [9]"), 1,
     "OOM when allocating.*lower --train_batch_size"),
    (tf.errors.UnavailableError(None, None, "Connection reset by peer"), 2, "another worker stopped.*again")])
def test_a_device_s_failure_is_one_line(error, num_workers, words):
    with pytest.raises(UserError, match=words):
        with devices.one_line_errors(num_workers):
            raise error


def test_nothing_to_evaluate_is_refused(data, tmp_path, pretrain):
    with pytest.raises(UserError, match="holds no checkpoint and there is no --init_checkpoint"):
        pretrain(*flags_of(data, tmp_path / "out", "--do_train=False", "--do_eval"))


@pytest.mark.parametrize("text, role", [("", ([], None, True)), ("{}", ([], None, True)),
    ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', (["a:1", "b:1"], "b:1", False)),
    ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
     (["a:1", "b:1"], "b:1", False)),
    ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}',
     (["a:1", "b:1"], "a:1", True))])
def test_the_role_of_a_process_is_read_from_tf_config(monkeypatch, text, role):
    monkeypatch.setenv("TF_CONFIG", text)
    assert devices.cluster_role() == role


def test_a_worker_that_never_comes_ends_the_wait(data, tmp_path, script):
    """The one that is there writes nothing. Without --rendezvous_timeout it would wait longer than the test allows."""
    ports = free_ports(2)
    role = {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]}, "task": {"type": "worker", "index": 0}}
    done = script("run_pretraining.py", *flags_of(data, tmp_path / "out", "--rendezvous_timeout", 1), timeout=60,
                  env={"TF_CONFIG": json.dumps(role)})
    assert done.returncode == 1
    assert f"error: 1 of 2 processes at 127.0.0.1:{ports[1]} did not come within 1 seconds" in done.stderr
    ours = [line for line in done.stderr.splitlines() if "cuInit" not in line]  # TensorFlow's word that there is no GPU
    assert len(ours) == 1 and not list(tmp_path.glob("out/*"))


def test_an_address_of_another_process_is_refused():
    with socket.create_server(("", 0)) as taken:
        own = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"TF_CONFIG: this process cannot listen at {own}: .*in use"):
            devices.wait_for_all(devices.Role([own, "127.0.0.1:1"], own, True), 1)


class FakeTpu:
    """Stands for a TPU of one core: notes what it is asked for."""
    num_replicas_in_sync = 1

    def __init__(self, *asked):
        self.asked = asked


def test_the_tpu_that_the_flags_name_is_asked_for(data, tmp_path, monkeypatch, pretrain):
    asked = []
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", FakeTpu)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda resolver: asked.append(resolver.asked))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda resolver: None)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", FakeTpu)
    flags = ["--use_tpu", "--tpu_name", "mine", "--tpu_zone", "here", "--gcp_project", "ours", "--num_tpu_cores", 4]
    with pytest.raises(UserError, match="--num_tpu_cores is 4, the TPU has 1"):
        pretrain(*flags_of(data, tmp_path / "out", *flags))
    assert asked == [("mine", "here", "ours")]


@pytest.mark.parametrize("text", ["worker 0", "[" * 5000, '{"cluster": 1}', '{"cluster": {"worker": ["a:1"]}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'])
def test_a_broken_tf_config_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        devices.cluster_role()


def test_errors_are_one_line_on_the_shell(refused, data, tmp_path):
    refused("run_pretraining.py", *flags_of(data, tmp_path / "out", "--learning_rate", "fast"),
            words="'fast' is not a number")
    path = tmp_path / "cut.tfrecord"
    path.write_bytes((data / "part-0.tfrecord").read_bytes()[:-100])
    refused("run_pretraining.py", *flags_of(data, tmp_path / "out", "--input_file", path), words="record 50: cut off")
    assert not (tmp_path / "out").exists()


LEARNS, RECIPES = ("test_a_run_learns_and_writes_what_the_next_steps_expect",
                   "test_the_recipe_s_flags_make_the_first_loss_and_each_rate")
SPEED, TPU = "test_speed_flags_act_and_change_losses_by_rounding_only", "test_the_tpu_that_the_flags_name_is_asked_for"
SETTING = "test_a_wrong_setting_is_refused_before_anything_is_written"
OBSERVED = {  # flag -> the test that fails where it does nothing; tests/mutate_flags.py tries that
    **dict.fromkeys(("eval_file", "max_seq_length", "max_predictions_per_seq", "do_train", "do_eval", "output_dir",
                     "save_checkpoints_steps", "keep_checkpoint_max", "log_steps"), LEARNS),
    **dict.fromkeys(("input_file", "gelu", "vocab_file", "train_batch_size", "learning_rate", "num_warmup_steps",
                     "init_checkpoint", "random_seed"), RECIPES),
    "next_sentence": "test_the_masked_lm_alone_leaves_the_pooler_and_the_other_head_as_they_are",
    "dropout": "test_a_dropout_of_its_own_is_of_the_run_and_leaves_the_configuration_as_it_is",
    "report_to": "test_the_loop_gets_what_the_flags_say",
    "num_train_steps": "test_the_loop_gets_what_the_flags_say",  # without training: the default is hours
    **dict.fromkeys(("gradient_accumulation_steps", "precision", "xla", "deterministic"), SPEED),
    **dict.fromkeys(("tpu_name", "tpu_zone", "gcp_project", "num_tpu_cores"), TPU),
    **dict.fromkeys(("bert_config_file", "use_tpu", "master"), SETTING),
    "eval_checkpoints": "test_each_checkpoint_is_evaluated_and_a_stop_leaves_no_line_out_or_twice",
    "max_eval_steps": "test_other_settings_evaluate_again_and_history_stays",
    "eval_batch_size": "test_evaluation_counts_every_record_once_whatever_the_batch",
    "strategy": "test_two_replicas_give_the_losses_of_one",
    "iterations_per_loop": "test_stopped_by_sigterm_it_saves_and_goes_on_to_the_same_bits",
    "rendezvous_timeout": "test_a_worker_that_never_comes_ends_the_wait",
    "overwrite_output_dir": "test_overwriting_deletes_the_other_run_and_nothing_else",
}


def test_every_flag_is_observed():
    assert {action.dest for action in parser_of("run_pretraining")._actions} - {"help"} == OBSERVED.keys()
    assert all(test in globals() for test in OBSERVED.values())
