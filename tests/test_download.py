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
import zipfile

import pytest

from command_line import UserError

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


def nothing_under_a_final_name(out):
    return not out.exists() or all(name == ".downloads" for name in os.listdir(out))


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
    assert nothing_under_a_final_name(get.out) and not list((get.out / ".downloads").iterdir())


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
    with pytest.raises(UserError, match=f"broke off 3 times, the last after {3 * PART:,} bytes"):
        get("thing", FILE, flags=["--attempts", "3"])
    assert nothing_under_a_final_name(get.out)
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
    with pytest.raises(UserError, match=r"refuses http://.*/train.csv \(HTTP 404\)"):
        get("thing", FILE)
    assert len(server.requests) == 1 and nothing_under_a_final_name(get.out)
    server.files["/train.csv"] = CONTENT
    server.statuses["/train.csv"] = [503, 429]
    get("thing", FILE)
    assert len(server.requests) == 4 and (get.out / "thing" / "train.csv").exists()


def test_a_dead_server_is_one_line(get, server):
    server.server_close()
    server.shutdown()
    with pytest.raises(UserError, match="broke off 2 times, the last after 0 bytes"):
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
    assert nothing_under_a_final_name(get.out)


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
    ("zip", b"<html>Sign in</html>", "no whole zip archive")])
def test_a_hostile_or_broken_archive_is_refused_before_anything_is_placed(how, content, words, server, get, tmp_path):
    server.files["/thing.tgz"] = content
    with pytest.raises(UserError, match=words.replace("\\", "\\\\")):
        get("thing", archive_row(content, how))
    assert nothing_under_a_final_name(get.out) and not list(tmp_path.rglob("*evil*"))
    assert not list((get.out / ".downloads").iterdir())


def test_by_hand_says_how_before_any_download(server, get):
    server.files["/train.csv"] = CONTENT
    by_hand = {"name": "sogou", "how": "by hand", "target": "sogou", "url": "/folder", "note": "54,000 rows"}
    with pytest.raises(UserError, match="sogou is downloaded by hand: open http.*train.csv and test.csv into .*sogou"):
        get("thing sogou", FILE, by_hand)
    assert not server.requests
    (get.out / "sogou").mkdir(parents=True)
    get("thing sogou", FILE, by_hand)
    assert (get.out / "thing" / "train.csv").exists()


@pytest.mark.parametrize("rows, words", [
    (["name,url\n"], "sources.csv:1: the columns are"),
    ([",".join(download.COLUMNS) + "\nx,dataset\n"], ":2: 9 columns"),
    ([",".join(download.COLUMNS) + "\nx,dataset,file,../x,http://127.0.0.1/x,,,,\n"], ":2: how must be one of"),
    ([",".join(download.COLUMNS) + "\nx,dataset,rar,x,http://127.0.0.1/x,,,,\n"], ":2: how must be one of")])
def test_a_wrong_table_of_sources_is_refused(rows, words, tmp_path):
    (tmp_path / "sources.csv").write_text("".join(rows))
    with pytest.raises(UserError, match=words):
        download.read_sources(str(tmp_path / "sources.csv"))


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
    refused("data/download.py", "nope", words="there is no source nope; there are ag, ")
    refused("data/download.py", words="name what to download")
