"""Points within epochs (--eval_every) and runs that diverge (--allow_divergence): what they measure, and that they disturb
nothing."""
import importlib
import json
import math
import signal

import numpy as np
import pytest

import optimization
import tasks
from conftest import ROOT
from finetuning import training
from runs import (NUM_TEST, SINGLE, assert_equal_weights, call, losses_of, make_bert, predictions_of, read_evaluation,
                  read_json, read_metrics, start_together, train_flags, wait, weights)

MULTITASK = "run_classifier_multitask"
KILL = signal.SIGKILL
SAMPLE = 10


def labels_of(folder):
    return tasks.read_examples(tasks.TASKS["ag"], folder, "test")[1]


def strict_json(path):
    """The value of a JSON file; NaN and Infinity are none."""
    def refuse(name):
        raise AssertionError(f"{path} holds {name}")
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def curve_flags(tiny, folder):
    """2.5 epochs of 8 updates, a point every 2.4 updates: at the 3rd, the 5th and the 8th."""
    return [*train_flags(tiny, folder), "--bert_config_file", tiny / "dropout" / "bert_config.json", "--num_train_epochs", 2.5,
            "--eval_every", 0.3, "--eval_sample", SAMPLE]


PLACES = [3, 5, 8, 11, 13, 16, 19]


@pytest.fixture(scope="module")
def curve(tiny, tmp_path_factory):
    """The folder of such a run with dropout."""
    folder = tmp_path_factory.mktemp("curve") / "run"
    (tiny / "dropout").mkdir(exist_ok=True)
    make_bert(tiny / "dropout", len((tiny / "vocab.txt").read_text().splitlines()), dropout=0.2)
    call(SINGLE, *curve_flags(tiny, folder))
    return folder


def points_of(folder, task=None):
    results = strict_json(folder / "results.json")
    return (results["tasks"][task] if task else results)["points"]


# Points

@pytest.mark.parametrize("updates, every, expected", [
    (8, 0.1, range(1, 9)), (8, 0.25, (2, 4, 6, 8)), (8, 0.3, (3, 5, 8)), (8, 1.0, (8,)), (10, 0.3, (3, 6, 9)),
    (1042, 0.1, (105, 209, 313, 417, 521, 626, 730, 834, 938, 1042)), (7, 0.1, range(1, 8)), (30, 0.1, range(3, 31, 3))])
def test_a_point_is_the_first_update_at_or_after_its_part_of_the_epoch(updates, every, expected):
    assert [update for update in range(1, updates + 1)
            if training.passes_point(update, every * updates)] == list(expected)


def test_points_lie_where_the_flag_says_also_in_a_part_of_an_epoch(curve):
    points = points_of(curve)
    assert [point["global_step"] for point in points] == PLACES
    assert [point["epoch"] for point in points] == pytest.approx([step / 8 for step in PLACES])


def test_training_figures_are_means_over_the_updates_since_the_last_point(curve):
    lines = read_metrics(curve, "train")
    assert len(lines) == 20
    for begin, end, point in zip([0, *PLACES], PLACES, points_of(curve)):
        for name in ("loss", "accuracy"):
            assert point[f"train_{name}"] == pytest.approx(np.mean([line[name] for line in lines[begin:end]]), rel=1e-12)


def test_test_figures_are_of_the_sample(tiny, curve):
    """The point at the end of an epoch is measured on the same model as the epoch, and on some of its examples."""
    chosen = tasks.subsample(labels_of(tiny), SAMPLE, seed=0)
    predictions = np.array(predictions_of(curve / "results_ep1.txt"))
    point, = (point for point in points_of(curve) if point["global_step"] == 8)
    assert point["eval_accuracy"] == pytest.approx(np.mean((predictions == labels_of(tiny))[chosen]))
    assert {name for name in point if name.startswith("eval_")} == {
        name for name in read_json(curve / "results.json")["epochs"][0] if name.startswith("eval_")}


@pytest.mark.parametrize("flags, size", [([], NUM_TEST), (["--eval_sample", 0.5], 18), (["--dev_fraction", 0.2], 12),
                                         (["--dev_fraction", 0.2, "--eval_sample", 5], 5)])
def test_so_many_examples_are_evaluated_at_a_point(tiny, tmp_path, spy, flags, size):
    """Of the test set, or of the held-out part of the training set, which chooses the best epoch; all by default."""
    evaluated = spy(training, "predict", lambda _, model, dataset, *rest: len(dataset))
    call(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 1, "--eval_every", 0.5, *flags)
    whole = 12 if "--dev_fraction" in flags else NUM_TEST
    assert evaluated == [size, size, whole] + [NUM_TEST] * ("--dev_fraction" in flags)
    updates = 7 if "--dev_fraction" in flags else 8
    assert [point["global_step"] for point in points_of(tmp_path)] == [4, updates]


def test_points_leave_training_as_it_was_to_the_bit(tiny, curve, tmp_path):
    """With dropout, and whatever else is evaluated in between: weights, losses, predictions."""
    flags = curve_flags(tiny, tmp_path)
    call(SINGLE, *flags[:flags.index("--eval_every")])
    assert "points" not in read_json(tmp_path / "results.json")
    for name in ("best", "last"):
        assert_equal_weights(tmp_path / name, curve / name)
    for kind in ("train", "eval"):
        assert read_metrics(tmp_path, kind) == read_metrics(curve, kind)
    assert (tmp_path / "results_ep3.txt").read_text() == (curve / "results_ep3.txt").read_text()


def test_frequency_of_logging_and_saving_leaves_the_points(tiny, curve, tmp_path):
    call(SINGLE, *curve_flags(tiny, tmp_path), "--log_steps", 7, "--save_checkpoints_steps", 1000)
    assert points_of(tmp_path) == points_of(curve)


def test_accumulation_and_two_processes_give_the_points_of_one(tiny, tmp_path, start):
    """Without dropout: to 1e-5 relative."""
    flags = [*train_flags(tiny, tmp_path / "one"), "--num_train_epochs", 1.5, "--eval_every", 0.3]
    call(SINGLE, *flags)
    call(SINGLE, *flags, "--gradient_accumulation_steps", 3, "--output_dir", tmp_path / "accumulated")
    codes = wait(*start_together(start, 2, SINGLE, [*flags, "--output_dir", tmp_path / "two"], tmp_path / "log"))
    assert codes == [0, 0], (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    expected = points_of(tmp_path / "one")
    assert [point["global_step"] for point in expected] == [3, 5, 8, 11]
    for name in ("accumulated", "two"):
        for point, other in zip(points_of(tmp_path / name), expected, strict=True):
            assert point == pytest.approx(other, rel=1e-5), name
        assert len(read_metrics(tmp_path / name, "point")) == 4


def test_lines_of_the_log_are_the_points(curve):
    lines = read_metrics(curve, "point")
    assert [{key: value for key, value in line.items() if key != "kind"} for line in lines] == points_of(curve)


def test_a_run_killed_between_points_ends_with_the_points_of_an_undisturbed_one(tiny, curve, tmp_path, start):
    """After its 4th, 10th and 17th update; it is saved after every third: lines of the log stand once each."""
    flags, log = curve_flags(tiny, tmp_path / "run"), tmp_path / "log.txt"
    for number in (4, 7, 8):
        assert wait(start(SINGLE, flags, log, ("update", number, "after", KILL))) == [-KILL], log.read_text()
    assert wait(start(SINGLE, flags, log)) == [0], log.read_text()
    assert log.read_text().count("going on after update") == 3 and "the line is dropped" not in log.read_text()
    assert points_of(tmp_path / "run") == points_of(curve)
    assert read_metrics(tmp_path / "run", "point") == read_metrics(curve, "point")
    assert_equal_weights(tmp_path / "run" / "last", curve / "last")


def test_each_task_has_a_curve(tiny, tmp_path):
    """Its own test figures, and training figures over all tasks."""
    for split in ("train", "test"):
        (tmp_path / "yelp_p").mkdir(exist_ok=True)
        (tmp_path / "yelp_p" / f"{split}.csv").write_text("".join(f'"{1 + i % 2}","police {i}"\n' for i in range(14)))
    call(MULTITASK, *train_flags(tiny, tmp_path / "run"), "--task_name", "ag", "yelp_p", "--data_dir", tiny,
         tmp_path / "yelp_p", "--num_train_epochs", 1, "--eval_every", 0.5)
    ag, yelp_p = (points_of(tmp_path / "run", name) for name in ("ag", "yelp_p"))
    assert [point["global_step"] for point in ag] == [point["global_step"] for point in yelp_p] == [5, 10]
    assert [point["train_loss"] for point in ag] == [point["train_loss"] for point in yelp_p]
    assert ag[0]["eval_loss"] != yelp_p[0]["eval_loss"]
    assert [len(read_metrics(tmp_path / "run", f"point/{name}")) for name in ("ag", "yelp_p")] == [2, 2]


@pytest.mark.parametrize("flags, words", [
    (["--eval_every", 0.5, "--do_eval", "False"], "--eval_every needs --do_train and data to evaluate"),
    (["--eval_sample", 5], "--eval_sample needs --eval_every"), (["--eval_every", 0], "0 is not above 0"),
    (["--eval_every", 1.5], "1.5 is not at most 1"),
    (["--eval_every", 1, "--eval_sample", 2.5], "2.5 examples cannot be drawn (--num_datas, --num_test_datas, --eval_sample)"),
    (["--eval_every", 1, "--eval_sample", 38], "--eval_sample), the data has 37")])
def test_points_that_cannot_be_measured_are_refused(tiny, tmp_path, refused_here, flags, words):
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), *flags, words=words)
    assert not (tmp_path / "run").exists()


# Divergence

def diverging(tiny, folder):
    """At a rate of 1e30 the first update destroys the model, and the second one's loss is no number."""
    return [*train_flags(tiny, folder), "--learning_rate", 1e30, "--warmup_proportion", 0, "--allow_divergence"]


def assert_figures_are_numbers(folder, epochs=1):
    """All that a program may read; and no model that holds anything else was kept. Returns results.json."""
    results = strict_json(folder / "results.json")
    for evaluation in [*results["epochs"], results["best"], results["last"], *results.get("points", [])]:
        assert all(math.isfinite(value) for value in evaluation.values())
    assert len(results["epochs"]) == epochs and results["last"] == results["epochs"][-1]
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and "Infinity" not in line
    assert all(math.isfinite(value) for value in read_evaluation(folder / f"eval_results_ep{epochs}.txt").values())
    for path in folder.rglob("model.safetensors"):
        assert all(value.isfinite().all() for value in weights(path.parent).values()), path
    return results


@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_run_that_diverges_is_a_finished_one_where_it_may(tiny, tmp_path, capsys, log_steps):
    """It ends at once with status 0. Its model is evaluated: it says nothing, so every text gets the first class."""
    call(SINGLE, *diverging(tiny, tmp_path), "--log_steps", log_steps, "--save_checkpoints_steps", 2)
    results = assert_figures_are_numbers(tmp_path)
    assert results["diverged"] == {"global_step": 2} and results["last"]["global_step"] == 2
    assert results["last"]["eval_accuracy"] == pytest.approx(np.mean(labels_of(tiny) == 0))
    assert results["last"]["eval_loss"] == pytest.approx(math.log(4))
    assert results["last"]["loss"] == pytest.approx(math.log(4), abs=0.3)  # of the one update that has a loss
    assert set(predictions_of(tmp_path / "results_ep1.txt")) == {0}
    assert not {"best", "last", "checkpoint.pt"} & {path.name for path in tmp_path.iterdir()}
    out = capsys.readouterr().out
    assert "update 2: the loss is nan" in out and "the run ends here" in out and "diverged at update 2" in out
    assert "next, predict with it" not in out
    call(SINGLE, *diverging(tiny, tmp_path))
    assert "this run is finished" in (out := capsys.readouterr().out) and "diverged at update 2" in out
    assert out.splitlines()[-1] == f"wrote {tmp_path}"


def test_a_divergence_of_another_form_in_a_finished_run_is_one_line(tiny, tmp_path, refused_here):
    call(SINGLE, *diverging(tiny, tmp_path))
    (tmp_path / "results.json").write_text(json.dumps(read_json(tmp_path / "results.json") | {"diverged": 2}))
    refused_here(SINGLE, *diverging(tiny, tmp_path), words="results.json, diverged: 2 where dict is needed")


def test_a_model_destroyed_by_the_last_update_of_an_epoch_counts_as_diverged(tiny, tmp_path, capsys):
    """Its own loss was still good; what would be saved is looked at."""
    call(SINGLE, *diverging(tiny, tmp_path), "--num_datas", 16, "--num_train_epochs", 1, "--warmup_proportion", 0.5)
    results = assert_figures_are_numbers(tmp_path)
    assert results["diverged"] == {"global_step": 3} and results["last"]["global_step"] == 2
    assert "update 2 left a model whose output is not finite" in capsys.readouterr().out
    assert not (tmp_path / "last").exists()


def test_a_point_where_it_diverged_is_part_of_the_curve(tiny, tmp_path):
    """With the figures of the updates before; of those that have none, there is no point."""
    call(SINGLE, *diverging(tiny, tmp_path), "--eval_every", 0.5, "--eval_sample", SAMPLE)
    results = assert_figures_are_numbers(tmp_path)
    point, = results["points"]
    assert point["global_step"] == 2 and point["epoch"] == pytest.approx(0.25)
    assert point["train_loss"] == pytest.approx(results["last"]["loss"])
    assert read_metrics(tmp_path, "point") == [{"kind": "point"} | point]


@pytest.fixture
def exploding(monkeypatch):
    """The rate grows beyond all bounds in the second of three epochs, in its 4th update."""
    monkeypatch.setitem(optimization.SCHEDULES, "exploding", lambda progress, warmup: 1 if progress < 11 / 24 else 1e33)
    return ["--schedule", "exploding", "--allow_divergence"]


def test_the_models_before_the_divergence_stay(tiny, tmp_path, exploding):
    """The epochs before it are those of a run that ends there."""
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), *exploding)
    call(SINGLE, *train_flags(tiny, tmp_path / "sound"), "--schedule", "constant", "--warmup_proportion", 0,
         "--num_train_epochs", 1)
    results = assert_figures_are_numbers(tmp_path / "run", epochs=2)
    assert results["diverged"] == {"global_step": 13} and results["best"]["epoch"] == 1
    assert losses_of(tmp_path / "run") == [*losses_of(tmp_path / "sound"), *losses_of(tmp_path / "run")[8:]]
    assert len(losses_of(tmp_path / "run")) == 12
    for name in ("best", "last"):
        assert_equal_weights(tmp_path / "run" / name, tmp_path / "sound" / name)


def test_the_best_model_before_the_divergence_is_tested(tiny, tmp_path, exploding):
    """--dev_fraction: of the models that are there, the best. Where there is none, what diverged is tested."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--dev_fraction", 0.2]
    call(SINGLE, *flags, *exploding)
    results = assert_figures_are_numbers(tmp_path / "run", epochs=2)
    assert results["diverged"] and results["test"]["epoch"] == results["best"]["epoch"] == 1
    call(SINGLE, "--do_eval", "--data_dir", tiny, "--init_checkpoint", tmp_path / "run" / "best", "--no_cuda", "--output_dir",
         tmp_path / "again")
    assert predictions_of(tmp_path / "again" / "results.txt") == predictions_of(tmp_path / "run" / "results.txt")
    call(SINGLE, *diverging(tiny, tmp_path / "at once"), "--dev_fraction", 0.2)
    results = assert_figures_are_numbers(tmp_path / "at once")
    assert results["test"]["eval_accuracy"] == pytest.approx(np.mean(labels_of(tiny) == 0))
    assert (tmp_path / "at once" / "eval_results.txt").exists()


def test_a_run_that_may_diverge_and_does_not_is_the_run_without_the_flag(tiny, curve, tmp_path):
    call(SINGLE, *curve_flags(tiny, tmp_path), "--allow_divergence")
    assert points_of(tmp_path) == points_of(curve) and "diverged" not in read_json(tmp_path / "results.json")
    assert_equal_weights(tmp_path / "last", curve / "last")


def test_a_diverging_run_that_is_killed_ends_as_if_it_had_not_been(tiny, tmp_path, start):
    """Its second update's rate is the first above 0. Killed after run.json; its first checkpoint; its second update; before
    and after the files of the evaluation; after the checkpoint that says that it diverged; before results.json. A process
    renames run.json first, whether it begins or goes on, and then metrics.jsonl where it drops lines of it."""
    def flags(name):
        return [*diverging(tiny, tmp_path / name), "--warmup_proportion", 0.5, "--eval_every", 0.25, "--eval_sample", SAMPLE,
                "--save_checkpoints_steps", 1, "--log_steps", 2]

    def record(folder):
        results = assert_figures_are_numbers(folder)
        return ([{key: value for key, value in evaluation.items() if key != "seconds"} for evaluation in results["epochs"]],
                results["points"], results["diverged"], read_metrics(folder, "point"), read_metrics(folder, "train"),
                sorted(path.name for path in folder.iterdir()))
    log = tmp_path / "log.txt"
    assert wait(start(SINGLE, flags("whole"), log)) == [0], log.read_text()
    for event in (("rename", 1, "after"), ("rename", 2, "after"), ("update", 1, "after"), ("rename", 3, "before"),
                  ("rename", 7, "after"), ("rename", 8, "after"), ("rename", 2, "before")):
        assert wait(start(SINGLE, flags("run"), log, (*event, KILL))) == [-KILL], (event, log.read_text())
    assert wait(start(SINGLE, flags("run"), log)) == [0], log.read_text()
    assert log.read_text().count("going on after update 1 ") == 4 and log.read_text().count("going on after update 2 ") == 2
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_two_processes_diverge_together(tiny, tmp_path, start):
    flags = [*diverging(tiny, tmp_path / "run"), "--eval_every", 0.5]
    assert wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log")) == [0, 0], (tmp_path / "log.1").read_text()
    assert assert_figures_are_numbers(tmp_path / "run")["diverged"] == {"global_step": 2}


def test_divergence_of_one_of_several_seeds_and_tasks(tiny, tmp_path):
    call(SINGLE, *diverging(tiny, tmp_path / "seeds"), "--seed", 1, 2)
    assert strict_json(tmp_path / "seeds" / "summary.json")["best"]["mean"] == pytest.approx(np.mean(labels_of(tiny) == 0))
    call(MULTITASK, *diverging(tiny, tmp_path / "tasks"), "--task_name", "ag", "--data_dir", tiny)
    assert assert_figures_are_numbers(tmp_path / "tasks")["diverged"] == {"global_step": 2}


def test_a_diverged_run_is_a_row_of_the_experiments_results(tiny, tmp_path, monkeypatch):
    """As scripts/collect_results.py reads it: the error of a model that says nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    collect_results = importlib.import_module("collect_results")
    folder = tmp_path / "runs" / "catastrophic_forgetting" / "4e-4" / "imdb"
    call(SINGLE, *diverging(tiny, folder / "seed_42"), "--eval_every", 0.5)
    call("collect_results", "--runs", tmp_path / "runs", "--output_dir", tmp_path / "results", "--only", "figure2")
    result, = collect_results.read_results(str(tmp_path / "runs"), "catastrophic_forgetting/4e-4/imdb")
    assert result["best"]["eval_accuracy"] == pytest.approx(np.mean(labels_of(tiny) == 0))
    assert "rate 4e-4" in (tmp_path / "results" / "figure2.csv").read_text()


def test_without_the_flag_it_stays_an_error(tiny, tmp_path, refused_here):
    """tests/test_fine_tuning.py says what is kept then; a model to predict with is an error in both cases."""
    refused_here(SINGLE, *diverging(tiny, tmp_path / "run"), "--allow_divergence=False", words="update 2: the loss is nan")
    assert not (tmp_path / "run" / "results.json").exists()
    refused_here(SINGLE, *diverging(tiny, tmp_path / "predict"), "--do_predict", "--predict_file", tiny / "test.csv",
                 words="best")
