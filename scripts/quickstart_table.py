"""Prints what a quickstart run measured: python scripts/quickstart_table.py FOLDER"""
import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import decode_lines, read_json, require_file, require_folder  # noqa: E402

NEW_TEXTS = os.path.join(ROOT, "data", "new_texts.txt")  # whose labels quickstart.sh predicts
RESULTS = dict.fromkeys(("best", "last"), {"eval_accuracy": float})


def accuracies(folder):
    """[test accuracies of the best epoch, of the last epoch], one for each seed, of a fine-tuning folder."""
    files = [file for where in ("", "seed_*") for file in sorted(glob.glob(os.path.join(folder, where, "results.json")))]
    if not files:
        raise UserError(f"there is no results.json in {folder}; run scripts/quickstart.sh first")
    results = [read_json(file, RESULTS) for file in files]
    return [[result[key]["eval_accuracy"] for result in results] for key in RESULTS]


def seconds_of(file):
    """The whole number in a file."""
    text = next((line for _, line in decode_lines(file)), "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{file}: {text[:60]!r} is no number of seconds; remove the file")
    return int(text)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=path, help="Folder of the run, OUT of quickstart.sh.")
    folder = require_folder(parser.parse_args().folder, "folder")
    print(f"\n{'test accuracy of':<34}{'best epoch':>12}{'last epoch':>12}   each seed, last epoch")
    for name, words in (("tiny_bert", "tiny BERT"), ("further_pretrained", "tiny BERT, further pre-trained")):
        best, last = accuracies(os.path.join(folder, f"ag_{name}"))
        print(f"{words:<34}{sum(best) / len(best):>12.2%}{sum(last) / len(last):>12.2%}   "
              + " ".join(f"{value:.2%}" for value in last))
    print(f"\n{'step':<34}{'seconds':>12}")
    total = 0
    for file in sorted(glob.glob(os.path.join(folder, "logs", "*.seconds")), key=os.path.getmtime):
        seconds = seconds_of(file)
        total += seconds
        print(f"{os.path.basename(file).removesuffix('.seconds'):<34}{seconds:>12}")
    print(f"{'all':<34}{total:>12}")
    predictions = decode_lines(require_file(os.path.join(folder, "predictions", "predictions.tsv"), "predictions"))
    print(f"\n{next(predictions)[1]}   text")
    for (_, prediction), (_, text) in zip(predictions, decode_lines(NEW_TEXTS)):
        print(f"{prediction}   {text[:70]}")


if __name__ == "__main__":
    run(main)
