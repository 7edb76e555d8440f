"""What the tests share: the project's folder on the path, real data and goldens, and a way to call a script."""
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def tensorboard_with_tensorflow():
    """tensorboard chooses once a process whether it writes with TensorFlow. A test process runs both frameworks, which
    only goes with it; a fine-tuning process of its own chooses without (run_folder.keep_tensorflow_out)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tensorboard.compat import tf
    assert tf.io


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A command that a shell starts in the background ignores Ctrl-C, and what it starts does so too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a data set of 61 + 37 rows of the sample, and a random BERT of 2 layers without dropout."""
    import runs
    folder = tmp_path_factory.mktemp("tiny")
    for split, rows in (("train", runs.NUM_TRAIN), ("test", runs.NUM_TEST)):
        lines = (ROOT / "data" / "sample" / f"{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.csv").write_text("".join(lines[:rows]), encoding="utf-8")
    vocab = (ROOT / "data" / "tiny_bert" / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_text(vocab, encoding="utf-8")
    runs.make_bert(folder, vocab.count("\n"))
    return folder


@pytest.fixture
def refused_here(capsys):
    """A function that asserts that a script refuses its flags in one line with the words given."""
    import runs

    def check(script, *flags, words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runs.call(script, *flags)
        errors = capsys.readouterr().err.strip().splitlines()
        assert caught.value.code not in (0, None)
        assert "error:" in errors[-1] and words in errors[-1], errors
        return errors
    return check


@pytest.fixture(scope="session")
def start():
    """A function that starts a script in a process: start(script, flags, log file, event, environment) -> process."""
    import runs
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([runs.SINGLE, "tensorboard"])
    path = os.environ.get("PYTHONPATH")
    # for the fork server's imports
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [path])])

    def begin(script, flags, log, event=None, environment=None):
        process = context.Process(target=runs.in_a_process, args=(script, flags, str(log), event, environment or {}))
        process.start()
        return process
    yield begin
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
