"""Table 1 of the paper from the data at hand: classes, documents, and lengths in WordPieces, with the paper's beside ours.

    python scripts/table1.py --data_dir downloads --vocab_file downloads/uncased_L-12_H-768_A-12/vocab.txt

Writes table1.csv and table1.md. Lengths are those of the documents of train and test together, without [CLS] and [SEP], as
the paper counts: with IMDb's `<br />` taken out this gives its 292, 3,045 and 12.69%. A set that differs much from the
paper's is another one, or is read in another way. Each Chinese character is a WordPiece, so any vocabulary counts Sogou.
"""
import os
import sys

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
import tasks  # noqa: E402
from common.command_line import ArgumentParser, UserError, add_boolean, path, run  # noqa: E402
from common.files import atomic_write, check_output_folder  # noqa: E402
from tables import markdown, read_figures, write_csv  # noqa: E402
from tokenization import CHARACTERS_PER_SLICE, FullTokenizer, slices  # noqa: E402

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper_table1.csv")
FORMATS = {"classes": ",.0f", "train": ",.0f", "test": ",.0f", "average_length": ",.1f", "maximum_length": ",.0f",
           "percent_over_512": ".2f"}


def lengths(task, data_dir, split, tokenizer):
    """The lengths in WordPieces of the documents of a split, int64 [N]. The documents stream through memory."""
    texts = (task.text(fields) for fields in tasks.read_fields(task, data_dir, split))
    parts = []
    with tqdm(desc=f"{task.name} {split}", unit=" documents", disable=None) as bar:
        for batch in slices(texts, CHARACTERS_PER_SLICE):
            parts.append(np.diff(tokenizer.encode_batch(batch)[1]))
            bar.update(len(batch))
    return np.concatenate(parts)


def figures_of(task, data_dir, tokenizer):
    """The line of a task: the columns of FORMATS."""
    train, test = (lengths(task, data_dir, split, tokenizer) for split in ("train", "test"))
    both = np.concatenate([train, test])
    return dict(zip(FORMATS, (len(task.labels), len(train), len(test), both.mean(), both.max(), 100 * (both > 512).mean())))


def beside(line, column):
    """A cell of the Markdown table: ours / the paper's."""
    ours, paper = line[column], line[f"paper_{column}"]
    return f"{ours:{FORMATS[column]}} / {paper:{FORMATS[column].replace('.1f', '.0f')}}"


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_dir", type=path, nargs="+", required=True,
                        help="Folder that holds a folder for each task, or the folder of each task, in their order.")
    parser.add_argument("--vocab_file", type=path, required=True, help="BERT's WordPiece vocabulary, uncased.")
    parser.add_argument("--task_name", nargs="+", choices=tuple(tasks.TASKS), default=list(tasks.TASKS), metavar="TASK",
                        help="Data sets of the table (default: those of the eight that are there).")
    add_boolean(parser, "--keep_html", False, "Keep IMDb's `<br />`, which becomes a space otherwise (default: off).")
    parser.add_argument("--output_dir", type=path, default="results", help="Folder for the table. Default: results.")
    args = parser.parse_args()
    check_output_folder(args.output_dir, "--output_dir")
    tokenizer, found = FullTokenizer(args.vocab_file, do_lower_case=True), []
    folders = tasks.data_folders(args.task_name, args.data_dir)
    for task, folder in zip(tasks.named_tasks(args.task_name, args.keep_html), folders):
        try:
            for split in ("train", "test"):
                tasks.find_source(task, folder, split)
        except UserError as error:
            print(f"left out: {error}")
            continue
        found.append({"task": task.name} | figures_of(task, folder, tokenizer))
    if not found:
        raise UserError(f"--data_dir: {' '.join(args.data_dir)} holds none of {' '.join(args.task_name)}")
    paper = read_figures(PAPER, FORMATS).convert_dtypes().set_index("task").add_prefix("paper_")
    table = pd.DataFrame(found).join(paper, on="task")
    target = os.path.join(args.output_dir, "table1")
    write_csv(table, f"{target}.csv")
    form = pd.DataFrame([{"task": line["task"]} | {column.replace("_", " "): beside(line, column) for column in FORMATS}
                         for _, line in table.iterrows()])
    with atomic_write(f"{target}.md") as file:
        file.write(f"Ours / the paper's; lengths in WordPieces.\n\n{markdown(form)}")
    print(f"wrote {target}.csv and .md\n{markdown(form)}", end="")


if __name__ == "__main__":
    run(main)
