"""A run is what it is made of: which command goes on with it, which is refused, what is overwritten, what only read."""
import fcntl
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import optimization
from common import precision
from common.command_line import UserError
from common.configuration import BertConfig
from common.files import whole_file
from common.run_folder import RunFolder
from finetuning import command, training
from finetuning.weights import digest_of_weights
from modeling import BertForPreTraining
from runs import (SINGLE, assert_equal_weights, call, losses_of, predictions_of, read_json, read_metrics,
                  start_together, train_flags, until, wait, weights)

MULTITASK = "run_classifier_multitask"


@pytest.fixture
def inputs(tiny, tmp_path):
    """A copy of the tiny data and model that a test may change."""
    return shutil.copytree(tiny, tmp_path / "inputs")


@pytest.fixture
def stopped(monkeypatch):
    """stopped(update, script, flag, ...): runs the script until it is stopped after its so many-th update, by SIGTERM
    or, with `how` "killed", without a word. Returns whether it got so far."""
    def run(update, script, *flags, how="SIGTERM"):
        step, seen = optimization.BertAdam.step, []

        def counted(optimizer):
            step(optimizer)
            seen.append(1)
            if len(seen) == update:
                sys.exit(137) if how == "killed" else os.kill(os.getpid(), signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.setattr(optimization.BertAdam, "step", counted)
            try:
                call(script, *flags)
            except SystemExit as ended:
                assert ended.code in (137, 143)
                return True
        return False
    return run


def files_of(folder):
    """{path: (content, time of its last change)} of all files in a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def short(inputs, output_dir):
    """A run of four updates in two epochs."""
    return [*train_flags(inputs, output_dir), "--num_datas", 16, "--num_train_epochs", 2]


# By content

def other_weights(inputs):
    torch.manual_seed(1)
    model = BertForPreTraining(BertConfig.from_json_file(inputs / "bert_config.json"))
    torch.save(model.state_dict(), inputs / "pytorch_model.bin")


def swap(name, one, two):
    def change(inputs):
        text = (inputs / name).read_text(encoding="utf-8")
        swapped = text.replace(one, "\0").replace(two, one).replace("\0", two)
        assert swapped != text and len(swapped) == len(text)
        (inputs / name).write_text(swapped, encoding="utf-8")
    return change


def other_activation(inputs):
    config = read_json(inputs / "bert_config.json")
    (inputs / "bert_config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


@pytest.mark.parametrize("change, words", [
    (other_weights, "weights (--init_checkpoint) was sha256 "),
    (swap("train.csv", '"1",', '"2",'), "training data was 61 texts, "),
    (swap("test.csv", '"1",', '"2",'), "test data was 37 texts, "),
    (swap("train.csv", "police", "troops"), "training data was 61 texts, "),
    (swap("vocab.txt", "\nbatter\n", "\nbarrel\n"), "vocabulary (--vocab_file) was sha256 "),
    (other_activation, "configuration hidden_act was gelu, now it is relu")],
    ids=["weights", "labels", "test labels", "words", "vocabulary", "configuration"])
def test_other_content_under_the_same_path_is_refused_and_named(inputs, tmp_path, stopped, refused_here, change, words):
    """Of a finished run and of a stopped one."""
    call(SINGLE, *short(inputs, tmp_path / "finished"))
    assert stopped(2, SINGLE, *short(inputs, tmp_path / "stopped"))
    before = files_of(tmp_path / "finished") | files_of(tmp_path / "stopped")
    change(inputs)
    for name in ("finished", "stopped"):
        refused_here(SINGLE, *short(inputs, tmp_path / name), words=f"{tmp_path / name} holds another run: {words}")
    assert files_of(tmp_path / "finished") | files_of(tmp_path / "stopped") == before


def test_the_same_content_under_another_path_is_the_same_run(inputs, tmp_path, stopped, monkeypatch, capsys):
    """By a relative path, moved to another place, behind a link, the weights by their folder's name."""
    call(SINGLE, *short(inputs, tmp_path / "finished"))
    for number in range(4):
        assert stopped(2, SINGLE, *short(inputs, tmp_path / f"stopped{number}"))
    finished = files_of(tmp_path / "finished")
    monkeypatch.chdir(tmp_path)
    inputs.rename("moved")
    os.symlink("moved", "link")
    os.mkdir("elsewhere")
    os.rename("moved/pytorch_model.bin", "elsewhere/weights.bin")
    os.symlink("../elsewhere/weights.bin", "moved/pytorch_model.bin")
    here = type(inputs)
    for number, flags in enumerate((
            short(here("moved"), ""), short(here("link"), ""), [*short(here("link"), ""), "--init_checkpoint", "moved"],
            [*short(tmp_path / "moved", ""), "--init_checkpoint", "elsewhere/weights.bin"])):
        capsys.readouterr()
        call(SINGLE, *flags, "--output_dir", tmp_path / "finished")
        assert "this run is finished" in capsys.readouterr().out
        call(SINGLE, *flags, "--output_dir", here(f"stopped{number}"))
        assert "going on after update 2" in capsys.readouterr().out
        assert_equal_weights(here(f"stopped{number}") / "last", tmp_path / "finished" / "last")
    assert files_of(tmp_path / "finished") == finished


def test_a_tensorflow_checkpoint_is_known_by_its_values(tmp_path):
    """Not by when it was written, or where."""
    from pretraining.checkpoints import write_checkpoint
    values = {name: np.full((5, 4), number, np.float32) for number, name in enumerate(("a", "b"))}
    changed = values | {"b": np.array(values["b"])}
    changed["b"][3, 2] += 1e-6
    for name, variables in (("one", values), ("two", values), ("three", changed)):
        (tmp_path / name).mkdir()
        write_checkpoint(str(tmp_path / name / f"{name}.ckpt"), variables)
    one, two, three = (digest_of_weights(str(tmp_path / name / f"{name}.ckpt")) for name in ("one", "two", "three"))
    assert one == two != three


# What changes a run in dropout or rounding alone

@pytest.mark.parametrize("name, before, now, flags", [
    ("gradient_accumulation_steps", 1, 2, ["--gradient_accumulation_steps", 2]),
    ("precision", "float32", "bf16", ["--precision", "bf16"]), ("compile", False, True, ["--compile"])])
def test_a_run_that_goes_on_in_another_way_says_so(tiny, tmp_path, stopped, monkeypatch, capsys, name, before, now,
                                                   flags):
    """And run.json says it, from which update on."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    note = f"note: --{name} was {before}, now it is {now}: from here on the run is the undisturbed one in distribution"
    command_line = short(tiny, tmp_path / "run")
    assert stopped(1, SINGLE, *command_line)
    assert stopped(1, SINGLE, *command_line)
    assert "note: " not in capsys.readouterr().out
    assert stopped(1, SINGLE, *command_line, *flags)
    assert [line for line in capsys.readouterr().out.splitlines() if "note: " in line][0].startswith(note)
    call(SINGLE, *command_line, *flags)  # as the last time
    assert "note: " not in capsys.readouterr().out
    record = read_json(tmp_path / "run" / "run.json")
    assert record["flags"][name] == before
    assert [(resumed["global_step"], resumed["flags"][name]) for resumed in record["resumed"]] == [
        (1, before), (2, now), (3, now)]


def test_a_run_says_its_precision_and_keeps_it(tiny, tmp_path, monkeypatch, capsys, stopped):
    """Begun on a machine with bfloat16, gone on with on one without."""
    monkeypatch.setattr(precision, "BF16_HIDDEN_SIZE", 1)
    monkeypatch.setattr(precision, "bf16_instructions", lambda: "amx_bf16")
    assert stopped(4, SINGLE, *train_flags(tiny, tmp_path / "run"))
    assert read_json(tmp_path / "run/run.json")["flags"]["precision"] == "bf16"
    assert "precision: bf16 (a CPU with amx_bf16)" in capsys.readouterr().out
    monkeypatch.setattr(precision, "bf16_instructions", lambda: None)
    call(SINGLE, *train_flags(tiny, tmp_path / "run"))
    assert "precision: bf16 (as the run began)" in capsys.readouterr().out
    call(SINGLE, *train_flags(tiny, tmp_path / "whole"), "--precision", "bf16")
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_an_attempt_that_ended_before_any_checkpoint_begins_anew(tiny, tmp_path, stopped):
    """So run.json has the flags of the run that is there."""
    assert stopped(1, SINGLE, *short(tiny, tmp_path / "run"), how="killed")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    call(SINGLE, *short(tiny, tmp_path / "run"), "--gradient_accumulation_steps", 2)
    record = read_json(tmp_path / "run" / "run.json")
    assert record["flags"]["gradient_accumulation_steps"] == 2 and "resumed" not in record


@pytest.mark.parametrize("first, now, kept", [("both", "none", []), ("last", "best", ["best"]), ("best", "last", ["last"])])
def test_a_run_that_goes_on_with_other_models_to_save_leaves_none_of_an_earlier_epoch(tiny, tmp_path, stopped, monkeypatch,
                                                                                      first, now, kept):
    losses, measure = iter([2, 1]), training.measure
    monkeypatch.setattr(training, "measure",
                        lambda *data: measure(*data) | {"eval_accuracy": 0.5, "eval_loss": next(losses)})
    assert stopped(3, SINGLE, *short(tiny, tmp_path / "run"), "--save_models", first)
    assert (tmp_path / "run" / {"both": "best"}.get(first, first)).exists()
    call(SINGLE, *short(tiny, tmp_path / "run"), "--save_models", now)
    assert read_json(tmp_path / "run" / "results.json")["best"]["epoch"] == 2
    assert [name for name in ("best", "last") if (tmp_path / "run" / name).exists()] == kept


def test_a_run_that_goes_on_with_more_processes_says_so(tiny, tmp_path, stopped, start):
    assert stopped(1, SINGLE, *short(tiny, tmp_path / "run"))
    assert wait(*start_together(start, 2, SINGLE, short(tiny, tmp_path / "run"), tmp_path / "log")) == [0, 0]
    assert "note: --num_processes was 1, now it is 2: from here on" in (tmp_path / "log.0").read_text()
    record = read_json(tmp_path / "run" / "run.json")
    assert record["flags"]["num_processes"] == 1 and record["resumed"][0]["flags"]["num_processes"] == 2


# One command at a time

def test_a_second_command_is_refused_while_the_first_runs(tiny, tmp_path, start, refused_here):
    """The first is held after an update: the same command, one for a run in it and one above it are refused; then it
    ends as if alone, and so does the next command."""
    flags = [*short(tiny, tmp_path / "run"), "--seed", 1, 2]
    first = start(SINGLE, flags, tmp_path / "log", ("update", 3, "after", signal.SIGSTOP))
    until(lambda: (tmp_path / "log").exists() and "T" == state_of(first.pid))
    try:
        before = files_of(tmp_path / "run")
        for more, folder in (([], "run"), (["--overwrite_output_dir"], "run"), (["--seed", 1], "run"),
                             (["--seed", 1, "--output_dir", tmp_path / "run" / "seed_1"], "run/seed_1")):
            assert len(refused_here(SINGLE, *flags, *more,
                                    words=f"another command is at work in {tmp_path / folder}; wait for it")) == 1
        assert files_of(tmp_path / "run") == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert wait(first) == [0]
    finished = files_of(tmp_path / "run")
    call(SINGLE, *flags)
    assert files_of(tmp_path / "run") == finished


def state_of(pid):
    """A process's state, a letter: T for one that is held."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_the_lock_of_a_folder_is_a_file_s_which_goes_with_the_command(tmp_path):
    """NFS shows other machines the locks of files alone. What a killed command leaves is taken over, and removed."""
    folder = RunFolder(str(tmp_path / "run"), "x", re.compile("run.json"))
    for left in (False, True):
        if left:
            (tmp_path / "run").mkdir()
            (tmp_path / "run/.lock").touch()
        with folder.lock():
            with open(tmp_path / "run/.lock") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(UserError, match="another command is at work in"), folder.lock():
                pass
            folder.clear()
            assert (tmp_path / "run/.lock").exists()
        assert [path.name for path in tmp_path.rglob("*")] == ["run"] * left
    (tmp_path / "run/.lock").touch()
    folder.clear()
    assert list((tmp_path / "run").iterdir()) == []


def test_commands_that_write_the_same_file_do_not_meet(tiny, tmp_path, refused_here):
    """What one is writing has a temporary name, which the other takes only when it is free."""
    call(SINGLE, *short(tiny, tmp_path / "run"))
    flags = ["--do_predict", "--predict_file", tiny / "test.csv", "--init_checkpoint", tmp_path / "run" / "last",
             "--no_cuda", "--output_dir", tmp_path / "run"]
    with whole_file(str(tmp_path / "run" / "predictions.tsv")) as temporary:
        with open(temporary, "w") as file:
            file.write("the other's")
        refused_here(SINGLE, *flags, words="predictions.tsv is being written by another command")
    assert (tmp_path / "run" / "predictions.tsv").read_text() == "the other's"
    call(SINGLE, *flags)
    assert len((tmp_path / "run" / "predictions.tsv").read_text().splitlines()) == 38


# Overwriting

@pytest.fixture(scope="module")
def with_test(tiny, tmp_path_factory):
    """A folder of three finished runs that have an eval_results.txt: one of one task, one of two, one of two seeds."""
    folder = tmp_path_factory.mktemp("with_test")
    flags = ["--dev_fraction", 0.2, "--num_train_epochs", 1]
    call(SINGLE, *train_flags(tiny, folder / "one"), *flags)
    call(SINGLE, *train_flags(tiny, folder / "seeds"), *flags, "--seed", 1, 2)
    shutil.copytree(tiny, folder / "data" / "ag")
    (folder / "data" / "yelp_p").mkdir()
    for split in ("train", "test"):
        (folder / "data" / "yelp_p" / f"{split}.csv").write_text('"1","police"\n"2","troops"\n' * 6)
    call(MULTITASK, *train_flags(tiny, folder / "several"), *flags, "--task_name", "ag", "yelp_p", "--data_dir",
         folder / "data")
    return folder


def left(folder):
    return sorted(path.name for path in folder.iterdir())


RUN = sorted(["best", "last", "metrics.jsonl", "results.json", "run.json", "tensorboard"] + [
    f"{kind}_ep{epoch}.txt" for kind in ("classification_report", "eval_results", "results") for epoch in (1, 2)] + [
    f"confusion_matrix_ep{epoch}.{kind}" for kind in ("csv", "png") for epoch in (1, 2)])


@pytest.mark.parametrize("first, second", [([1], [2, 3]), ([2, 3], [1]), ([1, 2], [2, 3])], ids=str)
def test_overwriting_leaves_the_new_runs_alone_and_they_go_on(tiny, tmp_path, stopped, first, second):
    """Whenever it is stopped: the same command without --overwrite_output_dir goes on then."""
    flags = [*short(tiny, tmp_path / "run"), "--seed"]
    call(SINGLE, *flags, *first)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    flags[-1:] = ["--learning_rate", 2e-3, "--seed"]
    assert stopped(4 * len(second) - 2, SINGLE, *flags, *second, "--overwrite_output_dir")
    seeds = {f"seed_{seed}" for seed in second} if len(second) > 1 else set()
    assert {name for name in left(tmp_path / "run") if name.startswith("seed_")} == seeds
    call(SINGLE, *flags, *second)
    if seeds:
        assert left(tmp_path / "run") == sorted(["notes.txt", "summary.json", *seeds])
        assert all(left(tmp_path / "run" / seed) == RUN for seed in seeds)
    else:
        assert left(tmp_path / "run") == sorted(["notes.txt", *RUN])
    for folder in map(tmp_path.joinpath, [f"run/{seed}" for seed in seeds] or ["run"]):
        assert read_json(folder / "run.json")["flags"]["learning_rate"] == 2e-3
        assert len(read_json(folder / "run.json").get("resumed", [])) == (folder.name in ("run", "seed_3"))


def test_overwriting_a_run_of_several_tasks_leaves_the_new_runs_alone(tiny, with_test, tmp_path):
    flags = [*short(tiny, tmp_path / "run"), "--task_name", "ag", "yelp_p", "--data_dir", with_test / "data"]
    flags += ["--num_datas", 8]
    call(MULTITASK, *flags)
    assert {"ag", "yelp_p"} <= set(left(tmp_path / "run"))
    call(MULTITASK, *flags, "--seed", 1, 2, "--overwrite_output_dir")
    assert left(tmp_path / "run") == ["seed_1", "seed_2", "summary.json"]
    assert {"ag", "yelp_p", "results.json"} <= set(left(tmp_path / "run" / "seed_1"))
    call(MULTITASK, *flags, "--overwrite_output_dir")
    assert left(tmp_path / "run") == ["ag", "metrics.jsonl", "results.json", "run.json", "tensorboard", "yelp_p"]


@pytest.mark.parametrize("first, second, words", [([1, 2], [3], "several seeds"), ([3], [1, 2], "one seed")])
def test_a_stopped_run_of_one_seed_and_one_of_several_keep_apart(tiny, tmp_path, stopped, refused_here, first, second,
                                                                 words):
    assert stopped(2, SINGLE, *short(tiny, tmp_path / "run"), "--seed", *first)
    before = files_of(tmp_path / "run")
    refused_here(SINGLE, *short(tiny, tmp_path / "run"), "--seed", *second, words=f"run holds a run of {words}")
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite_output_dir"]], ids=str)
@pytest.mark.parametrize("seeds", [[1], [1, 2]], ids=str)
def test_a_run_of_pre_training_is_never_overwritten(tiny, tmp_path, refused_here, seeds, overwrite):
    """Its files have the same names."""
    for name in ("run.json", "metrics.jsonl", "summary.json"):
        (tmp_path / name).write_text(json.dumps({"kind": "further pre-training", "recipe": {}, "flags": {}}))
    before = files_of(tmp_path)
    refused_here(SINGLE, *short(tiny, tmp_path), "--seed", *seeds, *overwrite,
                 words="holds a run of another script (run.json says further pre-training, needed is fine-tuning)")
    assert files_of(tmp_path) == before and len(left(tmp_path)) == 3


@pytest.mark.parametrize("stop_at", [1, 3])
def test_overwriting_that_is_stopped_early_goes_on_too(tiny, tmp_path, stopped, stop_at):
    """The runs of later seeds are gone with the first: they would be refused when the command goes on."""
    flags = [*short(tiny, tmp_path / "run"), "--seed", 1, 2]
    call(SINGLE, *flags)
    assert stopped(stop_at, SINGLE, *flags, "--weight_decay", 0.1, "--overwrite_output_dir")
    call(SINGLE, *flags, "--weight_decay", 0.1)
    for seed in (1, 2):
        assert read_json(tmp_path / f"run/seed_{seed}/run.json")["recipe"]["weight_decay"] == 0.1


@pytest.mark.parametrize("names", [["../victim", "ag"], ["{victim}", "ag"], "../victim",
                                   [["../victim"], {"ag": 1}, 5, None]], ids=str)
@pytest.mark.parametrize("script", [SINGLE, MULTITASK])
def test_names_of_tasks_never_lead_outside_the_folder(tiny, tmp_path, names, script):
    """A run.json may have come from anywhere."""
    for folder in ("victim", "run/ag"):
        (tmp_path / folder / "best").mkdir(parents=True)
        (tmp_path / folder / "results.json").write_text("{}")
        (tmp_path / folder / "best" / "model.safetensors").write_text("mine")
    named = json.loads(json.dumps(names).replace("{victim}", str(tmp_path / "victim")))
    record = {"kind": "fine-tuning", "recipe": {"task_name": named}, "flags": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    before = files_of(tmp_path / "victim")
    call(script, *short(tiny, tmp_path / "run"), "--overwrite_output_dir")
    assert files_of(tmp_path / "victim") == before and len(before) == 2
    assert (tmp_path / "run" / "ag").exists() == ("ag" not in names)  # that of an earlier multi-task run
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("names", [["best", "tensorboard"], ["last", "results.json"], ["seed_7"]], ids=str)
def test_links_are_removed_and_not_followed(tiny, tmp_path, names):
    """To a folder, and to nothing."""
    flags = short(tiny, tmp_path / "run")
    call(SINGLE, *flags, "--output_dir", tmp_path / "elsewhere")
    call(SINGLE, *flags)
    before = files_of(tmp_path / "elsewhere")
    for name in names:
        path = tmp_path / "run" / name
        if path.exists():
            command.remove(path)
        path.symlink_to(tmp_path / "elsewhere" / ("" if name == "seed_7" else name))
    for _ in range(2):
        call(SINGLE, *flags, "--overwrite_output_dir")
        assert files_of(tmp_path / "elsewhere") == before
        assert left(tmp_path / "run") == RUN and not any((tmp_path / "run" / name).is_symlink() for name in RUN)
        for name in names:
            if (path := tmp_path / "run" / name).exists():
                command.remove(path)
            path.symlink_to("absent")


# Reading leaves what is there

@pytest.mark.parametrize("model, output_dir", [
    ("one/best", "one"), ("one/last", "one/last"), ("several/ag/best", "several/ag"), ("several", "several"),
    ("seeds/seed_1/last", "seeds"), ("seeds/seed_1/last", "seeds/seed_1")])
def test_evaluation_and_prediction_of_a_saved_model_change_no_file_of_a_run(tiny, with_test, capsys, model, output_dir):
    before = files_of(with_test)
    output_dir = with_test / output_dir
    call(SINGLE, "--task_name", "ag", "--do_eval", "--do_predict", "--predict_file", tiny / "test.csv", "--data_dir",
         tiny, "--init_checkpoint", with_test / model, "--no_cuda", "--output_dir", output_dir)
    after = files_of(with_test)
    assert {path: after.get(path) for path in before} == before
    added = {path.name for path in after.keys() - before.keys()}
    out = capsys.readouterr().out
    assert "predictions.tsv" in added and all(name in out for name in added)
    written, = (path for path in after.keys() - before.keys() if path.name.startswith("results"))
    assert len(predictions_of(written)) == 37
    for path in after.keys() - before.keys():
        path.unlink()


def test_a_task_s_results_stay_where_its_best_model_alone_was_saved(tiny, with_test, tmp_path):
    run = shutil.copytree(with_test / "several", tmp_path / "several")
    shutil.rmtree(run / "ag" / "last")
    before = files_of(run)
    assert run / "ag" / "eval_results.txt" in before
    call(SINGLE, "--task_name", "ag", "--do_eval", "--data_dir", tiny, "--init_checkpoint", run / "ag" / "best", "--no_cuda",
         "--output_dir", run / "ag")
    after = files_of(run)
    assert {path: after.get(path) for path in before} == before and run / "ag" / "eval_results_saved_model.txt" in after


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("change, words", [
    (without("classifier.weight", "classifier.bias"), "has no classifier."),
    (without("classifier.bias"), "has no classifier.bias of this model"),
    (lambda state: state | {name: state[name][:3] for name in ("classifier.weight", "classifier.bias")},
     "or for another number of classes than the task ag")], ids=["no head", "no bias", "three classes"])
@pytest.mark.parametrize("job", ["--do_predict", "--do_eval"])
def test_a_model_without_its_classifier_is_refused(tiny, with_test, tmp_path, refused_here, change, words, job):
    shutil.copytree(with_test / "one" / "best", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(safetensors.torch.save(change(safetensors.torch.load(file.read_bytes())), {"format": "pt"}))
    more = {"--do_predict": ["--predict_file", tiny / "test.csv"], "--do_eval": ["--data_dir", tiny]}[job]
    refused_here(SINGLE, job, *more, "--init_checkpoint", tmp_path / "model", "--no_cuda", "--output_dir",
                 tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


# A finished run

@pytest.mark.parametrize("script, name, flags", [
    (SINGLE, "one", []), (SINGLE, "seeds", ["--seed", 1, 2]),
    (MULTITASK, "several", ["--task_name", "ag", "yelp_p"])], ids=["one", "seeds", "several"])
def test_a_finished_command_that_is_typed_again_changes_nothing(tiny, with_test, capsys, script, name, flags):
    flags = [*train_flags(tiny, with_test / name), "--dev_fraction", 0.2, "--num_train_epochs", 1, *flags]
    flags += ["--data_dir", with_test / "data"] if name == "several" else []
    before = files_of(with_test)
    call(script, *flags)
    assert "this run is finished" in capsys.readouterr().out
    assert files_of(with_test) == before


def test_what_a_kill_after_the_last_file_left_is_removed(tiny, tmp_path, monkeypatch, capsys):
    flags = short(tiny, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(command, "remove", lambda path: sys.exit(137))
        call(SINGLE, *flags)
    before = files_of(tmp_path / "run")
    assert left(tmp_path / "run") == sorted([*RUN, "checkpoint.pt"])
    capsys.readouterr()
    call(SINGLE, *flags)
    assert "this run is finished" in capsys.readouterr().out
    del before[tmp_path / "run" / "checkpoint.pt"]
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("flags, words", [(["--num_train_epochs", 4], "num_train_epochs was 2.0, now it is 4.0"),
                                          (["--train_batch_size", 4], "train_batch_size was 8, now it is 4")])
def test_a_refusal_names_the_way_that_there_is(tiny, tmp_path, refused_here, flags, words):
    """And that way leads somewhere."""
    call(SINGLE, *short(tiny, tmp_path / "run"))
    line = refused_here(SINGLE, *short(tiny, tmp_path / "run"), *flags, words=words)[-1]
    assert "name another folder (to go on from its weights, name them with --init_checkpoint)" in line
    call(SINGLE, *short(tiny, tmp_path / "more"), *flags, "--init_checkpoint", tmp_path / "run" / "last")
    assert losses_of(tmp_path / "more")[0] != losses_of(tmp_path / "run")[0]


@pytest.mark.parametrize("losses, best", [([3, 1, 2], 2), ([1, 1, 2], 1), ([2, 2, 1], 3)], ids=str)
def test_a_tie_goes_to_the_lower_loss(tiny, tmp_path, monkeypatch, losses, best):
    """Of two that have it, to the earlier epoch."""
    measured, measure = iter(losses), training.measure
    monkeypatch.setattr(training, "measure",
                        lambda *data: measure(*data) | {"eval_accuracy": 0.5, "eval_loss": next(measured)})
    call(SINGLE, *short(tiny, tmp_path / "run"), "--num_train_epochs", 3)
    results = read_json(tmp_path / "run" / "results.json")
    assert results["best"]["epoch"] == best
    kept, last = (weights(tmp_path / "run" / name)["classifier.weight"] for name in ("best", "last"))
    assert torch.equal(kept, last) == (best == 3)


# The log of a run that was stopped

@pytest.fixture(scope="module")
def log_of_an_undisturbed_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    call(SINGLE, *train_flags(tiny, folder), "--log_steps", 5, "--save_checkpoints_steps", 3)
    return lines_of(folder)


def lines_of(folder):
    return [{key: value for key, value in line.items() if "seconds" not in key}
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("how", ["SIGTERM", "killed"])
@pytest.mark.parametrize("every", [5, 7])
def test_the_log_of_a_stopped_run_is_the_undisturbed_one_s(tiny, tmp_path, stopped, log_of_an_undisturbed_run, how,
                                                           every):
    """Stopped after so many updates again and again; a line is of 5 updates, a checkpoint follows every third."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--log_steps", 5, "--save_checkpoints_steps", 3]
    times = 0
    while stopped(every, SINGLE, *flags, how=how):
        times += 1
        assert times < 24
    assert times > 2
    assert lines_of(tmp_path / "run") == log_of_an_undisturbed_run
    assert [line["global_step"] for line in read_metrics(tmp_path / "run", "train")] == [5, 10, 15, 20, 24]
    assert np.isfinite(losses_of(tmp_path / "run")).all()
