"""Several processes of a fine-tuning run of which one is killed, or never comes: one line says which, and how."""
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import run_classifier_single_layer
from common import command_line
from finetuning import processes
from runs import ROOT, SINGLE, start_together, train_flags, until, wait


def environment_of(pid):
    entries = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_process_is_named(tiny, tmp_path):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 10_000, "--num_processes", 2]
    with open(tmp_path / "log", "w") as log:
        command = subprocess.Popen([sys.executable, ROOT / f"{SINGLE}.py", *map(str, flags)], stdout=log, stderr=log)
    try:
        until(lambda: (tmp_path / "run" / "checkpoint.pt").exists() or command.poll() is not None)
        started = pathlib.Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        ranks = {environment_of(pid)["RANK"]: int(pid) for pid in started}
        assert ranks.keys() == {"0", "1"}
        os.kill(ranks["1"], signal.SIGKILL)
        assert command.wait(60) == 128 + signal.SIGKILL
    finally:
        command.kill()
        command.wait()
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert f"{SINGLE}.py: error: process 1 of 2 was ended by SIGKILL" in last, output
    assert "the same command goes on from the last checkpoint" in last


@pytest.mark.parametrize("statuses, code, words", [
    ({1: -9}, 137, "process 1 of 2 was ended by SIGKILL, perhaps for want of memory"),
    ({0: 1, 1: -9}, 137, "process 1 of 2 was ended by SIGKILL"),  # the other has seen it and has ended just then
    ({0: -11, 1: -15}, 139, "process 0 of 2 was ended by SIGSEGV"),  # torch ends those that are left
    ({0: 1, 1: -15}, 1, ""), ({1: 3}, 3, "")])  # it has said why
def test_of_several_that_ended_the_one_that_was_killed_is_named(monkeypatch, capsys, statuses, code, words):
    failures = {rank: ProcessFailure(rank, 1, status, "none") for rank, status in statuses.items()}

    def elastic_launch(config, program):
        def fail(*words):
            raise ChildFailedError("x", failures)
        return fail
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as caught:
        processes.launch(2, False)
    assert caught.value.code == code
    errors = capsys.readouterr().err
    assert words in errors and bool(errors) == bool(words)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_partner_that_never_comes(tiny, tmp_path, start, rank):
    """The one that waits for others to call, and the one that calls nobody."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--rendezvous_timeout", 1.5]
    begun = time.monotonic()
    alone = start_alone(start, rank, SINGLE, flags, tmp_path / "log")
    assert wait(alone) == [1]
    assert 1.5 < time.monotonic() - begun < 40
    output = (tmp_path / "log").read_text()
    assert re.fullmatch(rf"{SINGLE}\.py: error: 1 of 2 processes at 127\.0\.0\.1:\d+ did not come within 1\.5 seconds; "
                        r"start the same command on every machine, or raise --rendezvous_timeout\n", output), output
    assert not (tmp_path / "run").exists()


def start_alone(start, rank, script, flags, log):
    """The one of two processes of this rank; the other is never started."""
    started = []
    start_together(lambda *arguments: started.append(arguments), 2, script, flags, log)
    script, flags, _, event, environment = started[rank]
    return start(script, flags, log, event, environment)


def main():
    """The script, if this module's name is given for its: a reminder comes after half a second already."""
    processes.rendezvous = functools.partial(command_line.rendezvous, remind_after=0.5)
    run_classifier_single_layer.main()


def test_who_waits_says_so(tiny, tmp_path, start):
    """Once, after a while; whoever comes late still takes part."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 0.25, "--rendezvous_timeout", 60]
    started = []
    start_together(lambda *arguments: started.append(arguments), 2, "test_processes", flags, tmp_path / "log")
    first = start(*started[0])
    until(lambda: "waiting" in read(tmp_path / "log.0"), 100)
    assert re.fullmatch(r"waiting for 1 of 2 processes at 127\.0\.0\.1:\d+\n", read(tmp_path / "log.0"))
    assert wait(start(*started[1]), first) == [0, 0], read(tmp_path / "log.0") + read(tmp_path / "log.1")
    assert read(tmp_path / "log.0").count("waiting for") == 1


def read(path):
    return path.read_text() if path.exists() else ""
