"""What the tests share: the project's folder on the path, real data and goldens, and a way to call a script."""
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
import preloaded

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# pyarrow, which pandas loads, and that scikit-learn, would start a thread of its allocator in the processes that fork
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
SESSION = "TESTS_SESSION_FOLDER"  # variable: a folder that the processes of a session (of pytest-xdist) share


def pytest_configure(config):
    if SESSION not in os.environ:  # this process is no worker of pytest-xdist, but may start some
        os.environ[SESSION] = tempfile.mkdtemp(prefix="tests-")
        config.lifeline = preloaded.open_session(os.environ[SESSION])


def pytest_unconfigure(config):
    if hasattr(config, "lifeline"):
        config.lifeline.close()
        shutil.rmtree(os.environ.pop(SESSION), ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Long tests come first, else one of them alone would end the session. `--dist worksteal` gives each worker a part
    of the list at first, so each part begins with its share of them."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    long, others = [], []
    for item in items:
        (long if item.get_closest_marker("long") else others).append(item)
    size = len(others) / workers
    items[:] = [item for worker in range(workers)
                for item in (*long[worker::workers], *others[round(worker * size):round((worker + 1) * size)])]


@pytest.fixture(scope="session")
def interpreter():
    """The Python that runs the tests' commands: one that has the frameworks imported already, where that is possible.
    It lies in what scripts/setup.sh takes for a virtual environment."""
    if not preloaded.is_possible():
        return pathlib.Path(sys.executable)
    return pathlib.Path(preloaded.interpreter(os.environ[SESSION]))


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
def script(interpreter):
    """A function that runs one of the project's scripts as a user would: script("x.py", "--flag", ..., env={...}).

    plain: by a Python of its own, for what a fork does not show: what is imported, how much memory it takes.
    """
    def call(name, *arguments, env=None, cwd=None, timeout=300, plain=False):
        return subprocess.run([sys.executable if plain else interpreter, str(ROOT / name), *map(str, arguments)],
                              capture_output=True, text=True, cwd=cwd, timeout=timeout,
                              env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(env or {})})
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
    context.set_forkserver_preload([runs.SINGLE, "tensorboard", "sklearn.metrics", "matplotlib.backends.backend_agg"])
    path = os.environ.get("PYTHONPATH")
    # for the fork server's imports
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [path])])

    def begin(script, flags, log, event=None, environment=None):
        process = context.Process(target=runs.in_a_process, args=(script, flags, str(log), event, environment or {}))
        process.start()
        return process
    yield begin
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


@pytest.fixture
def spy(monkeypatch):
    """spy(owner, name, note): the list of note(result, *arguments) of each call of the function `name` from now on."""
    def install(owner, name, note):
        noted, original = [], getattr(owner, name)

        def call_and_note(*arguments, **options):
            result = original(*arguments, **options)
            noted.append(note(result, *arguments, **options))
            return result
        monkeypatch.setattr(owner, name, call_and_note)
        return noted
    return install
