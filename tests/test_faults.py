"""Commands that are killed at any moment, files that are damaged, disks that are full.

Killed at a file event or in the middle of writing, a command that is typed again ends where an undisturbed one ends, with
nothing left over. A damaged file that it reads, or a disk that is full, is one line that names the file.

    FAULTS=all python -m pytest tests/test_faults.py    # at every file event; else at some of them
"""
import contextlib
import dataclasses
import hashlib
import http.server
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import threading
import zipfile
from collections.abc import Callable

import pytest

from conftest import ROOT
from faults import Faults

ALL = os.environ.get("FAULTS") == "all"
pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="forks and limits as on Linux")


@pytest.fixture(scope="module")
def faults():
    with Faults() as started:
        yield started


# The commands, each on the smallest input

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def inputs(faults, tmp_path_factory):
    """A folder with all that the commands read, made by the commands themselves, behind a server at its `address`."""
    folder = tmp_path_factory.mktemp("inputs")
    make = Make(faults, folder)
    make("data/make_sample", num_train=40, num_test=12, vocab_size=300, output_dir=folder / "data")
    config = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "max_position_embeddings": 32, "hidden_dropout_prob": 0.1}
    (folder / "bert_config.json").write_text(json.dumps(config))
    make("data/make_tiny_bert", bert_config_file=folder / "bert_config.json", vocab_file=folder / "data" / "vocab.txt",
         output_dir=folder / "bert")
    make("convert_tf_checkpoint_to_pytorch", tf_checkpoint_path=folder / "bert" / "bert_model.ckpt",
         bert_config_file=folder / "bert_config.json", pytorch_dump_path=folder / "torch" / "pytorch_model.bin")
    make("generate_corpus_agnews", data_dir=folder / "data", output_dir=folder / "corpus")
    make("create_pretraining_data", input_file=folder / "corpus" / "AGnews_corpus_test.txt",
         vocab_file=folder / "data" / "vocab.txt", output_file=folder / "records" / "a.tfrecord", max_seq_length=32,
         max_predictions_per_seq=5, dupe_factor=1)
    (folder / "archive").mkdir()
    with zipfile.ZipFile(folder / "archive" / "thing.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train.csv", "test.csv"):
            archive.write(folder / "data" / name, f"thing/{name}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *words: Quiet(*words, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        address = f"http://127.0.0.1:{server.server_port}"
        rows = ["name,kind,how,target,url,bytes,sha256,unpacked_file,note",
                f"zip,dataset,zip,zip,{address}/archive/thing.zip,,,,",
                f"csv,dataset,file,csv/train.csv,{address}/data/train.csv,,{digest(folder / 'data/train.csv')},,"]
        (folder / "sources.csv").write_text("\n".join(rows) + "\n")
        yield folder
        server.shutdown()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Make:
    """make(script, flag=value, ...) runs a script that must succeed."""

    def __init__(self, faults, watch):
        self.faults, self.watch = faults, watch

    def __call__(self, script, **flags):
        outcome = self.faults.run(script, *(f"--{name}={value}" for name, value in flags.items()), watch=self.watch)
        assert outcome.status == 0, outcome.errors
        return outcome


@dataclasses.dataclass
class Case:
    """A command. flags: of the folder of inputs and the folder to write. before: makes what is there before it."""
    script: str
    flags: Callable
    before: Callable = lambda inputs, out: None


def put_old_folder(inputs, out):
    (out / "zip").mkdir(parents=True)
    (out / "zip" / "train.csv").write_text("mine")


CASES = {
    "sample": Case("data/make_sample", lambda i, o: ["--num_train", 20, "--num_test", 4, "--vocab_size", 200, "--output_dir", o]),
    "task samples": Case("data/make_task_samples", lambda i, o: ["--num_train", 8, "--num_test", 4, "--output_dir", o]),
    "tiny bert": Case("data/make_tiny_bert", lambda i, o: [
        "--bert_config_file", i / "bert_config.json", "--vocab_file", i / "data/vocab.txt", "--output_dir", o]),
    "download": Case("data/download", lambda i, o: ["zip", "csv", "--sources", i / "sources.csv", "--output_dir", o]),
    "download over another": Case("data/download", lambda i, o: [
        "zip", "--sources", i / "sources.csv", "--output_dir", o, "--overwrite"], put_old_folder),
    "corpus of ag": Case("generate_corpus_agnews", lambda i, o: ["--data_dir", i / "data", "--output_dir", o]),
    "corpus": Case("generate_corpus", lambda i, o: [
        "--task_name", "ag", "--data_dir", i / "data", "--output_file", o / "corpus.txt", "--splits", "train", "test",
        "--num_processes", 1]),
    "records": Case("create_pretraining_data", lambda i, o: [
        "--input_file", i / "corpus/AGnews_corpus_test.txt", "--vocab_file", i / "data/vocab.txt", "--max_seq_length", 32,
        "--max_predictions_per_seq", 5, "--dupe_factor", 1, "--output_file", f"{o}/a.tfrecord,{o}/b.tfrecord"]),
    "conversion": Case("convert_tf_checkpoint_to_pytorch", lambda i, o: [
        "--tf_checkpoint_path", i / "bert/bert_model.ckpt", "--bert_config_file", i / "bert_config.json",
        "--pytorch_dump_path", o / "pytorch_model.bin", "--safetensors"]),
    "conversion back": Case("convert_tf_checkpoint_to_pytorch", lambda i, o: [
        "--reverse", "--tf_checkpoint_path", o / "bert_model.ckpt", "--bert_config_file", i / "bert_config.json",
        "--pytorch_dump_path", i / "torch/pytorch_model.bin"]),
}


def contents(folder):
    """{relative path: what the file holds} but for times, of all that a folder holds; a folder holds None."""
    return {str(path.relative_to(folder)): None if path.is_dir() else content(path) for path in folder.rglob("*")
            if not path.name.startswith("events.out.tfevents")}


def content(path):
    if path.name == "run.json":
        return json.loads(path.read_text())["recipe"]
    if path.name == "results.json":
        return without_times(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(value):
    if isinstance(value, list):
        return [without_times(element) for element in value]
    if isinstance(value, dict):
        return {key: without_times(element) for key, element in value.items()
                if "seconds" not in key and key != "peak_memory_mib"}
    return value


class Command:
    """A case in a folder of its own: `run` runs it there, `expected` is what an undisturbed run leaves."""

    def __init__(self, faults, case, inputs, folder):
        self.faults, self.case, self.inputs, self.out = faults, case, inputs, folder / "out"
        self.start()
        outcome = self.run()
        assert outcome.status == 0, outcome.errors
        self.events, self.expected = outcome.events, contents(self.out)

    def start(self):
        """Puts the folder as it was before the first run."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.case.before(self.inputs, self.out)

    def run(self, **how):
        return self.faults.run(self.case.script, *self.case.flags(self.inputs, self.out), watch=self.out.parent, **how)

    def check_next(self, what):
        """Asserts that the same command now ends as an undisturbed one."""
        outcome = self.run()
        assert outcome.status == 0, f"{what}: {outcome.errors}"
        left = contents(self.out)
        assert left.keys() == self.expected.keys(), f"{what}: {left.keys() ^ self.expected.keys()}"
        assert left == self.expected, what


@pytest.fixture(scope="module")
def command(faults, inputs, tmp_path_factory):
    """command(name) is the Command of a case."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Command(faults, CASES[name], inputs, tmp_path_factory.mktemp(name.replace(" ", "_")))
        return made[name]
    return get


def file_sizes():
    """Lengths of files at which a disk is full, each twice the one before."""
    return (0, *(2 ** power for power in range(0, 30, 1 if ALL else 3)))


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_file_event_and_typed_again_a_command_ends_as_if_undisturbed(name, command):
    it = command(name)
    events = range(1, it.events + 1)
    assert len(events) > 3
    for number in events if ALL else events[::1 + len(events) // 20]:
        it.start()
        assert it.run(kill_at=number).status == -9
        it.check_next(f"killed before event {number}")


@pytest.mark.parametrize("name", CASES)
def test_killed_while_it_writes_and_typed_again_a_command_ends_as_if_undisturbed(name, command):
    it, killed = command(name), 0
    for size in file_sizes():
        it.start()
        status = it.run(file_size=size, die_of_size=True).status
        if status == 0:
            break
        assert status == -25, size
        killed += 1
        it.check_next(f"killed at a file's byte {size}")
    assert killed > 2


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_one_line_that_names_the_file(name, command):
    it, refused = command(name), 0
    for size in file_sizes():
        it.start()
        outcome = it.run(file_size=size)
        if outcome.status == 0:
            break
        assert_one_line(outcome, str(it.out))
        refused += 1
        it.check_next(f"no room for more than {size} bytes")
    assert refused > 2


PROGRESS = re.compile(r"[0-9.]+(it|[a-z ]+)/s|\?[a-z ]+/s")  # a line of a bar


def assert_one_line(outcome, words):
    """Asserts that a run ended with an error in one line that has the words, without traceback or warnings."""
    assert outcome.status == 1, outcome
    lines = [line for line in re.split("[\r\n]+", outcome.errors) if line.strip() and not PROGRESS.search(line)]
    assert len(lines) == 1 and re.match(r"\w+\.py: error: ", lines[0]) and words in lines[0], outcome.errors
    return lines[0]
