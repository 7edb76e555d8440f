"""Downloads the data sets and checkpoints that `data/sources.csv` names, checks them and puts them where they are read.

    python data/download.py --list
    python data/download.py ag imdb bert_base_uncased --output_dir ./downloads

A data set becomes a folder for --data_dir of the fine-tuning scripts (./downloads/ag, ./downloads/imdb), a checkpoint
a folder as Google publishes it (./downloads/uncased_L-12_H-768_A-12). What is there already with the right checksum is
left alone. Nothing stands under its final name before it is whole and its sha256 is right: downloads are collected in
the folder `.downloads` beside them. A connection that breaks is taken up where it broke, in the same call or the next.
An unpacked archive without published checksums of its files gets a list of them, SHA256SUMS (`sha256sum -c` reads it).
"""
import contextlib
import csv
import dataclasses
import hashlib
import os
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from command_line import (ArgumentParser, UserError, add_boolean, atomic_write, check_output_folder,  # noqa: E402
                          decode_lines, number, require_file, run)

COLUMNS = ("name", "kind", "how", "target", "url", "bytes", "sha256", "unpacked_file", "note")
HOW = ("file", "zip", "tgz", "by hand")
SUMS = "SHA256SUMS"
CHUNK = 1 << 16  # bytes written at a time; where a connection breaks, at most as many are asked for twice


@dataclasses.dataclass
class Source:
    """One thing to download. how: `file`, an archive to unpack (`zip`, `tgz`), or `by hand`. target: the file or folder
    it becomes. sha256: of the file or archive, "" if not published. files: {file in an archive: its sha256}."""
    name: str
    kind: str
    how: str
    target: str
    url: str
    bytes: int
    sha256: str
    note: str
    files: dict


def is_unsafe(path):
    """Whether a path leaves the folder it is meant for: absolute, with a drive, or through `..`."""
    return path.startswith(("/", "\\")) or ":" in path.split("/")[0] or ".." in path.replace("\\", "/").split("/")


def read_sources(path):
    """{name: its Sources}. Rows of one name and url are one archive, a row for each of its files with a checksum."""
    require_file(path, "--sources")
    rows = csv.DictReader(line for _, line in decode_lines(path))
    if tuple(rows.fieldnames) != COLUMNS:
        raise UserError(f"--sources: {path}:1: the columns are {','.join(rows.fieldnames)}; "
                        f"needed: {','.join(COLUMNS)}")
    sources = {}
    for line_number, row in enumerate(rows, 2):
        if None in row.values() or None in row:
            raise UserError(f"--sources: {path}:{line_number}: {len(COLUMNS)} columns are needed")
        if row["how"] not in HOW or is_unsafe(row["target"]) or not row["bytes"].isdigit() and row["bytes"]:
            raise UserError(f"--sources: {path}:{line_number}: how must be one of {', '.join(HOW)}, "
                            "target a relative path, bytes a whole number or nothing")
        of_name = sources.setdefault(row["name"], {})
        source = of_name.setdefault(row["url"], Source(
            row["name"], row["kind"], row["how"], row["target"], row["url"], int(row["bytes"] or 0),
            "" if row["unpacked_file"] else row["sha256"], row["note"], {}))
        if row["unpacked_file"]:
            source.files[row["unpacked_file"]] = row["sha256"]
    return {name: list(of_name.values()) for name, of_name in sources.items()}


def sha256_of(path):
    """The sha256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


class Rejected(Exception):
    """What was downloaded is not what the source promises."""


def download_part(url, part, timeout):
    """One try to bring the file `part` to its end; what it holds already is asked for no more (HTTP Range)."""
    import pooch
    import requests
    offset = os.path.getsize(part) if os.path.exists(part) else 0

    with open(part, "ab") as file:
        def at_the_reply(response, **_):
            content_range = response.headers.get("Content-Range", "")
            if response.status_code == 206 and not content_range.startswith(f"bytes {offset}-"):
                raise requests.ConnectionError("the server went on at another place than it was asked for")
            if response.status_code == 416 or response.status_code == 200:  # no such place, or no Range: all anew
                file.truncate(0)

        headers = {"Accept-Encoding": "identity"}  # so that a byte of the reply is a byte of the file
        if offset:
            headers["Range"] = f"bytes={offset}-"
        pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=CHUNK, headers=headers, timeout=timeout,
                             hooks={"response": at_the_reply})(url, file, None)


def download(source, part, args):
    """Downloads the source's file to `part` in at most --attempts tries. Returns whether one of them resumed.

    Raises UserError where the server refuses (404), or every try broke off; then `part` stays for the next call.
    """
    import requests
    if source.sha256 and os.path.exists(part) and sha256_of(part) == source.sha256:
        return False  # an earlier call was stopped between its last byte and the check
    resumed = False
    for attempt in range(1, args.attempts + 1):
        resumed |= os.path.exists(part) and os.path.getsize(part) > 0
        try:
            download_part(source.url, part, args.timeout)
            return resumed
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            reason = f"HTTP {status}" if status else type(error).__name__
        if 400 <= status < 500 and status not in (408, 416, 429):
            if os.path.getsize(part) == 0:
                os.unlink(part)
            raise UserError(f"{source.name}: the server refuses {source.url} ({reason}); has it moved? "
                            "Give its new address in a copy of data/sources.csv with --sources")
        if attempt < args.attempts:
            print(f"{source.name}: broke off after {os.path.getsize(part):,} bytes ({reason}); trying again")
            time.sleep(args.retry_wait * attempt)
    raise UserError(f"{source.name}: {source.url} broke off {args.attempts} times, the last after "
                    f"{os.path.getsize(part):,} bytes ({reason}); the same command goes on from there")


def unpack(archive, how, folder):
    """Unpacks a zip or tgz into `folder`. Returns the folder of its files: the archive's own top folder, if it has one.

    Raises Rejected, before anything is written, where a name leaves the folder or an entry is neither file nor folder.
    """
    try:
        with (zipfile.ZipFile(archive) if how == "zip" else tarfile.open(archive, "r:gz")) as opened:
            if how == "zip":
                entries = [(entry.filename, stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR))
                           for entry in opened.infolist()]
            else:
                entries = [(entry.name, entry.isfile() or entry.isdir()) for entry in opened]
            for name, is_plain in entries:
                if is_unsafe(name):
                    raise Rejected(f"the archive has the name {name!r}, which leaves its folder")
                if not is_plain:
                    raise Rejected(f"the archive's entry {name!r} is a link or a device")
            opened.extractall(folder, **({} if how == "zip" else {"filter": "data"}))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise Rejected(f"it is no whole {how} archive ({error})") from None
    inside = [os.path.join(folder, name) for name in os.listdir(folder)]
    return inside[0] if len(inside) == 1 and os.path.isdir(inside[0]) else folder


def check_and_place(source, part, target, args):
    """Checks the finished download `part` and puts it, or what it unpacks to, under its final name `target`.

    Raises Rejected where a checksum is wrong or the archive is not acceptable.
    """
    if source.sha256 and sha256_of(part) != source.sha256:
        raise Rejected(f"its sha256 is {sha256_of(part)}, {source.sha256} is expected")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if source.how == "file":
        os.replace(part, target)
        return
    with tempfile.TemporaryDirectory(dir=os.path.dirname(part)) as temporary:
        folder = unpack(part, source.how, os.path.join(temporary, "unpacked"))
        wrong = wrong_files(folder, source.files)
        if wrong:
            raise Rejected(f"in the archive the sha256 of {wrong[0]} is not the expected one, or the file is missing")
        if not source.files:
            write_sums(folder)
        if os.path.lexists(target):
            os.rename(target, os.path.join(temporary, "old"))
        os.rename(folder, target)
    os.unlink(part)


def write_sums(folder):
    """Writes SHA256SUMS, the checksums of all files in `folder`."""
    paths = sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    sums = [f"{sha256_of(path)}  {os.path.relpath(path, folder)}\n" for path in paths]
    with atomic_write(os.path.join(folder, SUMS)) as file:
        file.writelines(sums)


def obtain(source, args):
    """Downloads one source, unless it is there. A resumed download that is rejected is made anew from its start."""
    target = os.path.join(os.path.abspath(args.output_dir), source.target)
    if os.path.lexists(target):
        if is_right(source, target):
            print(f"{source.name}: {target} is there and its checksum is right")
            return
        if not args.overwrite:
            raise UserError(f"{source.name}: {target} is there and is not what {source.url} gives; move it away, "
                            "choose another --output_dir, or add --overwrite to replace it")
    downloads = os.path.join(os.path.abspath(args.output_dir), ".downloads")
    os.makedirs(downloads, exist_ok=True)
    part = os.path.join(downloads, f"{source.name}-{os.path.basename(source.url)}.part")
    print(f"{source.name}: downloading {source.url}" + (f" ({source.bytes / 1e6:.1f} MB)" if source.bytes else ""))
    while True:
        resumed = download(source, part, args)
        try:
            check_and_place(source, part, target, args)
            break
        except Rejected as error:
            os.unlink(part)
            if not resumed:
                raise UserError(f"{source.name}: {source.url} is not what was expected: {error}; "
                                "nothing was kept") from None
            print(f"{source.name}: the resumed download is not right ({error}); downloading it from the start")
    with contextlib.suppress(OSError):  # another download may be under way in it
        os.rmdir(downloads)
    print(f"wrote {target}")


def by_hand(source, output_dir):
    """What to do for a source that no program can download."""
    return (f"{source.name} is downloaded by hand: open {source.url} in a browser, download the folder, and put its "
            f"train.csv and test.csv into {os.path.join(output_dir, source.target)} ({source.note})")


def print_list(sources):
    """A line for each source: its name, size and what it becomes."""
    for name, parts in sources.items():
        size = sum(source.bytes for source in parts)
        folder = parts[0].target.split("/")[0]
        text = f"{size / 1e6:.1f} MB" if size else "by hand" if parts[0].how == "by hand" else "size ?"
        print(f"{name:20}{parts[0].kind:12}{text:>10}  {folder + '/':27}{parts[0].note}")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    # data
    group = parser.add_argument_group("data")
    group.add_argument("names", nargs="*", metavar="NAME", help="What to download; --list shows the names.")
    add_boolean(group, "--list", False,
                "Print name, kind, size, folder and note of every source, and stop. Default False.")
    group.add_argument("--sources", default=os.path.join(FOLDER, "sources.csv"), metavar="FILE",
                       help="Table of sources, to give another address. Default: sources.csv, beside this script.")
    # speed
    group = parser.add_argument_group("connection")
    group.add_argument("--attempts", type=number(int, minimum=1), default=5,
                       help="Tries for a file, each from where the last broke off. Default 5.")
    group.add_argument("--timeout", type=number(float, above=0), default=30.0,
                       help="Seconds to wait for a silent server. Default 30.")
    group.add_argument("--retry_wait", type=number(float, minimum=0), default=2.0,
                       help="Seconds to wait before the second try, twice that before the third, ... Default 2.")
    # output
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", default=".",
                       help="Folder that gets a folder for each name. Default: the current folder.")
    add_boolean(group, "--overwrite", False, "Replace what is there and differs. Default False: that is an error.")
    args = parser.parse_args()
    if not args.names and not args.list:
        parser.error("name what to download, or give --list")
    return args


def next_command(source, output_dir):
    """The command of the pipeline that takes what was downloaded."""
    folder = os.path.join(output_dir, source.target.split("/")[0])
    if source.kind == "checkpoint":
        return (f"python run_pretraining.py --bert_config_file={folder}/bert_config.json "
                f"--init_checkpoint={folder}/bert_model.ckpt --input_file=./tmp/tf_AGnews.tfrecord "
                "--output_dir=./pretrained_further --do_train=True")
    if source.name == "ag":
        return f"python generate_corpus_agnews.py --data_dir {folder}"
    bert = "./chinese_L-12_H-768_A-12" if source.name == "sogou" else "./uncased_L-12_H-768_A-12"
    return (f"python run_classifier_single_layer.py --task_name {source.name} --data_dir {folder} --do_train --do_eval "
            f"--do_lower_case --vocab_file {bert}/vocab.txt --bert_config_file {bert}/bert_config.json "
            f"--init_checkpoint {bert}/bert_model.ckpt --output_dir ./{source.name}_output")


def main():
    args = parse_arguments()
    sources = read_sources(args.sources)
    if args.list:
        print_list(sources)
        return
    unknown = [name for name in args.names if name not in sources]
    if unknown:
        raise UserError(f"there is no source {unknown[0]}; there are {', '.join(sources)}")
    wanted = [source for name in dict.fromkeys(args.names) for source in sources[name]]
    check_output_folder(args.output_dir, "--output_dir")
    for source in wanted:
        if source.how == "by hand" and not os.path.lexists(os.path.join(args.output_dir, source.target)):
            raise UserError(by_hand(source, args.output_dir))
    for source in wanted:
        if source.how == "by hand":
            print(f"{source.name}: {os.path.join(args.output_dir, source.target)} is there; no checksum is published")
        else:
            obtain(source, args)
    print(f"next: {next_command(wanted[0], args.output_dir)}")


if __name__ == "__main__":
    run(main)
