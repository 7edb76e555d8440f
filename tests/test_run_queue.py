"""scripts/run_queue.py with stand-ins for the runs: order, GPUs, failures, stops, locks, what is left."""
import collections
import contextlib
import fcntl
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios

import pytest

from conftest import ROOT
from runs import until

# A stand-in for a run: notes when it begins and ends, and which GPUs it sees; a signal has it save, as a training does.
STAND_IN = ('note() { echo "$1 NAME ${CUDA_VISIBLE_DEVICES-unset} $(date +%s%N)" >> log; }; '
            'trap "kill \\$!; note saved; exit 143" TERM; note begin; sleep SECONDS & wait $!; note end')


@pytest.fixture
def queue(tmp_path):
    """A function that starts the queue on a plan, a list of `job`s, in the test's folder."""
    def begin(plan, *flags, stderr=subprocess.PIPE, **variables):
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | variables
        process = subprocess.Popen([sys.executable, ROOT / "scripts/run_queue.py", "--out", "out", *map(str, flags)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=tmp_path,
                                   env=environment, start_new_session=True)
        process.stdin.write("".join(plan))
        process.stdin.close()
        process.stdin = None
        return process
    return begin


@pytest.fixture
def finished(queue):
    """A function that runs it to its end: (exit status, standard output, standard error)."""
    def call(plan, *flags, **variables):
        process = queue(plan, *flags, **variables)
        printed = process.communicate(timeout=60)
        return process.returncode, *printed
    return call


def job(name, needs="", command=None, kind="gpu", product="-", seconds=0):
    """A line of a plan; the command is the stand-in, if none is given."""
    command = command or STAND_IN.replace("NAME", name).replace("SECONDS", str(seconds))
    return "\t".join((name, kind, needs, product, shlex.join(["sh", "-c", command]))) + "\n"


def notes(tmp_path):
    """What the stand-ins noted: a list of (what, job, GPUs, time)."""
    path = tmp_path / "log"
    lines = [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []
    return [(what, name, gpus, int(when)) for what, name, gpus, when in sorted(lines, key=lambda words: int(words[3]))]


def begun(tmp_path):
    return [name for what, name, *_ in notes(tmp_path) if what == "begin"]


# What the experiments are like: two further pre-trainings with what comes before and after them, and twenty other runs, which
# were declared first.
OTHERS = [f"plain{number}" for number in range(20)]
PLAN = [job("base", kind="cpu"), *(job(name, "base", seconds=0.4) for name in OTHERS),
        *(line for name in ("imdb", "ag") for line in (
            job(f"{name}/corpus", kind="cpu"), job(f"{name}/records", f"{name}/corpus base", kind="cpu"),
            job(f"{name}/further", f"{name}/records base", seconds=0.5), job(f"{name}/model", f"{name}/further", kind="cpu"),
            job(f"{name}/tune", f"{name}/model", seconds=0.3), job(f"{name}/few", f"{name}/model", seconds=0.3)))]
GPU_JOBS = {*OTHERS, *(f"{name}/{step}" for name in ("imdb", "ag") for step in ("further", "tune", "few"))}


def needs_of(plan):
    return {line.split("\t")[0]: line.split("\t")[2].split() for line in plan}


@pytest.mark.parametrize("per_run, slots", [(1, ["0", "1", "2", "3"]), (2, ["0,1", "2,3"])])
def test_each_gpu_has_one_run_at_a_time_and_cpu_jobs_see_none(finished, tmp_path, per_run, slots):
    status, printed, errors = finished(PLAN, "--gpus", "0,1,2,3", "--per_run", per_run, "--cpu_jobs", 2)
    assert (status, errors) == (0, "")
    at_work, most, seen = {}, collections.Counter(), collections.defaultdict(set)
    for what, name, gpus, _ in notes(tmp_path):
        kind = "gpu" if name in GPU_JOBS else "cpu"
        seen[kind].add(gpus)
        if what == "begin":
            assert kind == "cpu" or gpus not in at_work.values(), f"{name} and another on GPU {gpus}"
            at_work[name] = gpus
        else:
            assert at_work.pop(name) == gpus
        most[kind] = max(most[kind], sum((other in GPU_JOBS) == (kind == "gpu") for other in at_work))
    assert seen == {"gpu": set(slots), "cpu": {""}} and most == {"gpu": len(slots), "cpu": 2}
    assert len(begun(tmp_path)) == len(PLAN) and "imdb/further on GPU " in printed


def test_each_comes_after_what_it_needs_and_further_pre_training_first(finished, tmp_path):
    status, printed, _ = finished(PLAN, "--gpus", "0,1,2,3")
    assert status == 0
    when = {(what, name): time for what, name, _, time in notes(tmp_path)}
    for name, needs in needs_of(PLAN).items():
        assert all(when["end", need] < when["begin", name] for need in needs), name
    order = [line.split(" ")[0] for line in printed.splitlines()]  # as they were started
    on_cpu = [name for name in order if name not in GPU_JOBS]
    assert on_cpu[:5] == ["base", "imdb/corpus", "ag/corpus", "imdb/records", "ag/records"]
    # the others have the GPUs while there are no records, then the further pre-trainings overtake those that still wait
    assert order.index("plain0") < order.index("imdb/further") < order.index("ag/further") < order.index("plain19")
    assert [name for name in order if name in OTHERS] == OTHERS


@pytest.mark.parametrize("variables, expected", [
    ({"CUDA_VISIBLE_DEVICES": "5,7"}, {"5", "7"}), ({"CUDA_VISIBLE_DEVICES": ""}, {""}), ({}, {"0", "1"})])
def test_gpus_are_those_that_are_visible_else_those_that_nvidia_smi_lists(finished, tmp_path, variables, expected):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n[ $1 = -L ] && echo 'GPU 0: A (UUID: x)' && echo '  MIG 1g Device 0:' && echo 'GPU 1: A'\n")
    tool.chmod(0o755)
    plan = [job(name, seconds=0.3) for name in ("a", "b")]
    assert finished(plan, "--jobs", 2, PATH=f"{tool.parent}:{os.environ['PATH']}", **variables)[0] == 0
    assert {gpus for _, _, gpus, _ in notes(tmp_path)} == expected


def test_too_few_gpus_for_a_run_are_refused(finished):
    status, _, errors = finished(PLAN, "--gpus", "0,1", "--per_run", 4)
    assert status == 1 and "a run on 4 GPUs (PER_RUN) needs more than 2: 0,1" in errors and "Traceback" not in errors


def test_without_a_gpu_jobs_run_at_a_time_of_whatever_kind(finished, tmp_path):
    plan = [job("a", seconds=0.3), job("b", kind="cpu", seconds=0.3), job("c", seconds=0.3)]
    assert finished(plan, "--gpus", "", "--jobs", 2)[0] == 0
    assert [what for what, *_ in notes(tmp_path)] == ["begin", "begin", "end", "begin", "end", "end"] \
        or [what for what, *_ in notes(tmp_path)] == ["begin", "begin", "end", "end", "begin", "end"]
    assert {gpus for _, _, gpus, _ in notes(tmp_path)} == {""}  # --gpus "" hides those that there are


FAILING = [job("a", command="echo one; echo two; printf 'bar\\rthree\\n'; echo four >&2; exit 3"), job("b", "a"), job("c", "b"),
           job("d"), job("e", "d"), job("tables", "e", kind="last"), job("tables of all", "e c", kind="last")]


def test_a_failed_job_stops_those_that_need_it_and_no_others(finished, tmp_path):
    status, _, errors = finished(FAILING)
    assert status == 1 and begun(tmp_path) == ["d", "e", "tables"]
    assert errors.startswith("a failed; the end of out/a.log:\nbar\nthree\nfour\n")
    assert "1 of 7 jobs failed: a; not started, as they need these: 3;" in errors
    assert (tmp_path / "out/a.failed").read_text() == "exit status 3\n" and not (tmp_path / "out/a.done").exists()


def test_a_failed_job_runs_again_and_success_takes_the_mark_away(finished, tmp_path):
    plan = [job("a", command="test -e mended"), job("b", "a")]
    assert finished(plan)[0] == 1 and begun(tmp_path) == []
    (tmp_path / "mended").touch()
    assert finished(plan)[0] == 0 and begun(tmp_path) == ["b"]
    assert not (tmp_path / "out/a.failed").exists()


def test_what_is_done_is_not_done_again_unless_it_or_what_it_is_made_from_changes(finished, tmp_path):
    plan = [job("a"), job("b", "a"), job("c")]
    assert [finished(plan)[0] for _ in range(2)] == [0, 0] and sorted(begun(tmp_path)) == ["a", "b", "c"]
    record = json.loads((tmp_path / "out/b.done").read_text())
    assert record["command"].startswith("sh -c 'note() { echo") and 0 <= record["seconds"] < 10
    (tmp_path / "log").unlink()
    assert finished([job("a", seconds=0.01), *plan[1:]])[0] == 0
    assert begun(tmp_path) == ["a", "b"]  # b's command is the old one
    (tmp_path / "out/c.done").write_text("python an_earlier_version.py\n")
    assert finished([job("a", seconds=0.01), *plan[1:]])[0] == 0 and begun(tmp_path) == ["a", "b", "c"]


def test_the_last_job_comes_after_all_others_every_time(finished, tmp_path):
    plan = [job("a", seconds=0.2), job("tables", kind="last", command="echo tables; test -e out/a.done"), job("b", "a")]
    for _ in range(2):
        status, printed, _ = finished(plan, "--jobs", 3)
        assert status == 0 and printed.endswith("tables\ntables\n")  # its name, what it prints
    assert begun(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_has_all_runs_save_and_the_same_command_goes_on(queue, finished, tmp_path, number, status):
    plan = [job("a", seconds=60), job("b", seconds=60), job("c", "a"), job("tables", kind="last")]
    process = queue(plan, "--jobs", 2)
    until(lambda: sorted(begun(tmp_path)) == ["a", "b"], 30)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == status and "stopping: 2 running jobs" in printed, errors
    assert sorted(name for what, name, *_ in notes(tmp_path) if what == "saved") == ["a", "b"]
    assert not list((tmp_path / "out").glob("*.done")) and not list((tmp_path / "out").glob("*.failed"))
    plan = [job("a"), job("b"), job("c", "a"), job("tables", kind="last")]
    assert finished(plan)[0] == 0 and begun(tmp_path)[2:] == ["a", "b", "c", "tables"]


def test_two_queues_do_no_job_at_once_and_go_on_with_what_the_other_did(queue, finished, tmp_path):
    first = queue([job("a", seconds=1.5), job("b", "a")])
    until(lambda: begun(tmp_path) == ["a"], 30)
    status, printed, errors = finished([job("a", seconds=1.5), job("c", "a")])
    assert (status, errors) == (0, "") and printed == "a: under way in another script, waiting for it\nc\n"
    assert first.communicate(timeout=30)[1] == "" and sorted(begun(tmp_path)) == ["a", "b", "c"]


def test_a_job_that_outlives_its_queue_is_waited_for(queue, tmp_path):
    process = queue([job("a", seconds=1.5)])
    until(lambda: begun(tmp_path) == ["a"], 30)
    process.kill()
    process.communicate()
    second = queue([job("a", seconds=1.5)])
    printed, errors = second.communicate(timeout=30)
    assert second.returncode == 0 and "under way in another script" in printed, errors
    assert [what for what, *_ in notes(tmp_path)] == ["begin", "end"] * 2  # a second time: nobody has said that it succeeded


# Products

RECORDS = [job("records", kind="cpu", product="out/file", command="echo made >> made; mkdir -p out; touch out/file"),
           job("one", "records", command="test -e out/file"), job("two", "records", command="test -e out/file")]


def made(tmp_path):
    return (tmp_path / "made").read_text().count("made")


def test_a_product_goes_after_its_last_use_and_comes_again_where_it_is_needed(finished, tmp_path):
    assert finished(RECORDS)[0] == 0 and not (tmp_path / "out/file").exists()
    assert finished(RECORDS)[0] == 0 and made(tmp_path) == 1  # nobody needs it
    third = job("three", "records", command="test -e out/file")
    assert finished([*RECORDS, third])[0] == 0 and made(tmp_path) == 2
    assert not (tmp_path / "out/file").exists()


def test_a_product_stays_if_asked_for_and_while_it_is_needed(finished, tmp_path):
    assert finished(RECORDS, "--keep_products")[0] == 0 and (tmp_path / "out/file").exists()
    failing = job("three", "records", command="false")
    assert finished([*RECORDS, failing])[0] == 1 and (tmp_path / "out/file").exists()
    with open(tmp_path / "out/records.log") as file:  # as another queue's job that reads it
        fcntl.flock(file, fcntl.LOCK_SH)
        assert finished(RECORDS)[0] == 0 and (tmp_path / "out/file").exists()
    assert finished(RECORDS)[0] == 0 and not (tmp_path / "out/file").exists() and made(tmp_path) == 1


def test_what_another_queue_made_used_and_removed_is_not_made_again(queue, finished, tmp_path):
    plan = [RECORDS[0].replace("mkdir", "sleep 1.5; mkdir"), *RECORDS[1:]]
    first = queue(plan)
    until(lambda: (tmp_path / "made").exists(), 30)
    assert finished(plan)[0] == 0 and first.wait(timeout=30) == 0
    assert made(tmp_path) == 1 and not (tmp_path / "out/file").exists()


def test_a_product_that_goes_while_others_run_is_made_again(finished, tmp_path):
    plan = [*RECORDS, job("slow", command="sleep 0.5; rm out/file", kind="cpu"), job("three", "records slow")]
    assert finished(plan, "--jobs", 3)[0] == 0 and begun(tmp_path) == ["three"] and made(tmp_path) == 2


def test_a_run_that_is_only_looked_at_keeps_the_seconds_that_it_took(finished, tmp_path):
    """As with one --seed more: it is there, and its command ends at once."""
    assert finished([job("a")])[0] == 0
    path = tmp_path / "out/a.done"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 3600.0}))
    assert finished([job("a", command="echo other")])[0] == 0
    record = json.loads(path.read_text())
    assert record["seconds"] == 3600.0 and "other" in record["command"]


# How far it is

def test_status_counts_and_says_how_long_the_rest_takes(queue, finished, tmp_path):
    def run(name, script, task, done=None):
        text = f"python {script} --task_name {task} --seed 1"
        return "\t".join((name, "gpu", "", "-", text)) + "\n", done
    runs = [run("a", "x.py", "imdb", 3600.0), run("b", "x.py", "imdb", 7200.0), run("c", "x.py", "ag", 36.0),
            run("d", "x.py", "imdb"), run("e", "x.py", "trec ag"), run("f", "x.py", "ag")]
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\n")
    stand_in.chmod(0o755)
    plan = [line for line, _ in runs]
    assert finished([line for line, seconds in runs if seconds], "--python", stand_in)[0] == 0
    for name in "abc":
        path = tmp_path / "out" / f"{name}.done"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": dict(a=3600.0, b=7200.0, c=36.0)[name]}))
    (tmp_path / "out/f.failed").touch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with open(tmp_path / "out/d.log", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, printed, _ = finished(plan, "--status", "--gpus", "0,1")
    # imdb as the median of its two, trec and ag as that of all three, ag as its own; on two GPUs
    left = ((3600 + 7200) / 2 + 3600 + 36) / 2 / 3600
    assert status == 0 and printed == ("3 done, 1 running, 1 waiting, 1 failed\nrunning: d (out/d.log)\n"
                                       f"failed: f (out/f.log)\n{left:.1f} hours left\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "d.log"])
    printed = finished([*plan, "g\tgpu\t\t-\tpython y.py\n"], "--status")[1]
    assert printed.endswith("hours left and what is not yet known: none of y.py is done\n")


def test_a_terminal_shows_one_line_that_keeps_up(queue, tmp_path):
    terminal, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 100))
    process = queue([job("a"), job("b", "a", seconds=0.5)], stderr=other)
    os.close(other)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal, on Linux
        while data := os.read(terminal, 4096):
            seen += data
    os.close(terminal)
    process.communicate(timeout=30)
    lines = seen.decode().split("\r\x1b[K")
    assert "[##########          ] 1/2 done, 1 running, 0 waiting, 0 failed, 0 minutes left" in lines, lines
    assert lines[1].startswith("[                    ] 0/2 done, 1 running, 1 waiting") and len(lines[1]) == 99
    assert lines[-1] == "" and lines.index("") < len(lines) - 1  # wiped at the end, and for what is printed between


# Wrong plans

@pytest.mark.parametrize("plan, words", [
    ([job("a"), job("a", seconds=1)], "a is declared twice"),
    ([job("a", "b"), job("b")], "a needs b, which is not declared before it"),
    (["a\tgpu\ttrue\n"], "has not the form name, kind, needs, product, command"),
    (["a\ttpu\t\t-\ttrue\n"], "has not the form"), (["a\tgpu\t\t-\t \n"], "has not the form")])
def test_a_wrong_plan_is_refused_before_anything_runs(finished, tmp_path, plan, words):
    status, _, errors = finished([job("z"), *plan])
    assert status == 1 and words in errors and errors.count("\n") == 1 and begun(tmp_path) == []


def test_the_same_job_from_two_experiments_is_one(finished, tmp_path):
    assert finished([job("a"), job("b", "a"), job("a"), job("c", "a")])[0] == 0
    assert begun(tmp_path) == ["a", "b", "c"]


def test_another_bert_is_refused_in_the_place_of_the_first(finished, tmp_path):
    def source(folder):
        return f"models/base\tsource\t\t-\tsh -c 'test -e {folder}'\n"
    assert finished([source("/absent")])[0] == 1
    assert finished([source("/tmp"), job("a")])[0] == 0  # after one that failed any may come
    status, _, errors = finished([source("/usr"), job("b")])
    assert status == 1 and "out/models/base is of another BERT, made by `sh -c 'test -e /tmp'`; name another OUT" in errors
    assert begun(tmp_path) == ["a"]


def test_a_bert_that_has_changed_is_refused_until_it_is_said_to_be_the_same(finished, tmp_path):
    bert, done = tmp_path / "config.json", tmp_path / "out/models/base.done"
    bert.touch()
    plan = [f"models/base\tsource\t\t-\tcat {bert}\n", job("a", "models/base")]
    assert [finished(plan)[0] for _ in range(2)] == [0, 0]
    os.utime(bert, (done.stat().st_mtime + 1,) * 2)
    status, _, errors = finished([*plan, job("b")])
    assert status == 1 and errors.count("\n") == 1 and begun(tmp_path) == ["a"]
    assert f"{bert} is newer than what out/models/base was made from" in errors and "touch out/models/base.done" in errors
    os.utime(done, (done.stat().st_mtime + 2,) * 2)
    assert finished([*plan, job("b")])[0] == 0 and begun(tmp_path) == ["a", "b"]
