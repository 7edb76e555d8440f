"""Corpora. AG's News: the authors' format, the same from any number of processes, close to the authors' file. Any
tasks: titles, languages, joins, what is left out."""
import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys

import pytest

import generate_corpus
import generate_corpus_agnews
from benchmarks.compare_corpus import compare
from common.command_line import UserError
from common.files import whole_file
from conftest import ROOT
from pretraining import sentences
from pretraining.instances import read_corpus
from pretraining.sentences import map_in_order
from runs import processes_of, until
from tokenization import FullTokenizer

sys.path.append(str(ROOT / "scripts"))
from flags_table import parser_of  # noqa: E402

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


def call(monkeypatch, *arguments, script=generate_corpus_agnews):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        script.main()
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
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    corpus = read_corpus([str(tmp_path / "out" / "AGnews_corpus.txt")], FullTokenizer(str(vocab)))
    assert list(map(int.__sub__, corpus.document_offsets[1:].tolist(), corpus.document_offsets[:-1].tolist())) == [
        4, 2, 2, 3, 1]


def save_model(folder, **rules):
    """Saves a spaCy model that splits English by rules."""
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config=rules)
    nlp.to_disk(folder)


@pytest.fixture
def split_by(monkeypatch):
    """How documents are split: (processes, batch size) of each call, filled as a script runs."""
    seen, in_batches, executor = [], sentences.in_batches, sentences.ProcessPoolExecutor

    def batches(documents, batch_size):
        seen.append(["no pool", batch_size])
        return in_batches(documents, batch_size)

    def pool(num_processes, **options):
        seen[-1][0] = num_processes
        return executor(num_processes, **options)
    monkeypatch.setattr(sentences, "in_batches", batches)
    monkeypatch.setattr(sentences, "ProcessPoolExecutor", pool)
    return seen


def test_speed_flags_and_a_model_of_the_same_rules_do_not_change_the_corpus(ag, tmp_path, monkeypatch, split_by):
    save_model(tmp_path / "model")
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "plain")
    call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "other", "--batch_size", 2, "--num_processes", 3,
         "--spacy_model", tmp_path / "model")
    assert read(tmp_path / "plain") == read(tmp_path / "other")
    assert split_by == [["no pool", 1000], [3, 2]]


@pytest.mark.parametrize("script, flags", [(generate_corpus_agnews, ["--data_dir", "ag", "--output_dir", "out"]),
    (generate_corpus, ["--task_name", "ag", "--data_dir", "ag", "--output_file", "out/AGnews_corpus_train.txt"])])
def test_a_model_splits_by_its_own_rules(ag, tmp_path, monkeypatch, script, flags):
    monkeypatch.chdir(tmp_path)
    save_model("model", punct_chars=["i"])
    call(monkeypatch, *flags, "--num_processes", 1, "--spacy_model", "model", script=script)
    assert read(tmp_path / "out")["AGnews_corpus_train.txt"] == CORPUS_TRAIN.replace("line.\n  "
                                                                                     "Second", "line.   Second")


@pytest.mark.parametrize("script, flags", [(generate_corpus_agnews, ["--output_dir=~"]),
    (generate_corpus, ["--task_name", "ag", "--output_file=~/AGnews_corpus_train.txt"])])
def test_the_next_command_is_quoted_and_a_tilde_is_the_home_folder(ag, tmp_path, monkeypatch, script, flags):
    home = tmp_path / "My Drive"
    monkeypatch.setenv("HOME", str(home))
    printed = call(monkeypatch, "--data_dir", ag, "--num_processes", 1, *flags, script=script)
    assert (home / "AGnews_corpus_train.txt").read_text() == CORPUS_TRAIN
    words = shlex.split(printed.rpartition("next: ")[2])
    assert words[:2] == ["python", "create_pretraining_data.py"] and words[2].startswith(f"--input_file={home}/AGnews")


def test_two_commands_do_not_write_one_corpus_and_what_a_kill_leaves_is_gone(ag, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with whole_file(str(out / "AGnews_corpus_test.txt")):
        with pytest.raises(UserError, match="AGnews_corpus_test.txt is being written by another command"):
            call(monkeypatch, "--data_dir", ag, "--output_dir", out)
    (out / ".AGnews_corpus.txt.tmp").write_text("half")
    call(monkeypatch, "--data_dir", ag, "--output_dir", out)
    assert sorted(read(out)) == ["AGnews_corpus.txt", "AGnews_corpus_test.txt", "AGnews_corpus_train.txt"]


def test_agreement_with_the_authors_corpus(shared, tmp_path, monkeypatch):
    """The authors split with a trained parser, ours with rules: 76% of the documents and 93% of our boundaries
    agree."""
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
    monkeypatch.setattr(sentences, "load_splitter", lambda spacy_model: FakeSplitter())
    with pytest.raises(UserError) as error:
        call(monkeypatch, "--data_dir", ag, "--output_dir", tmp_path / "out", "--num_processes", num_processes)
    assert words in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


class FakeSplitter:
    """Stands for spaCy where reading fails before or after a split: no sentences."""
    memory_zone, max_length = contextlib.nullcontext, sentences.MAX_CHARACTERS

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


# generate_corpus.py

ROWS = {  # a row or two of each task as its authors publish it, and its documents in a corpus
    "imdb": ('0\t"Bad. Very bad.<br />Real\x85ly."\n1\tGood!\n', '"Bad.\nVery bad.\nReal\x85ly."\n\nGood!\n\n'),
    "yelp_p": ('"1","So ""so"". Never again."\n', 'So "so".\nNever again.\n\n'),
    "yelp_f": ('"5","Five stars. Truly."\n', 'Five stars.\nTruly.\n\n'),
    "trec": ('HUM\tWho wrote it ?\n', 'Who wrote it ?\n\n'),
    "yahoo": ('"7","why? why not?","","Because. \\n So."\n', 'why? why not?\nBecause.\n\\n So.\n\n'),
    "ag": ('"3","Stocks. Up","Oil fell. Traders cheered!"\n', 'Stocks. Up\nOil fell.\nTraders cheered!\n\n'),
    "dbpedia": ('1,"Acme"," Acme is a firm. It is old."\n', 'Acme\n Acme is a firm.\nIt is old.\n\n'),
    "sogou": ('sports\t冠军。了\t他说：“赢了。”真的吗？（真的！！！）好\n',
              '冠军。了\n他说：“赢了。”\n真的吗？\n（真的！！！）\n好\n\n'),
}


@pytest.fixture
def data_sets(tmp_path):
    """A folder with a folder of each task: its rows in train.csv, other ones in test.csv."""
    for name, (rows, _) in ROWS.items():
        folder = tmp_path / "data_sets" / name
        folder.mkdir(parents=True)
        (folder / "train.csv").write_text(rows, encoding="utf-8", newline="")
        (folder / "test.csv").write_text(rows.replace("a", "e"), encoding="utf-8", newline="")
    return tmp_path / "data_sets"


def corpus_of(monkeypatch, tmp_path, *arguments):
    """What generate_corpus.py writes with these flags, and what it prints."""
    path = tmp_path / "out" / "corpus.txt"
    printed = call(monkeypatch, *arguments, "--output_file", path, "--num_processes", 1, script=generate_corpus)
    return path.read_bytes().decode(), printed


@pytest.mark.parametrize("name", ROWS)
def test_each_task_s_documents(data_sets, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    corpus, printed = corpus_of(monkeypatch, tmp_path, "--task_name", name, "--data_dir", data_sets / name)
    assert corpus == ROWS[name][1]
    sentences_written = sum(map(bool, corpus.split(chr(10))))
    assert f"{name}: {corpus.count(chr(10) * 2)} documents, {sentences_written} sentences" in printed


def test_html_that_is_kept_hides_the_end_of_a_sentence(data_sets, tmp_path, monkeypatch, refused):
    kept = corpus_of(monkeypatch, tmp_path, "--task_name", "imdb", "--data_dir", data_sets, "--keep_html")[0]
    assert kept == '"Bad.\nVery bad.<br />Real\x85ly."\n\nGood!\n\n' != ROWS["imdb"][1]
    domain = corpus_of(monkeypatch, tmp_path, "--task_name", "sentiment", "--data_dir", data_sets, "--keep_html")[0]
    assert domain.count("<br />") == 1
    for name in ("ag", "csv"):
        refused("generate_corpus.py", "--task_name", name, "--data_dir", data_sets / "ag", "--keep_html", words="--keep_html")


@pytest.mark.parametrize("given, names", (
    (["sentiment"], ["imdb", "yelp_p", "yelp_f"]), (["question"], ["trec", "yahoo"]), (["topic"], ["ag", "dbpedia"]),
    (["all"], ["imdb", "yelp_p", "yelp_f", "trec", "yahoo", "ag", "dbpedia"]), (["dbpedia", "topic"], ["dbpedia", "ag"])))
def test_domains_stand_for_their_tasks(data_sets, tmp_path, monkeypatch, given, names):
    corpus, _ = corpus_of(monkeypatch, tmp_path, "--task_name", *given, "--data_dir", data_sets)
    assert corpus == "".join(ROWS[name][1] for name in names)


def test_a_folder_for_each_task_and_both_splits(data_sets, tmp_path, monkeypatch):
    corpus, _ = corpus_of(monkeypatch, tmp_path, "--task_name", "trec", "ag", "--data_dir", data_sets / "trec",
                          data_sets / "ag", "--splits", "train", "test")
    assert corpus == ("Who wrote it ?\n\nWho wrote it ?\n\n" + ROWS["ag"][1]
                      + ROWS["ag"][1].replace("a", "e"))


def test_test_texts_of_one_task_are_left_out_of_the_others_training_texts(data_sets, tmp_path, monkeypatch):
    for name, split, rows in (("yelp_p", "train", ("both", "mine", "p only")), ("yelp_p", "test", ("mine", "in f")),
                              ("yelp_f", "train", ("in f", "both", "f only")), ("yelp_f", "test", ("both",))):
        (data_sets / name / f"{split}.csv").write_text("".join(f'"1","{row}"\n' for row in rows))
    arguments = "--data_dir", data_sets, "--task_name"
    corpus, printed = corpus_of(monkeypatch, tmp_path, *arguments, "yelp_p", "yelp_f")
    assert corpus.split() == "mine p only both f only".split()  # a task's own test texts do not matter
    assert "yelp_p: 2 documents, 2 sentences; 1 training texts left out" in printed
    assert "yelp_f: 2 documents, 2 sentences; 1 training texts left out" in printed
    alone, printed = corpus_of(monkeypatch, tmp_path, *arguments, "yelp_p")
    assert alone.split() == "both mine p only".split() and "left out" not in printed
    without, printed = corpus_of(monkeypatch, tmp_path, *arguments, "yelp_p", "--leave_out_test_of", "yelp_f")
    assert without.split() == "mine p only".split()
    assert "yelp_p: 2 documents, 2 sentences; 1 training texts left out" in printed and "yelp_f:" not in printed


@pytest.mark.parametrize("columns", (["title", "body"], ["0", "2"]))
def test_a_file_of_ones_own_needs_no_label(tmp_path, monkeypatch, columns):
    header = "title;extra;body\n" if columns[0] == "title" else ""
    (tmp_path / "train.csv").write_text(header + "One. Two;x;Three? Four.\n")
    corpus, _ = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--text_columns", *columns, "--sep", ";",
                          "--data_dir", tmp_path)
    assert corpus == "One.\nTwo\nThree?\nFour.\n\n"


def test_unlabelled_texts_are_more_documents(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text\nOne. Two.\n")
    (tmp_path / "more.txt").write_bytes(b"\xef\xbb\xbfThree. Four.\r\n\nFive\n")
    corpus, printed = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--data_dir", tmp_path, "--unlabelled_file",
                                tmp_path / "more.txt")
    assert corpus == "One.\nTwo.\n\nThree.\nFour.\n\nFive\n\n"
    with pytest.raises(UserError, match="--unlabelled_file: there is no file"):
        corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--data_dir", tmp_path, "--unlabelled_file", tmp_path / "absent")


def test_a_corpus_is_not_written_over_the_unlabelled_texts(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text\nOne. Two.\n")
    (tmp_path / "more.txt").write_text("Three. Four.\n")
    (tmp_path / "link.txt").symlink_to("more.txt")
    for name in ("more.txt", "link.txt"):
        with pytest.raises(UserError, match=f"--output_file: .*{name} is also the input, --unlabelled_file"):
            call(monkeypatch, "--task_name", "csv", "--data_dir", tmp_path, "--unlabelled_file", tmp_path / "more.txt",
                 "--output_file", tmp_path / name, script=generate_corpus)
    assert (tmp_path / "more.txt").read_text() == "Three. Four.\n" and (tmp_path / "link.txt").is_symlink()


def test_a_file_of_ones_own_is_that_of_the_folder_and_each_split_stands_there_once(tmp_path, monkeypatch):
    (tmp_path / "csv").mkdir()
    for folder, text in ((tmp_path, "New."), (tmp_path / "csv", "Old.")):
        (folder / "train.csv").write_text(f"text\n{text}\n")
    corpus, printed = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--data_dir", tmp_path, "--splits", "train",
                                "train")
    assert corpus == "New.\n\n" and "csv: 1 documents, 1 sentences" in printed


@pytest.mark.parametrize("name, content, words", [
    ("train.csv.gz", b"text\nOne.\n", "train.csv.gz is no whole gzip file"),
    ("train.jsonl", b'{"text": "' + b"x" * (sentences.MAX_CHARACTERS + 1) + b'"}\n',
     "the text 'xxx.* has 16,777,217 characters, and spaCy splits 16,777,216 at most")])
def test_a_damaged_file_and_an_endless_text_are_one_line(tmp_path, monkeypatch, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--data_dir", tmp_path, "--encoding", "latin-1")


def test_a_file_of_ones_own_may_be_chinese(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text\n好。不好。\n", encoding="utf-8")
    corpus, printed = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--language", "zh", "--data_dir", tmp_path)
    assert corpus == "好。\n不好。\n\n"
    assert "--vocab_file=./chinese_L-12_H-768_A-12/vocab.txt" in shlex.split(printed.rpartition("next: ")[2])


@pytest.mark.parametrize("quoting, corpus", [([], '“A café.”\n\n"Two."\n\n'),
                                             (["--quoting", "all"], "“A café.”\n\nTwo.\n\n")])
def test_a_file_of_ones_own_may_be_in_any_encoding_and_between_quotes(tmp_path, monkeypatch, quoting, corpus):
    (tmp_path / "train.tsv").write_bytes('id\ttext\n1\t“A café.”\n2\t"Two."\n'.encode("cp1252"))
    written, printed = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--encoding", "cp1252", "--data_dir", tmp_path,
                                 *quoting)
    assert written == corpus and f"train texts: {tmp_path}/train.tsv (CP1252)\n" in printed


def test_processes_do_not_change_a_corpus(data_sets, tmp_path, monkeypatch, split_by):
    plain, _ = corpus_of(monkeypatch, tmp_path, "--task_name", "all", "--data_dir", data_sets)
    call(monkeypatch, "--task_name", "all", "--data_dir", data_sets, "--num_processes", 3, "--batch_size", 1,
         "--output_file", tmp_path / "other.txt", script=generate_corpus)
    assert (tmp_path / "other.txt").read_bytes().decode() == plain
    assert split_by == [["no pool", 1000], [3, 1]]


def test_a_batch_of_long_documents_has_fewer(monkeypatch):
    monkeypatch.setattr(sentences, "CHARACTERS_PER_BATCH", 10)
    documents = [("a", "", ["12345"]), ("a", "", ["123", "45"]), ("a", "t", ["1"]), ("b", "", ["1" * 30]), ("b", "", ["1"]),
                 ("b", "", ["2"]), ("b", "", ["3"])]
    batches = list(sentences.in_batches(iter(documents), 2))
    assert [(tag, len(batch)) for tag, batch in batches] == [("a", 2), ("a", 1), ("b", 1), ("b", 2), ("b", 1)]
    assert [(tag, *document) for tag, batch in batches for document in batch] == documents


def test_spacy_forgets_the_words_of_a_batch():
    strings, known = sentences.load_splitter(None).vocab.strings, len(sentences.load_splitter(None).vocab.strings)
    texts = [f"Word{number} of its own. And word{number + 100}." for number in range(100)]
    assert sentences.split_english(texts, None)[7] == ["Word7 of its own.", "And word107."]
    assert len(strings) <= known + 10 and "Word7" not in strings


@pytest.mark.parametrize("arguments, words", (
    (["--task_name", "ag", "sogou"], "sogou is Chinese"),
    (["--task_name", "sogou", "--spacy_model", "en"], "--spacy_model splits English"),
    (["--task_name", "csv", "--language", "zh", "--spacy_model", "en"], "--spacy_model splits English"),
    (["--task_name", "yelp_p", "--leave_out_test_of", "ag", "yelp_p"], "--leave_out_test_of yelp_p: it is in the corpus"),
    (["--task_name", "ag", "csv"], "csv stands alone"),
    (["--task_name", "ag", "--sep", ";"], "--sep belongs to --task_name csv"),
    (["--task_name", "ag", "--encoding", "latin-1"], "--encoding belongs to --task_name csv"),
    (["--task_name", "ag", "--quoting", "all"], "--quoting belongs to --task_name csv"),
    (["--task_name", "ag", "trec", "imdb", "--data_dir", "a", "b"], "2 folders for 3 tasks"),
    (["--task_name", "ag", "--data_dir", "absent"], "there is no folder absent"),
    (["--task_name", "csv", "--text_columns", "absent"], "no column is named 'absent'"),
    (["--task_name", "ag", "--data_dir", __file__], "test_generate_corpus.py is a file, a folder is needed"),
))
def test_wrong_tasks_are_refused_and_nothing_is_written(data_sets, tmp_path, monkeypatch, arguments, words):
    (data_sets / "train.csv").write_text("text\nOne.\n")
    with pytest.raises(UserError) as error:
        call(monkeypatch, "--data_dir", data_sets, *arguments, "--output_file", tmp_path / "out" / "corpus.txt",
             script=generate_corpus)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("script, flag", [(generate_corpus, "--output_file"), (generate_corpus_agnews, "--output_dir")])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, script, flag):
    (tmp_path / "corpus.txt").mkdir()
    (tmp_path / "file").write_text("mine")
    task = ["--task_name", "ag"] if script is generate_corpus else []
    with pytest.raises(UserError, match=f"{flag}: .*file is a file, a folder is needed"):
        call(monkeypatch, *task, "--data_dir", "absent", flag, tmp_path / "file" / "x", script=script)
    if script is generate_corpus:
        with pytest.raises(UserError, match="corpus.txt is a folder, a file name is needed"):
            call(monkeypatch, *task, "--data_dir", "absent", flag, tmp_path / "corpus.txt", script=script)


@pytest.fixture
def working(tmp_path):
    """A process that splits a large corpus in two processes of its own, begun."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text('"1","a","b c. d."\n' * 300_000)
    command = [sys.executable, generate_corpus_agnews.__file__, "--data_dir", tmp_path, "--output_dir", tmp_path / "out",
               "--num_processes", "2"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    corpus = tmp_path / "out" / ".AGnews_corpus.txt.tmp"
    until(lambda: corpus.exists() and corpus.stat().st_size or process.poll() is not None)
    return process


def test_ctrl_c_ends_all_processes_without_a_word(working, tmp_path):
    """A terminal sends it to every process of the command."""
    os.killpg(working.pid, signal.SIGINT)
    assert working.communicate(timeout=120) == (b"", b"") and working.returncode == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processes stay")
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGKILL))
def test_no_process_outlives_the_one_that_started_it(working, number):
    assert len(processes_of(working.pid)) == 3
    working.send_signal(number)
    working.communicate(timeout=120)
    until(lambda: not processes_of(working.pid), seconds=30)


def test_a_corpus_without_a_sentence_is_refused(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("0\t \n1\t\n")
    with pytest.raises(UserError, match="none of the texts"):
        call(monkeypatch, "--task_name", "imdb", "--data_dir", tmp_path, "--output_file", tmp_path / "corpus.txt",
             "--num_processes", 1, script=generate_corpus)
    assert not (tmp_path / "corpus.txt").exists()


def test_real_chinese_articles_keep_their_text_and_end_sentences_at_the_separators(shared, tmp_path, monkeypatch):
    corpus, printed = corpus_of(monkeypatch, tmp_path, "--task_name", "csv", "--text_columns", "1", "--sep", "tab",
                                "--language", "zh", "--splits", "test", "--data_dir", shared / "data" / "zh_news")
    documents = [document.split("\n") for document in corpus.removesuffix("\n\n").split("\n\n")]
    with open(shared / "data" / "zh_news" / "test.csv", encoding="utf-8", newline="") as file:
        texts = [line.rstrip("\r\n").split("\t")[1] for line in file.read().rstrip("\n").split("\n")]
    assert len(documents) == len(texts) == 490 and "csv: 490 documents" in printed
    for sentences_, text in zip(documents, texts):
        assert "".join("".join(sentences_).split()) == "".join(text.split())
        marks, closing = "。？！", " \xa0”’」』）》】〉〕"
        assert all(sentence.rstrip(closing)[-1] in marks and not set(marks) & set(sentence.rstrip(marks + closing))
                   and sentence[0] not in closing for sentence in sentences_[:-1])


OBSERVED = {  # (script, flag) -> the test that fails where it does nothing; tests/mutate_flags.py tries that
    ("generate_corpus_agnews", "data_dir"): "test_the_next_step_reads_the_same_documents",
    ("generate_corpus_agnews", "output_dir"): "test_the_next_step_reads_the_same_documents",
    ("generate_corpus_agnews", "spacy_model"): "test_a_model_splits_by_its_own_rules",
    ("generate_corpus_agnews", "batch_size"):
        "test_speed_flags_and_a_model_of_the_same_rules_do_not_change_the_corpus",
    ("generate_corpus_agnews", "num_processes"):
        "test_speed_flags_and_a_model_of_the_same_rules_do_not_change_the_corpus",
    ("generate_corpus", "task_name"): "test_each_task_s_documents",
    ("generate_corpus", "data_dir"): "test_each_task_s_documents",
    ("generate_corpus", "output_file"): "test_each_task_s_documents",
    ("generate_corpus", "splits"): "test_a_folder_for_each_task_and_both_splits",
    ("generate_corpus", "text_columns"): "test_a_file_of_ones_own_needs_no_label",
    ("generate_corpus", "unlabelled_file"): "test_unlabelled_texts_are_more_documents",
    ("generate_corpus", "sep"): "test_a_file_of_ones_own_needs_no_label",
    ("generate_corpus", "encoding"): "test_a_file_of_ones_own_may_be_in_any_encoding_and_between_quotes",
    ("generate_corpus", "quoting"): "test_a_file_of_ones_own_may_be_in_any_encoding_and_between_quotes",
    ("generate_corpus", "leave_out_test_of"):
        "test_test_texts_of_one_task_are_left_out_of_the_others_training_texts",
    ("generate_corpus", "keep_html"): "test_html_that_is_kept_hides_the_end_of_a_sentence",
    ("generate_corpus", "language"): "test_a_file_of_ones_own_may_be_chinese",
    ("generate_corpus", "spacy_model"): "test_a_model_splits_by_its_own_rules",
    ("generate_corpus", "batch_size"): "test_processes_do_not_change_a_corpus",
    ("generate_corpus", "num_processes"): "test_processes_do_not_change_a_corpus",
}


def test_every_flag_is_observed():
    flags = {(script, action.dest) for script in ("generate_corpus_agnews", "generate_corpus")
             for action in parser_of(script)._actions if action.dest != "help"}
    assert flags == OBSERVED.keys() and all(test in globals() for test in OBSERVED.values())
