"""preloaded.py: what runs in a fork of it does what a Python of its own does, to the bit, and ends as that does."""
import os
import signal
import subprocess
import sys

import pytest

import preloaded
from conftest import ROOT, SESSION
from runs import until

pytestmark = pytest.mark.skipif(not preloaded.is_possible(), reason="needs Linux without a GPU")


@pytest.fixture
def program(request):
    """A function that writes a script into the project, for the time of a test, and gives its path."""
    paths = []

    def write(text):
        paths.append(ROOT / "tests" / f"program_{os.getpid()}_{len(paths)}.py")
        paths[-1].write_text(text)
        return paths[-1]
    yield write
    for path in paths:
        path.unlink()


def both(interpreter, *command, **options):
    """What a command does in a fork and by a Python of its own: (exit status, stdout, stderr) of each."""
    return [(done.returncode, done.stdout, done.stderr)
            for done in (subprocess.run([python, *map(str, command)], capture_output=True, text=True, **options)
                         for python in (interpreter, sys.executable))]


WHERE = """
import os, sys
print("tensorflow" in sys.modules, os.getpid() == os.getsid(0))
"""


def test_a_script_runs_in_a_fork_and_an_option_does_not(interpreter, program):
    forked, own = both(interpreter, program(WHERE))
    assert forked == (0, "True True\n", "") and own[1].startswith("False")
    assert both(interpreter, "-c", WHERE)[0][1].startswith("False")


@pytest.mark.parametrize("name, value", (("PYTHONHASHSEED", "1"), ("LC_ALL", "C"), ("OPENBLAS_NUM_THREADS", "3")))
def test_what_is_read_at_the_start_has_a_python_of_its_own(interpreter, program, name, value):
    assert both(interpreter, program(WHERE), env=os.environ | {name: value})[0][1].startswith("False")


@pytest.mark.parametrize("ending", (
    "", "sys.exit(3)", "sys.exit('words')", "sys.exit(None)", "sys.exit(300)", "1 / 0", "raise KeyboardInterrupt",
    "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os._exit(7)", "import absent",
    "import threading; threading.Timer(0.2, print, ['late']).start()", "import atexit; atexit.register(print, 'last')",
    "sys.stdout.write('no line end')", "sys.stderr.write('no line end')", "print(undefined", "os.close(1)",
    "print(sys.argv, sys.path[:2], __name__, __file__, os.getcwd(), sys.stdin.read(), ascii(os.environ['MINE']))",
    "import signal; print([signal.getsignal(number) for number in range(1, 16)])", "print(os.umask(0))",
    "import resource; print([resource.getrlimit(number) for number in range(16)])",
    "import torch; print(torch.get_num_threads())"))
def test_it_ends_as_a_python_of_its_own(interpreter, program, tmp_path, ending):
    path = program(f"import os, sys\nprint('first')\n{ending}\n")
    forked, own = both(interpreter, path, "a", "", "ü\udcff b", "*", cwd=tmp_path, input="given",
                       env=os.environ | {"MINE": "x\udcffy", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(tmp_path)})
    assert forked == own


def test_forks_draw_other_random_numbers(interpreter, program):
    path = program("import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())")
    drawn = [subprocess.run([interpreter, path], capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert not set(drawn[0]) & set(drawn[1]) and len(drawn[1]) == 3


def test_limits_are_passed_on(interpreter, program):
    path = program("import resource\nprint(resource.getrlimit(resource.RLIMIT_FSIZE))\nopen('/dev/shm/x', 'w').close()\n"
                   "import os; os.unlink('/dev/shm/x')")
    done = subprocess.run(["sh", "-c", 'ulimit -f 3; exec "$0" "$1"', interpreter, path], capture_output=True, text=True)
    assert done.stdout.startswith(f"({3 * 512}") or done.stdout.startswith(f"({3 * 1024}"), done


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
def test_signals_reach_the_script(interpreter, program, tmp_path, number):
    path = program("import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    process = subprocess.Popen([interpreter, path, tmp_path / "pid"], stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not os.path.exists(f"/proc/{pid}"), 10)


def test_a_signal_that_is_ignored_stays_so(interpreter, program):
    path = program("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('heard nothing')\n")
    command = ["sh", "-c", 'trap "" INT; exec "$0" "$1"', interpreter, path]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "heard nothing\n"


@pytest.mark.long
def test_a_fork_trains_to_the_same_bits(interpreter, tiny, tmp_path):
    """Both frameworks: further pre-training, its conversion, and fine-tuning."""
    import runs
    corpus = ROOT / "data" / "agnews_corpus_test.txt"
    for name, python in (("forked", interpreter), ("own", sys.executable)):
        def run(script, *flags):
            subprocess.run([python, ROOT / script, *map(str, flags)], check=True, capture_output=True,
                           env=os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"})
        folder = tmp_path / name
        run("create_pretraining_data.py", "--input_file", corpus, "--output_file", folder / "records", "--vocab_file",
            tiny / "vocab.txt", "--max_seq_length", 32, "--max_predictions_per_seq", 5, "--dupe_factor", 1)
        run("run_pretraining.py", "--input_file", folder / "records", "--output_dir", folder / "pretrained",
            "--bert_config_file", tiny / "bert_config.json", "--do_train", "--max_seq_length", 32,
            "--max_predictions_per_seq", 5, "--train_batch_size", 8, "--num_train_steps", 5, "--num_warmup_steps", 1)
        run("convert_tf_checkpoint_to_pytorch.py", "--tf_checkpoint_path", folder / "pretrained" / "model.ckpt-5",
            "--bert_config_file", tiny / "bert_config.json", "--pytorch_dump_path", folder / "bert" / "pytorch_model.bin")
        run(f"{runs.SINGLE}.py", *runs.train_flags(tiny, folder / "run"), "--init_checkpoint", folder / "bert",
            "--num_train_epochs", 1)
    names = ("records", "bert/pytorch_model.bin", "run/last/model.safetensors")
    assert all((tmp_path / "forked" / name).read_bytes() == (tmp_path / "own" / name).read_bytes() for name in names)


def test_the_server_ends_with_the_session_and_so_do_its_scripts(program, tmp_path):
    lifeline = preloaded.open_session(str(tmp_path))
    python = preloaded.interpreter(str(tmp_path))
    assert preloaded.interpreter(str(tmp_path)) == python != preloaded.interpreter(os.environ[SESSION])

    waiting = subprocess.Popen([python, program("import time\nprint('started', flush=True)\ntime.sleep(60)")],
                               stdout=subprocess.PIPE)
    assert waiting.stdout.readline() == b"started\n"
    lifeline.close()
    assert waiting.wait(20) == preloaded.GONE
