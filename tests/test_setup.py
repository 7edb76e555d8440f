"""scripts/setup.sh with a Python that only says which one it is: made once, refused in one line."""
import os
import subprocess

import pytest

from conftest import ROOT

STUB = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
    -c*) echo "$VERSION" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Runs setup.sh with a Python of that version: (the finished process, how Python was called)."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def call(version, **variables):
        log = tmp_path / "log"
        log.write_text("")
        environment = os.environ | {"BASE_PYTHON": str(stub), "VENV": str(tmp_path / "a venv"), "LOG": str(log),
                                    "VERSION": version} | variables
        commands = 'set -euo pipefail; source scripts/setup.sh requirements.txt; echo "$PYTHON"'
        done = subprocess.run(["bash", "-c", commands], cwd=ROOT, env=environment, capture_output=True, text=True)
        return done, [line for line in log.read_text().splitlines() if not line.startswith(("-c", "import"))]
    return call


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_environment_is_made_once(setup, tmp_path, version):
    done, calls = setup(version)
    assert done.returncode == 0 and done.stdout.endswith("/a venv/bin/python\n"), done.stderr
    assert [words.split()[:3] for words in calls] == [["-m", "venv", f"{tmp_path}/a"], ["-m", "pip", "install"]]
    assert setup(version)[1] == []
    (tmp_path / "a venv/bin/pip").unlink()  # as a killed set-up leaves it
    assert setup(version)[1] == [f"-m venv {tmp_path}/a venv"]


@pytest.mark.parametrize("listed, packages", [("exit 0", "requirements-gpu.txt"), ("exit 9", "requirements.txt")])
def test_tensorflow_has_its_cuda_libraries_where_there_is_a_gpu(setup, tmp_path, listed, packages):
    """Where nvidia-smi lists one; without its driver it fails."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$*" = -L ] && {listed}\n')
    tool.chmod(0o755)
    variables = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done, calls = setup("3.12", **variables)
    assert calls[-1].endswith(f" -r {packages}") and f"installing {packages}\n" in done.stdout
    assert setup("3.12", **variables)[1] == []
    lines = (ROOT / "requirements-gpu.txt").read_text().splitlines()
    pinned = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("tensorflow=="))
    assert "-r requirements.txt" in lines and pinned.replace("==", "[and-cuda]==") in lines


@pytest.mark.parametrize("version, words", [("3.10", "Python 3.10"), ("3.14", "Python 3.14"), ("", "not there")])
def test_another_python_is_refused_in_one_line(setup, tmp_path, version, words):
    done, calls = setup(version)
    assert done.returncode == 1 and calls == [] and not (tmp_path / "a venv").exists()
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/python is {words}, but Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert done.stderr.endswith("; run: BASE_PYTHON=python3.12 bash bash\n")  # bash: the name of the calling script
    absent, _ = setup(version, BASE_PYTHON=str(tmp_path / "absent"))
    assert absent.returncode == 1 and absent.stderr.count("\n") == 1 and "absent is not there" in absent.stderr


def test_an_environment_of_another_python_is_refused(setup, tmp_path):
    setup("3.13")
    done, calls = setup("3.14")
    assert done.returncode == 1 and calls == []
    assert f"remove {tmp_path}/a venv, then run: " in done.stderr
