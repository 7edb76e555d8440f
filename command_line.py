"""What every script of the pipeline shares at the shell: flags, one-line errors, files that are whole or absent."""
import argparse
import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import subprocess
import sys


class UserError(Exception):
    """A wrong input: the message says what, where and how to mend it. `run` prints it as one line, exit status 1."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviated flags, with the script's docstring as its manual and errors in one line."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def boolean(text):
    """argparse type of a flag that is written `--flag`, `--flag=True` or `--flag False`."""
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
        for bound, holds, words in (
                (minimum, lambda b: value >= b, "at least"), (maximum, lambda b: value <= b, "at most"),
                (above, lambda b: value > b, "above"), (below, lambda b: value < b, "below")):
            if bound is not None and not holds(bound):  # NaN fails every comparison
                raise argparse.ArgumentTypeError(f"{text} is not {words} {bound}")
        return value
    return parse


def require_file(path, flag):
    """Raises UserError unless `path`, the value of `flag`, is a file that is not empty. Returns the path."""
    if not os.path.exists(path):
        raise UserError(f"{flag}: there is no file {path}")
    if os.path.isdir(path):
        raise UserError(f"{flag}: {path} is a folder, a file is needed")
    if os.path.getsize(path) == 0:
        raise UserError(f"{flag}: {path} is empty")
    return path


def require_folder(path, flag):
    """Raises UserError unless `path`, the value of `flag`, is a folder. Returns the path."""
    if not os.path.isdir(path):
        raise UserError(f"{flag}: {path} is a file, a folder is needed" if os.path.exists(path) else
                        f"{flag}: there is no folder {path}")
    return path


def check_output_folder(path, flag):
    """Raises UserError, before any work, unless `path`, the value of `flag`, is or can become a folder to write into."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"{flag}: {existing} is a file, a folder is needed")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: the folder {existing} is not writable")


def check_output_file(path, flag):
    """The same for a file to write: its folder must do, and no folder may have its name."""
    if not os.path.basename(path) or os.path.isdir(path):
        raise UserError(f"{flag}: {f'{path} is a folder' if path else 'the name is empty'}, a file name is needed")
    check_output_folder(os.path.dirname(path), flag)


def checkpoint_prefix(path):
    """What the files of a TensorFlow checkpoint have in common, if `path` is named like one of them, else `path`."""
    return re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)


def decode_lines(path, encoding="utf-8", keep_ends=False):
    """Yields (line number from 1, line without its end) of a text file; only \\n, \\r\\n end a line, never U+0085.

    With `keep_ends` the line keeps its end, for a format whose records may hold line ends (csv).
    Raises UserError with the line's number where the bytes are not text in `encoding`.
    """
    with open(path, "rb") as file:
        for line_number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise UserError(f"{path}:{line_number}: a zero byte; this is no text file")
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{line_number}: byte {error.start + 1} is not {encoding.upper()}; "
                                "convert the file with iconv") from None
            yield line_number, line if keep_ends else line.removesuffix("\n").removesuffix("\r")


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Opens a temporary file beside `path` and renames it to `path` when the block ends without an exception.

    A killed process leaves the temporary file; the next write of `path` takes its place.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def tensorflow_start_up():
    """Imports of TensorFlow in this block are quicker and quiet.

    Quicker: TensorFlow loads Keras as it starts, a third of the time, and nothing here uses it. The variable has it look
    for the old Keras instead, which is a package of its own that is usually not installed. Quiet: what its libraries write
    to stderr while they load and look for GPUs, which no log level silences; set TF_CPP_MIN_LOG_LEVEL to see it.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
        sys.modules["tensorflow"].config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def read_recipe(path, kind):
    """What decides the result of the run that `path`, a run.json, describes: its `recipe`.

    Raises UserError where the file is not that of a run of this `kind`: no run writes over what another script made.
    """
    try:
        with open(path, encoding="utf-8") as file:
            described = json.load(file)
    except ValueError:
        described = None
    if not isinstance(described, dict) or described.get("kind") != kind:
        raise UserError(f"--output_dir: {os.path.dirname(path)} holds a run of another script (its run.json is not that of "
                        f"a {kind} run); name another folder")
    return described["recipe"]


def end_with_parent():
    """Has this process end when the one that started it does, however that ends. Linux has a call for it; elsewhere
    SIGKILL of the parent leaves it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def source_commit():
    """The git commit of this code, for the record of a run; None where it is no clone or there is no git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=os.path.dirname(os.path.abspath(__file__)),
                               capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def run(main):
    """Calls main(); a UserError or a failure of the file system becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split("\n"))
    except OSError as error:
        if error.errno is None:
            raise
        where = f" while writing or reading {error.filename}" if error.filename else ""
        mend = "; free some space and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        message = f"{os.strerror(error.errno)}{where}{mend}"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(1)
