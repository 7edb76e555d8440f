"""Tables of figures: the paper's are read from csv, ours written as csv and Markdown."""
import csv

import pandas as pd

from common.command_line import UserError
from common.files import atomic_write, decode_lines


def read_figures(path, numbers):
    """A csv of the paper's figures as a frame in the file's order, the columns `numbers` as floats.

    Raises UserError with the line where it is damaged.
    """
    lines, rows = csv.DictReader((line for _, line in decode_lines(path)), strict=True), []
    try:
        for line in lines:
            if None in line:
                raise ValueError("too many columns")
            rows.append(line | {name: float(line[name]) for name in numbers})
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}:{lines.line_num}: the table of the paper's figures is damaged ({error})") from None
    return pd.DataFrame(rows)


def figure(mean, std=None, digits=2):
    """`5.42 (0.07)`, or `missing`; without a deviation `5.42`. None and NaN stand for what there is not."""
    if pd.isna(mean):
        return "missing"
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ({std:.{digits}f})")


def write_csv(table, path):
    """Writes a frame as csv, its floats with four decimals, NaN as nothing."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False, float_format="%.4f", lineterminator="\n")


def markdown(table):
    """A frame of texts and whole numbers as a Markdown table."""
    header, *rows = (f"| {' | '.join(map(str, cells))} |\n" for cells in (table.columns, *table.itertuples(index=False)))
    return header + "|" + "---|" * len(table.columns) + "\n" + "".join(rows)
