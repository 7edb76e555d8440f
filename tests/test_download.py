"""data/download.py against a server on 127.0.0.1: whole, wrong, cut off, hostile and missing files."""
import csv
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pathlib
import sys
import tarfile
import threading
import time
import types
import zipfile

import pytest

from common.command_line import UserError

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "data" / "download.py"


def load_script():
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["download"] = module  # dataclasses looks a class's module up
    spec.loader.exec_module(module)
    return module


download = load_script()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files. server.cuts[path] numbers: after how many bytes each of the next replies breaks off."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        time.sleep(server.delay)
        if server.statuses.get(self.path):
            return self.send_error(server.statuses[self.path].pop(0))
        if self.path not in server.files:
            return self.send_error(404)
        content, start = server.files[self.path], 0
        if self.headers.get("Range") and server.honours_range:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cuts = server.cuts.get(self.path, [])
        self.wfile.write(content[start:][:cuts.pop(0) if cuts else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.cuts, running.statuses, running.requests, running.honours_range = {}, {}, {}, [], True
        running.delay, running.handle_error = 0, lambda *_: None  # a client that gave up waiting is no news
        running.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """get(name, rows) writes a table of sources with those rows and downloads `name` into tmp_path/out."""
    def call(name, *rows, flags=()):
        with open(tmp_path / "sources.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, download.COLUMNS, restval="")
            writer.writeheader()
            writer.writerows({"name": "thing", "kind": "dataset", **row, "url": server.address + row["url"]}
                             for row in rows)
        monkeypatch.setattr(sys, "argv", ["download.py", *name.split(), "--sources", str(tmp_path / "sources.csv"),
                                          "--output_dir", str(tmp_path / "out"), "--retry_wait", "0", *flags])
        download.main()
    call.out = tmp_path / "out"
    return call


CONTENT = bytes(range(256)) * 2000
PART = download.CHUNK
FILE = {"how": "file", "target": "thing/train.csv", "url": "/train.csv", "bytes": len(CONTENT),
        "sha256": sha256(CONTENT)}


def nothing_is_left(out):
    return not out.exists() or os.listdir(out) == []


def test_a_good_file_is_placed_and_the_second_call_skips_it(server, get, capsys):
    server.files["/train.csv"] = CONTENT
    get("thing", FILE)
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT
    assert os.listdir(get.out) == ["thing"] and os.listdir(get.out / "thing") == ["train.csv"]
    assert "next: python run_classifier_single_layer.py" in capsys.readouterr().out
    get("thing", FILE)
    assert "is there and its checksum is right" in capsys.readouterr().out
    assert len(server.requests) == 1


def test_a_wrong_checksum_is_refused_and_nothing_kept(server, get):
    server.files["/train.csv"] = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=f"not what was expected: its sha256 is .*{sha256(CONTENT)} is expected"):
        get("thing", FILE)
    assert nothing_is_left(get.out)


def test_a_server_that_stops_half_way_is_asked_for_the_rest(server, get, capsys):
    server.files["/train.csv"] = CONTENT
    server.cuts["/train.csv"] = [2 * PART, PART]
    get("thing", FILE)
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, f"bytes={2 * PART}-", f"bytes={3 * PART}-"]
    assert f"broke off after {2 * PART:,} bytes" in capsys.readouterr().out


def test_a_server_without_range_is_asked_for_all_again(server, get):
    server.files["/train.csv"] = CONTENT
    server.cuts["/train.csv"] = [2 * PART]
    server.honours_range = False
    get("thing", FILE)
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT


def test_a_server_that_always_stops_is_an_error_and_the_next_call_goes_on(server, get):
    server.files["/train.csv"] = CONTENT
    server.cuts["/train.csv"] = [PART] * 3
    with pytest.raises(UserError, match=f"broke off 3 times, the last time after {3 * PART:,} bytes"):
        get("thing", FILE, flags=["--attempts", "3"])
    assert os.listdir(get.out) == [".downloads"]
    get("thing", FILE)
    assert server.requests[-1] == ("/train.csv", f"bytes={3 * PART}-")
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"another file's beginning", CONTENT + b"and more"])
def test_a_part_that_is_not_of_this_file_is_dropped(left, server, get, capsys):
    server.files["/train.csv"] = CONTENT
    (get.out / ".downloads").mkdir(parents=True)
    (get.out / ".downloads" / "thing-train.csv.part").write_bytes(left)
    get("thing", FILE)
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT


def test_a_whole_part_is_only_checked(server, get):
    (get.out / ".downloads").mkdir(parents=True)
    (get.out / ".downloads" / "thing-train.csv.part").write_bytes(CONTENT)
    get("thing", FILE)
    assert (get.out / "thing" / "train.csv").read_bytes() == CONTENT and not server.requests


def test_404_is_told_at_once_and_a_busy_server_is_asked_again(server, get):
    with pytest.raises(UserError, match=r"http://.*/train.csv cannot be downloaded \(HTTP 404\)"):
        get("thing", FILE)
    assert len(server.requests) == 1 and nothing_is_left(get.out)
    server.files["/train.csv"] = CONTENT
    server.statuses["/train.csv"] = [503, 429]
    get("thing", FILE)
    assert len(server.requests) == 4 and (get.out / "thing" / "train.csv").exists()


def test_an_address_that_cannot_be_one_is_told_at_once(server, get):
    for address in ("http://[::1", "http://" + "a" * 70 + ".example/x"):
        with pytest.raises(UserError, match="cannot be downloaded .*put its new address into a copy"):
            server.address = ""
            get("thing", FILE | {"url": address})
    assert nothing_is_left(get.out)


def test_timeout_and_the_waits_between_attempts_are_those_of_the_flags(server, get, monkeypatch):
    waits = []
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=waits.append))
    server.files["/train.csv"] = CONTENT
    server.delay = 1.0
    with pytest.raises(UserError, match="broke off 3 times, the last time after 0 bytes .ReadTimeout"):
        get("thing", FILE, flags=["--attempts", "3", "--timeout", "0.05", "--retry_wait", "7"])
    assert waits == [7, 14]


def test_list_prints_and_downloads_nothing(server, get, capsys):
    get("", FILE, flags=["--list"])
    assert capsys.readouterr().out.split()[:4] == ["thing", "dataset", "0.5", "MB"]
    assert not server.requests and not get.out.exists()


def test_a_second_download_of_the_same_thing_is_refused_meanwhile(server, get):
    server.files["/train.csv"] = CONTENT
    (get.out / ".downloads").mkdir(parents=True)
    with download.locked(get.out / ".downloads" / "thing-train.csv.part", "", os.O_RDWR | os.O_CREAT):
        with pytest.raises(UserError, match="thing-train.csv is being downloaded by another command"):
            get("thing", FILE)
        other = FILE | {"name": "other", "target": "other"}
        get("other", FILE, other)
        assert (get.out / "other").read_bytes() == CONTENT
    get("thing", FILE)
    assert sorted(os.listdir(get.out)) == ["other", "thing"]


def test_a_dead_server_is_one_line(get, server):
    server.server_close()
    server.shutdown()
    with pytest.raises(UserError, match="broke off 2 times, the last time after 0 bytes"):
        get("thing", FILE, flags=["--attempts", "2"])


def make_zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_tgz(files, special=()):
    buffer = io.BytesIO()
    # without the time, which would be part of a test's name, and differ from one of pytest's processes to the next
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in special:
            archive.addfile(entry)
    return buffer.getvalue()


CHECKPOINT = {"bert_config.json": b"{}", "vocab.txt": b"[PAD]\n"}


def checkpoint_rows(files=CHECKPOINT):
    return [{"kind": "checkpoint", "how": "zip", "target": "tiny_L-2", "url": "/tiny.zip", "sha256": sha256(content),
             "unpacked_file": name} for name, content in files.items()]


def test_a_zip_is_unpacked_and_its_files_verified(server, get, capsys):
    server.files["/tiny.zip"] = make_zip({f"tiny_L-2/{name}": content for name, content in CHECKPOINT.items()})
    get("thing", *checkpoint_rows())
    assert {path.name: path.read_bytes() for path in (get.out / "tiny_L-2").iterdir()} == CHECKPOINT
    assert "next: python run_pretraining.py" in capsys.readouterr().out
    get("thing", *checkpoint_rows())
    assert "checksum is right" in capsys.readouterr().out and len(server.requests) == 1
    (get.out / "tiny_L-2" / "vocab.txt").write_bytes(b"mine\n")
    with pytest.raises(UserError, match="is there and is not what .* gives"):
        get("thing", *checkpoint_rows())
    assert (get.out / "tiny_L-2" / "vocab.txt").read_bytes() == b"mine\n"
    get("thing", *checkpoint_rows(), flags=["--overwrite"])
    assert (get.out / "tiny_L-2" / "vocab.txt").read_bytes() == CHECKPOINT["vocab.txt"]
    assert os.listdir(get.out) == ["tiny_L-2"]


@pytest.mark.parametrize("inside", [{"tiny_L-2/bert_config.json": b"{}", "tiny_L-2/vocab.txt": b"[UNK]\n"},
                                    {"tiny_L-2/bert_config.json": b"{}"}])
def test_a_zip_with_a_wrong_or_missing_file_is_refused(inside, server, get):
    server.files["/tiny.zip"] = make_zip(inside)
    with pytest.raises(UserError, match="sha256 of vocab.txt is not the expected one, or the file is missing"):
        get("thing", *checkpoint_rows())
    assert nothing_is_left(get.out)


TABLE = {"yelp_csv/train.csv": b'"1","bad"\n"2","good"\n', "yelp_csv/test.csv": b'"2","fine"\n'}


def archive_row(content, how="tgz", **more):
    return {"how": how, "target": "thing", "url": "/thing.tgz", "sha256": sha256(content), **more}


def test_a_tgz_becomes_a_data_directory_that_tasks_reads(server, get, capsys):
    from tasks import TASKS, read_examples
    server.files["/thing.tgz"] = content = make_tgz(TABLE)
    get("yelp_p", archive_row(content, name="yelp_p", target="yelp_p"))
    assert sorted(os.listdir(get.out / "yelp_p")) == ["SHA256SUMS", "test.csv", "train.csv"]
    texts, labels = read_examples(TASKS["yelp_p"], str(get.out / "yelp_p"), "train")
    assert texts == ["bad", "good"] and labels.tolist() == [0, 1]
    get("yelp_p", archive_row(content, name="yelp_p", target="yelp_p"))
    assert "checksum is right" in capsys.readouterr().out and len(server.requests) == 1


def test_imdb_and_trec_become_data_directories_that_tasks_reads(server, get):
    from tasks import TASKS, read_examples
    reviews = {f"aclImdb/{split}/{label}/0_{9 if label == 'pos' else 1}.txt": b"A film." for split in ("train", "test")
               for label in ("pos", "neg")}
    server.files |= {"/acl.tar.gz": make_tgz(reviews), "/train_5500.label": b"NUM:date When ?\n",
                     "/TREC_10.label": b"LOC:city Where is S\xe3o Paulo ?\n"}
    get("imdb trec", {"name": "imdb", "how": "tgz", "target": "imdb/aclImdb", "url": "/acl.tar.gz"},
        *({"name": "trec", "how": "file", "target": f"trec/{name}", "url": f"/{name}"}
          for name in ("train_5500.label", "TREC_10.label")))
    assert read_examples(TASKS["imdb"], str(get.out / "imdb"), "train")[0] == ["A film.", "A film."]
    assert read_examples(TASKS["trec"], str(get.out / "trec"), "test")[0] == ["Where is S\xe3o Paulo ?"]


def changed_zip(local, central, value):
    """A zip with `value` at these places of its local and central header: 6 and 8 are flags, 8 and 10 compression."""
    content = bytearray(make_zip({"thing/a": b"1" * 100}))
    content[local] = value
    content[content.index(b"PK\1\2") + central] = value
    return bytes(content)


def special_entry(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def zip_with_a_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("thing/link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize("how, content, words", [
    ("tgz", make_tgz({"thing/a": b"1", "../evil": b"2"}), "the name '../evil', which leaves its folder"),
    ("tgz", make_tgz({"/tmp/evil": b"2"}), "the name '/tmp/evil', which leaves"),
    ("zip", make_zip({"thing/a": b"1", "thing/../../evil": b"2"}), "the name 'thing/../../evil', which leaves"),
    ("zip", make_zip({"..\\evil": b"2"}), "which leaves its folder"),
    ("zip", make_zip({"C:/evil": b"2"}), "which leaves its folder"),
    ("zip", zip_with_a_link(), "'thing/link' is a link or a device"),
    ("tgz", make_tgz({}, [special_entry("thing/link", tarfile.SYMTYPE, "/etc/passwd")]), "is a link or a device"),
    ("tgz", make_tgz({"a": b"1"}, [special_entry("hard", tarfile.LNKTYPE, "a")]), "is a link or a device"),
    ("tgz", make_tgz({}, [special_entry("thing/null", tarfile.CHRTYPE)]), "is a link or a device"),
    ("tgz", make_tgz(TABLE)[:60], "no whole tgz archive"), ("zip", make_zip(CHECKPOINT)[:-30], "no whole zip archive"),
    ("zip", b"<html>Sign in</html>", "no whole zip archive"), ("tgz", b"", "no whole tgz archive"),
    ("zip", changed_zip(6, 8, 1), "no whole zip archive that can be unpacked .*encrypted"),
    ("zip", changed_zip(8, 10, 99), "no whole zip archive that can be unpacked .*compression"),
    ("zip", make_zip({}), "the archive has no files"), ("tgz", make_tgz({}), "the archive has no files"),
    ("zip", make_zip({"thing/": b""}), "the archive has no files"),
    ("zip", make_zip({"a": b"1", "a/b": b"2"}), "no whole zip archive"),
    ("zip", make_zip({"a" * 300: b"1"}), "no whole zip archive")])
def test_a_hostile_or_broken_archive_is_refused_before_anything_is_placed(how, content, words, server, get, tmp_path):
    server.files["/thing.tgz"] = content
    with pytest.raises(UserError, match=words.replace("\\", "\\\\")):
        get("thing", archive_row(content, how))
    assert nothing_is_left(get.out) and not list(tmp_path.rglob("*evil*"))


def test_by_hand_says_how_before_any_download(server, get):
    server.files["/train.csv"] = CONTENT
    by_hand = {"name": "sogou", "how": "by hand", "target": "sogou", "url": "/folder", "note": "54,000 rows"}
    with pytest.raises(UserError, match="sogou must be downloaded by hand: open http.*and test.csv into .*sogou"):
        get("thing sogou", FILE, by_hand)
    assert not server.requests
    (get.out / "sogou").mkdir(parents=True)
    get("thing sogou", FILE, by_hand)
    assert (get.out / "thing" / "train.csv").exists()


HEADER = ",".join(download.COLUMNS) + "\n"


def row(**values):
    """A line of sources.csv, all right but for `values`."""
    right = {"name": "x", "kind": "dataset", "how": "file", "target": "x", "url": "http://127.0.0.1/x"}
    return ",".join((right | values).get(column, "") for column in download.COLUMNS) + "\n"


@pytest.mark.parametrize("text, words", [
    ("name,url\n", "sources.csv:1: the columns must be name,kind,how"),
    (HEADER + "x,dataset\n", ":2: 9 columns"),
    (HEADER + row() + "\n" + row(target="../x"), ":4: target is '../x'; it must be a relative path"),
    (HEADER + row(target=""), ":2: target is ''"), (HEADER + row(target="./"), ":2: target is './'"),
    (HEADER + row(how="rar"), ":2: how is 'rar'; it must be file, zip"), (HEADER + row(kind="model"), ":2: kind is"),
    (HEADER + row(name="../x"), ":2: name is '../x'"), (HEADER + row(url="127.0.0.1/x"), ":2: url is"),
    (HEADER + row(bytes="\u00b2"), ":2: bytes is"), (HEADER + row(bytes="9" * 5000), ":2: bytes is '9+'; it must be a"),
    (HEADER + row(sha256="abc"), ":2: sha256 is 'abc'; it must be 64"),
    (HEADER + row(unpacked_file="/etc/passwd"), ":2: unpacked_file is"),
    (HEADER + row() + row(note="n" * 200_000), r":3: no row of a csv table \(field larger"),
    ((HEADER + row()).replace("\n", "\r"), ":1: no row of a csv table .*save the table as csv with lines that end in"),
    (HEADER + "\0", ":2: a zero byte"), ("", "sources.csv is empty")])
def test_a_wrong_table_of_sources_is_refused(text, words, tmp_path):
    (tmp_path / "sources.csv").write_bytes(text.encode())
    csv.field_size_limit(1 << 17)  # Python's own, which other modules of a test process raise
    with pytest.raises(UserError, match=words):
        download.read_sources(str(tmp_path / "sources.csv"))


def test_a_byte_order_mark_before_the_table_of_sources_is_skipped(tmp_path):
    (tmp_path / "sources.csv").write_bytes((HEADER + row()).encode("utf-8-sig"))
    assert list(download.read_sources(str(tmp_path / "sources.csv"))) == ["x"]


def test_the_table_that_ships_is_complete(capsys):
    sources = download.read_sources(str(SCRIPT.parent / "sources.csv"))
    assert list(sources) == ["ag", "yelp_p", "yelp_f", "yahoo", "dbpedia", "imdb", "trec", "sogou",
                             "bert_base_uncased", "bert_large_uncased", "bert_base_chinese"]
    for source in sum(sources.values(), []):
        sums = source.files.values() if source.kind == "checkpoint" else [source.sha256]
        assert source.how == "by hand" or all(len(value) == 64 and int(value, 16) for value in sums), source
        assert source.kind != "checkpoint" or len(source.files) == 4
    download.print_list(sources)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(sources) and "31.3 MB" in lines[0] and "by hand" in lines[7]


def test_the_table_that_ships_agrees_with_the_published_facts(shared):
    facts = ("name", "url", "bytes", "sha256", "unpacked_file")
    with open(shared / "sources.csv", newline="") as published, open(SCRIPT.parent / "sources.csv", newline="") as ours:
        assert ([[row[fact] for fact in facts] for row in csv.DictReader(ours)]
                == [[row[fact] for fact in facts] for row in csv.DictReader(published)])


def test_unknown_names_and_flags_are_one_line(refused):
    refused("data/download.py", "nope", words="there is no source nope; the sources are ag, ")
    refused("data/download.py", words="name what to download")
