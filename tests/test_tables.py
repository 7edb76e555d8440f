"""Tables as people have them: every format reads as it was meant, nothing is re-interpreted, and what is wrong is named."""
import gzip
import json

import pandas
import pytest

import tasks
from common.command_line import UserError
from common.tables import READERS, described, kind_of
from conftest import ROOT
from runs import SINGLE, call, predictions_of, read_json, train_flags

FILES = sorted((ROOT / "tests/data/tables").iterdir())
ROWS = [("good", 'She said "yes", twice.'), ("bad", "Two\nlines."), ("good", "A tab\tin it."), ("bad", "NA"),
        ("good", "A café, 007.")]  # of each of them


def read(folder, content, name="train.csv", label="label", text="text", split="train", **options):
    """[(label, text)] of a table of that content."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    task = tasks.csv_task(folder, label, [text], **options)
    return [(task.labels[label], text) for _, label, (text,) in tasks.read_documents(task, folder, split)]


def refusal(folder, content, name="train.csv", **options):
    with pytest.raises(UserError) as caught:
        read(folder, content, name, **options)
    return str(caught.value)


# What is read

@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_format_is_read_as_it_was_meant(tmp_path, path):
    encoding = "latin-1" if path.name.startswith("latin_1") else None
    assert read(tmp_path, path.read_bytes(), f"train{kind_of(path)}", encoding=encoding) == ROWS


def test_there_is_a_file_of_each_kind_of_table():
    assert {kind_of(path) for path in FILES} | {".tsv.gz", ".json.gz"} == READERS.keys()


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".jsonl"])
def test_text_tables_may_be_compressed(tmp_path, kind):
    path = next(path for path in FILES if path.name.endswith(kind) and path.stem in ("pandas", "records", "lines"))
    assert read(tmp_path, gzip.compress(path.read_bytes()), f"train{kind}.gz") == ROWS


@pytest.mark.parametrize("text", ["NA", "null", "007", "1.0", "True", "1e5", "2020-01-01", "  x ", "\\N", "'a'", "#", "",
                                  "\x85", "a\\nb"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx"])
def test_nothing_is_re_interpreted(tmp_path, kind, text):
    frame = pandas.DataFrame({"label": ["a", "NA", "007"], "text": [text, "x", "y"]}, dtype=object)
    path = tmp_path / f"train{kind}"
    if kind in (".json", ".jsonl"):
        frame.to_json(path, orient="records", lines=kind == ".jsonl")
    else:
        {".csv": frame.to_csv, ".parquet": frame.to_parquet, ".xlsx": frame.to_excel,
         ".tsv": lambda path, index: frame.to_csv(path, index=index, sep="\t")}[kind](path, index=False)
    assert read(tmp_path, path.read_bytes(), path.name) == [("a", text), ("NA", "x"), ("007", "y")]


@pytest.mark.parametrize("rows", [
    ['1\t"I Am Curious" is a film', "0\tfine"], ['1\t"Great!"', "0\tfine"], ['1\t"to be', '0\tor not to be"'],
    ['1\tsix " of it', "0\tfine"], ['1\t "so" it', '0\t"c"'], ['1\t"Great!"', '0\tso ""good""'],
    ['1\t"', '0\t"'], ['1\t"a" and "b"', '0\t"c"']])
def test_quotes_of_a_text_between_tabs_stay(tmp_path, rows):
    expected = [tuple(row.split("\t")) for row in rows]
    assert read(tmp_path, "label\ttext\n" + "\n".join(rows) + "\n", "train.tsv") == expected
    assert read(tmp_path / "no", "\n".join(rows), "train.tsv", label="0", text="1") == expected


@pytest.mark.parametrize("texts", [
    ['", "', "x", "y"], ['so "good"', "x", "y"], [' "', "\t ", 'a\n"b'], [', "\\"\t', "x", "y"], ["a\n\nb", "x", ""],
    ["a\r\n\r\nb", '"', ""]])
@pytest.mark.parametrize("quoting", [0, 1])
@pytest.mark.parametrize("sep, name", [("\t", "train.tsv"), (",", "train.csv"), (";", "train.csv")])
def test_what_pandas_writes_between_quotes_is_what_is_read(tmp_path, texts, quoting, sep, name):
    frame = pandas.DataFrame({"label": ["a", "b", "c"], "text": texts})
    rows = read(tmp_path, frame.to_csv(index=False, sep=sep, quoting=quoting), name, sep=sep if name.endswith("csv") else ",")
    assert rows == list(zip("abc", texts))


@pytest.mark.parametrize("quoting, name, content, expected", [
    ("all", "train.tsv", 'label\ttext\na\t"x"\nb\ty\n', ["x", "y"]),
    ("auto", "train.tsv", 'label\ttext\na\t"x"\nb\ty\n', ['"x"', "y"]),
    ("none", "train.tsv", 'label\ttext\na\t"x ""y"""\nb\t"z"\n', ['"x ""y"""', '"z"']),
    ("none", "train.csv", 'label,text\na,"x"\nb,6" y\n', ['"x"', '6" y']),
    ("auto", "train.csv", 'label,text\na,"x"\nb,y\n', ["x", "y"])])
def test_quoting_says_whose_quotes_are(tmp_path, quoting, name, content, expected):
    assert [text for _, text in read(tmp_path, content, name, quoting=quoting)] == expected


@pytest.mark.parametrize("content, expected", [
    ('label, text\na, "x, y"\nb, z\n', ["x, y", "z"]), ('label,  "text"\na,  "x ""y"""\nb,"z"\n', ['x "y"', "z"]),
    (' label , text \na,"x, ""y"""\nb, z\n', ['x, "y"', " z"]), ('label,text\na," ""x"", y"\nb, z\n', [' "x", y', " z"]),
    ('label, text\na, "x \\"y\\""\nb, "z"\n', ['x "y"', "z"])])
def test_spaces_before_quotes_and_around_names_are_no_text(tmp_path, content, expected):
    assert [text for _, text in read(tmp_path, content)] == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le", "utf-16-be", "latin-1", "cp1252",
                                      "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_any_encoding_and_any_end_of_a_line(tmp_path, encoding, end, kind):
    """By the mark, or by name where there is none."""
    rows = {".csv": ["label,text", 'é,"x\ny"', "b,z"], ".tsv": ["label\ttext", "é\tx", "b\tz"],
            ".jsonl": ['{"label": "é", "text": "x"}', '{"label": "b", "text": "z"}']}[kind]
    content = "".join(row + end for row in rows).encode(encoding)
    named = None if encoding in ("utf-16", "utf-32", "utf-8-sig") else encoding
    expected = [("é", "x\ny" if kind == ".csv" else "x"), ("b", "z")]
    assert read(tmp_path, content, f"train{kind}", encoding=named) == expected
    (tmp_path / "new.txt").write_bytes(end.join(["é", "", "b"]).encode(encoding))
    assert tasks.read_texts(tasks.TASKS["yelp_p"], tmp_path / "new.txt", named) == ["é", "", "b"]


def test_a_mark_is_believed_before_the_flag(tmp_path):
    assert read(tmp_path, "label,text\né,x\nb,y\n".encode("utf-8-sig"), encoding="latin-1")[0] == ("é", "x")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "utf-16-le"])
def test_utf_8_is_read_as_what_it_is_whatever_the_other_tables_are(tmp_path, encoding):
    content = "label,text\né,\u201cx\u201d\nb,y\n"
    assert read(tmp_path, "label,text\né,x\nb,y\n".encode(encoding), encoding=encoding)[0] == ("é", "x")
    assert described(tmp_path / "train.csv", encoding) == f"{tmp_path}/train.csv ({encoding.upper()})"
    assert read(tmp_path, content, encoding=encoding)[0] == ("é", "\u201cx\u201d")
    assert described(tmp_path / "train.csv", encoding) == f"{tmp_path}/train.csv"
    (tmp_path / "new.txt").write_text("to b\nor n\n")
    assert tasks.read_texts(tasks.TASKS["ag"], tmp_path / "new.txt", encoding) == ["to b", "or n"]


def test_a_lonely_return_stays_where_lines_end_otherwise(tmp_path):
    assert read(tmp_path, "label\ttext\na\tx\ry\nb\tz\n", "train.tsv") == [("a", "x\ry"), ("b", "z")]


@pytest.mark.parametrize("names", [["1", "2", "3"], ["17", "3", "40"]])
def test_the_names_of_r_s_rows_are_no_column(tmp_path, names):
    rows = "".join(f"{name}\t{label}\t{text}\n" for name, label, text in zip(names, "aba", "xyz"))
    assert read(tmp_path, "label\ttext\n" + rows, "train.tsv") == [("a", "x"), ("b", "y"), ("a", "z")]


def test_a_row_of_columns_is_what_has_one_key(tmp_path):
    content = '{"label": {"0": "a", "1": "b"}, "text": {"1": "y", "0": "x"}}'
    assert read(tmp_path, content, "train.json") == [("a", "x"), ("b", "y")]


def test_a_nested_value_beside_the_columns_is_no_matter(tmp_path):
    """Nor is one that is missing, or that the first row does not have."""
    lines = ['{"label": 1, "text": "x", "tags": ["a"]}', '{"label": 2, "text": "y", "tags": {}}', '{"text": "z", "label": 2}',
             '{"label": 1, "text": "w", "more": 1}']
    assert read(tmp_path, "\n".join(lines), "train.jsonl") == [("1", "x"), ("2", "y"), ("2", "z"), ("1", "w")]


def test_empty_rows_of_a_sheet_are_skipped(tmp_path):
    pandas.DataFrame({"label": ["a", "", "b"], "text": ["x", "", "y"]}).to_excel(tmp_path / "train.xlsx", index=False)
    assert read(tmp_path, (tmp_path / "train.xlsx").read_bytes(), "train.xlsx") == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("name, content", [("new.jsonl", '{"text": "x", "id": 1}\n{"text": "y", "id": 2}\n'),
                                           ("new.json", '[{"text": "x"}, {"text": "y"}]'), ("new.jsonl.gz", None)])
def test_tables_with_names_are_predicted_by_models_of_columns_with_numbers(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode() if content else gzip.compress(b'{"text": "x"}\n{"text": "y"}\n'))
    assert tasks.read_texts(tasks.TASKS["ag"], tmp_path / name) == ["x", "y"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_table_to_predict_may_have_a_mark(tmp_path, encoding):
    (tmp_path / "new.csv").write_bytes('"1","a","é"\n"2","b","x"\n'.encode(encoding))
    assert tasks.read_texts(tasks.TASKS["ag"], tmp_path / "new.csv") == ["a - é", "b - x"]


def test_bytes_are_text_and_what_is_no_text_is_refused_where_it_is_asked_for(tmp_path):
    frame = pandas.DataFrame({"label": ["a", "b"], "text": ["é".encode(), b"x"], "more": [["y"], []], "image": [b"\xff", None]})
    frame.to_parquet(tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    assert read(tmp_path, content, "train.parquet") == [("a", "é"), ("b", "x")]
    for column in ("more", "image"):
        with pytest.raises(UserError, match=f"train.parquet:2: column '{column}' holds no text but "):
            read(tmp_path, content, "train.parquet", text=column)


# What is refused

@pytest.mark.parametrize("name, content, words", [
    ("train.csv", "label,text\na,x\n,y\nb,z\n", "train.csv:3: the label is empty"),
    ("train.csv", 'label,text\na,x\n"  ",y\n', "train.csv:3: the label is empty"),
    ("train.jsonl", '{"label": "a", "text": "x"}\n{"label": null, "text": "y"}\n', "train.jsonl:2: the label is empty"),
    ("train.json", '[\n{"label": "a", "text": "x"},\n{"label": "", "text": "y"}]', "train.json:3: the label is empty"),
    ("train.csv", 'label,text\n"a\tb",x\nb,y\n', "train.csv:2: the label 'a b' has a tab or a line end in it"),
    ("train.csv", 'label,text\na,x\n"a\nb",y\nb,y\n', "train.csv:3: the label 'a b' has a tab or a line end in it"),
    ("train.jsonl", '{"label": "a\\rb", "text": "x"}\n', "train.jsonl:1: the label 'a b' has a tab or a line end in it"),
    ("train.csv", "label,text\na,x\nlabel,text\nb,y\n", "train.csv:3: the header stands here again"),
    ("train.csv", "label;text\na;x\nb;y\n", "no column is named 'label'; the header has label;text (add --sep ';')"),
    ("train.csv", "label\ttext\na\tx\n", "(add --sep tab)"),
    ("train.csv", "label,text\na,é\n".encode("latin-1"),
     "train.csv:2: byte 3 is not UTF-8; convert the file with iconv, or name its encoding: --encoding latin-1"),
    ("train.csv", "label,text\na,é\n".encode("utf-16-le"),
     "train.csv:1: a zero byte; this is no text file, or name its encoding"),
    ("train.csv", "label,text\na,é\nb,x\n".encode("utf-16")[:-1], "train.csv:3: this is not UTF-16; the file is damaged"),
    ("train.csv.gz", gzip.compress(b"label,text\na,x\n" * 100, mtime=0)[:-9], "train.csv.gz is no whole gzip file"),
    ("train.tsv.gz", b"label\ttext\n", "train.tsv.gz is no whole gzip file"),
    ("train.json", '[{"label": "a", "text": "x"}', "train.json is not whole JSON"),
    ("train.json", '{"label": ["a", "b"], "text": ["x"]}', "train.json: its columns are not equally long"),
    ("train.json", '{"label": {"0": "a", "1": "b"}, "text": {"0": "x", "2": "y"}}', "or not of the same rows"),
    ("train.json", "[1, 2]", "train.json:1: a row is an object"), ("train.json", "[" * 60 + "]" * 60, "nested too deep"),
    ("train.csv", 'label,text\na,"x\nb,y\n', "train.csv:2: unexpected end of data"),
    ("train.csv", "label,text\n1,a, b\n1,c, d\n", "train.csv:3: 3 columns, the header has 2"),
    ("train.csv", "label,text\n1,a, b\n2,c\n3,d\n", "train.csv:3: 2 columns, the header has 2, and the rows above one more"),
    ("train.csv", "label,text\n1,a, b\nc,d, e\n", "train.csv:3: 3 columns, the header has 2"),
    ("train.csv", "label,text\n1,a,\n2,b,\n", "train.csv: each row ends with a separator that the header has not"),
    ("train.csv", 'label,text\na,"so \\"x\\""\nb,y\na,z,more\nb,w\n', "train.csv:4: 3 columns"),
    ("train.csv", 'label, text\na, "x, y"\nb, "z"\nc, zz, q\n', "train.csv:4: 3 columns"),
    ("train.csv", 'label,text\na,"x"\nb,y\rz\n', "train.csv:3: a carriage return stands outside quotes"),
])
def test_wrong_tables_are_refused_with_their_line(tmp_path, name, content, words):
    message = refusal(tmp_path, content, name)
    assert words in message and "\n" not in message


def test_labels_that_need_quotes_are_taken_where_quotes_are_chosen(tmp_path):
    content = 'label,text\n"a\tb",x\n"c\nd",y\n'
    assert read(tmp_path, content, quoting="all") == [("a\tb", "x"), ("c\nd", "y")]


@pytest.mark.parametrize("content, test", [
    ("0,1\na,x\nb,y\na,z\n", ""), ("0,1,2\na,x,1\nb,y,2\n", ""), ("label,text\na,x\nb,y\na,z\n", ""),
    ("mood,text\n1,x\n0,y\n1,z\n", ""),
    ("mood,text\na,x\na,y\nb,z\nb,w\n", ""), ("mood,text\na,x\nb,y\nb,z\n", "mood,text\nb,w\n"),
    ("Sentiment,Review\npos,x\nneg,y\npos,z\n", ""), ("score,text\n4.5,x\n-1,y\n4.5,z\n", "")])
def test_a_header_is_not_taken_for_data(tmp_path, content, test):
    if test:
        (tmp_path / "test.csv").write_text(test)
    assert "train.csv:1: " in refusal(tmp_path, content, label="0", text="1")


@pytest.mark.parametrize("content", ["mood,x\na,y\nb,z\nb,w\n", "0,0\n1,1\n", "1,0\n0,1\n0,2\n", "once,x\na,y\nb,z\n"])
def test_a_first_row_of_data_is_not_taken_for_a_header(tmp_path, content):
    """Even if its class has no other row, or the test table begins with that class."""
    (tmp_path / "test.csv").write_text("mood,other text\nonce,more\n")
    assert len(read(tmp_path, content, label="0", text="1")) == content.count("\n")


# Fine-tuning

TEXTS = ["The police came.", "Shares fell.", "The match ended.", "A new chip.", "Rain.", "The war goes on."]


@pytest.fixture
def folder(tmp_path):
    """A folder of tables: 2 classes of 12 texts, a third of one, an empty text; a test table that has two of them."""
    frame = pandas.DataFrame([(("good", "bad")[i % 2], f"{TEXTS[i % 6]} {i}") for i in range(24)]
                             + [("rare", "Only this."), ("bad", "")], columns=["label", "text"])
    frame.to_csv(tmp_path / "train.tsv", sep="\t", index=False, encoding="utf-16")
    more = pandas.DataFrame({"label": ["good", "bad"] * 3, "text": [f"{text} New." for text in TEXTS]})
    pandas.concat([more, frame[:2]]).to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    return tmp_path


@pytest.fixture
def run(tiny, folder):
    """A function that fine-tunes on the folder for one epoch, with more flags. Returns the run's folder."""
    def train(*flags, script=SINGLE):
        call(script, *train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder, "--num_train_epochs", 1,
             *flags)
        return folder / "run"
    return train


def test_what_is_suspicious_is_said_before_training(run, folder, capsys):
    run()
    printed = capsys.readouterr().out
    table = printed[printed.index("class  "):printed.index("training example 0")]
    assert [line.split() for line in table.splitlines()[:4]] == [
        ["class", "train", "test"], ["bad", "13", "4"], ["good", "12", "4"], ["rare", "1", "0"]]
    for words in (f"{folder}/train.tsv:27: empty texts: 1 of 26", f"{folder}/train.tsv: classes of one text: 1 of 3 (rare)",
                  f"{folder}/test.jsonl: classes without a text: 1 of 3 (rare)",
                  f"{folder}/test.jsonl:7: texts that are in the training table, too: 2 of 8"):
        assert f"warning: {words}" in table
    assert table.count("warning: ") == 4 and f"train data {folder}/train.tsv (UTF-16): 26 texts" in printed


def test_of_many_classes_not_all_are_printed(tmp_path):
    (tmp_path / "train.csv").write_text("label,text\n" + "".join(f"{i},x\n{i},y\n" for i in range(300)))
    lines = tasks.describe_tables(tasks.csv_task(tmp_path, "label", ["text"]), tmp_path, ["train"], None)
    assert lines[1].split() == ["0", "2"] and lines[-1] == "... 300 classes" and len(lines) == 202


def test_an_ordinary_folder_has_nothing_suspicious(tiny, folder, run, capsys):
    for name in ("train", "test"):
        pandas.DataFrame({"label": ["a", "b"] * 8, "text": [f"{name} {i}" for i in range(16)]}).to_csv(folder / f"{name}.csv")
    (folder / "train.tsv").unlink(), (folder / "test.jsonl").unlink()
    run()
    assert "warning: " not in capsys.readouterr().out


def test_a_development_table_chooses_and_the_test_table_is_evaluated_once(run, folder, capsys, refused_here, tiny):
    pandas.DataFrame({"label": ["bad", "good", "bad"], "text": ["No.", "Yes.", "Hm."]}).to_parquet(folder / "dev.parquet")
    done = run("--patience", 1, "--num_train_epochs", 2)
    assert len(predictions_of(done / "results_ep1.txt")) == 3 and len(predictions_of(done / "results.txt")) == 8
    result = read_json(done / "results.json")
    assert result["test"]["epoch"] == result["best"]["epoch"]
    printed = capsys.readouterr().out
    assert "on the development data" in printed and "the test set is evaluated after each epoch" not in printed
    flags = [*train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder, "--num_train_epochs", 2]
    refused_here(SINGLE, *flags, "--dev_fraction", 0.1, words="has dev.parquet, which is the development set")
    refused_here(SINGLE, *flags, "--save_models", "last", words="dev.parquet tests the best model")
    pandas.DataFrame({"label": ["bad", "good", "good"], "text": ["No.", "Yes.", "Hm."]}).to_parquet(folder / "dev.parquet")
    refused_here(SINGLE, *flags, "--patience", 1, words="holds another run: development data was 3 texts")


@pytest.mark.parametrize("flags", [[], ["--dev_fraction", 0.2]])
def test_without_a_test_table_the_development_set_is_evaluated(run, folder, capsys, flags, tmp_path):
    (folder / "test.jsonl").rename(folder / ("unused.jsonl" if flags else "dev.jsonl"))
    done = run(*flags)
    assert f"{folder} has no test table: the development set alone is evaluated" in capsys.readouterr().out
    assert len(predictions_of(done / "results_ep1.txt")) == (5 if flags else 8) and not (done / "results.txt").exists()
    if not flags:
        call(SINGLE, "--do_eval", "--data_dir", folder, "--init_checkpoint", done / "best", "--no_cuda", "--output_dir",
             folder / "out")
        assert predictions_of(folder / "out" / "results.txt") == predictions_of(done / "results_ep1.txt")
        assert "has no test table" in capsys.readouterr().out


def test_rows_of_unseen_labels_are_refused_or_left_out(run, folder, capsys, refused_here, tiny):
    with open(folder / "test.jsonl", "a") as file:
        file.write('\n{"label": "odd", "text": "a"}\n{"label": "odder", "text": "a"}\n{"label": "odd", "text": "b"}\n')
    flags = [*train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder]
    refused_here(SINGLE, *flags, words="test.jsonl:10: label 'odd' is none of the labels of the task csv: bad, good, rare")
    done = run("--unseen_labels", "ignore")
    assert len(predictions_of(done / "results_ep1.txt")) == 8
    assert "test.jsonl: rows left out for their unseen labels: 3 (odd, odder)" in capsys.readouterr().out
    (folder / "test.jsonl").write_text('{"label": "odd", "text": "a"}\n')
    refused_here(SINGLE, *flags, "--unseen_labels", "ignore", words="test.jsonl none is left; their labels are odd")


def test_the_columns_of_predictions_are_those_asked_for(run, folder, tiny):
    """As pandas reads them; labels and texts have all that needs quotes."""
    frame = pandas.read_csv(folder / "train.tsv", sep="\t", encoding="utf-16", dtype=str, keep_default_na=False)
    frame.loc[frame["label"] == "good", "label"] = 'so "good"'
    frame.to_csv(folder / "train.csv", index=False)
    (folder / "train.tsv").unlink()
    given = pandas.DataFrame({"id": ["007", "NA", "1.0", "4"], "text": ['a "b"', "two\nlines", "tab\tre\n\rturn", ""]})
    given.to_csv(folder / "new.csv", index=False)
    done = run("--do_eval", False, "--do_predict", "--predict_file", folder / "new.csv", "--id_column", "id", "--write_text")

    def predictions(path):
        return pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    written = predictions(done / "predictions.tsv")
    assert list(written) == ["id", "label", "bad", "rare", 'so "good"', "text"]
    pandas.testing.assert_frame_equal(written[["id", "text"]], given)
    assert set(written["label"]) <= {"bad", "rare", 'so "good"'}
    call(SINGLE, "--do_predict", "--predict_file", folder / "new.csv", "--init_checkpoint", done / "last", "--no_cuda",
         "--output_dir", folder / "plain")
    pandas.testing.assert_frame_equal(predictions(folder / "plain" / "predictions.tsv"), written.drop(columns=["id", "text"]))
    call(SINGLE, "--do_predict", "--predict_file", folder / "new.csv", "--init_checkpoint", done / "last", "--no_cuda",
         "--output_dir", folder / "quoted", "--quoting", "all")
    lines = (folder / "quoted" / "predictions.tsv").read_text().splitlines()
    assert all(line.startswith('"') and line.endswith('"') and line.count('"\t"') == 3 for line in lines[1:])


def test_tables_to_predict_may_be_written_in_another_way_than_those_of_training(run, folder):
    """A model remembers how its own are written, which flags change; UTF-8 is read as what it is."""
    done = run("--quoting", "none", "--encoding", "latin-1")

    def predicted(name, content, *flags):
        (folder / name).write_bytes(content)
        call(SINGLE, "--do_predict", "--predict_file", folder / name, "--init_checkpoint", done / "last", "--no_cuda",
             "--output_dir", folder / "out", *flags)
        return (folder / "out" / "predictions.tsv").read_text().replace('"', "")
    plain = predicted("new.tsv", "text\n\u201cYes\u201d, é\n".encode())
    assert predicted("new.csv", "id;text\n1;\u201cYes\u201d, é\n".encode(), "--sep", ";") == plain
    windows = "text|id\n\u201cYes\u201d, é|1\n".encode("cp1252")
    assert predicted("new.csv", windows, "--sep", "|", "--encoding", "cp1252") == plain
    assert predicted("new.tsv", 'text\n"\u201cYes\u201d, é"\n'.encode(), "--quoting", "all") == plain
    assert predicted("new.tsv", 'text\n"\u201cYes\u201d, é"\n'.encode()) != plain
    assert predicted("new.tsv", "text\nYes, é\n".encode("latin-1")) == predicted("new.tsv", "text\nYes, é\n".encode())


def test_models_that_know_nothing_of_encodings_are_used_and_damaged_ones_refused(run, folder, refused_here):
    done = run()
    record, stored = done / "last" / "classifier.json", read_json(done / "last" / "classifier.json")
    flags = ["--do_eval", "--data_dir", folder, "--init_checkpoint", done / "last", "--no_cuda", "--output_dir", folder / "out"]
    earlier = {key: value for key, value in stored["task"].items() if key not in ("encoding", "quoting")}
    record.write_text(json.dumps(stored | {"task": earlier}))
    call(SINGLE, *flags)
    assert predictions_of(folder / "out" / "results.txt") == predictions_of(done / "results_ep1.txt")
    for damage, words in (({"quoting": "some"}, "quoting 'some'"), ({"encoding": "klingon"}, "encoding 'klingon'"),
                          ({"encoding": 1}, "encoding: 1 where str or null is needed"),
                          ({"quoting": None}, "quoting: None where")):
        record.write_text(json.dumps(stored | {"task": stored["task"] | damage}))
        refused_here(SINGLE, *flags, words=words)


@pytest.mark.parametrize("flags, words", [
    (["--task_name", "ag", "--encoding", "latin-1"], "--encoding belongs to --task_name csv"),
    (["--task_name", "ag", "--quoting", "all"], "--quoting belongs to --task_name csv"),
    (["--task_name", "ag", "--unseen_labels", "ignore"], "--unseen_labels belongs to --task_name csv"),
    (["--encoding", "klingon"], "'klingon' is no encoding that Python knows"),
    (["--encoding", "base64"], "'base64' is no encoding"),
    (["--do_eval", False, "--unseen_labels", "ignore"], "--unseen_labels needs data to evaluate"),
    (["--id_column", "id"], "--id_column is for predictions.tsv"), (["--write_text"], "--write_text is for predictions.tsv"),
    (["--do_predict", "--predict_file", "NEW", "--id_column", "key"], "new.csv:1: no column is named 'key'"),
    (["--do_predict", "--predict_file", "LINES", "--id_column", "id"], "new.txt is no table"),
    (["--label_column", 0, "--text_columns", 1, "--do_predict", "--predict_file", "NEW", "--id_column", "id"],
     "give a number from 0"),
])
def test_flags_of_tables_that_have_nothing_to_act_on_are_refused(folder, tiny, refused_here, flags, words):
    (folder / "new.csv").write_text("id,text\n1,a\n")
    (folder / "new.txt").write_text("a\n")
    if 0 in flags:
        (folder / "test.jsonl").unlink()
        (folder / "train.tsv").write_text("good\ta\nbad\tb\n")
        (folder / "new.csv").write_text("good,a\n")
    flags = [{"NEW": folder / "new.csv", "LINES": folder / "new.txt"}.get(flag, flag) for flag in flags]
    refused_here(SINGLE, *train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder, *flags, words=words)
    assert not (folder / "run").exists()
