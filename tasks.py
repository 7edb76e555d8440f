"""The eight data sets of the paper, and your own: files -> labelled documents, one at a time or all at once.

A data directory holds the files as their authors publish them (`python data/download.py --list` says where):

    task             file                    a row
    ag               train.csv, test.csv     "1".."4", "title", "description"
    dbpedia          train.csv, test.csv     "1".."14", "title", "content"
    yahoo            train.csv, test.csv     "1".."10", "question title", "question", "best answer"
    yelp_p, yelp_f   train.csv, test.csv     "1".."2" or "1".."5", "text"
    sogou            train.csv, test.csv     sports house business entertainment women technology, or 1..6 in that
                                             order; title; content; comma or tab, as the first row has it
    imdb             train.csv, test.csv     0 or 1, tab, text; or the folders of aclImdb (train/pos/*.txt, ...)
    trec             train.csv, test.csv     LOC NUM HUM ENTY ABBR DESC, tab, text; or train_5500.label, TREC_10.label
    csv              train.*, test.*, dev.*  your own, of any kind that common/tables.py reads: --label_column,
                                             --text_columns, --sep, --encoding, --quoting

A published file separated by commas is csv: fields may be quoted, a quote inside is doubled, a quoted field may hold line
ends. One separated by tabs has one row a line and no quoting: a quote is part of the text, because IMDb has hundreds of
reviews that begin with a quoted title (the authors read them with pandas, which takes those quotes away). A byte order
mark before the first row and lines with nothing in them are skipped. Otherwise fields stay exactly as they are:
backslashes, ` #39;`, U+0085, empty strings; but for imdb's `<br />`, see Task.strip_html.
"""
import collections
import dataclasses
import os

import numpy as np

from common.command_line import UserError
from common.files import decode_lines, require_file, require_folder
from common.tables import HEADED, KINDS, READERS, kind_of, quoted, read_columns, read_lines, shortened


MAX_CLASSES = 200  # that are printed
LABEL_NAMES = {"label", "labels", "class", "category", "target", "topic", "sentiment", "rating", "stars", "y"}  # of columns


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task: its classes and how its files hold them. It stores no paths and no data.

    name            the value of --task_name
    domain          "sentiment", "question" or "topic" (paper, Table 1); "own" for a file of your own
    labels          the classes as the file writes them; the index in this tuple is the model's class index
    text_columns    the columns of the text in the order in which they are joined: numbers from 0 in a file without a
                    header, names in one with a header
    label_column    the column of the label, a number or a name likewise
    sep             what separates columns; "\\t" also means no quoting; None: tab or comma, as the first row has it
    joiner          what stands between the columns in the joined text
    numbered        a label may also be given as its number from 1
    original        "aclImdb" or "label": another format that the task's authors publish, read where train.csv is absent
    titled          the first text column is a title: one sentence of a corpus
    language        "en" or "zh"
    strip_html      `<br />` becomes a space: so do all reviews of IMDb have the lengths of the paper's Table 1
    num_second      how many of the text columns, the last ones, are the second text of a pair (segment 1); 0: no pair
    encoding        of tables of your own, see common.tables.encoding_of
    quoting         of tables of your own, see common.tables.read_rows
    """
    name: str
    domain: str
    labels: tuple
    text_columns: tuple = (1,)
    label_column: int | str = 0
    sep: str | None = ","
    joiner: str = " "
    numbered: bool = False
    original: str | None = None
    titled: bool = False
    language: str = "en"
    strip_html: bool = False
    num_second: int = 0
    encoding: str | None = None
    quoting: str = "auto"

    def clean(self, fields):
        """The fields (list of str) of a row as they are used."""
        return [field.replace("<br />", " ") for field in fields] if self.strip_html else fields

    def text(self, fields):
        """The document for the classifier: its fields (list of str) joined, one string, or of a pair two."""
        if not self.num_second:
            return self.joiner.join(fields)
        return self.joiner.join(fields[:-self.num_second]), self.joiner.join(fields[-self.num_second:])

    def to_dict(self):
        """The task as JSON-ready values, to be stored with a model; `task_from_dict` reads it."""
        return dataclasses.asdict(self)


def task_from_dict(values):
    """The Task that `Task.to_dict` stored, also after a round trip through JSON, or by earlier code that knew fewer fields."""
    return Task(**{field.name: tuple(values[field.name]) if isinstance(values[field.name], list) else values[field.name]
                   for field in dataclasses.fields(Task) if field.name in values})


def numbers(last):
    """The labels "1" to str(last)."""
    return tuple(str(number) for number in range(1, last + 1))


TASKS = {task.name: task for task in (
    Task("imdb", "sentiment", ("0", "1"), sep="\t", original="aclImdb", strip_html=True),
    Task("yelp_p", "sentiment", numbers(2)),
    Task("yelp_f", "sentiment", numbers(5)),
    Task("trec", "question", ("LOC", "NUM", "HUM", "ENTY", "ABBR", "DESC"), sep="\t", original="label"),
    Task("yahoo", "question", numbers(10), text_columns=(1, 2, 3), titled=True),
    Task("ag", "topic", numbers(4), text_columns=(1, 2), joiner=" - ", titled=True),
    Task("dbpedia", "topic", numbers(14), text_columns=(1, 2), titled=True),
    Task("sogou", "topic", ("sports", "house", "business", "entertainment", "women", "technology"),
         text_columns=(1, 2), sep=None, numbered=True, titled=True, language="zh"),
)}


def named_tasks(names, keep_html=False, text_pair=False):
    """The tasks of these names as the flags want them.

    keep_html: IMDb's text as published. text_pair: Yahoo! Answers as the authors read it, title and question before the
    answer. Raises UserError where none of the tasks has such a form.
    """
    if keep_html and not any(TASKS[name].strip_html for name in names):
        raise UserError(f"--keep_html is for --task_name imdb; the texts of {' '.join(names)} are as published anyway")
    if text_pair and "yahoo" not in names:
        raise UserError(f"--text_pair is for --task_name yahoo, {' '.join(names)} has single texts; in files of your own "
                        "(--task_name csv) --text_pair_columns names the second text")
    return [dataclasses.replace(TASKS[name], strip_html=TASKS[name].strip_html and not keep_html,
                                num_second=int(text_pair and name == "yahoo")) for name in names]


def data_folders(names, folders):
    """The data directory of each task of `names`, from the values of --data_dir: one for each, in their order, or one
    that holds a folder by the name of each, if it does. That of your own (csv) is where its files are. Raises UserError where
    there are fewer or more.
    """
    if len(folders) == len(names) > 1 or len(folders) == 1 and names == ["csv"]:
        return folders
    if len(folders) > 1:
        raise UserError(f"--data_dir: {len(folders)} folders for {len(names)} tasks ({' '.join(names)}); give one for each "
                        "task, in their order, or one that holds a folder by the name of each")
    own = [os.path.join(folders[0], name) for name in names]
    return own if len(names) > 1 or os.path.isdir(own[0]) else folders


def own_task(label_column, text_columns, sep=",", language="en", pair_columns=(), encoding=None, quoting="auto"):
    """The Task of a file of your own, without its labels yet.

    label_column (str, or None where only the texts matter), text_columns and pair_columns (lists of str; the second text
    of a pair, if there is one) are names of a header's columns; or all are numbers from 0, and the files have no header.
    `sep` is one character; a tab may be written `\\t` or `tab`.
    """
    columns = [str(column) for column in (label_column, *text_columns, *pair_columns) if column is not None]
    if not text_columns:
        raise UserError("--text_columns: name at least one column")
    if len(set(columns)) < len(columns):
        raise UserError("--label_column, --text_columns and --text_pair_columns name the same column twice")
    if all(column.isdecimal() and column.isascii() for column in columns):
        columns = [int(column) for column in columns]
    sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
    if len(sep) != 1 or sep in '"\r\n':
        raise UserError(f"--sep: {sep!r} separates nothing; give one character, or tab")
    return Task("csv", "own", (), text_columns=tuple(columns[label_column is not None:]), label_column=columns[0], sep=sep,
                language=language, num_second=len(pair_columns), encoding=encoding, quoting=quoting)


def csv_task(data_dir, label_column, text_columns, sep=",", pair_columns=(), encoding=None, quoting="auto"):
    """The Task of tables of your own: data_dir/train.csv and test.csv, or of other kinds. Its labels are those of the training
    table, sorted.

    The flags are those of `own_task`. Labels sort as numbers where all are whole numbers. Reads the file once; raises
    UserError where it cannot be read, lacks a column, has fewer than two labels or a header where columns are numbered.
    """
    task = own_task(label_column, text_columns, sep, pair_columns=pair_columns, encoding=encoding, quoting=quoting)
    train, _ = find_source(task, data_dir, "train")
    labels = collections.Counter(label for _, label, _ in read_table(task, train))
    if isinstance(task.label_column, int):
        check_first_row(task, data_dir, train, labels)
    if len(labels) < 2:
        raise UserError(f"{train}: column {task.label_column} holds one label only, {quoted(min(labels))}; "
                        "a classifier needs two or more")
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return dataclasses.replace(task, labels=tuple(sorted(labels, key=lambda label: (int(label), label))))
    return dataclasses.replace(task, labels=tuple(sorted(labels)))


def check_first_row(task, data_dir, train, labels):
    """Raises UserError where the first row of a training table with numbered columns is a header: its label, no number, occurs
    once, and every other one again; or the others are numbers, or it is the usual name of a label, or the test table begins
    with the same row. labels: how often each occurs, in the order of the rows."""
    first, *others = labels
    if labels[first] > 1 or not others or is_number(first):
        return
    is_header = (min(map(labels.get, others)) > 1 or first.casefold() in LABEL_NAMES or all(map(is_number, others)))
    if not is_header and own_tables(data_dir, "test"):
        test, _ = find_source(task, data_dir, "test")
        is_header = next(read_table(task, test)) == next(read_table(task, train))
    if is_header:
        raise UserError(f"{train}:1: the first row's label, {quoted(first)}, is the only one that does not occur again; if "
                        "the row is a header, give --label_column and --text_columns names instead of numbers, else move the "
                        "row down")


def is_number(text):
    return text.removeprefix("-").replace(".", "", 1).isdecimal()


def read_documents(task, data_dir, split, left_out=None):
    """Yields (line number, label index, fields) for each document of `split` ("train", "test", your own "dev") in file order.

    Streams: one document is in memory at a time. `fields` is a list of str, the text columns as `Task.clean` gives them.
    The line is the one in which the row begins (in aclImdb the number of the review in the split). left_out: a Counter of the
    labels that the task does not have, if their rows shall be left out. Raises UserError with file and line where a file is
    missing, empty, not text, cut off, or where a row has another number of columns than the task or such a label.
    """
    index = {label: number for number, label in enumerate(task.labels)}
    if task.numbered:
        index |= {str(number): number - 1 for number in range(1, len(task.labels) + 1)}
    path, reader = find_source(task, data_dir, split)
    for line_number, label, fields in reader(task, path):
        if label in index:
            yield line_number, index[label], task.clean(fields)
        elif left_out is not None:
            left_out[label] += 1
        else:
            hint = ""
            if task.name == "csv":
                hint = ("; they are the labels that occur in the training file, and --unseen_labels ignore leaves rows with "
                        "others out")
            elif line_number == 1:
                hint = "; if the row is a header, remove it"
            raise UserError(f"{path}:{line_number}: label {quoted(label)} is none of the labels of the task "
                            f"{task.name}: {shortened(', '.join(task.labels), 200)}{hint}")


def read_fields(task, data_dir, split):
    """Yields the text fields (list of str) of each document of a split. A task without labels (`own_task`) needs none in
    its files."""
    if task.labels:
        yield from (fields for _, _, fields in read_documents(task, data_dir, split))
    else:
        path, _ = find_source(task, data_dir, split)
        yield from (fields for _, fields in read_columns(task, path, "--data_dir", task.text_columns))


def read_examples(task, data_dir, split, left_out=None):
    """All documents of a split: the N texts (list of what `Task.text` gives) and class indices (int64 array [N]). left_out: see
    `read_documents`."""
    texts, labels = [], []
    for _, label, fields in read_documents(task, data_dir, split, left_out):
        texts.append(task.text(fields))
        labels.append(label)
    if not texts:
        raise UserError(f"--unseen_labels ignore: of the rows in {find_source(task, data_dir, split)[0]} none is left; their "
                        f"labels are {shortened(', '.join(left_out), 200)}, those of the task "
                        f"{shortened(', '.join(task.labels), 200)}")
    return texts, np.array(labels, np.int64)


def read_texts(task, path, encoding=None):
    """The texts (list of what `Task.text` gives) of a file to predict, the value of --predict_file.

    Its name ends as a table's (common.tables.READERS): rows as `task` has them, with or without the label. Any other name:
    a text a line, an empty line is an empty text. Raises UserError as `read_documents` does.
    """
    if kind_of(path) in READERS:
        task = dataclasses.replace(task, encoding=encoding or task.encoding)
        if kind_of(path) in HEADED and isinstance(task.label_column, int) and not task.num_second:  # then it is named `text`
            return [task.clean([text])[0] for _, (text,) in read_columns(
                dataclasses.replace(task, label_column="label"), path, "--predict_file", ("text",))]
        return [task.text(task.clean(fields)) for _, fields in read_columns(task, path, "--predict_file", task.text_columns)]
    if task.num_second:
        raise UserError(f"--predict_file: the model classifies pairs of texts, and {path} holds one a line; give a table "
                        f"({KINDS}) with the columns that the model was trained on")
    require_file(path, "--predict_file")
    lines = [line for _, line in read_lines(path, encoding or task.encoding)]
    if not lines:  # no byte, but compressed, or a byte order mark
        raise UserError(f"--predict_file: {path} holds no text")
    return task.clean(lines)


def read_ids(task, path, column, encoding=None):
    """The column (a name, or a number as a str) of a table to predict, the value of --id_column: a list of str."""
    if task.name != "csv" or kind_of(path) not in READERS:
        raise UserError(f"--id_column {column}: {path} is no table for a model of --task_name csv, and has no such column; "
                        "leave the flag out")
    named = isinstance(task.label_column, str)
    if not named and not column.isdecimal():
        raise UserError(f"--id_column {column}: the model numbers the columns of its tables; give a number from 0")
    task = dataclasses.replace(task, encoding=encoding or task.encoding)
    return [field for _, (field,) in read_columns(task, path, "--predict_file", (column if named else int(column),))]


def describe_tables(task, data_dir, splits, left_out):
    """What to know before training on tables of your own, as lines: how many texts each class has in each split, and what is
    suspicious: a class of one text, one that is not tested, empty texts, texts of training in another table, too. left_out:
    see `read_documents`."""
    counts, remarks, known = {split: collections.Counter() for split in splits}, [], set()
    for split in splits:
        empty, shared = [], []
        for line_number, label, fields in read_documents(task, data_dir, split, left_out):
            counts[split][task.labels[label]] += 1
            text = " ".join(fields).strip()
            if not text:
                empty.append(line_number)
            elif split == "train":
                known.add(hash(text))  # not the text: a table may be larger than memory
            elif hash(text) in known:
                shared.append(line_number)
        path, _ = find_source(task, data_dir, split)
        for fault, lines in (("empty texts", empty), ("texts that are in the training table, too", shared)):
            if lines:
                remarks.append(f"{path}:{lines[0]}: {fault}: {len(lines):,} of {counts[split].total():,}, the first one here")
        few = [label for label in task.labels if counts[split][label] < (2 if split == "train" else 1)]
        if few:
            remarks.append(f"{path}: classes {'of one text' if split == 'train' else 'without a text'}: {len(few)} of "
                           f"{len(task.labels)} ({shortened(', '.join(few), 200)})")
    rows = [("class", *splits)] + [(shortened(label, 40), *(f"{counts[split][label]:,}" for split in splits))
                                   for label in task.labels[:MAX_CLASSES]]
    width = max(len(row[0]) for row in rows)
    more = [f"... {len(task.labels):,} classes"] if len(task.labels) > MAX_CLASSES else []
    return [f"{name:<{width}}" + "".join(f"{number:>12}" for number in row) for name, *row in rows] + more + [
        f"warning: {remark}" for remark in remarks]


# Finding and reading the files: each reader yields (line number, label as written, text fields)

def own_tables(data_dir, split):
    """The names of the tables of your own in data_dir that hold a split."""
    return [f"{split}{kind}" for kind in READERS if os.path.exists(os.path.join(data_dir, f"{split}{kind}"))]


def find_source(task, data_dir, split):
    """(path, reader) of a split: data_dir/SPLIT.csv (your own: of any kind of READERS), or else the task's original format.

    Raises UserError, with the names looked for, where there is none, and where your own is there twice.
    """
    require_folder(data_dir, "--data_dir")
    if task.name == "csv":
        names = own_tables(data_dir, split)
        if len(names) != 1:
            raise UserError(f"--data_dir: {data_dir} has " + (
                f"{' and '.join(names)}; move all but one of them away" if names else f"no {split} table, {split}{KINDS}"))
        return os.path.join(data_dir, names[0]), read_table
    sources = [(f"{split}.csv", read_table)]
    if task.original == "aclImdb":
        sources += [(os.path.join(split, "pos"), read_acl_imdb), (os.path.join("aclImdb", split, "pos"), read_acl_imdb)]
    elif task.original == "label":
        sources.append(({"train": "train_5500.label", "test": "TREC_10.label"}[split], read_label_file))
    for name, reader in sources:
        path = os.path.join(data_dir, name)
        if os.path.exists(path):
            return path, reader
    raise UserError(f"--data_dir: {data_dir} has no {', no '.join(name for name, _ in sources)} (task {task.name})")


def read_table(task, path):
    """Reads the table of a split of any task."""
    for line_number, (label, *fields) in read_columns(task, path, "--data_dir", (task.label_column, *task.text_columns)):
        label = label.strip()
        if task.name == "csv" and not label:
            raise UserError(f"{path}:{line_number}: the label is empty; name the class, or remove the row")
        if task.name == "csv" and task.quoting != "all" and not {"\t", "\n", "\r"}.isdisjoint(label):
            raise UserError(f"{path}:{line_number}: the label {quoted(label)} has a tab or a line end in it; is a quote not "
                            "closed, or --label_column the text's? If it is meant, add --quoting all")
        yield line_number, label, fields


def read_label_file(task, path):
    """Reads TREC as published: `COARSE:fine text` a line; UTF-8, or Latin-1 as the original is."""
    require_file(path, "--data_dir")
    with open(path, "rb") as file:
        content = file.read()
    try:
        content.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"
    for line_number, line in decode_lines(path, encoding):
        label, space, text = line.partition(" ")
        coarse, colon, _ = label.partition(":")
        if not (space and colon):
            raise UserError(f"{path}:{line_number}: {quoted(line)} is not `LABEL:fine text`")
        yield line_number, coarse, [text]


def read_acl_imdb(task, path):
    """Reads SPLIT/neg/*.txt (label 0), then SPLIT/pos/*.txt (label 1), by the review's number; `path` is SPLIT/pos."""
    position = 0
    for label, name in (("0", "neg"), ("1", "pos")):
        folder = require_folder(os.path.join(os.path.dirname(path), name), "--data_dir")
        reviews = [review for review in os.listdir(folder) if review.endswith(".txt")]
        if not reviews:
            raise UserError(f"--data_dir: the folder {folder} has no review (*.txt)")
        for review in sorted(reviews, key=lambda review: (len(review.partition("_")[0]), review)):
            position += 1
            lines = [line for _, line in decode_lines(os.path.join(folder, review))]
            yield position, label, ["\n".join(lines)]


# Subsets: development data (--dev_fraction) and a part of the training data (--num_datas, Exp-IV)

def stratified_order(labels, seed):
    """A random permutation of range(N) of which every prefix has the classes in about the proportion of `labels`.

    `labels`: int array [N]. Each class is shuffled and spread evenly; where classes tie, chance decides.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[members] = (generator.permutation(len(members)) + 0.5) / len(members)
    return np.lexsort((generator.random(len(labels)), position))


def subsample(labels, num, seed):
    """Indices, ascending, of `num` of the N examples: stratified by `labels` (int array [N]) and drawn by `seed`.

    `num` is a count (an int, or a whole number above 1) or a fraction (a float of at most 1.0), rounded to at least one
    example. With the same seed a smaller subset is part of every larger one. Raises UserError where there are not so many.
    """
    is_count = isinstance(num, int) or num > 1
    if not num > 0 or is_count and num % 1:  # not above 0: nor NaN
        raise UserError(f"{num} examples cannot be drawn (--num_datas, --num_test_datas, --eval_sample); give a whole number "
                        "of at least 1, or a fraction of at most 1.0")
    count = int(num) if is_count else max(1, round(num * len(labels)))
    if count > len(labels):
        raise UserError(f"{count} examples are asked for (--num_datas, --num_test_datas, --eval_sample), the data has "
                        f"{len(labels)}")
    return np.sort(stratified_order(labels, seed)[:count])


def split_train_dev(labels, fraction, seed):
    """(train indices, dev indices), both ascending: the part `fraction` of the examples held out, stratified.

    Raises UserError where `fraction` is not between 0 and 1 or leaves nothing to train on.
    """
    if not 0 < fraction < 1:
        raise UserError(f"a development fraction of {fraction} is not between 0 and 1")
    dev = subsample(labels, fraction, seed)
    train = np.setdiff1d(np.arange(len(labels)), dev)
    if not len(train):
        raise UserError(f"a development fraction of {fraction} leaves none of {len(labels)} examples to train on")
    return train, dev
