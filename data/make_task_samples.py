"""Writes the sample in the format of each of the paper's eight data sets, to try the scripts on all of them.

    python data/make_task_samples.py --output_dir tmp/data

Each task's folder gets train.csv and test.csv: the first rows of data/sample, with the task's columns and labels. A
task with two labels gives each label two of the sample's four topics; one with more than four labels splits some topics
among several labels. Files of these names that are there are written anew.
"""
import csv
import itertools
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from common.command_line import ArgumentParser, UserError, number, path, run  # noqa: E402
from common.files import atomic_write, check_output_folder  # noqa: E402
from tasks import TASKS, read_documents  # noqa: E402


def rows_of(task, documents):
    """Yields the rows of a task's file: lists of label and texts."""
    labels_of = [itertools.cycle(task.labels[topic % len(task.labels)::4]) for topic in range(4)]
    for _, topic, (title, text) in documents:
        label = next(labels_of[topic])
        texts = {1: [f"{title}. {text}"], 2: [title, text], 3: [title, "", text]}[len(task.text_columns)]
        yield [label, *texts]


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_train", type=number(int, minimum=1), default=64,
                        help="Training rows for each task, at most as many as the sample has. Default: 64.")
    parser.add_argument("--num_test", type=number(int, minimum=1), default=32,
                        help="Test rows for each task, at most as many as the sample has. Default: 32.")
    parser.add_argument("--output_dir", type=path, required=True, help="Folder that gets a folder for each task.")
    args = parser.parse_args()
    check_output_folder(args.output_dir, "--output_dir")
    for split, count in (("train", args.num_train), ("test", args.num_test)):
        documents = list(read_documents(TASKS["ag"], os.path.join(FOLDER, "sample"), split))
        if count > len(documents):
            raise UserError(f"--num_{split} {count}: the sample has {len(documents)} rows")
        for task in TASKS.values():
            with atomic_write(os.path.join(args.output_dir, task.name, f"{split}.csv")) as file:
                if task.sep == ",":
                    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows_of(task, documents[:count]))
                else:
                    file.writelines("\t".join(row) + "\n" for row in rows_of(task, documents[:count]))
    print(f"wrote {args.output_dir}: {', '.join(TASKS)}, {args.num_train} + {args.num_test} rows each")


if __name__ == "__main__":
    run(main)
