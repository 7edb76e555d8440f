"""Tables of any kind -> rows of text, in which nothing is re-interpreted: "NA", "007" and " x " stay what they are.

READERS has the kinds by the end of a file's name. Each reader is called as reader(path, sep) and yields (line number, list of
str) for each row; a file that names its columns (HEADED) has these names as its first row. Parquet and xlsx are read by
pandas. The others are not: pandas would keep neither the number of a row's line nor refuse a quote that is not closed.
"""
import csv
import json
import os

from common.command_line import UserError
from common.files import decode_lines, parse_json

MAX_FIELD = 1 << 24  # characters; the longest document of the paper has about 200,000: beyond, a quote was not closed


def kind_of(path):
    """The end of a file's name, `.csv`, in small letters."""
    return os.path.splitext(path)[1].lower()


def read_rows(path, sep=None):
    """Yields (number of the line in which the row begins, list of fields) for each row of a table. sep: what separates
    columns in a text file, None: tab or comma, as the first line has it. Raises UserError where the file is damaged."""
    return READERS.get(kind_of(path), read_separated)(path, sep)


def read_separated(path, sep):
    """csv, or without any quoting where a tab separates; lines with nothing in them are skipped."""
    sep = sep or sniffed_separator(path)
    lines = without_mark(decode_lines(path, keep_ends=sep != "\t"))
    if sep == "\t":
        yield from ((number, line.split("\t")) for number, line in lines if line)
        return
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader((line for _, line in lines), delimiter=sep, strict=True)
    while True:
        line_number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{line_number}: {error}; in the row that begins in this line a quote is not closed "
                            "or not doubled, or the file is cut off") from None
        if row:
            yield line_number, row


def sniffed_separator(path):
    """Tab where the first line has one, else comma."""
    _, line = next(decode_lines(path))
    return "\t" if "\t" in line else ","


def without_mark(lines):
    """The numbered lines of a file without the byte order mark that may precede the first."""
    return ((number, line.removeprefix("\ufeff") if number == 1 else line) for number, line in lines)


def read_jsonl(path, sep):
    """An object a line, each with the keys of the first; numbers as they are spelled, null as an empty text."""
    header = None
    for number, line in without_mark(decode_lines(path)):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse_json(line, where, parse_int=str, parse_float=str, parse_constant=str)
        if not isinstance(row, dict) or any(isinstance(value, (dict, list)) for value in row.values()):
            raise UserError(f'{where}: a row is an object of texts and numbers on one line, {{"label": "a", "text": "b"}}')
        if header is None:
            header = list(row)
            yield number, header
        if row.keys() != set(header):
            raise UserError(f"{where}: the keys are {', '.join(row)}, those of the first row are {', '.join(header)}")
        yield number, [field if isinstance(field, str) else "" if field is None else json.dumps(field)
                       for field in map(row.get, header)]


def read_parquet(path, sep):
    import pandas
    return rows_of(path, lambda: pandas.read_parquet(path, dtype_backend="pyarrow"))


def read_xlsx(path, sep):
    """The first sheet; a number that a cell holds has lost how it was typed, so labels such as 007 belong in text cells."""
    import pandas
    return rows_of(path, lambda: pandas.read_excel(path, dtype=object, na_filter=False))


def rows_of(path, read):
    """The rows of a pandas frame, its columns' names first."""
    try:
        frame = read()
    except Exception as error:  # of a damaged file, pyarrow and openpyxl raise more than they document
        raise UserError(f"{path} is no whole {kind_of(path)[1:]} file ({type(error).__name__}); write it again") from None
    yield 1, [str(name) for name in frame.columns]
    missing = frame.isna().to_numpy()
    for number, (row, is_missing) in enumerate(zip(frame.itertuples(index=False, name=None), missing), 2):
        yield number, ["" if absent else str(field) for field, absent in zip(row, is_missing)]


READERS = {".csv": read_separated, ".tsv": lambda path, sep: read_separated(path, "\t"), ".jsonl": read_jsonl,
           ".parquet": read_parquet, ".xlsx": read_xlsx}
HEADED = (".jsonl", ".parquet", ".xlsx")
