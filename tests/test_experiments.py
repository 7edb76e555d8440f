"""The scripts of the experiments on the sample, and the tables and figures that are made of their runs."""
import csv
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

import tasks
from conftest import ROOT, SESSION
from runs import processes_of, until

SCRIPTS = {  # and what each writes; the longest first
    "exp2_domains": "table5", "exp2_comparison": "table6", "exp5_bert_large": "table8", "exp3_multitask": "table7",
    "exp2_steps": "figure3", "exp1_long_text": "table2", "exp1_layers": "table3", "exp1_layer_wise_lr": "table4",
    "exp4_few_shot": "figure4", "exp1_catastrophic_forgetting": "figure2"}
# The points of SMOKE=1 on the x axis
POINTS = {"figure2": ["1"] * 4, "figure3": ["0", "4", "8"], "figure4": ["0.004", "0.5", "1"] * 2}


@pytest.fixture
def begin(interpreter):
    """A function that starts a script of an experiment, in a session (of the system) of its own."""
    def call(name, out, **variables):
        environment = {**os.environ, "VENV": str(interpreter.parent.parent), "OUT": str(out), **variables}
        return subprocess.Popen(["bash", str(ROOT / "scripts" / f"{name}.sh")], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    return call


@pytest.fixture
def experiment(begin):
    """A function that runs such a script to its end."""
    def call(name, out, **variables):
        process = begin(name, out, **variables)
        printed = process.communicate(timeout=550)
        return subprocess.CompletedProcess(process.args, process.returncode, *printed)
    return call


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_experiment_runs_on_the_sample_and_fills_its_table(name, experiment):
    """End to end on a BERT of 2 layers: every cell that it has is a figure.

    The scripts share one folder, in which two may be at work at once: what several of them need is made once.
    """
    out, result = pathlib.Path(os.environ[SESSION], "experiments"), SCRIPTS[name]
    done = experiment(name, out, SMOKE="1")
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    rows = rows_of(out / "results" / f"{result}.csv")
    if result.startswith("figure"):
        assert (out / "results" / f"{result}.png").read_bytes().startswith(b"\x89PNG")
        ours = [row for row in rows if "paper" not in row["curve"]]
        assert [row["x"] for row in ours] == POINTS[result], ours
        assert all(row["seeds"] == "2" and 0 <= float(row["mean"]) <= 100 for row in ours), ours
        return
    if result == "table3":  # of a BERT of two layers, the first and last two of which are joined
        rows = [row for row in rows if row["seeds"] != "0"]
        assert [row["row"] for row in rows] == [
            "Layer-0", "Layer-1", "all_2_concat", *(f"{end}_2_{pooling}" for end in ("first", "last")
                                                    for pooling in ("concat", "max", "mean"))]
        rows = rows[:2]
    assert len(rows) > 3 or result == "table3"
    for row in rows:
        assert row["seeds"] == "2" and 0 <= float(row["best_mean"]) <= float(row["last_mean"]) <= 100, row
        assert float(row["difference"]) == pytest.approx(float(row["best_mean"]) - float(row["paper"]), abs=1e-3)


def test_the_same_command_again_skips_the_runs_that_are_done(tmp_path, experiment):
    first, second = (experiment("exp1_catastrophic_forgetting", tmp_path, SMOKE="1", RATES="2e-5") for _ in range(2))
    assert first.returncode == 0 and "catastrophic_forgetting/2e-5/imdb" in first.stdout
    assert second.returncode == 0 and "/imdb" not in second.stdout
    left = sorted(path.name for path in (tmp_path / "catastrophic_forgetting" / "2e-5" / "imdb").iterdir())
    assert left == ["seed_1", "seed_2", "summary.json"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_runs_print_flags_that_exist_and_a_run_for_each_of_the_papers_figures(name, tmp_path, experiment):
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "data")]
    import flags_table
    done = experiment(name, tmp_path / "out", DRY_RUN="1", LAYERS="12")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands and all(command[0] == "python" for command in commands)
    known, folders = {}, set()
    for _, script, *words in commands:
        module = script.removesuffix(".py")
        if module not in known:
            actions = flags_table.parser_of(module)._actions
            known[module] = {flag for action in actions for flag in action.option_strings}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known[module], (script, used - known[module])
        if "--output_dir" in words:
            folder = os.path.relpath(words[words.index("--output_dir") + 1], tmp_path / "out")
            folders.add(re.sub(r"/seed_\d+$", "", folder))
    paper = rows_of(ROOT / "scripts" / "paper_results.csv")
    wanted = {row["run"] for row in paper if row["table"] == SCRIPTS[name]}
    assert wanted <= folders and (wanted or SCRIPTS[name] in ("figure2", "figure3")), wanted - folders


def test_an_interrupted_run_fails_the_script_with_the_end_of_its_log(tmp_path, experiment):
    absent = str(tmp_path / "absent")
    done = experiment("exp1_layer_wise_lr", tmp_path / "out", DATA=absent, BERT=absent)
    assert done.returncode != 0
    assert "models/base failed" in done.stderr and "absent" in done.stderr and "Traceback" not in done.stderr


def test_another_bert_does_not_get_the_runs_of_the_first(tmp_path, experiment):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.source").write_text("/some/bert\n")
    done = experiment("exp1_layer_wise_lr", tmp_path, BERT=str(ROOT / "data"))
    assert done.returncode == 1 and "holds runs of another BERT, /some/bert; name another folder" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_ctrl_c_ends_all_of_a_script_and_the_same_command_goes_on(tmp_path, begin, experiment):
    variables = {"SMOKE": "1", "JOBS": "2", "EPOCHS": "60", "SEEDS": "1", "RATES": "2e-5 5e-5"}
    process = begin("exp1_catastrophic_forgetting", tmp_path, **variables)
    logs = [tmp_path / "catastrophic_forgetting" / rate / "imdb.log" for rate in ("2e-5", "5e-5")]
    until(lambda: all(log.exists() and "epoch 2: accuracy" in log.read_text() for log in logs))
    assert len(processes_of(process.pid)) >= 5  # the script, two shells, two trainings
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=120)
    assert process.returncode == 130 and processes_of(process.pid) == []
    assert not list(tmp_path.glob(".failed*")) and not list(tmp_path.glob("catastrophic_forgetting/*/imdb.done"))
    done = experiment("exp1_catastrophic_forgetting", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert all("going on after update" in log.read_text() for log in logs)
    assert len(rows_of(tmp_path / "results" / "figure2.csv")) == 120


def test_two_scripts_do_not_do_the_same_run_at_once(tmp_path, begin):
    variables = {"SMOKE": "1", "JOBS": "1", "SEEDS": "1", "RATES": "2e-5"}
    processes = [begin("exp1_catastrophic_forgetting", tmp_path, **variables) for _ in range(2)]
    printed = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "under way in another script" in printed[0][0] + printed[1][0]
    log = (tmp_path / "catastrophic_forgetting" / "2e-5" / "imdb.log").read_text()
    assert log.count("epoch 1: accuracy") == 1


def test_a_run_in_the_background_that_fails_is_not_passed_over(tmp_path, experiment):
    done = experiment("exp1_catastrophic_forgetting", tmp_path / "out", SMOKE="1", FLAGS="--bf16 maybe")
    assert done.returncode == 1 and "'maybe' is neither True nor False" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "results").exists() and not list((tmp_path / "out").glob(".failed*"))


# Their samples (their tables: test_collect_results.py)

def test_samples_of_no_rows_are_refused(tmp_path, refused):
    refused("data/make_task_samples.py", "--output_dir", tmp_path, "--num_train", 0, words="at least 1")


def test_the_sample_is_there_in_each_task_s_format(tmp_path, script):
    done = script("data/make_task_samples.py", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for task in tasks.TASKS.values():
        for split, count in (("train", 64), ("test", 32)):
            texts, labels = tasks.read_examples(task, tmp_path / task.name, split)
            assert len(texts) == count and len(set(texts)) > count / 2
            assert len(set(labels)) == len(task.labels), task.name
