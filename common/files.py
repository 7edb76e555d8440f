"""Files: checks of paths, text and JSON decoded line by line, writes that are whole or absent, globs."""
import collections
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import reprlib
import shutil

from common.command_line import UserError

MAX_DEPTH = 50  # of JSON; what the scripts write is at most 5 deep


# Checks before any work

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
    while not os.path.lexists(existing):  # ends at / at the latest
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


def expand_files(patterns, flag):
    """The files that the paths and globs of `flag`, separated by commas, name, the matches of a glob sorted. Raises UserError
    where one is missing or empty, or named twice."""
    files = []
    for pattern in map(os.path.expanduser, patterns.split(",")):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f"{flag}: there is no file {pattern}; give names or globs separated by commas")
        files += [require_file(path, flag) for path in matches]
    for path, count in collections.Counter(map(os.path.realpath, files)).items():
        if count > 1:
            raise UserError(f"{flag}: {path} is named twice and would count double; name it once")
    return files


def checkpoint_prefix(path):
    """What the files of a TensorFlow checkpoint have in common, if `path` is named like one of them, else `path`."""
    return re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)


# Reading

def decode_lines(path, encoding="utf-8", keep_ends=False, opener=open):
    """Yields (line number from 1, line without its end) of a text file; only \\n, \\r\\n end a line, never U+0085.

    With `keep_ends` the line keeps its end, for a format whose records may hold line ends (csv). opener: gzip.open for a
    compressed file. Raises UserError with the line's number where the bytes are not text in `encoding`.
    """
    with opener(path, "rb") as file:
        for line_number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise UserError(f"{path}:{line_number}: a zero byte; this is no text file")
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{line_number}: byte {error.start + 1} is not {encoding.upper()}; "
                                "convert the file with iconv") from None
            yield line_number, line if keep_ends else line.removesuffix("\n").removesuffix("\r")


def parse_json(text, where, **options):
    """The value of a JSON text; options: json.loads's. Raises UserError, its text starting with `where`, for all that Python
    cannot read, and for what is nested so deep that comparing or printing it would use up Python's stack."""
    try:
        value = json.loads(text, **options)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could be neither printed nor written
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [child for parent in level if isinstance(parent, (dict, list))
                     for child in (parent.values() if isinstance(parent, dict) else parent)]
        if level:
            raise RecursionError
    except RecursionError:
        raise UserError(f"{where} is not JSON of ours: it is nested too deep") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise UserError(f"{where} is not whole JSON: {error}") from None
    return value


def read_json(path, schema, where=None):
    """The value in a JSON file, checked against `schema` (see `check_schema`). where: what an error begins with."""
    where = where or path
    with open(path, "rb") as file:
        value = parse_json(file.read(), where)
    check_schema(value, schema, where)
    return value


def check_schema(value, schema, where):
    """Raises UserError, its text starting with `where`, unless a JSON value has the form of `schema`.

    schema: a type or a tuple of types (float takes an int too, int no bool, neither a number of more than 64 bits); {key:
    schema}, an object that has these keys at least; {str: schema}, an object whose other values are all so; [schema], a list.
    """
    expected = type(schema) if isinstance(schema, (dict, list)) else schema
    types = expected if isinstance(expected, tuple) else (expected,)
    if float in types:
        types += (int,)
    if not isinstance(value, types) or isinstance(value, bool) and bool not in types and object not in types:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        raise UserError(f"{where}: {reprlib.repr(value)} where {names} is needed; the file is damaged, or not ours")
    if isinstance(value, int) and not -2**63 <= value < 2**63:  # numpy, torch and float() would fail on it later
        raise UserError(f"{where}: {reprlib.repr(value)} is a number of more than 64 bits; the file is damaged, or not ours")
    if isinstance(schema, list):
        for index, element in enumerate(value):
            check_schema(element, schema[0], f"{where}, [{index}]")
    if isinstance(schema, dict):
        for key in [key for key in schema if key is not str] + list(value if str in schema else []):
            if key not in value:
                raise UserError(f"{where} has no {key}; the file is damaged, or not ours")
            check_schema(value[key], schema.get(key, schema.get(str)), f"{where}, {key}")


def digest(*parts):
    """The first 16 hexadecimal digits of the SHA-256 of bytes, of anything with a buffer (arrays), or of text."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()[:16]  # 64 bits: short in a message, and no two files of anybody's agree by chance


def sha256_of(path):
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path):
    """The first 16 of them, as `digest` gives."""
    return sha256_of(path)[:16]


# Writing

@contextlib.contextmanager
def naming(path, *others):
    """Errors of the file system in this block name `path`: instead of nothing, as where a disk is full, or of `others`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, *others):
            error.filename = path
        raise


@contextlib.contextmanager
def locked(path, refusal, flags=os.O_RDONLY):
    """Holds the lock of the file or folder `path` while the block runs, and yields its descriptor. Raises UserError with
    the text `refusal` where another process holds it. The system frees the lock however a process ends."""
    while True:
        descriptor = os.open(path, flags, 0o666)  # the mode of any new file, the umask taken off
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
            os.close(descriptor)  # its writer renamed it between the two calls: what now has the name is another file
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(refusal) from None
        except FileNotFoundError:  # or its holder removed it
            os.close(descriptor)
        except OSError:  # a file system without locks: as without this function
            break
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path):
    """Yields a temporary name beside `path` for any writer; it becomes `path` if the block ends without an exception. The name
    is the same each time and locked: what a killed process leaves is written over, and a second command gets a UserError."""
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    refusal = f"{path} is being written by another command; wait for it, or name another file"
    with naming(path, temporary), locked(temporary, refusal, os.O_RDWR | os.O_CREAT) as descriptor:
        try:
            yield temporary
            os.fsync(descriptor)  # else a crash of the machine could leave an empty file under the final name
            os.replace(temporary, path)
        except BaseException:  # not once it is renamed: what then has the name is the next command's
            remove(temporary)
            raise


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """A file opened for writing that stands under its name once it is whole, see `whole_file`."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}  # line ends are written as they are
    with whole_file(path) as temporary, open(temporary, mode, **text) as file:
        yield file


def write_json(path, value):
    """Writes a value as JSON, its keys sorted."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def copy_file(source, target):
    """Copies a file, unless it is the same one, in a write that is whole or absent."""
    if not (os.path.exists(target) and os.path.samefile(source, target)):
        with open(source, "rb") as original, atomic_write(target, "wb") as copy:
            shutil.copyfileobj(original, copy)


def remove(path):
    """Removes a file, a folder with all it holds, or a link, which is not followed; it need not be there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
