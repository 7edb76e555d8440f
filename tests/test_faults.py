"""Commands that are killed at any moment, files that are damaged, disks that are full.

Killed at a file event or in the middle of writing, a command that is typed again ends where an undisturbed one ends,
with nothing left over. A damaged file that it reads, or a disk that is full, is one line that names the file.

    FAULTS=all python -m pytest tests/test_faults.py    # at every file event; else at some of them
"""
import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch

from conftest import ROOT
from faults import Faults

ALL = os.environ.get("FAULTS") == "all"
pytestmark = [pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="forks and limits as on Linux"),
              pytest.mark.timeout(7200 if ALL else 300)]


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
    make("data/make_task_samples", num_train=24, num_test=8, output_dir=folder / "tasks")
    (folder / "data" / "texts.txt").write_text("The election.\nThe match.\n")
    for script, flags, name in ((SINGLE, fine_tuning, "old_run"), ("run_pretraining", pretraining, "old_pretraining")):
        outcome = faults.run(script, *flags(folder, folder / name, "--learning_rate", 5e-3), watch=folder)
        assert outcome.status == 0, outcome.errors
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
    """A command. flags: of the folder of inputs and the folder to write. before: makes what is there before it. points:
    at how many file events it is killed, unless at all of them."""
    script: str
    flags: Callable
    before: Callable = lambda inputs, out: None
    points: int = 6


SINGLE = "run_classifier_single_layer"


def fine_tuning(inputs, out, *more):
    """Flags of 2 epochs of 3 updates each, saved after every second one."""
    return ["--task_name", "ag", "--do_train", "--do_eval", "--do_lower_case", "--no_cuda",
            "--data_dir", inputs / "data", "--vocab_file", inputs / "data/vocab.txt",
            "--bert_config_file", inputs / "bert_config.json",
            "--init_checkpoint", inputs / "torch/pytorch_model.bin", "--max_seq_length", 16, "--train_batch_size", 16,
            "--learning_rate", 1e-3, "--num_train_epochs", 2, "--log_steps", 2, "--save_checkpoints_steps", 2,
            "--output_dir", out, *more]


def pretraining(inputs, out, *more):
    """Flags of 4 steps, saved after every second one; one checkpoint is kept."""
    return ["--do_train", "--do_eval", "--input_file", inputs / "records/a.tfrecord", "--bert_config_file",
            inputs / "bert_config.json", "--init_checkpoint", inputs / "bert/bert_model.ckpt", "--vocab_file",
            inputs / "data/vocab.txt", "--max_seq_length", 32, "--max_predictions_per_seq", 5, "--train_batch_size", 4,
            "--num_train_steps", 4, "--num_warmup_steps", 1, "--learning_rate", 1e-3, "--save_checkpoints_steps", 2,
            "--log_steps", 3, "--keep_checkpoint_max", 1, "--max_eval_steps", 2, "--output_dir", out, *more]


def put_old_folder(inputs, out):
    (out / "zip").mkdir(parents=True)
    (out / "zip" / "train.csv").write_text("mine")


CASES = {
    "sample": Case("data/make_sample", lambda i, o: [
        "--num_train", 20, "--num_test", 4, "--vocab_size", 200, "--output_dir", o]),
    "task samples": Case("data/make_task_samples", lambda i, o: ["--num_train", 8, "--num_test", 4, "--output_dir", o]),
    "tiny bert": Case("data/make_tiny_bert", lambda i, o: [
        "--bert_config_file", i / "bert_config.json", "--vocab_file", i / "data/vocab.txt", "--output_dir", o]),
    "download": Case("data/download", lambda i, o: [
        "zip", "csv", "--sources", i / "sources.csv", "--output_dir", o, "--retry_wait", 0]),
    "download of a file": Case("data/download", lambda i, o: [
        "csv", "--sources", i / "sources.csv", "--output_dir", o]),
    "download over another": Case("data/download", lambda i, o: [
        "zip", "--sources", i / "sources.csv", "--output_dir", o, "--overwrite"], put_old_folder),
    "corpus of ag": Case("generate_corpus_agnews", lambda i, o: ["--data_dir", i / "data", "--output_dir", o]),
    "corpus": Case("generate_corpus", lambda i, o: [
        "--task_name", "ag", "--data_dir", i / "data", "--output_file", o / "corpus.txt", "--splits", "train", "test",
        "--num_processes", 1]),
    "records": Case("create_pretraining_data", lambda i, o: [
        "--input_file", i / "corpus/AGnews_corpus_test.txt", "--vocab_file", i / "data/vocab.txt",
        "--max_seq_length", 32, "--max_predictions_per_seq", 5, "--dupe_factor", 1,
        "--output_file", f"{o}/a.tfrecord,{o}/b.tfrecord"]),
    "conversion": Case("convert_tf_checkpoint_to_pytorch", lambda i, o: [
        "--tf_checkpoint_path", i / "bert/bert_model.ckpt", "--bert_config_file", i / "bert_config.json",
        "--pytorch_dump_path", o / "pytorch_model.bin", "--safetensors"]),
    "conversion back": Case("convert_tf_checkpoint_to_pytorch", lambda i, o: [
        "--reverse", "--tf_checkpoint_path", o / "bert_model.ckpt", "--bert_config_file", i / "bert_config.json",
        "--pytorch_dump_path", i / "torch/pytorch_model.bin"]),
    "fine-tuning": Case(SINGLE, lambda i, o: fine_tuning(i, o), points=12),
    "two seeds, held-out data": Case(SINGLE, lambda i, o: fine_tuning(i, o, "--seed", 1, 2, "--dev_fraction", 0.25)),
    "two tasks": Case("run_classifier_multitask", lambda i, o: fine_tuning(
        i, o, "--task_name", "yelp_p", "ag", "--data_dir", i / "tasks", "--num_train_epochs", 1)),
    "fine-tuning over another": Case(SINGLE, lambda i, o: fine_tuning(
        i, o, "--num_train_epochs", 1, "--overwrite_output_dir"), lambda i, o: shutil.copytree(i / "old_run", o)),
    "prediction": Case(SINGLE, lambda i, o: ["--do_predict", "--predict_file", i / "data/texts.txt", "--no_cuda",
                                             "--init_checkpoint", i / "old_run/best", "--output_dir", o]),
    "evaluation": Case(SINGLE, lambda i, o: ["--do_eval", "--data_dir", i / "data", "--no_cuda",
                                             "--init_checkpoint", i / "old_run/best", "--output_dir", o]),
    "pre-training": Case("run_pretraining", lambda i, o: pretraining(i, o)),
    "pre-training over another": Case("run_pretraining", lambda i, o: pretraining(
        i, o, "--overwrite_output_dir"), lambda i, o: shutil.copytree(i / "old_pretraining", o), points=4),
}


def contents(folder):
    """{relative path: what the file holds} but for times, of all that a folder holds; a folder holds None."""
    return {str(path.relative_to(folder)): None if path.is_dir() else content(path) for path in folder.rglob("*")
            if not path.name.startswith("events.out.tfevents")}


def content(path):
    if path.name == "run.json":
        return json.loads(path.read_text())["recipe"]
    if path.name in ("results.json", "summary.json", "metrics.jsonl"):
        return [without_times(json.loads(text)) for text in re.split(r"\n(?=\{)", path.read_text())]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(value):
    if isinstance(value, list):
        return [without_times(element) for element in value]
    if isinstance(value, dict):
        return {key: without_times(element) for key, element in value.items()
                if "second" not in key and key != "peak_memory_mib"}
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


# That a run is there before changes nothing in how files are written.
WRITING = [name for name in CASES if ALL or not name.endswith("over another")]
FILE_SIZES = (0, *(2 ** power for power in range(30))) if ALL else (0, 30, 1000, 30_000)  # at which a disk is full


def some(sequence, count):
    """All of a sequence, or `count` of its elements from the first to the last."""
    sequence = list(sequence)
    places = np.unique(np.linspace(0, len(sequence) - 1, count).astype(int))
    return sequence if ALL else [sequence[place] for place in places]


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_file_event_and_typed_again_a_command_ends_as_if_undisturbed(name, command):
    it = command(name)
    assert it.events > 3
    for number in some(range(1, it.events + 1), it.case.points):
        it.start()
        assert it.run(kill_at=number).status == -9
        it.check_next(f"killed before event {number}")


@pytest.mark.parametrize("name", WRITING)
def test_killed_while_it_writes_and_typed_again_a_command_ends_as_if_undisturbed(name, command):
    it, killed = command(name), 0
    for size in FILE_SIZES:
        it.start()
        status = it.run(file_size=size, die_of_size=True).status
        if status == 0:
            break
        assert status == -25, size
        killed += 1
        it.check_next(f"killed at a file's byte {size}")
    assert killed > 1


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_one_line_that_names_the_file(name, command):
    it, refused = command(name), 0
    for size in FILE_SIZES:
        it.start()
        outcome = it.run(file_size=size)
        if outcome.status == 0:
            break
        assert_one_line(outcome, str(it.out))
        refused += 1
        it.check_next(f"no room for more than {size} bytes")
    assert refused > 1


@contextlib.contextmanager
def small_disk(folder):
    """A disk of its own at `folder`; yields a function that leaves that many bytes of it free, or without a number all.
    Skips where mounting takes more rights."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a disk, and not everywhere")
    filler = folder / "filler"

    def leave(free=None):
        filler.unlink(missing_ok=True)
        if free is not None:
            disk = os.statvfs(folder)
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_bsize - free)

    try:
        yield leave
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", WRITING)
def test_a_disk_without_space_is_one_line_that_says_so_and_names_the_file(name, command):
    it, refused = command(name), 0
    with small_disk(it.out.parent) as leave:
        for pages in range(200) if ALL else (0, 2, 12):
            leave()
            it.start()
            leave(4096 * pages)
            outcome = it.run()
            leave()
            if outcome.status == 0:
                break
            assert_one_line(outcome, str(it.out))
            assert "pace" in outcome.errors, outcome.errors  # "No space left on device", or "free some space"
            refused += 1
            it.check_next(f"no room for more than {pages} pages")
    assert refused


# a line of a bar, by its clock and its speed: updates a second, or seconds an update
PROGRESS = re.compile(r"\[[0-9:]+(<[0-9:?]+)?, +([0-9.]+(it|[a-z ]+)/s|[0-9.]+s/[a-z ]+|\?[a-z ]+/s)")


def assert_one_line(outcome, *names):
    """Asserts that a run ended with an error in one line that has one of the names, without traceback or warnings."""
    assert outcome.status == 1, outcome
    lines = [line for line in re.split("[\r\n]+", outcome.errors) if line.strip() and not PROGRESS.search(line)]
    assert len(lines) == 1 and re.match(r"\w+\.py: error: ", lines[0]), outcome.errors
    assert any(name in lines[0] for name in names), outcome.errors


# Damage

def cut(content):
    return content[:len(content) // 2]


def zeros(content):
    return content[:len(content) // 2] + bytes(16) + content[len(content) // 2 + 16:]


def flipped(part):
    """Flips a bit at that part of the content."""
    def flip(content):
        place = int(part * len(content))
        return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1:]
    return flip


def always(text):
    return lambda content: text


def many_digits(content):
    return re.sub(rb"(?<=: )\d+", b"7" * 5000, content, count=1)


FLIPS = {f"a bit flipped at {part:.3f}": flipped(part) for part in np.linspace(0, 0.999, 200 if ALL else 3)}
ANY = {"empty": always(b""), "half": cut, "zeros": zeros} | FLIPS
JSON = ANY | {"a list": always(b"[]"), "another object": always(b'{"a": 1}'), "deep": always(b"[" * 100_000),
              "deep but whole": always(b'{"kind":' * 500 + b"1" + b"}" * 500), "digits": many_digits}
PICKLE = ANY | {"three bytes": always(b"\x80\x02."), "JSON": always(b"{}")}
# What must be refused; after anything else a command may also end well. WITH_CHECKSUM: then with the same result.
TEXT_REFUSED, JSON_REFUSED = {"empty", "zeros"}, JSON.keys() - FLIPS.keys()
BINARY_REFUSED = {"empty", "half", "three bytes", "JSON"}
WITH_CHECKSUM = True


@dataclasses.dataclass
class Damage:
    """Damages of a file that a case reads. of_run: the file is in the run's folder, which a run left that was killed
    after this share of its events, or (1) that was finished. goes_on: the command mends what is damaged, and ends as an
    undisturbed one."""
    case: str
    file: str
    damages: dict
    refused: set
    with_checksum: bool = False
    of_run: float | None = None
    goes_on: bool = False
    count: int = 20  # of the damages that are tried, unless all are: fewer where each takes a second


READ = [  # half a vocabulary is a whole one of fewer tokens than the model has embeddings, which is taken
    Damage("tiny bert", "bert_config.json", JSON, JSON_REFUSED),
    Damage("tiny bert", "data/vocab.txt", ANY, TEXT_REFUSED),
    Damage("download", "sources.csv", ANY, TEXT_REFUSED),
    Damage("download", "archive/thing.zip", ANY, {"empty", "half"}, WITH_CHECKSUM),
    Damage("download of a file", "data/train.csv", ANY, {"empty", "half", "zeros", *FLIPS}, WITH_CHECKSUM),
    Damage("corpus", "data/train.csv", ANY, TEXT_REFUSED),
    Damage("corpus of ag", "data/test.csv", ANY, TEXT_REFUSED),
    Damage("records", "corpus/AGnews_corpus_test.txt", ANY, TEXT_REFUSED),
    Damage("records", "data/vocab.txt", ANY, TEXT_REFUSED),
    Damage("conversion", "bert/bert_model.ckpt.index", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("conversion", "bert/bert_model.ckpt.data-00000-of-00001", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("conversion", "bert_config.json", JSON, JSON_REFUSED),
    Damage("conversion back", "torch/pytorch_model.bin", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("fine-tuning", "data/train.csv", ANY, TEXT_REFUSED),
    Damage("fine-tuning", "data/vocab.txt", ANY, TEXT_REFUSED),
    Damage("fine-tuning", "bert_config.json", JSON, JSON_REFUSED),
    Damage("fine-tuning", "torch/pytorch_model.bin", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("fine-tuning", "out/run.json", JSON, JSON_REFUSED, of_run=0.6),
    Damage("fine-tuning", "out/checkpoint.pt", PICKLE, BINARY_REFUSED, WITH_CHECKSUM, of_run=0.6),
    Damage("fine-tuning", "out/metrics.jsonl", JSON, set(), of_run=0.6),
    Damage("fine-tuning", "out/results.json", JSON, JSON_REFUSED, of_run=1, count=30),
    Damage("two tasks", "out/results.json", JSON, JSON_REFUSED, of_run=1, count=30),
    Damage("two seeds, held-out data", "out/summary.json", JSON, set(), of_run=1, count=12),
    Damage("prediction", "old_run/best/classifier.json", JSON, JSON_REFUSED),
    Damage("prediction", "old_run/best/config.json", JSON, JSON_REFUSED),
    Damage("prediction", "old_run/best/vocab.txt", ANY, TEXT_REFUSED),
    Damage("prediction", "old_run/best/model.safetensors", PICKLE, BINARY_REFUSED),
    Damage("prediction", "data/texts.txt", ANY, TEXT_REFUSED),
    Damage("pre-training", "bert_config.json", JSON, JSON_REFUSED),
    Damage("pre-training", "data/vocab.txt", ANY, TEXT_REFUSED),
    Damage("pre-training", "records/a.tfrecord", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("pre-training", "bert/bert_model.ckpt.index", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("pre-training", "bert/bert_model.ckpt.data-00000-of-00001", PICKLE, BINARY_REFUSED, WITH_CHECKSUM),
    Damage("pre-training", "out/run.json", JSON, JSON_REFUSED, of_run=0.6),
    Damage("pre-training", "out/checkpoint", PICKLE, set(), of_run=0.6, goes_on=True, count=4),
    Damage("pre-training", "out/model.ckpt-2.window.json", JSON, set(), of_run=0.6, count=4),
    Damage("pre-training", "out/metrics.jsonl", JSON, set(), of_run=0.6, count=4),
    Damage("pre-training", "out/model.ckpt-2.data-00000-of-00001", PICKLE, BINARY_REFUSED, WITH_CHECKSUM, of_run=0.6),
    Damage("pre-training", "out/model.ckpt-2.index", PICKLE, BINARY_REFUSED, WITH_CHECKSUM, of_run=0.6),
    Damage("pre-training", "out/evaluation.json", JSON, set(), of_run=1, goes_on=True, count=4),
]


@contextlib.contextmanager
def damaged(path, change):
    """The file is damaged while the block runs."""
    original = path.read_bytes()
    path.write_bytes(change(original))
    try:
        yield
    finally:
        path.write_bytes(original)


def raw(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


ALSO_NAMED = {  # what a line may name instead of a file, of which a word changed and not its form
    "bert_config.json": ["--bert_config_file"], "config.json": ["--bert_config_file"],  # other sizes than the weights'
    "model.safetensors": ["old_run/best"], "classifier.json": ["old_run/best"],  # other names; other labels
    "sources.csv": ["zip: http", "csv: http", "there is no source"]}  # another address; another name


def check_damage(run, it, name, change, left):
    """Runs a command with a file that was changed. left: what the run's folder holds before, if it holds the file."""
    run.start()
    if left:
        put_back(left, run.out)
        path = run.out / it.file.removeprefix("out/")
        path.write_bytes(change(path.read_bytes()))
    else:
        path = run.inputs / it.file
    before = raw(run.out)
    with contextlib.nullcontext() if left else damaged(path, change):
        outcome = run.run()
    if outcome.status:
        assert_one_line(outcome, re.sub(r"\.(index|data-\S+)$", "", path.name), *ALSO_NAMED.get(path.name, ()),
                        *([str(run.out)] if left else []))
        assert raw(run.out) == before, f"{name}: {outcome.errors}"
    return outcome


def put_back(left, out):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(left, out)


def left_by(run, it, folder):
    """A copy of what a run leaves that was killed after it.of_run of its events, or finished; None for other files."""
    if it.of_run is None:
        return None
    run.start()
    run.run(kill_at=int(it.of_run * run.events) if it.of_run < 1 else None)
    shutil.copytree(run.out, folder / "left")
    return folder / "left"


@pytest.mark.parametrize("it", READ, ids=lambda it: f"{it.case}: {it.file}")
def test_a_damaged_file_is_one_line_that_names_it(it, command, tmp_path):
    run = command(it.case)
    left = left_by(run, it, tmp_path)
    for name, change in some(it.damages.items(), it.count):
        outcome = check_damage(run, it, name, change, left)
        if outcome.status:
            assert not it.goes_on, f"{name}: {outcome.errors}"
        else:
            assert name not in it.refused, f"{name} is not seen"
            if it.with_checksum or it.goes_on and name not in FLIPS:  # another digit is a digit
                assert without_digest(contents(run.out)) == without_digest(run.expected), f"{name} changes the result"


def without_digest(found):
    """What a folder holds but for the digest of a run's first weights, which a byte without meaning changes."""
    recipe = found.get("run.json") or {}
    return found | {"run.json": {key: value for key, value in recipe.items() if "--init_checkpoint" not in key}}


WRONG_VALUES = (None, "x", "", -1, 0, 1.5, 2 ** 63, 10 ** 12, 1e400, True, [], {}, [[1]], "\ud800")


def changed(value, wrong_values):
    """Yields (what, copy) of a JSON value or a pickle's: each part of it removed, or one of the wrong values."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            rest = value.copy()
            del rest[key]
            yield f"without {key}", rest
            for what, part in changed(value[key], wrong_values):
                copy = value.copy()
                copy[key] = part
                yield f"{key} {what}", copy
    for wrong in wrong_values:
        yield f"= {wrong!r:.40}", wrong


@pytest.mark.parametrize("it", [it for it in READ if it.file.endswith(".json") and it.damages is JSON],
                         ids=lambda it: f"{it.case}: {it.file}")
def test_json_of_wrong_types_missing_keys_and_huge_sizes_is_one_line(it, command, tmp_path):
    run = command(it.case)
    left = left_by(run, it, tmp_path)
    path = left / it.file.removeprefix("out/") if left else run.inputs / it.file
    variants = some(changed(json.loads(path.read_text()), WRONG_VALUES), it.count - 3)
    for what, value in variants:
        check_damage(run, it, what, always(json.dumps(value).encode()), left)


@pytest.mark.parametrize("name", ["tiny bert", "conversion", "conversion back", "fine-tuning", "pre-training"])
def test_a_model_that_is_too_large_is_refused_before_memory_is_taken(name, command):
    run = command(name)
    config = json.loads((run.inputs / "bert_config.json").read_text())
    for key, size in (("num_hidden_layers", 10 ** 8), ("hidden_size", 10 ** 12), ("intermediate_size", 2 ** 63),
                      ("max_position_embeddings", 10 ** 400)):
        text = json.dumps(config | {key: size}).encode()
        outcome = check_damage(run, Damage(name, "bert_config.json", {}, set()), key, always(text), None)
        assert outcome.status == 1 and re.search(f"{key}|at most [0-9,]+ are possible", outcome.errors), outcome.errors


def wrong_tensors(value):
    """Yields (what, copy) of a pickle's value: as `changed`, and each tensor with another shape and another type."""
    yield from changed(value, (None, "x", [], {}, torch.zeros(3), torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("it", [it for it in READ if it.file.endswith((".bin", ".pt"))],
                         ids=lambda it: f"{it.case}: {it.file}")
def test_a_pickle_with_missing_or_wrong_parts_is_one_line(it, command, tmp_path):
    run = command(it.case)
    left = left_by(run, it, tmp_path)
    path = left / it.file.removeprefix("out/") if left else run.inputs / it.file
    for what, value in some(wrong_tensors(torch.load(path)), 8):
        file = io.BytesIO()
        torch.save(value, file)
        check_damage(run, it, what, always(file.getvalue()), left)


@pytest.mark.parametrize("name", ["fine-tuning", "pre-training"])
def test_a_damaged_line_of_metrics_is_dropped_and_said_and_the_run_goes_on(name, command, tmp_path):
    run = command(name)
    left = left_by(run, Damage(name, "", {}, set(), of_run=0.6), tmp_path)
    lines = (left / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for bad in some([b"\n", b"{}\n", b"[]\n", b'{"kind": "train"}\n', b'{"kind": 1, "global_step": 1}\n',
                     b'{"kind": "train", "global_step": "1"}\n', b'{"kind": "eval", "global_step": 1, "epoch": []}\n',
                     b'{"kind": "train", "global_step": %s}\n' % (b"1" * 5000), b"[" * 5000 + b"\n", b"\xff\0\n",
                     lines[0][:20] + b"\n"], 4):
        put_back(left, run.out)
        (run.out / "metrics.jsonl").write_bytes(bad + b"".join(lines))
        outcome = run.run()
        assert outcome.status == 0, outcome.errors
        assert "metrics.jsonl:1" in outcome.output and "dropped" in outcome.output, (bad, outcome.output)
        assert contents(run.out) == run.expected
