"""tasks.py: every task's text and labels from real rows, bad files, and the subsets."""
import collections
import gzip
import json

import numpy as np
import pytest

import tasks
from common import tables
from common.command_line import UserError
from tasks import TASKS


def write(folder, files):
    """Writes {name: str or bytes} into the folder, with the folders in between; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def documents(name, data_dir, split="train"):
    return list(tasks.read_documents(TASKS[name], data_dir, split))


def refusal(name, data_dir, split="train"):
    """The message with which a task refuses its files."""
    with pytest.raises(UserError) as caught:
        documents(name, data_dir, split)
    return str(caught.value)


# Real files

@pytest.mark.parametrize("name, train, test, train_counts", [
    ("ag", 31677, 7600, [7782, 7767, 8066, 8062]),
    ("dbpedia", 4000, 1000, [277, 282, 301, 312, 279, 285, 296, 295, 276, 270, 300, 281, 284, 262]),
    ("imdb", 25000, 25000, [12500, 12500]),
    ("trec", 5452, 500, [835, 896, 1223, 1250, 86, 1162]),
    ("yelp_f", 5000, 5000, [750, 435, 516, 1111, 2188]),
    ("yelp_p", 4484, 4455, [1185, 3299]),
])
def test_real_files_give_every_row_and_class(shared, name, train, test, train_counts):
    folder = shared / "data" / name
    texts, labels = tasks.read_examples(TASKS[name], folder, "train")
    assert (len(texts), labels.dtype, labels.shape) == (train, np.int64, (train,))
    assert np.bincount(labels, minlength=len(TASKS[name].labels)).tolist() == train_counts
    assert len(tasks.read_examples(TASKS[name], folder, "test")[0]) == test


def first_document(shared, name):
    task = TASKS[name]
    line_number, label, fields = next(tasks.read_documents(task, shared / "data" / name, "train"))
    assert line_number == 1
    return task.labels[label], fields, task.text(fields)


def test_ag_joins_title_and_description_with_a_dash(shared):
    label, fields, text = first_document(shared, "ag")
    assert label == "2"
    assert fields[0] == "England-South Africa pits World Cup winner versus Tri-Nations &lt;b&gt;...&lt;/b&gt;"
    assert fields[1].startswith("The last time England") and fields[1].endswith("thrashing for the South Africans.")
    assert text == fields[0] + " - " + fields[1]


def test_half_stripped_entities_and_backslashes_stay(shared):
    fields = [fields for _, _, fields in documents("ag", shared / "data" / "ag")]
    assert fields[1][0] == "Randolph Guaranteed  #36;1.88M in Mets Deal (AP)"
    assert any("\\" in field for row in fields for field in row)


def test_dbpedia_joins_title_and_content(shared):
    label, fields, text = first_document(shared, "dbpedia")
    assert (label, fields[0]) == ("5", "Rick Jore")
    assert text.startswith("Rick Jore  Rick Jore a Montana politician and businessman")


def test_imdb_keeps_quotes_and_next_line_characters_and_html_where_it_is_asked_for(shared):
    rows = documents("imdb", shared / "data" / "imdb")
    texts = [fields[0] for _, _, fields in rows]
    assert [line for line, _, _ in rows] == list(range(1, 25001))
    assert sum(text.startswith('"') for text in texts) == 546
    assert any(text.startswith('"I Am Curious: Yellow" is a risible') for text in texts)
    assert sum("\x85" in text for text in texts) > 100 and not any("<br />" in text for text in texts)
    as_published, labels = tasks.read_examples(*tasks.named_tasks(["imdb"], keep_html=True), shared / "data" / "imdb", "train")
    assert sum("<br />" in text for text in as_published) == 14665 and list(labels) == [label for _, label, _ in rows]
    assert [text.replace("<br />", " ") for text in as_published] == texts


def test_yelp_has_one_column_of_text(shared):
    for name, label in (("yelp_f", "5"), ("yelp_p", "2")):
        found, fields, text = first_document(shared, name)
        assert found == label and fields == [text] and text.startswith("I am very bias when it comes to this Iron Hill")


def test_trec_label_files_equal_the_table(shared, tmp_path):
    """The published .label files (one byte of them is Latin-1) and the tab-separated ones are the same questions."""
    folder = shared / "data" / "trec"
    write(tmp_path, {name: (folder / name).read_bytes() for name in ("train_5500.label", "TREC_10.label")})
    for split in ("train", "test"):
        assert documents("trec", tmp_path, split) == documents("trec", folder, split)
    assert documents("trec", folder)[0] == (1, TASKS["trec"].labels.index("DESC"),
                                            ["How did serfdom develop in and then leave Russia ?"])
    assert "sister\xf0city" in documents("trec", tmp_path)[65][2][0]


# Rows made by hand, as the authors publish them

def test_yahoo_joins_title_question_and_answer_also_empty_ones(tmp_path):
    write(tmp_path, {"train.csv": '"10","Why, ""quoted""?","","Because\\nso."\n"1","a","b","c"\n'})
    (_, label, fields), (_, other, _) = documents("yahoo", tmp_path)
    assert (label, other) == (9, 0) and fields == ['Why, "quoted"?', "", "Because\\nso."]
    assert TASKS["yahoo"].text(fields) == 'Why, "quoted"?  Because\\nso.'
    pair, = tasks.named_tasks(["yahoo"], text_pair=True)
    assert tasks.read_examples(pair, tmp_path, "train")[0] == [('Why, "quoted"? ', "Because\\nso."), ("a b", "c")]


@pytest.mark.parametrize("names, flag", [(["ag"], "keep_html"), (["ag", "trec"], "text_pair"), (["imdb"], "text_pair")])
def test_a_form_that_none_of_the_tasks_has_is_refused(names, flag):
    with pytest.raises(UserError, match=f"--{flag} is for --task_name (imdb|yahoo)"):
        tasks.named_tasks(names, **{flag: True})


def test_a_pair_of_own_texts_is_read_by_name_number_and_for_prediction(tmp_path):
    write(tmp_path, {"train.csv": "q,mood,a,c\nwhy?,x,so,1\nhow?,y,thus,2\n", "new.csv": "q,c,a\nwho?,1,me<br />\n",
                     "new.txt": "who?\n", "0/train.csv": "x,why?,so\ny,how?,thus\n"})
    task = tasks.csv_task(tmp_path, "mood", ["q"], pair_columns=["a", "c"])
    assert tasks.read_examples(task, tmp_path, "train")[0] == [("why?", "so 1"), ("how?", "thus 2")]
    assert tasks.read_texts(task, tmp_path / "new.csv") == [("who?", "me<br /> 1")]
    with pytest.raises(UserError, match="new.txt holds one a line; give a table "):
        tasks.read_texts(task, tmp_path / "new.txt")
    numbered = tasks.csv_task(tmp_path / "0", "0", ["1"], pair_columns=["2"])
    assert tasks.read_examples(numbered, tmp_path / "0", "train")[0] == [("why?", "so"), ("how?", "thus")]
    with pytest.raises(UserError, match="name the same column twice"):
        tasks.csv_task(tmp_path, "mood", ["q"], pair_columns=["q"])


def test_texts_to_predict_are_cleaned_as_those_of_training(tmp_path):
    write(tmp_path, {"new.txt": "good.<br /><br />Bad<br>\n", "new.tsv": "good.<br />Bad\n"})
    assert tasks.read_texts(TASKS["imdb"], tmp_path / "new.txt") == ["good.  Bad<br>"]
    assert tasks.read_texts(TASKS["imdb"], tmp_path / "new.tsv") == ["good. Bad"]
    assert tasks.read_texts(TASKS["yelp_p"], tmp_path / "new.txt") == ["good.<br /><br />Bad<br>"]


@pytest.mark.parametrize("content", [
    "sports\t标题\t内容。\ntechnology\t二\t三\n", "1\t标题\t内容。\n6\t二\t三\n", '"1","标题","内容。"\n"6","二","三"\n',
    "sports,标题,内容。\r\ntechnology,二,三\r\n"])
def test_sogou_takes_names_or_numbers_and_tabs_or_commas(tmp_path, content):
    write(tmp_path, {"train.csv": content})
    assert documents("sogou", tmp_path) == [(1, 0, ["标题", "内容。"]), (2, 5, ["二", "三"])]
    assert TASKS["sogou"].text(["标题", "内容。"]) == "标题 内容。"


def test_quoted_fields_hold_line_ends_and_rows_know_their_first_line(tmp_path):
    write(tmp_path, {"train.csv": '\ufeff"1","a\nb","c\r\nd"\r\n\r\n"2","\x85e","f"\n"3","",""'})
    assert documents("ag", tmp_path) == [(1, 0, ["a\nb", "c\r\nd"]), (5, 1, ["\x85e", "f"]), (6, 2, ["", ""])]


@pytest.mark.parametrize("root", ["", "aclImdb/"])
def test_acl_imdb_folders_are_read_by_label_and_number(tmp_path, root):
    write(tmp_path, {f"{root}train/neg/2_1.txt": "bad<br />\x85very", f"{root}train/neg/10_4.txt": "bad ten",
                     f"{root}train/pos/0_9.txt": '"Good"\n', f"{root}train/unsup/0_0.txt": "none",
                     f"{root}test/pos/0_10.txt": "fine", f"{root}test/neg/0_2.txt": ""})
    assert documents("imdb", tmp_path) == [(1, 0, ["bad \x85very"]), (2, 0, ["bad ten"]), (3, 1, ['"Good"'])]
    assert documents("imdb", tmp_path, "test") == [(1, 0, [""]), (2, 1, ["fine"])]


def test_eight_tasks_have_the_classes_of_the_paper():
    classes = {name: (task.domain, len(task.labels)) for name, task in TASKS.items()}
    assert classes == {"imdb": ("sentiment", 2), "yelp_p": ("sentiment", 2), "yelp_f": ("sentiment", 5),
                       "trec": ("question", 6), "yahoo": ("question", 10),
                       "ag": ("topic", 4), "dbpedia": ("topic", 14), "sogou": ("topic", 6)}


def test_documents_are_streamed(tmp_path):
    """A fault in a later row does not keep the rows before it."""
    write(tmp_path, {"train.csv": '"1","a","b"\n"2","c"\n'})
    reading = tasks.read_documents(TASKS["ag"], tmp_path, "train")
    assert next(reading) == (1, 0, ["a", "b"])
    with pytest.raises(UserError, match="train.csv:2: 2 columns"):
        next(reading)


# Files of one's own

def test_csv_task_by_names_infers_labels_and_survives_json(tmp_path):
    write(tmp_path, {"train.csv": 'id,body,mood,head\n1,b1,sad,h1\n2,"b\n2",glad,h2\n',
                     "test.csv": "mood,head,body\nsad,h,b\n"})
    task = tasks.csv_task(tmp_path, "mood", ["head", "body"])
    assert (task.name, task.labels) == ("csv", ("glad", "sad"))
    assert tasks.task_from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert tasks.read_examples(task, tmp_path, "train")[0] == ["h1 b1", "h2 b\n2"]
    assert list(tasks.read_documents(task, tmp_path, "test")) == [(2, 1, ["h", "b"])]


@pytest.mark.parametrize("sep, written, lines", [("\\t", "\t", ['10\tx\t"a', "9\ty\tb"]),
                                                 ("tab", "\t", ['10\tx\t"a', "9\ty\tb"]),
                                                 (";", ";", ['10;x;"""a"', "9;y;b"])])
def test_csv_task_by_numbers_has_no_header(tmp_path, sep, written, lines):
    write(tmp_path, {"train.csv": "\n".join(lines)})
    task = tasks.csv_task(tmp_path, "0", ["2"], sep)
    assert (task.sep, task.labels) == (written, ("9", "10"))  # sorted as numbers
    assert list(tasks.read_documents(task, tmp_path, "train")) == [(1, 1, ['"a']), (2, 0, ["b"])]


def test_builtin_tasks_survive_json():
    for task in TASKS.values():
        assert tasks.task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


@pytest.mark.parametrize("content, label, text, sep, words", [
    ("a,b\n1,x\n2,y\n", "c", ["b"], ",", "train.csv:1: no column is named 'c'; the header has a, b"),
    ("a,b,b\n1,x,y\n", "a", ["b"], ",", "two columns are named 'b'"),
    ("a,b\n1,x\n2,y\n", "a", ["a"], ",", "same column twice"),
    ("a,b\n1,x\n1,y\n", "a", ["b"], ",", "one label only, '1'"),
    ("a,b\n", "a", ["b"], ",", "a header and no row"),
    ("1,x\n2,y\n", "0", ["2"], ",", "train.csv:1: there is no column 2, the row has the columns 0 to 1"),
    ("1,x\n2,y,z\n", "0", ["1"], ",", "train.csv:2: 3 columns, the task csv has 2"),
    ("1,x\n2,y\n", "0", ["1"], ", ", "--sep"),
    ("1,x\n2,y\n", "0", [], ",", "--text_columns"),
    ("label,text\n1,x\n2,y\n1,z\n2,w\n", "0", ["1"], ",", "train.csv:1: the first row's label, 'label', is the only one"),
])
def test_csv_task_refuses(tmp_path, content, label, text, sep, words):
    write(tmp_path, {"train.csv": content})
    with pytest.raises(UserError) as caught:
        tasks.csv_task(tmp_path, label, text, sep)
    assert words in str(caught.value)


def test_csv_task_refuses_a_test_label_that_training_lacks(tmp_path):
    write(tmp_path, {"train.csv": "a,b\nyes,x\nno,y\n", "test.csv": "a,b\nno,x\nmaybe,y\n"})
    task = tasks.csv_task(tmp_path, "a", ["b"])
    with pytest.raises(UserError, match=r"test.csv:3: label 'maybe' is none of .*: no, yes; .*the training file"):
        list(tasks.read_documents(task, tmp_path, "test"))


# Texts to predict

@pytest.mark.parametrize("task, name, content, texts", [
    ("ag", "new.txt", '\ufeff"1","a"\n\nb\x85\r\n', ['"1","a"', "", "b\x85"]),
    ("ag", "new.csv", '"1","a","b"\n"9","c","d"\n', ["a - b", "c - d"]),  # a label there is not looked at
    ("ag", "new.csv", '"a","b"\n', ["a - b"]),
    ("ag", "new.tsv", 'a "x"\tb\n', ['a "x" - b']),
    ("imdb", "NEW.CSV", "fine, really\n", ["fine, really"]),
    ("imdb", "new.csv", "1\tfine\n", ["fine"]),
    ("sogou", "new.csv", "a,b\nc,d\n", ["a b", "c d"]),
])
def test_texts_to_predict(tmp_path, task, name, content, texts):
    write(tmp_path, {name: content})
    assert tasks.read_texts(TASKS[task], str(tmp_path / name)) == texts


@pytest.mark.parametrize("name, content, encoding", [
    ("new.csv.gz", gzip.compress('"1","caf\xe9","b"\n"2","c","d"\n'.encode()), None),
    ("new.csv.gz", gzip.compress('"1","caf\xe9","b"\n"2","c","d"\n'.encode("cp1252")), "cp1252"),
    ("new.csv", '"1","caf\xe9","b"\n"2","c","d"\n'.encode("cp1252"), "cp1252"),
    ("new.tsv", "caf\xe9\tb\nc\td\n".encode("cp1252"), "cp1252")], ids=["gz", "cp1252.gz", "cp1252", "tabs"])
def test_tables_to_predict_of_a_named_task_may_be_compressed_and_in_any_encoding(tmp_path, name, content, encoding):
    write(tmp_path, {name: content})
    assert tasks.read_texts(TASKS["ag"], str(tmp_path / name), encoding) == ["caf\xe9 - b", "c - d"]


def test_the_ids_of_a_table_to_predict_are_read_in_its_encoding(tmp_path):
    write(tmp_path, {"train.csv": "mood,text\na,x\nb,y\n", "new.csv": "id,text\n\u201ch\u201d,x\n".encode("cp1252")})
    task = tasks.csv_task(tmp_path, "mood", ["text"])
    assert tasks.read_ids(task, str(tmp_path / "new.csv"), "id", "cp1252") == ["\u201ch\u201d"]


def test_texts_to_predict_for_a_file_of_ones_own(tmp_path):
    write(tmp_path, {"train.csv": "id;mood;head;body\n1;a;x;y\n2;b;x;y\n", "new.csv": "body;id;head\nb1;1;h1\n",
                     "plain.csv": "h1;b1\n"})
    named = tasks.csv_task(tmp_path, "mood", ["head", "body"], ";")
    assert tasks.read_texts(named, str(tmp_path / "new.csv")) == ["h1 b1"]
    write(tmp_path, {"train.csv": "b1;x;h1\nb2;y;h2\n", "new.csv": "b3;h3\n"})
    numbered = tasks.csv_task(tmp_path, "1", ["2", "0"], ";")
    assert tasks.read_texts(numbered, str(tmp_path / "train.csv")) == ["h1 b1", "h2 b2"]
    assert tasks.read_texts(numbered, str(tmp_path / "new.csv")) == ["h3 b3"]


@pytest.mark.parametrize("name, content, words", [
    ("new.txt", b"", "--predict_file"), ("new.txt", b"a\n\xff\n", "new.txt:2: byte 1 is not UTF-8"),
    ("new.csv", b"\n", "holds no row"), ("new.csv", b'"a","b"\n"c"\n', "new.csv:2: 1 columns"),
    ("new.csv", b'"a"\n', "new.csv:1: 1 columns, the task ag has 3"),
])
def test_bad_files_to_predict_are_refused(tmp_path, name, content, words):
    write(tmp_path, {name: content})
    with pytest.raises(UserError) as caught:
        tasks.read_texts(TASKS["ag"], str(tmp_path / name))
    assert words in str(caught.value)


# Bad files

def test_missing_files_are_named(tmp_path):
    assert "no train.csv, no train_5500.label" in refusal("trec", tmp_path)
    assert "no test.csv" in refusal("ag", tmp_path, "test")
    assert "aclImdb" in refusal("imdb", tmp_path)
    assert "no folder" in refusal("ag", tmp_path / "absent")


@pytest.mark.parametrize("name, content, words", [
    ("ag", b"", "is empty"),
    ("ag", b"\n\n", "holds no row"),
    ("ag", b"\x1f\x8b\x08\x00\x01\x02", ":1: "),
    ("ag", b'"1","a","b"\n\0\0\0', ":2: a zero byte"),
    ("ag", b'"1","a","b"\n"2","caf\xe9","d"\n', ":2: byte 9 is not UTF-8"),
    ("ag", b'"1","a","b"\n"2","c"\n', ":2: 2 columns, the task ag has 3"),
    ("ag", b'"1","a","b"\n"2","c","d","e"\n', ":2: 4 columns"),
    ("ag", b'"1","a","b"\n"2","c","the end is mis', ":2: unexpected end of data"),
    ("ag", b'"1","a","b"\n"2","c" x,"d"\n', ":2: "),
    ("ag", b'"1","a","b"\n"5","c","d"\n', ":2: label '5' is none of the labels of the task ag: 1, 2, 3, 4"),
    ("ag", b'Class Index,Title,Description\n"1","a","b"\n', "if the row is a header, remove it"),
    ("imdb", b"0\tfine\n1 no tab\n", ":2: 1 columns, the task imdb has 2"),
    ("imdb", b"0,commas\n", ":1: 1 columns"),
    ("trec", b"WHAT\tis it ?\n", ":1: label 'WHAT' is none of the labels of the task trec: LOC, NUM"),
    ("sogou", b"sports\ta\tb\n7\tc\td\n", ":2: label '7'"),
])
def test_bad_files_are_refused_with_their_line(tmp_path, name, content, words):
    write(tmp_path, {"train.csv": content})
    message = refusal(name, tmp_path)
    assert "train.csv" in message and words in message and "\n" not in message


def test_a_quote_that_is_never_closed_stops_before_memory_does(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_FIELD", 1000)
    write(tmp_path, {"train.csv": '"1","a","b"\n"2","c","' + "no quote in here\n" * 100})
    assert ":2: field larger than field limit" in refusal("ag", tmp_path)


def test_bad_original_formats_are_refused(tmp_path):
    write(tmp_path, {"train_5500.label": "DESC:manner How ?\nno label\n"})
    assert "train_5500.label:2: 'no label' is not" in refusal("trec", tmp_path)
    write(tmp_path, {"train/pos/0_9.txt": "good"})
    assert "neg" in refusal("imdb", tmp_path)
    write(tmp_path, {"train/neg/0_1.txt": b"\xff\xfe"})
    assert "0_1.txt:1: byte 1 is not UTF-8" in refusal("imdb", tmp_path)


# Subsets

LABELS = np.repeat([2, 0, 1], [600, 300, 100])[np.random.default_rng(0).permutation(1000)]


@pytest.mark.parametrize("num, count", [(1, 1), (7, 7), (100, 100), (1000, 1000), (0.004, 4), (0.2, 200), (0.0001, 1),
                                        (1.0, 1000), (500.0, 500)])
def test_subsample_takes_exactly_num_in_file_order(num, count):
    indices = tasks.subsample(LABELS, num, seed=1)
    assert len(indices) == len(set(indices.tolist())) == count and (np.diff(indices) > 0).all()


def test_subsample_is_stratified_nested_and_seeded():
    smaller = set()
    for num in range(1, 1001, 37):
        indices = tasks.subsample(LABELS, num, seed=1)
        assert np.abs(np.bincount(LABELS[indices], minlength=3) - num * np.array([.3, .1, .6])).max() <= 1.5
        assert smaller <= set(indices.tolist())
        smaller = set(indices.tolist())
        assert (indices == tasks.subsample(LABELS, num, seed=1)).all()
    assert (tasks.subsample(LABELS, 100, seed=1) != tasks.subsample(LABELS, 100, seed=2)).any()


def test_subsample_of_balanced_classes_does_not_always_favour_the_first():
    labels = np.arange(40) % 4
    assert {int(labels[tasks.subsample(labels, 1, seed)[0]]) for seed in range(40)} == {0, 1, 2, 3}


@pytest.mark.parametrize("num", [0, 1001, 2.5, -1, -0.5, float("nan")])
def test_subsample_refuses(num):
    with pytest.raises(UserError):
        tasks.subsample(LABELS, num, seed=1)


def test_split_train_dev_is_a_stratified_partition():
    train, dev = tasks.split_train_dev(LABELS, 0.1, seed=3)
    assert sorted([*train, *dev]) == list(range(1000)) and len(dev) == 100
    assert collections.Counter(LABELS[dev].tolist()) == {2: 60, 0: 30, 1: 10}
    assert (dev == tasks.split_train_dev(LABELS, 0.1, seed=3)[1]).all()
    assert (dev != tasks.split_train_dev(LABELS, 0.1, seed=4)[1]).any()


@pytest.mark.parametrize("labels, fraction", [(LABELS, 0), (LABELS, 1), (LABELS, -0.1), (np.zeros(1, int), 0.5)])
def test_split_train_dev_refuses(labels, fraction):
    with pytest.raises(UserError):
        tasks.split_train_dev(labels, fraction, seed=3)


# Tables of any kind

ROWS = [("NA", "null"), ("007", '"quoted" first'), ("1.0", " spaces, a\ttab "), ("True", "two\nlines"), ("NA", "None"),
        ("é", "")]


def write_table(folder, kind):
    """ROWS as train.KIND with a header; the reference writers of each kind make it."""
    import pandas
    frame = pandas.DataFrame(ROWS, columns=["label", "text"], dtype=object)
    path = folder / f"train{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        writer = {".csv": frame.to_csv, ".parquet": frame.to_parquet, ".xlsx": frame.to_excel}[kind]
        writer(path, index=False)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_every_kind_of_table_is_read_as_it_was_written(tmp_path, kind):
    write_table(tmp_path, kind)
    task = tasks.csv_task(tmp_path, "label", ["text"])
    assert task.labels == ("007", "1.0", "NA", "True", "é")
    texts, labels = tasks.read_examples(task, tmp_path, "train")
    assert list(zip((task.labels[label] for label in labels), texts)) == ROWS
    (tmp_path / f"train{kind}").rename(tmp_path / f"new{kind}")
    assert tasks.read_texts(task, tmp_path / f"new{kind}") == texts


def test_numbers_and_nothing_in_a_jsonl_file_stay_as_they_are_spelled(tmp_path):
    write(tmp_path, {"train.jsonl": '\ufeff{"y": 1.50, "x": 1e3}\n\n{"x": null, "y": true}\n{"y": -0, "x": "\\u00e9"}\n'})
    task = tasks.csv_task(tmp_path, "y", ["x"])
    assert [(task.labels[label], fields) for _, label, fields in tasks.read_documents(task, tmp_path, "train")] == [
        ("1.50", ["1e3"]), ("true", [""]), ("-0", ["é"])]


@pytest.mark.parametrize("files, words", [
    ({"train.jsonl": '{"label": 1, "text": "a"}\n{"label": 1}\n'}, "train.jsonl:2: the row has no 'text'"),
    ({"train.jsonl": '{"label": 1, "text": "a"}\n[1, "a"]\n'}, "train.jsonl:2: a row is an object"),
    ({"train.jsonl": '{"label": 1, "text": ["a"]}\n'}, """train.jsonl:1: column 'text' holds no text but \\["a"]"""),
    ({"train.jsonl": '{"label": 1, "text": "a"\n'}, "train.jsonl:1 is not whole JSON"),
    ({"train.jsonl": '{"class": 1, "text": "a"}\n'}, "no column is named 'label'; the header has class, text"),
    ({"train.parquet": "PAR1 but no more"}, "train.parquet is no whole parquet file"),
    ({"train.xlsx": "not a workbook"}, "train.xlsx is no whole xlsx file"),
    ({"train.csv": "label,text\na,b\n", "train.tsv": "label\ttext\na\tb\n"}, "has train.csv and train.tsv; move all but one"),
    ({"train.txt": "a"}, "has no train table, train.csv, .tsv, .jsonl, .json .each may be .gz, too., .parquet or .xlsx")])
def test_tables_that_are_damaged_or_there_twice_are_refused(tmp_path, files, words):
    write(tmp_path, files)
    with pytest.raises(UserError, match=words):
        tasks.csv_task(tmp_path, "label", ["text"])


def test_columns_with_names_cannot_be_numbered(tmp_path):
    write(tmp_path, {"train.jsonl": '{"label": 1, "text": "a"}\n'})
    with pytest.raises(UserError, match="train.jsonl names its columns: label, text, and the task csv numbers them"):
        tasks.csv_task(tmp_path, "0", ["1"])
