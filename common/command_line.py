"""What every script shares at the shell: flags, one-line errors, stop signals, waiting for partners, the next command."""
import argparse
import contextlib
import ctypes
import dataclasses
import errno
import glob
import math
import operator
import os
import resource
import shlex
import signal
import sys
import threading


LEFT_BY_EXIT = set()  # files that go where `rendezvous` ends the process
MOST_FILES = 65_536  # open at a time, where the system lets a process raise that
NVIDIA_DEVICES = "/dev/nvidia[0-9]*"  # a file for each GPU, by its driver


class UserError(Exception):
    """A wrong input: the message says what, where and how to mend it. `run` prints it as one line, exit status 1."""


# Flags

class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviated flags, with the script's docstring as its manual and errors in one line."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def boolean(text):
    """argparse type of the value of a flag that is on or off."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")
    return values[text.lower()]


def add_boolean(group, name, default, help):
    """Adds the flag `name` to an argparse group in Google's two spellings, `--flag` and `--flag=True`."""
    group.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


def number(kind, minimum=None, maximum=None, above=None, below=None):
    """argparse type of an int or float (`kind`) in [minimum, maximum] and in (above, below), each bound optional."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {'a whole number' if kind is int else 'a number'}")
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
        for words, holds, bound in (("at least", operator.ge, minimum), ("at most", operator.le, maximum),
                                    ("above", operator.gt, above), ("below", operator.lt, below)):
            if bound is not None and not holds(value, bound):
                raise argparse.ArgumentTypeError(f"{text} is not {words} {bound}")
        return value
    return parse


path = os.path.expanduser  # argparse type of a path: the shell leaves the tilde of `--flag=~/x` to the program


def fields_of(kind, values, **more):
    """An object of the dataclass `kind`, its fields taken from `values` (parsed flags) or from `more`, by their names."""
    values = vars(values) | more
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def command(script, *words, **flags):
    """A command for the user to copy: `python SCRIPT WORDS --flag value ...`, quoted for the shell.

    flags: name=value; a list becomes several words, True a flag without a value, None or False is left out.
    """
    for name, value in flags.items():
        if value not in (None, False):
            words += (f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value])))
    return shlex.join(["python", script, *words])


# Signals and processes

class StopSignals:
    """While its block runs, SIGTERM and SIGINT (Ctrl-C) only set `received` (0 before), so that the loop can save what it
    has; a second signal ends the process at once. One that came after the last update is sent again as the block ends."""

    def __enter__(self):
        self.received = 0
        self.handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def receive(self, number, frame):
        self.received = number
        self.restore()  # so that a second signal acts as usual

    def restore(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __exit__(self, kind, *exception):
        self.restore()
        if self.received and kind is None:
            os.kill(os.getpid(), self.received)


def end_with_parent():
    """Has this process end when the one that started it does, however that ends."""
    if sys.platform == "linux":  # elsewhere there is no such call, and SIGKILL of the parent leaves this process
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def rendezvous(missing, timeout, remind_after=60):
    """A block that waits, in code that cannot be interrupted, for other processes of a run. missing() says which have not
    come, "1 of 2 processes at HOST:PORT": after `remind_after` seconds that is printed, after `timeout` it ends the process."""
    done = threading.Event()

    def watch():
        first = min(remind_after, timeout)
        if not done.wait(first) and timeout > first:
            print(f"waiting for {missing()}", file=sys.stderr, flush=True)
        if not done.wait(timeout - first):
            print_error(f"{missing()} did not come within {timeout:g} seconds; start the same command on every machine, or "
                        "raise --rendezvous_timeout")
            for path in LEFT_BY_EXIT:
                with contextlib.suppress(OSError):  # the process ends anyway, and the file is but a lock's
                    os.unlink(path)
            os._exit(1)  # the main thread is inside a library that waits on

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # so that it prints nothing after the block


@contextlib.contextmanager
def tensorflow_start_up(log_level=2):
    """Imports of TensorFlow in this block are quicker and quiet: nothing shows of what its libraries write to stderr while they
    load and look for GPUs, which no log level silences, nor later of what is below `log_level` (2: errors, 3: fatal ones). Set
    TF_CPP_MIN_LOG_LEVEL to see it."""
    # TensorFlow loads Keras as it starts, which nothing here uses. This has it look for the old Keras instead, a package of its
    # own that is usually not installed: a conversion takes 6.0 s, not 8.9 s.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(log_level)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
        sys.modules["tensorflow"].config.list_physical_devices()  # looks for GPUs now, while stderr is away
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def warn_of_an_idle_gpu(framework, remedy):
    """Says so where this machine has an NVIDIA GPU; the caller has found that the framework sees none."""
    if glob.glob(NVIDIA_DEVICES) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        print(f"*** WARNING: this machine has an NVIDIA GPU, but {framework} sees none and will compute on the CPU, many times "
              f"slower. {remedy} (CUDA_VISIBLE_DEVICES=-1 keeps to the CPU on purpose.) ***", file=sys.stderr, flush=True)


# Errors

def print_error(message):
    """Prints a message as one line on stderr, with the script's name before it."""
    print(f"{os.path.basename(sys.argv[0])}: error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def run(main):
    """Calls main(); a UserError or a failure of the file system becomes one line on stderr and exit status 1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard > soft:  # each seed's folder and each file of records is held open
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, MOST_FILES)), hard))
    try:
        return main()
    except UserError as error:
        print_error(error)
    except OSError as error:
        if error.errno is None:  # a library's own, not the system's: a fault of the program
            raise
        where = f" while writing or reading {error.filename}" if error.filename else ""
        remedy = "; free some space and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        print_error(f"{os.strerror(error.errno)}{where}{remedy}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports an end by Ctrl-C
    sys.exit(1)
