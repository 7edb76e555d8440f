"""What the tests share: the project's folder on the path, real data and goldens, and a way to call a script."""
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def tensorboard_with_tensorflow():
    """tensorboard chooses once a process whether it writes with TensorFlow. A test process runs both frameworks, which
    only goes with it; a fine-tuning process of its own chooses without (fine_tuning.keep_tensorflow_out)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tensorboard.compat import tf
    assert tf.io


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and goldens beside the project; a test that asks for it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with real data and goldens is absent")
    return SHARED


@pytest.fixture(scope="session")
def script():
    """A function that runs one of the project's scripts as a user would: script("x.py", "--flag", ..., env={...})."""
    def call(name, *arguments, env=None, cwd=None, timeout=300):
        return subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], capture_output=True, text=True,
                              env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(env or {})}, cwd=cwd, timeout=timeout)
    return call


@pytest.fixture(scope="session")
def refused(script):
    """A function that asserts that a script refuses its input in one line with the words given, and no traceback."""
    def check(name, *arguments, words, **options):
        done = script(name, *arguments, **options)
        assert done.returncode not in (0, None), done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        last_line = done.stderr.strip().splitlines()[-1]
        assert "error:" in last_line and words in last_line, done.stderr
    return check
