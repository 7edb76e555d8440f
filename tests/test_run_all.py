"""All experiments in one queue on the sample, with a BERT of 2 layers, and the tables and figures that are made of their runs;
the same jobs on a cluster."""
import csv
import os
import re
import stat
import subprocess
import time

import pytest

from conftest import ROOT
from test_experiments import SCRIPTS, begin, experiment  # noqa: F401  (fixtures)

# The points of SMOKE=1 on the x axis. Figure 2: an epoch has three updates; test and training error at four rates.
POINTS = {"figure2": ["0.333333", "0.666667", "1"] * 8, "figure3": ["0", "4", "8"], "figure4": ["0.004", "0.5", "1"] * 2}


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def check_figure(results, name):
    assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    ours = [row for row in rows_of(results / f"{name}.csv") if "paper" not in row["curve"]]
    assert [row["x"] for row in ours] == POINTS[name], ours
    assert all(row["seeds"] == "2" and 0 <= float(row["mean"]) <= 100 for row in ours), ours


def check_table(results, name):
    """Every cell that it has is a figure: of the layers, a BERT of two has two, and the first and last two are joined."""
    earlier = {(row["row"], row["data_set"]) for row in rows_of(ROOT / "scripts/paper_results.csv") if not row["run"]}
    rows = [row for row in rows_of(results / f"{name}.csv") if (row["row"], row["data_set"]) not in earlier]
    if name == "table3":
        assert [row["row"] for row in rows] == [
            "Layer-0 of 2", "Layer-1 of 2", "all_2_concat", *(f"{end}_2_{pooling}" for end in ("first", "last")
                                                              for pooling in ("concat", "max", "mean"))]
        assert not any(row["paper"] or row["difference"] for row in rows)  # the paper's BERT has twelve
    if name == "corpus":
        rows = [row for row in rows if row["seeds"] != "0"]  # without a model there are but those by rules
        assert len(rows) == 4
    assert rows
    for row in rows:
        assert row["seeds"] == "2" and 0 <= float(row["best_mean"]) <= float(row["last_mean"]) <= 100, row
        if name != "table3":
            assert float(row["difference"]) == pytest.approx(float(row["best_mean"]) - float(row["paper"]), abs=1e-3)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_one_command_runs_all_on_the_sample_and_fills_every_table(tmp_path, experiment):  # noqa: F811
    done = experiment("run_all", tmp_path, timeout=2400, SMOKE="1")
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    for name in SCRIPTS.values():
        (check_figure if name.startswith("figure") else check_table)(tmp_path / "results", name)
    # what nobody needs any more is gone: records, and models but those that a second stage started from
    assert not list(tmp_path.rglob("*.tfrecord")) and (tmp_path / "pretrained/imdb/corpus.txt").exists()
    assert not [path for path in tmp_path.rglob("best") if path.is_dir()]
    lasts = {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("last") if path.is_dir()}
    assert lasts == {("multitask", start, "together") for start in ("none", "all")}
    # further pre-trainings come before the fine-tunings that do not need them
    order = [line for line in done.stdout.splitlines() if re.search(r"/checkpoints$|^layers/", line)]
    assert all(line.endswith("/checkpoints") for line in order[:15]), order
    start = time.monotonic()
    again = experiment("run_all", tmp_path, SMOKE="1")
    assert again.returncode == 0 and "/imdb" not in again.stdout and time.monotonic() - start < 60
    status = subprocess.run(["bash", ROOT / "scripts/run_all.sh", "--status"], capture_output=True, text=True,
                            env={**os.environ, "SMOKE": "1", "OUT": str(tmp_path)})
    assert re.fullmatch(r"\d{3} done, 0 running, 0 waiting, 0 failed\n0 minutes left\n", status.stdout), status.stdout
    assert experiment("exp1_layers", tmp_path, SMOKE="1").stdout.count("\n") <= 3  # one of them: the table alone


# A cluster: an `sbatch` that runs an array's tasks at once, one after the other, and notes how it was called.
SBATCH = r"""#!/usr/bin/env bash
echo "$@" >> "$CALLS"
while [ $# -gt 0 ]; do
    case $1 in --array) array=$2 ;; --output) output=$2 ;; --wrap) wrap=$2 ;; esac
    shift
done
for task in $(seq ${array/-/ }); do
    log=${output/\%x/job}
    SLURM_ARRAY_TASK_ID=$task sh -c "$wrap" > "${log/\%a/$task}" 2>&1 || true
done
echo "$(wc -l < "$CALLS");cluster"
"""


@pytest.fixture
def cluster(tmp_path, interpreter):
    """A function that submits a script's runs: (the finished process, the calls of sbatch)."""
    sbatch, calls = tmp_path / "bin/sbatch", tmp_path / "calls"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)

    def call(*names, **variables):
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{sbatch.parent}:{os.environ['PATH']}", "CALLS": str(calls), "SMOKE": "1",
                       "VENV": str(interpreter.parent.parent), "OUT": str(tmp_path / "out"), "SEEDS": "1"} | variables
        done = subprocess.run(["bash", ROOT / "scripts/slurm.sh", *names], capture_output=True, text=True, env=environment,
                              timeout=550)
        return done, calls.read_text().splitlines()
    return call


def test_slurm_gets_an_array_for_each_level_of_what_needs_what(cluster, tmp_path):
    variables = {"RATES": "5e-5 4e-4", "SBATCH_FLAGS": "--gres=gpu:1 --time=9:00", "CPU_SBATCH_FLAGS": "--cpus-per-task=8"}
    done, calls = cluster("exp1_catastrophic_forgetting", FLAGS="--precision maybe", **variables)
    assert done.returncode == 0, done.stderr
    found = [(re.search(r"--job-name (\w+)", call)[1], re.search(r"--array (\S+)", call)[1],
              "".join(re.findall(r"--dependency (\S+)", call)), re.search(r"TERM@120.*? (--\S+=\S+)", call)[1])
             for call in calls]
    # the signal goes to the shell of the batch, which is the queue by then
    assert all("--signal B:TERM@120 " in call and " --wrap exec " in call for call in calls)
    assert found == [("1_cpu", "1-2", "", "--cpus-per-task=8"), ("2_cpu", "1-1", "afterany:1", "--cpus-per-task=8"),
                     ("3_cpu", "1-1", "afterany:2", "--cpus-per-task=8"), ("4_gpu", "1-2", "afterany:3", "--gres=gpu:1"),
                     ("5_cpu", "1-1", "afterany:4", "--cpus-per-task=8")]
    # the runs failed, so the table is not made, and says why
    logs = {path.name: path.read_text() for path in (tmp_path / "out/slurm").glob("*/job_*")}
    assert (tmp_path / "out/catastrophic_forgetting/5e-5/imdb.failed").exists() and not (tmp_path / "out/results").exists()
    words = "collect_figure2 needs catastrophic_forgetting/5e-5/imdb, catastrophic_forgetting/4e-4/imdb, which failed"
    assert any(words in text for text in logs.values()), logs

    done, calls = cluster("exp1_catastrophic_forgetting", **variables)  # submits what is left
    assert [re.search(r"--job-name (\w+)", call)[1] for call in calls] == ["1_gpu", "2_cpu"], done.stderr
    assert (tmp_path / "out/results/figure2.csv").exists()


@pytest.mark.parametrize("name", ["exp9", "quickstart", "pocket"])
def test_an_experiment_that_there_is_not_is_refused_before_anything_is_submitted(cluster, tmp_path, name):
    done, calls = cluster("exp1_layers", name)
    assert done.returncode == 2 and f"there is no experiment {name}; they are scripts/exp*.sh and run_all" in done.stderr
    assert calls == [] and not (tmp_path / "out").exists()


def test_folders_of_a_cluster_may_have_spaces_in_their_names(cluster, tmp_path):
    (tmp_path / "bin/sbatch").write_text('#!/bin/sh\necho "$@" >> "$CALLS"\necho 1\n')
    done, calls = cluster("exp1_layers", OUT=str(tmp_path / "my runs"))
    assert done.returncode == 0 and len(calls) >= 4, done.stderr
    assert [call.split("--array ")[1].split()[0] for call in calls][0] == "1-2"


def test_runs_on_a_cluster_go_on_with_the_model_that_split_their_sentences(cluster, tmp_path):
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho 1\n")
    done, _ = cluster("exp2_steps", SPACY_MODEL="xx_sm")
    assert done.returncode == 0 and (tmp_path / "out/spacy_model").read_text() == "xx_sm\n", done.stderr
