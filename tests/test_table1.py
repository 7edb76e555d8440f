"""scripts/table1.py: the paper's Table 1 from data that is there."""
import csv
import sys

import pytest

import tasks
from conftest import ROOT
from tokenization import FullTokenizer

sys.path.insert(0, str(ROOT / "scripts"))
import table1  # noqa: E402

VOCAB = ROOT / "data" / "tiny_bert" / "vocab.txt"
FIGURES = ("classes", "train", "test", "average_length", "maximum_length", "percent_over_512")


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """make(*flags) writes the table of the data in tmp_path/data. Returns what was printed."""
    def call(*flags, data=tmp_path / "data", vocab=VOCAB):
        monkeypatch.setattr(sys, "argv", ["table1.py", "--data_dir", str(data), "--vocab_file", str(vocab), "--output_dir",
                                          str(tmp_path / "out"), *flags])
        table1.main()
        return capsys.readouterr().out
    call.data, call.out = tmp_path / "data", tmp_path / "out"
    return call


def write_imdb(folder, train, test):
    folder.mkdir(parents=True)
    for split, texts in (("train", train), ("test", test)):
        (folder / f"{split}.csv").write_text("".join(f"{number % 2}\t{text}\n" for number, text in enumerate(texts)))


def lines_of(make):
    with open(make.out / "table1.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_lengths_are_those_of_both_splits_without_special_tokens(make):
    write_imdb(make.data / "imdb", ["one.", "a<br />b", "." * 513], ["." * 512])
    counts = [len(FullTokenizer(str(VOCAB)).tokenize(text)) for text in ("one.", "a b")]
    printed = make()
    line, = lines_of(make)
    lengths = [*counts, 513, 512]
    assert [line[name] for name in FIGURES] == ["2", "3", "1", f"{sum(lengths) / 4:.4f}", "513", "25.0000"]
    assert [line[f"paper_{name}"] for name in FIGURES] == ["2", "25000", "25000", "292", "3045", "12.6900"]
    row = f"| imdb | 2 / 2 | 3 / 25,000 | 1 / 25,000 | {sum(lengths) / 4:.1f} / 292 | 513 / 3,045 | 25.00 / 12.69 |\n"
    assert row in (make.out / "table1.md").read_text() and row in printed


def test_html_is_taken_out_unless_it_is_to_be_kept(make):
    write_imdb(make.data / "imdb", ["a<br />b"] * 2, ["a<br />b"] * 2)
    make()
    stripped = float(lines_of(make)[0]["average_length"])
    make("--keep_html")
    assert float(lines_of(make)[0]["average_length"]) == stripped + 4  # < br / >


def test_sets_that_are_missing_are_said_and_left_out(make):
    write_imdb(make.data / "imdb", ["a", "b"], ["c"])
    (make.data / "ag").mkdir()
    printed = make("--task_name", "trec", "imdb", "ag").splitlines()
    assert [line["task"] for line in lines_of(make)] == ["imdb"]
    assert printed[:2] == [f"left out: --data_dir: there is no folder {make.data}/trec",
                           f"left out: --data_dir: {make.data}/ag has no train.csv (task ag)"]


def test_documents_stream_in_slices(make, monkeypatch, spy):
    write_imdb(make.data / "imdb", ["one two three"] * 100, ["four"] * 50)
    make()
    whole = lines_of(make)
    monkeypatch.setattr(table1, "CHARACTERS_PER_SLICE", 140)
    sizes = spy(FullTokenizer, "encode_batch", lambda result, tokenizer, texts: len(texts))
    make()
    assert sizes == [10] * 10 + [28, 22] and lines_of(make) == whole  # 14 and 5 characters, the line's end included


def test_wrong_input_is_one_line_and_leaves_no_table(tmp_path, refused):
    flags = ["--vocab_file", VOCAB, "--output_dir", tmp_path / "out"]
    refused("scripts/table1.py", "--data_dir", tmp_path, *flags, words="holds none of imdb yelp_p")
    refused("scripts/table1.py", "--data_dir", tmp_path, "--task_name", "subj", *flags, words="invalid choice: 'subj'")
    refused("scripts/table1.py", "--data_dir", tmp_path, "--task_name", "ag", "--keep_html", *flags, words="--keep_html is for")
    refused("scripts/table1.py", "--data_dir", tmp_path, "--vocab_file", tmp_path / "absent", words="there is no file")
    write_imdb(tmp_path / "imdb", ["a", "b"], ["c"])
    with open(tmp_path / "imdb" / "test.csv", "a") as file:
        file.write("7\tx\n")
    refused("scripts/table1.py", "--data_dir", tmp_path, *flags, words="test.csv:2: label '7' is none of the labels")
    assert not (tmp_path / "out").exists()


def test_the_paper_s_figures_are_of_its_tasks():
    with open(table1.PAPER, encoding="utf-8", newline="") as file:
        lines = {line.pop("task"): line for line in csv.DictReader(file)}
    assert list(lines) == list(tasks.TASKS)
    assert {name: int(line["classes"]) for name, line in lines.items()} == {
        task.name: len(task.labels) for task in tasks.TASKS.values()}


def test_the_paper_s_table(shared):
    """Its figures stand in ../shared/paper/protocol.md."""
    text = (shared / "paper" / "protocol.md").read_text(encoding="utf-8")
    with open(table1.PAPER, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            row = next(row for row in text.splitlines() if f"| {line['task']} |" in row)
            cells = [cell.strip(" %").replace(",", "") for cell in row.strip("|").split("|")]
            assert [cells[2], *cells[4:]] == [line[name] for name in (
                "classes", "average_length", "maximum_length", "percent_over_512", "train", "test")]


@pytest.mark.parametrize("task", [pytest.param("imdb", marks=pytest.mark.long), "trec"])
def test_the_real_data_gives_the_paper_s_figures(make, shared, task):
    """IMDb's `<br />` is taken out: as published the figures are 308, 3,155 and 14.3%."""
    make("--task_name", task, data=shared / "data", vocab=shared / "data" / "vocab" / "bert-base-uncased.vocab.txt")
    line, = lines_of(make)
    ours = [round(float(line[name]), 2) if "percent" in name else round(float(line[name])) for name in FIGURES]
    assert ours == [float(line[f"paper_{name}"]) for name in FIGURES]
