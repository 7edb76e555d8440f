"""Runs the project's scripts in forks of one process that has imported everything, and kills them where it is told.

A run of a tiny model takes a fraction of a second so, and hundreds of them a minute or two. The process that forks does
nothing else and has one thread. `Faults` is its client:

    with Faults() as faults:
        outcome = faults.run("run_pretraining", "--do_train", ..., watch=folder, kill_at=7)

    python tests/faults.py    # the process that forks: requests and answers are lines of JSON on its standard streams
"""
import contextlib
import dataclasses
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ("", "data", "scripts")  # of scripts
IMPORTED = ("tensorflow torch torch._dynamo torch.distributed.run numpy safetensors.torch sklearn.metrics tokenizers "
            "matplotlib.backends.backend_agg "
            "pooch requests spacy.lang.en tensorboard.summary.writer.record_writer "
            "tensorboard.compat.proto.event_pb2 tokenization tasks modeling optimization pretraining.checkpoints "
            "pretraining.training finetuning.command").split()
SECONDS = 120  # that a run may take
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")  # audit events


@dataclasses.dataclass
class Outcome:
    """How a run ended. status: its exit status, negative for a signal. output, errors: what it printed on its two
    streams. events: how many file events it had, None if it was killed."""
    status: int
    output: str
    errors: str
    events: int | None


class Faults:
    """The process that forks. A context."""

    def __enter__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1",
                                    "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        self.number = 0
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        return self

    def run(self, script, *flags, watch, kill_at=None, file_size=None, die_of_size=False):
        """Runs a script, `run_pretraining` or `data/download`, as a user would, and returns its Outcome.

        kill_at: the number, from 1, of the file event in the folder `watch` before which it is killed: opening for
        writing, renaming, removing, ... . file_size: bytes that no file may be longer than; at more, writing fails as
        on a full disk, or, with die_of_size, the process is killed in the middle of it.
        """
        self.number += 1
        request = {"number": self.number, "script": script, "flags": list(map(str, flags)), "watch": str(watch),
                   "kill_at": kill_at, "file_size": file_size, "die_of_size": die_of_size}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        number = 0
        while number < self.number:  # a test that was stopped did not wait for the answer to its last request
            number, fields = json.loads(self.process.stdout.readline())
        return Outcome(**fields)

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait(60)


# The process that forks

def serve():
    sys.path[:0] = [ROOT, *(os.path.join(ROOT, folder) for folder in FOLDERS if folder)]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints as it is imported is no answer
    from common.command_line import tensorflow_start_up
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow, which pandas imports, would start one
    with tensorflow_start_up():
        for name in IMPORTED:
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would have one of several threads"
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps([request["number"], fork(request)]) + "\n")
        answers.flush()


def fork(request):
    """Runs a request in a fork: the fields of its Outcome."""
    pipes = [os.pipe() for _ in range(3)]  # for standard output, standard error and the number of events
    child = os.fork()
    if child == 0:
        for number, (_, end) in enumerate(pipes[:2], 1):
            os.dup2(end, number)
        play(request, pipes[2][1])
    for _, end in pipes:
        os.close(end)
    told = {begin: b"" for begin, _ in pipes}
    open_ends, deadline = set(told), time.monotonic() + SECONDS
    while open_ends:
        ready = select.select(open_ends, [], [], max(0, deadline - time.monotonic()))[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        for begin in ready:
            more = os.read(begin, 1 << 16)
            told[begin] += more
            if not more:
                open_ends.remove(begin)
                os.close(begin)
    output, errors, count = (text.decode(errors="replace") for text in told.values())
    return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "output": output, "errors": errors,
            "events": int(count) if count else None}


def play(request, counts):
    """Makes of this fork the script's process; it does not return."""
    import tensorflow
    import torch
    torch.set_num_threads(1)
    if os.path.basename(request["script"]) == "run_pretraining":
        tensorflow.config.run_functions_eagerly(True)  # a few steps take longer to trace than to run
        warnings.filterwarnings("ignore", "Even though the .*eagerly", UserWarning)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    script, status, events = request["script"], 0, 0
    sys.argv = [os.path.join(ROOT, f"{script}.py"), *request["flags"]]
    module = importlib.import_module(os.path.basename(script))
    if request["file_size"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if request["die_of_size"] else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)

    def count(event, arguments):
        nonlocal events
        if event == "open":
            if not isinstance(arguments[0], (str, bytes)) or not arguments[2] & WRITES:
                return
        elif event not in CHANGES:
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        relative_to_descriptor = event != "open" and isinstance(arguments[-1], int) and arguments[-1] >= 0  # of rmtree
        if relative_to_descriptor or path.startswith(request["watch"]):
            events += 1
            if events == request["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    from common import command_line
    try:
        command_line.run(module.main)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(counts, str(events).encode())
    os._exit(status)


if __name__ == "__main__":
    serve()
