"""The corpus of AG's News: the authors' format, the same from any number of processes, and close to the authors' file."""
import contextlib
import io
import os
import sys

import pytest

import generate_corpus_agnews
import sentences
from benchmarks.compare_corpus import compare
from command_line import UserError
from create_pretraining_data import read_corpus
from sentences import map_in_order
from tokenization import FullTokenizer

TEST = '''"3","Stocks rise","Oil fell. Traders cheered! Is it over?"
"4","A ""quoted"" title","One second\\team of #36;10 rocketeers <br /> went."
"1","","No title here. Two sentences."
'''
TRAIN = '''"2","Title over
two lines","First
line. 

Second\x85one\u2028here."
"2","  ",""
"1","Only a title"," "
'''
CORPUS_TEST = '''Stocks rise
Oil fell.
Traders cheered!
Is it over?

A "quoted" title
One second\\team of #36;10 rocketeers <br /> went.

No title here.
Two sentences.

'''
CORPUS_TRAIN = '''Title over two lines
First line.
  Second\x85one\u2028here.

Only a title

'''


@pytest.fixture
def ag(tmp_path):
    folder = tmp_path / "ag"
    folder.mkdir()
    for name, content in (("test", TEST), ("train", TRAIN)):
        (folder / f"{name}.csv").write_text(content, encoding="utf-8", newline="")
    return folder


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["generate_corpus_agnews.py", *map(str, arguments)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        generate_corpus_agnews.main()
    return printed.getvalue()


def read(folder):
    return {path.name: path.read_bytes().decode() for path in folder.iterdir()}


def test_bare_command_writes_the_authors_three_files(ag, script):
    done = script("generate_corpus_agnews.py", cwd=ag)
    assert done.returncode == 0, done.stderr
    names = "AGnews_corpus.txt", "AGnews_corpus_train.txt", "AGnews_corpus_test.txt"
    assert read(ag) == {"test.csv": TEST, "train.csv": TRAIN,
                        **dict(zip(names, (CORPUS_TEST + CORPUS_TRAIN, CORPUS_TRAIN, CORPUS_TEST)))}
    lines = done.stdout.splitlines()
    assert lines[:4] == ["test_max= 3", "test_avg= 2.0", "train_max= 2", f"train_avg= {2 / 3}"]
    assert "wrote ./AGnews_corpus.txt: 5 documents" in lines
    assert lines[-1].startswith("next: python create_pretraining_data.py --input_file=./AGnews_corpus.txt")


def test_the_next_step_reads_the_same_documents(ag, tmp_path, monkeypatch):
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    corpus = read_corpus([str(tmp_path / "out" / "AGnews_corpus.txt")], FullTokenizer(str(vocab)))
    assert list(map(int.__sub__, corpus.document_offsets[1:].tolist(), corpus.document_offsets[:-1].tolist())) == [
        4, 2, 2, 3, 1]


def test_speed_flags_and_a_model_of_the_same_rules_do_not_change_the_corpus(ag, tmp_path, monkeypatch):
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "model")
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "plain")
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "other", "--batch_size", 2, "--num_processes", 2,
         "--spacy_model", tmp_path / "model")
    assert read(tmp_path / "plain") == read(tmp_path / "other")


def test_agreement_with_the_authors_corpus(shared, tmp_path, monkeypatch):
    """The authors split with a trained parser, ours with rules: 76% of the documents and 93% of our boundaries agree."""
    data = tmp_path / "data"
    data.mkdir()
    os.symlink(shared / "data" / "ag" / "test.csv", data / "test.csv")
    (data / "train.csv").write_text('"1","One","Document."\n')
    call(monkeypatch, "--data_dir", data, "--output_dir", tmp_path)
    agreement = compare(str(tmp_path / "AGnews_corpus_test.txt"), str(shared / "goldens" / "agnews_corpus_test.txt"))
    assert agreement["documents"] == 7600 and agreement["other_text"] == 0
    assert agreement["identical_share"] > 0.76 and agreement["precision"] > 0.92 and agreement["f1"] > 0.64


def test_compare_counts_documents_and_boundaries(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("T\na b.\nc d.\ne\n\nT\nx\n\nT\nx y\n\n")
    theirs.write_text("T\na\nb.\nc d. e\n\nT\nx\n\nT\nx z\n")
    assert compare(str(ours), str(theirs)) == {
        "documents": 3, "identical": 1, "identical_share": 1 / 3, "other_text": 1, "boundaries": 2,
        "reference_boundaries": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    theirs.write_text("T\nx\n")
    with pytest.raises(UserError, match="ours: the other file|theirs: the other file"):
        compare(str(ours), str(theirs))


def die(number):
    os._exit(1)


def refuse(number):
    raise UserError(f"not {number}")


def test_processes_keep_the_order_read_on_demand_and_pass_errors_on():
    read_so_far = []
    numbers = (read_so_far.append(number) or number for number in range(50))
    results = map_in_order(abs, numbers, 2)
    assert next(results) == 0 and len(read_so_far) <= 5
    assert list(results) == list(range(1, 50))
    with pytest.raises(UserError, match="not 7"):
        list(map_in_order(refuse, [7], 2))
    with pytest.raises(UserError, match="a process was killed"):
        list(map_in_order(die, [7], 2))


@pytest.mark.parametrize("name, content, words", (
    ("train.csv", None, "has no train.csv"),
    ("test.csv", b"", "is empty"),
    ("train.csv", b'"1","title"\n', "train.csv:1: 2 columns"),
    ("train.csv", b'"1","a","b"\n"5","a","b"\n', "train.csv:2: label '5'"),
    ("train.csv", b'"1","a","b"\n"1","a\xe9","b"\n', "train.csv:2: byte 7 is not UTF-8"),
    ("test.csv", b'"1","a","b"\n\x00\x00', "test.csv:2: a zero byte"),
    ("train.csv", b'"1","a","cut off', "train.csv:1"),
))
@pytest.mark.parametrize("num_processes", (1, 2))
def test_bad_files_are_refused_and_nothing_is_written(ag, tmp_path, monkeypatch, name, content, words, num_processes):
    if content is None:
        (ag / name).unlink()
    else:
        (ag / name).write_bytes(content)
    monkeypatch.setattr(sentences, "load_splitter", lambda spacy_model, generation: FakeSplitter())
    with pytest.raises(UserError) as error:
        call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out", "--num_processes", num_processes)
    assert words in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


class FakeSplitter:
    """Stands for spaCy where reading fails before or after a split: no sentences."""

    def pipe(self, texts):
        for _ in texts:
            yield self

    sents = ()


def test_a_model_that_is_missing_or_splits_nothing_is_refused(ag, tmp_path, monkeypatch):
    import spacy

    with pytest.raises(UserError, match="not installed; python -m spacy download en_absent_md"):
        call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out", "--spacy_model", "en_absent_md")
    spacy.blank("en").to_disk(tmp_path / "model")
    with pytest.raises(UserError, match="splits no sentences"):
        call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out", "--spacy_model", tmp_path / "model")
    with pytest.raises(UserError, match="does not load"):
        call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out", "--spacy_model", ag)
    assert list((tmp_path / "out").iterdir()) == []
