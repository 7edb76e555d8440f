"""Downloads data sets and checkpoints of the paper, checks them and puts them where the scripts read them.

    python data/download.py --list
    python data/download.py ag imdb bert_base_uncased --output_dir ./downloads

A data set becomes a folder for --data_dir of the fine-tuning scripts (./downloads/ag, ./downloads/imdb), a checkpoint
a folder as Google publishes it (./downloads/uncased_L-12_H-768_A-12). What is there with the right checksum is not
downloaded again. Nothing gets its final name before it is whole and its sha256 is right: until then it is kept in the
folder `.downloads` beside it. A broken connection is resumed where it broke, by this command or by the next one. An
unpacked archive whose files have no published checksums gets a list of them, SHA256SUMS (`sha256sum -c` reads it).
"""
import collections
import contextlib
import csv
import errno
import os
import re
import stat
import sys
import tarfile
import time
import zipfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from common.command_line import ArgumentParser, UserError, add_boolean, command, number, path, run  # noqa: E402
from common.files import (atomic_write, check_output_folder, decode_lines, locked, naming, remove, require_file,  # noqa: E402
                          sha256_of)
from common.tables import without_mark  # noqa: E402

SUMS = "SHA256SUMS"
CHUNK = 1 << 16  # bytes written at a time; where a connection breaks, at most this many are asked for twice
FAULTS_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


# One thing to download. how: `file`, an archive to unpack (`zip`, `tgz`), or `by hand`. target: the file or folder it becomes.
# bytes: 0 if unknown. sha256: of the file or archive, "" if not published. files: {file in an archive: its sha256}.
Source = collections.namedtuple("Source", "name kind how target url bytes sha256 files note")


def is_inside(name):
    """Whether a path stays in the folder it is meant for and names something there: it is relative, without `..`."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] != "" and ":" not in parts[0] and ".." not in parts and not {"", "."}.issuperset(parts)


COLUMNS = {  # of sources.csv: the test that a value must pass, and what it must be
    "name": (re.compile(r"[\w-]+").fullmatch, "letters, digits, - and _"),  # it becomes a part of a file's name
    "kind": (("dataset", "checkpoint").__contains__, "dataset or checkpoint"),
    "how": (("file", "zip", "tgz", "by hand").__contains__, "file, zip, tgz or by hand"),
    "target": (is_inside, "a relative path without .."),
    "url": (re.compile(r"https?://\S+").fullmatch, "an address with http:// or https://"),
    "bytes": (re.compile(r"[0-9]{0,15}").fullmatch, "a whole number or nothing"),
    "sha256": (re.compile(r"([0-9a-f]{64})?").fullmatch, "64 hexadecimal digits or nothing"),
    "unpacked_file": (lambda text: not text or is_inside(text), "a relative path without .., or nothing"),
    "note": (lambda text: True, "any text")}


def read_sources(path):
    """{name: its Sources}. Rows of one name and url are one archive, a row for each of its files with a checksum."""
    rows = csv.DictReader(line for _, line in without_mark(decode_lines(require_file(path, "--sources"))))
    sources = {}
    try:
        if rows.fieldnames != list(COLUMNS):
            raise UserError(f"--sources: {path}:1: the columns must be {','.join(COLUMNS)}")
        for row in rows:
            where = f"--sources: {path}:{rows.line_num}"
            if None in row.values() or None in row:  # csv's marks of a row that is too short or too long
                raise UserError(f"{where}: {len(COLUMNS)} columns are needed")
            for column, (fits, words) in COLUMNS.items():
                if not fits(row[column]):
                    raise UserError(f"{where}: {column} is {row[column][:60]!r}; it must be {words}")
            size, sha256, inside = (row.pop(column) for column in ("bytes", "sha256", "unpacked_file"))
            source = sources.setdefault(row["name"], {}).setdefault(row["url"], Source(
                **row, bytes=int(size or 0), sha256="" if inside else sha256, files={}))
            if inside:
                source.files[inside] = sha256
    except csv.Error as error:  # a field of over 131,072 characters; lines that end in a carriage return alone
        raise UserError(f"--sources: {path}:{rows.reader.line_num}: no row of a csv table ({error}); save the table "
                        "as csv with lines that end in \\n") from None
    return {name: list(of_name.values()) for name, of_name in sources.items()}


def wrong_files(folder, sums):
    """Those names of {file in `folder`: sha256} that are missing or different."""
    paths = {name: os.path.join(folder, name) for name in sums}
    return [name for name, path in paths.items() if not os.path.isfile(path) or sha256_of(path) != sums[name]]


def is_right(source, target):
    """Whether the file or folder `target` is what the source gives, by published checksums, else by SHA256SUMS."""
    if source.how == "file":
        return not source.sha256 or sha256_of(target) == source.sha256
    sums = source.files
    if not sums and os.path.exists(os.path.join(target, SUMS)):
        sums = {line[66:]: line[:64] for _, line in decode_lines(os.path.join(target, SUMS))}
    return bool(sums) and not wrong_files(target, sums)


def download_part(url, part, timeout):
    """One attempt to complete the file `part`; bytes that it already has are not asked for again (HTTP Range)."""
    import pooch
    import requests
    offset = os.path.getsize(part)
    with naming(part), open(part, "ab") as file:
        def at_the_reply(response, **_):
            content_range = response.headers.get("Content-Range", "")
            if response.status_code == 206 and not content_range.startswith(f"bytes {offset}-"):
                raise requests.ConnectionError("the server resumed at another place than it was asked for")
            if response.status_code in (200, 416):  # the server knows no Range, or has no such place: start again
                file.truncate(0)

        headers = {"Accept-Encoding": "identity"}  # so that a byte of the reply is a byte of the file
        if offset:
            headers["Range"] = f"bytes={offset}-"
        pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=CHUNK, headers=headers, timeout=timeout,
                             hooks={"response": at_the_reply})(url, file, None)


def download(source, part, args):
    """Downloads the source's file to `part`, which exists, in at most --attempts attempts. Returns whether one resumed. Raises
    UserError where the server refuses (404), or every attempt broke off; then `part` stays for the next command."""
    import requests
    if source.sha256 and sha256_of(part) == source.sha256:
        return False  # an earlier command was stopped between the last byte and the check
    resumed = False
    for attempt in range(1, args.attempts + 1):
        resumed |= os.path.getsize(part) > 0
        try:
            download_part(source.url, part, args.timeout)
            return resumed
        except (requests.RequestException, ValueError) as error:  # ValueError: of an address that cannot be one
            status = getattr(getattr(error, "response", None), "status_code", 0)
            reason = f"HTTP {status}" if status else type(error).__name__
            if isinstance(error, ValueError) or 400 <= status < 500 and status not in (408, 416, 429):
                raise UserError(f"{source.name}: {source.url} cannot be downloaded ({reason}); if it has moved, put its new "
                                "address into a copy of data/sources.csv and name the copy with --sources") from None
        if attempt < args.attempts:
            print(f"{source.name}: broke off after {os.path.getsize(part):,} bytes ({reason}); trying again")
            time.sleep(args.retry_wait * attempt)
    raise UserError(f"{source.name}: {source.url} broke off {args.attempts} times, the last time after "
                    f"{os.path.getsize(part):,} bytes ({reason}); run the same command again to resume")


def check_entries(opened):
    """Raises UserError where an entry of an open zip or tar archive leaves its folder, or is neither file nor folder."""
    if isinstance(opened, zipfile.ZipFile):
        entries = ((entry.filename, stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR))
                   for entry in opened.infolist())
    else:
        entries = ((entry.name, entry.isfile() or entry.isdir()) for entry in opened)
    for name, is_plain in entries:
        if not is_inside(name) and name not in (".", "./"):  # tar's entry for the folder itself
            raise UserError(f"the archive has the name {name!r}, which leaves its folder")
        if not is_plain:
            raise UserError(f"the archive's entry {name!r} is a link or a device")


def unpack(archive, how, folder):
    """Unpacks a zip or tgz into `folder`. Returns the folder of its files: the archive's own top folder, if it has one. Raises
    UserError where it is damaged, encrypted or packed in an unknown way, and before anything is written as `check_entries`."""
    try:
        with (zipfile.ZipFile(archive) if how == "zip" else tarfile.open(archive, "r:gz")) as opened:
            check_entries(opened)
            opened.extractall(folder, **({} if how == "zip" else {"filter": "data"}))
    except Exception as error:  # of a damaged archive these modules and the decompressors raise more than they document
        if isinstance(error, UserError) or isinstance(error, OSError) and error.errno in FAULTS_OF_THE_DISK:
            raise
        raise UserError(f"it is no whole {how} archive that can be unpacked ({error or type(error).__name__})") from None
    if not any(names for _, _, names in os.walk(folder)):
        raise UserError("the archive has no files")
    inside = [os.path.join(folder, name) for name in os.listdir(folder)]
    return inside[0] if len(inside) == 1 and os.path.isdir(inside[0]) else folder


def check_and_place(source, part, unpacking, target):
    """Checks the finished download `part` and puts it, or what it unpacks to (in the folder `unpacking` for the time being),
    under its final name `target`. Raises UserError where a checksum is wrong or the archive is not acceptable."""
    if source.sha256 and sha256_of(part) != source.sha256:
        raise UserError(f"its sha256 is {sha256_of(part)}, {source.sha256} is expected")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if source.how == "file":
        os.replace(part, target)
        return
    os.makedirs(unpacking)
    folder = unpack(part, source.how, os.path.join(unpacking, "new"))
    if wrong := wrong_files(folder, source.files):
        raise UserError(f"in the archive the sha256 of {wrong[0]} is not the expected one, or the file is missing")
    if not source.files:
        paths = sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
        sums = [f"{sha256_of(path)}  {os.path.relpath(path, folder)}\n" for path in paths]
        with atomic_write(os.path.join(folder, SUMS)) as file:
            file.writelines(sums)
    if os.path.lexists(target):
        os.rename(target, os.path.join(unpacking, "old"))
    os.rename(folder, target)


@contextlib.contextmanager
def place_to_download(output_dir, name):
    """Yields a file to download to and the name of a folder to unpack in, for this process alone, in output_dir/.downloads.
    Their names are the same each time: a killed command's file is gone on with, and whatever else it left is removed here.
    The file stays if the block ends in an error and it is not empty."""
    downloads = os.path.join(output_dir, ".downloads")
    part, unpacking = (os.path.join(downloads, f"{name}.{kind}") for kind in ("part", "unpacking"))
    refusal = f"{name} is being downloaded by another command; wait for it, or choose another --output_dir"
    os.makedirs(downloads, exist_ok=True)
    try:
        with locked(part, refusal, os.O_RDWR | os.O_CREAT):
            try:
                remove(unpacking)
                yield part, unpacking
                remove(part)
            finally:
                remove(unpacking)
                if os.path.exists(part) and os.path.getsize(part) == 0:
                    os.unlink(part)
    finally:
        with contextlib.suppress(OSError):  # it is not empty: the file stays, or another download is under way
            os.rmdir(downloads)


def obtain(source, args):
    """Downloads one source, unless it is there. A resumed download that is rejected is started again."""
    output_dir = os.path.abspath(args.output_dir)
    target = os.path.join(output_dir, source.target)
    name = f"{source.name}-{os.path.basename(source.url)}"
    with place_to_download(output_dir, name) as (part, unpacking), naming(target):
        if os.path.lexists(target):
            if is_right(source, target):
                print(f"{source.name}: {target} is there and its checksum is right")
                return
            if not args.overwrite:
                raise UserError(f"{source.name}: {target} is there and is not what {source.url} gives; move it away, "
                                "choose another --output_dir, or add --overwrite to replace it")
        print(f"{source.name}: downloading {source.url}" + (f" ({source.bytes / 1e6:.1f} MB)" if source.bytes else ""))
        while True:
            resumed = download(source, part, args)
            try:
                check_and_place(source, part, unpacking, target)
                break
            except UserError as error:
                os.truncate(part, 0)
                remove(unpacking)
                if not resumed:
                    raise UserError(f"{source.name}: {source.url} is not what was expected: {error}; nothing was "
                                    "kept") from None
                print(f"{source.name}: the resumed download is not right ({error}); downloading it from the start")
    print(f"wrote {target}")


def print_list(sources):
    """Prints a line for each source: its name, kind, size, folder and note."""
    for name, parts in sources.items():
        size = sum(source.bytes for source in parts)
        folder = parts[0].target.split("/")[0]
        text = f"{size / 1e6:.1f} MB" if size else "by hand" if parts[0].how == "by hand" else "size ?"
        print(f"{name:20}{parts[0].kind:12}{text:>10}  {folder + '/':27}{parts[0].note}")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("names", nargs="*", metavar="NAME", help="What to download; --list shows the names.")
    add_boolean(data, "--list", False, "Print name, kind, size, folder and note of every source, and stop. Default: False.")
    data.add_argument("--sources", type=path, default=os.path.join(FOLDER, "sources.csv"), metavar="FILE", help="Table of "
                      "sources; name a copy of your own to change an address. Default: sources.csv beside this script.")
    connection = parser.add_argument_group("connection")
    connection.add_argument("--attempts", type=number(int, minimum=1), default=5,
                            help="Attempts for each file, each resuming where the last one broke off. Default: 5.")
    connection.add_argument("--timeout", type=number(float, above=0, maximum=1e6), default=30.0,
                            help="Seconds to wait for a server that sends nothing. Default: 30.")
    connection.add_argument("--retry_wait", type=number(float, minimum=0, maximum=1e6), default=2.0, help="Seconds to wait "
                            "before the second attempt, twice as long before the third, and so on. Default: 2.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=path, default=".",
                        help="Folder that gets a folder for each name. Default: the current folder.")
    add_boolean(output, "--overwrite", False, "Replace what is there and differs. Default: False, that is an error.")
    args = parser.parse_args()
    if not args.names and not args.list:
        parser.error("name what to download, or pass --list")
    return args


def next_command(source, output_dir):
    """The command of the pipeline that takes what was downloaded."""
    folder = os.path.join(output_dir, source.target.split("/")[0])
    if source.kind == "checkpoint":
        return command("run_pretraining.py", input_file="./tmp/tf_AGnews.tfrecord", output_dir="./pretrained_further",
                       do_train=True, bert_config_file=os.path.join(folder, "bert_config.json"),
                       init_checkpoint=os.path.join(folder, "bert_model.ckpt"))
    if source.name == "ag":
        return command("generate_corpus_agnews.py", data_dir=folder)
    bert = "./chinese_L-12_H-768_A-12" if source.name == "sogou" else "./uncased_L-12_H-768_A-12"
    return command("run_classifier_single_layer.py", task_name=source.name, data_dir=folder, do_train=True, do_eval=True,
                   do_lower_case=True, vocab_file=f"{bert}/vocab.txt", bert_config_file=f"{bert}/bert_config.json",
                   init_checkpoint=f"{bert}/bert_model.ckpt", output_dir=f"./{source.name}_output")


def main():
    args = parse_arguments()
    sources = read_sources(args.sources)
    if args.list:
        return print_list(sources)
    if unknown := [name for name in args.names if name not in sources]:
        raise UserError(f"there is no source {unknown[0]}; the sources are {', '.join(sources)}")
    wanted = [source for name in dict.fromkeys(args.names) for source in sources[name]]
    check_output_folder(args.output_dir, "--output_dir")
    for source in (source for source in wanted if source.how == "by hand"):
        target = os.path.join(args.output_dir, source.target)
        if not os.path.lexists(target):
            raise UserError(f"{source.name} must be downloaded by hand: open {source.url} in a browser, download the folder, "
                            f"and put its train.csv and test.csv into {target} ({source.note})")
        print(f"{source.name}: {target} is there; no checksum is published")
    for source in wanted:
        if source.how != "by hand":
            obtain(source, args)
    print(f"next: {next_command(wanted[0], args.output_dir)}")


if __name__ == "__main__":
    run(main)
