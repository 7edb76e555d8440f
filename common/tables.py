"""Tables of any kind -> rows of text, in which nothing is re-interpreted: "NA", "007" and " x " stay what they are.

READERS has the kinds by the end of a file's name. Each reader is called as reader(path, sep, encoding, quoting) and yields
(line number, list of str) for each row; a file that names its columns (HEADED) has these names as its first row. Parquet and
xlsx are read by pandas. The others are not: pandas would keep neither the number of a row's line nor refuse a quote that is
not closed.
"""
import argparse
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib

from common.command_line import UserError
from common.files import decode_lines, parse_json, require_file

MAX_FIELD = 1 << 24  # characters; the longest document of the paper has about 200,000: beyond, a quote was not closed
SAMPLE = 1 << 20  # bytes at the start of a file that show how its lines end
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",  # before UTF-16's, which
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}                            # begin in the same way
QUOTINGS = ("auto", "all", "none")
AS_SPELLED = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)  # numbers of JSON


def kind_of(path):
    """The end of a file's name in small letters: `.csv`, or `.csv.gz`."""
    root, end = os.path.splitext(str(path).lower())
    return os.path.splitext(root)[1] + end if end == ".gz" else end


def read_rows(path, sep=None, encoding=None, quoting=None):
    """Yields (number of the line in which the row begins, list of fields) for each row of a table.

    For text files: sep, what separates columns, None: tab or comma, as the first line has it (in .tsv, a comma means a tab);
    encoding, see `read_lines`; quoting, of QUOTINGS, or None, as published data sets are: UTF-8, and where a tab separates
    without any quoting. Raises UserError where the file is damaged.
    """
    kind = kind_of(path)
    if kind.startswith(".tsv") and sep in (None, ","):
        sep = "\t"
    return READERS.get(kind, read_separated)(path, sep, encoding, quoting)


# Lines

def encoding_of(path, encoding=None):
    """The encoding of a text file: what its byte order mark says; UTF-8 if it is that, as nothing else looks like it; else
    `encoding`. So one encoding may be named for many files, some of which are in UTF-8."""
    with opener_of(path)(path, "rb") as file:
        start = file.read(4)
        marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if marked or encoding in (None, "utf-8"):
            return marked or "utf-8"
        decoder, is_ascii, chunk = codecs.getincrementaldecoder("utf-8")(), True, start
        try:
            while chunk:
                if b"\0" in chunk:  # of UTF-16 or UTF-32, in which English text is whole UTF-8, too
                    return encoding
                is_ascii = is_ascii and chunk.isascii()
                decoder.decode(chunk)
                chunk = file.read(SAMPLE)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return encoding
    return encoding if is_ascii and not is_wide(encoding) else "utf-8"


def is_wide(encoding):
    """Whether a character takes at least two bytes, so that no line ends in the byte \\n."""
    return encoding.replace("_", "-").startswith(("utf-16", "utf-32"))


def described(path, encoding=None):
    """A file as the log names it: by its path, and its encoding if that is another than UTF-8."""
    found = "utf-8" if kind_of(path) in (".parquet", ".xlsx") else encoding_of(path, encoding)
    return str(path) if found == "utf-8" else f"{path} ({found.upper()})"


def opener_of(path):
    return gzip.open if str(path).lower().endswith(".gz") else open


def read_lines(path, encoding=None, keep_ends=False):
    """Yields (line number from 1, line) of a text file of anybody's: of `encoding_of`, compressed if it ends in .gz, its lines
    ended by \\n, \\r\\n or, where it has no other line end outside quotes, \\r. Raises UserError with the line where it is no
    such text."""
    try:
        with opener_of(path)(path, "rb") as file:
            sample = file.read(SAMPLE)
            found = encoding_of(path, encoding)
            outside = re.sub(rb'"[^"]*"', b"", sample.replace(b"\0", b""))  # zero bytes: half of UTF-16
            by_return = b"\r" in outside and b"\n" not in outside
            content = sample + file.read() if is_wide(found) or by_return else None
        if content is None:
            yield from without_mark(decode_lines(path, found, keep_ends, opener_of(path)))
            return
        text = content.decode(found)
        for number, line in without_mark(enumerate(io.StringIO(text, newline="" if by_return else "\n"), 1)):
            yield number, line if keep_ends else line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        line = error.object[:error.start].decode(found, "ignore").count("\r" if by_return else "\n") + 1
        raise UserError(f"{path}:{line}: this is not {found.upper()}; the file is damaged, or in another --encoding") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is no whole gzip file ({error}); copy or compress it again") from None
    except UserError as error:  # of decode_lines
        raise UserError(f"{error}, or name its encoding: --encoding latin-1, cp1252, utf-16-le, ...") from None


def without_mark(lines):
    """The numbered lines of a file without the byte order mark that may precede the first."""
    return ((number, line.removeprefix("\ufeff") if number == 1 else line) for number, line in lines)


def is_encoding(name):
    """Whether Python knows an encoding of text by that name."""
    try:
        return "".encode(name) is not None  # refuses encodings of bytes, such as base64
    except LookupError:
        return False


def encoding_name(text):
    """argparse type of the name of an encoding."""
    if not is_encoding(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no encoding that Python knows, as latin-1, cp1252, utf-16, ... are")
    return codecs.lookup(text).name


# Text tables

def read_separated(path, sep, encoding, quoting):
    """Rows of csv, or without quoting, one a line; lines with nothing in them are skipped."""
    if quoting is None:
        sep = sep or sniffed_separator(path, encoding)
        # the last two: a table to predict
        keep_ends, is_of_anybody = sep != "\t", encoding or opener_of(path) is not open or encoding_of(path) != "utf-8"
        lines = (read_lines(path, encoding, keep_ends) if is_of_anybody else
                 without_mark(decode_lines(path, keep_ends=keep_ends)))
        return split_rows(path, lines, sep, None if sep == "\t" else (False, False))
    style = style_of(path, sep, encoding, quoting)
    return split_rows(path, read_lines(path, encoding, style is not None), sep, style)


def split_rows(path, lines, sep, style):
    """The rows of numbered lines. style: None, a line is a row and quotes are text; else (escaped, spaced): csv in which a
    quote is written \\" instead of "", in which spaces may precede the quote that begins a field, and none begins a field."""
    if style is None:
        yield from ((number, line.split(sep)) for number, line in lines if line)
        return
    escaped, spaced = style
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader((line.replace('\\"', '""') if escaped else line for _, line in lines), delimiter=sep, strict=True,
                        skipinitialspace=spaced)
    while True:
        line_number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"{error}; in the row that begins in this line a quote is not closed or not doubled, or the file is cut off"
            if "new-line" in str(error):
                fault = "a carriage return stands outside quotes; quote its field, or take it out"
            raise UserError(f"{path}:{line_number}: {fault}") from None
        if row:
            yield line_number, row


def sniffed_separator(path, encoding):
    """Tab where the first line has one, else comma."""
    _, line = next(read_lines(path, encoding), (1, ""))
    return "\t" if "\t" in line else ","


def style_of(path, sep, encoding, quoting):
    """The style (see `split_rows`) in which a table of anybody's is written: the first in which every row is whole and as
    wide as the others; where none is so, the one that gets furthest. With quoting "auto", a tab-separated table has none
    unless its quotes show it."""
    has_quotes = is_escaped = is_spaced = False
    before_a_quote = re.compile(f'{re.escape(sep)} +"')
    for _, line in read_lines(path, encoding) if quoting != "none" else ():
        if '"' in line:
            has_quotes = True
            is_escaped = is_escaped or '\\"' in line
            is_spaced = is_spaced or bool(before_a_quote.search(line))
    if not has_quotes:
        return None
    # plain a,"x ""y""" first; a,"x \\"y\\"" and a, "x" only where such signs stand somewhere
    styles = list(itertools.product((False, True)[:1 + is_escaped], (False, True)[:1 + is_spaced]))
    is_optional = sep == "\t" and quoting == "auto"
    if len(styles) == 1 and not is_optional:
        return styles[0]

    def rows(style):
        return split_rows(path, read_lines(path, encoding, style is not None), sep, style)
    faults = {}  # of those that are not regular
    for doubt, style in itertools.product((True, False), styles):
        faults[style] = first_fault(rows(style), doubt and is_spaced)
        if faults[style] is None:
            return style if not is_optional or quotes_are_format(rows(None), rows(style)) else None
    return None if is_optional else max(styles, key=faults.get)


def first_fault(rows, spaced):
    """The index of the first row that is damaged, or not as wide as the others (one more than the header is right, too: R's
    row names); None if there is none. spaced: whether a field that begins with a quote after spaces is taken for damage."""
    widths = []
    try:
        for _, row in rows:
            widths.append(len(row))
            if widths[-1] != widths[:2][-1] or widths[-1] - widths[0] not in (0, 1) or (
                    spaced and any(field[:1] == " " and field.lstrip(" ")[:1] == '"' for field in row)):
                return len(widths) - 1
    except UserError:
        return len(widths)
    return None


def quotes_are_format(plain, quoted):
    """Whether the quotes of a tab-separated table are its format's, rather than text's, as a review's quoted title is. plain,
    quoted: its rows read in both ways, the second known to be regular. They are the format's if the first row has nothing else,
    if there are quotes inside quotes, if only so all rows are equally wide, or if a column has nothing else below its name."""
    _, first = next(plain)
    if len(first) > 1 and all(field[:1] == field[-1:] == '"' for field in first):
        return True
    widths, num_rows, columns = set(), 1, None  # columns: whether a column has nothing but fields that begin with a quote
    for num_rows, (_, row) in enumerate(plain, 2):
        inside = [field[1:-1] for field in row if field[:1] == field[-1:] == '"']
        if any('""' in field or '\\"' in field for field in inside):
            return True
        widths.add(len(row) - len(first))
        columns = [begins and field[:1] == '"' for begins, field in zip(columns or [True] * len(row), row)]
    if not widths <= {0} and widths != {1}:
        return True
    if sum(1 for _ in quoted) != num_rows:  # a quote of one text and a quote of another, unless a row is but one field
        return len(first) == 1
    if num_rows < 3:  # below a header is one row at most: the header counts, too
        columns = [begins and field[:1] == '"' for begins, field in zip(columns or [True] * len(first), first)]
    return any(columns)


# JSON

def read_jsonl(path, sep, encoding, quoting):
    """An object a line."""
    return rows_of_objects(path, ((number, parse_json(line, f"{path}:{number}", **AS_SPELLED))
                                  for number, line in read_lines(path, encoding) if line.strip()))


def read_json(path, sep, encoding, quoting):
    """A list of objects; or objects one after another; or an object of columns, as pandas writes; or one with a list `data`."""
    text = "".join(line for _, line in read_lines(path, encoding, keep_ends=True))
    between, decoder, position, number, values = re.compile(r"\s*"), json.JSONDecoder(), 0, 1, []
    if text.lstrip()[:1] == "[":
        parse_json(text, path)  # it is whole, so what stands between its objects needs no other look
        between = re.compile(r"[\s,\[\]]*")
    while (start := between.match(text, position).end()) < len(text):
        number += text.count("\n", position, start)
        try:
            position = decoder.raw_decode(text, start)[1]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not whole JSON: {error}") from None
        values.append((number, parse_json(text[start:position], f"{path}:{number}", **AS_SPELLED)))
        number += text.count("\n", start, position)
    value = values[0][1] if len(values) == 1 else None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        values = list(enumerate(value["data"], 2))
    elif isinstance(value, dict) and value and all(isinstance(column, (dict, list)) for column in value.values()):
        columns = {name: column if isinstance(column, dict) else dict(enumerate(column)) for name, column in value.items()}
        first = next(iter(columns.values()))
        if any(column.keys() != first.keys() for column in columns.values()):
            raise UserError(f"{path}: its columns are not equally long, or not of the same rows; write it again")
        values = [(number, {name: column[row] for name, column in columns.items()}) for number, row in enumerate(first, 2)]
    return rows_of_objects(path, values)


def rows_of_objects(path, values):
    """Rows of (number, object), their columns the keys of the first; numbers as they are spelled, null as an empty text. An
    object, a list, or None for a key that is not there stays: it is an error only where that column is asked for."""
    header = None
    for number, row in values:
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise UserError(f'{where}: a row is an object of texts and numbers, {{"label": "a", "text": "b"}}')
        if header is None:
            header = list(row)
            yield number, header
        yield number, [None if name not in row else "" if row[name] is None else row[name]
                       if isinstance(row[name], (str, dict, list)) else json.dumps(row[name]) for name in header]


# By pandas

def read_parquet(path, sep, encoding, quoting):
    import pandas
    return rows_of(path, lambda: pandas.read_parquet(path, dtype_backend="pyarrow"))


def read_xlsx(path, sep, encoding, quoting):
    """The first sheet; a number that a cell holds has lost how it was typed, so labels such as 007 belong in text cells."""
    import pandas
    return rows_of(path, lambda: pandas.read_excel(path, dtype=object, na_filter=False))


def rows_of(path, read):
    """The rows of a pandas frame, its columns' names first; those with nothing in them are skipped."""
    try:
        frame = read()
    except Exception as error:  # of a damaged file, pyarrow and openpyxl raise more than they document
        raise UserError(f"{path} is no whole {kind_of(path)[1:]} file ({type(error).__name__}); write it again") from None
    yield 1, [str(name) for name in frame.columns]
    missing = frame.isna().to_numpy()
    for number, (row, is_missing) in enumerate(zip(frame.itertuples(index=False, name=None), missing), 2):
        fields = ["" if absent else text_of(field) for field, absent in zip(row, is_missing)]
        if not all(isinstance(field, str) and not field for field in fields):
            yield number, fields


def text_of(value):
    """The text of a number, a date or bytes in UTF-8; what is none of these, such as a list, as it is."""
    if isinstance(value, bytes):  # as Impala and older Spark write text
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value if hasattr(value, "__len__") else str(value)


TEXTS = {".csv": read_separated, ".tsv": read_separated, ".jsonl": read_jsonl, ".json": read_json}
READERS = TEXTS | {f"{kind}.gz": reader for kind, reader in TEXTS.items()} | {".parquet": read_parquet, ".xlsx": read_xlsx}
HEADED = READERS.keys() - {".csv", ".tsv", ".csv.gz", ".tsv.gz"}
KINDS = ".csv, .tsv, .jsonl, .json (each may be .gz, too), .parquet or .xlsx"  # READERS in messages


def tab_separated(fields, quote_all=False):
    """A row of a tab-separated table that every csv reader reads as it was: what needs quotes has them, or all fields do."""
    return "\t".join('"' + field.replace('"', '""') + '"' if quote_all or re.search('["\t\r\n]', field) else field
                     for field in fields) + "\n"


# Columns

def read_columns(task, path, flag, columns):
    """Yields (line number, the fields in `columns`) for each row of a table of a tasks.Task, the value of `flag`.

    Every row must have as many columns as the task, or as the first row of a file of your own. Where no label is asked
    for and there is no header, rows may also be without it.
    """
    require_file(path, flag)
    is_own = task.name == "csv"
    rows = read_rows(path, task.sep, task.encoding, task.quoting if is_own else None)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{flag}: {path} holds no row")
    line_number, header = first
    width, is_named = len(header), isinstance(task.label_column, str)
    if is_named:
        header = [name.strip() for name in header]
        check_header(path, line_number, header, columns)
        columns = tuple(map(header.index, columns))
        rows = without_row_names(path, rows, width)
    elif kind_of(path) in HEADED:
        raise UserError(f"{path} names its columns: {shortened(', '.join(header), 200)}, and the task {task.name} numbers "
                        "them; give names for --label_column and --text_columns, or a .csv file")
    else:
        if is_own and width > 1 and header == [str(number) for number in range(width)]:
            raise UserError(f"{path}:{line_number}: {','.join(header)} are no data but the names that pandas gives to columns; "
                            "write the file with header=False")
        rows = itertools.chain([first], rows)
        if columns == task.text_columns and width == len(columns):  # no label is asked for, and the rows have none
            columns = tuple(map(sorted(columns).index, columns))
        elif not is_own:
            width = 1 + len(task.text_columns)
        if max(columns) >= width:
            raise UserError(f"{path}:{line_number}: there is no column {max(columns)}, the row has the columns 0 to "
                            f"{width - 1}; see --label_column, --text_columns and --sep")
    line_number = None
    for line_number, row in rows:
        if len(row) != width:
            raise UserError(f"{path}:{line_number}: {len(row)} columns, the task {task.name} has {width}; "
                            "the row is cut off, or separated by something else")
        if is_named and width > 1 and row == header:
            raise UserError(f"{path}:{line_number}: the header stands here again; remove it")
        fields = [row[column] for column in columns]
        for field, column in zip(fields, columns):
            if not isinstance(field, str):
                raise UserError(f"{path}:{line_number}: " + (
                    f"the row has no {quoted(header[column])}" if field is None else
                    f"column {quoted(header[column])} holds no text but {shortened(json.dumps(field, default=str), 40)}"))
        yield line_number, fields
    if line_number is None:
        raise UserError(f"{flag}: {path} holds a header and no row")


def without_row_names(path, rows, width):
    """The rows below a header of `width` names. R writes rows with their names, of which the header knows nothing: a first
    column of numbers, each another, which is taken away."""
    seen, is_shifted, is_filled = set(), None, False
    for number, row in rows:
        if is_shifted is None:
            is_shifted = len(row) == width + 1 and row[0].isdecimal()
        if is_shifted:
            if len(row) != width + 1 or not row[0].isdecimal() or row[0] in seen:
                raise UserError(f"{path}:{number}: {len(row)} columns, the header has {width}, and the rows above one more, as "
                                "if they were numbered; put quotes around the texts that have separators in them")
            seen.add(row[0])
            is_filled = is_filled or row[-1] != ""
            row = row[1:]
        yield number, row
    if is_shifted and not is_filled:
        raise UserError(f"{path}: each row ends with a separator that the header has not; remove it, or name the column")


def check_header(path, line_number, header, columns):
    """Raises UserError unless each of `columns` (names) occurs once in `header` (list of str)."""
    for column in columns:
        if header.count(column) != 1:
            fault = "two columns are named" if column in header else "no column is named"
            seps = {";": "';'", "|": "'|'", "\t": "tab", ",": "','"}
            sep = next((seps[sep] for sep in seps if len(header) == 1 and column in header[0].split(sep)), None)
            mend = f"add --sep {sep}" if sep else "without a header, columns are numbers from 0"
            raise UserError(f"{path}:{line_number}: {fault} {quoted(column)}; the header has "
                            f"{shortened(', '.join(header), 200)} ({mend})")


def shortened(text, length):
    """`text` for an error message: on one line and at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


def quoted(text):
    """A label or the start of a row as an error message shows it."""
    return f"'{shortened(text, 40)}'"
