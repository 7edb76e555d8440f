"""Prints what a quickstart run measured, and draws results.png in its folder: python scripts/quickstart_table.py FOLDER"""
import glob
import math
import os
import re
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import atomic_write, decode_lines, read_json, require_file, require_folder  # noqa: E402
from common.run_folder import read_metrics  # noqa: E402

NEW_TEXTS = os.path.join(ROOT, "data", "new_texts.txt")  # whose labels quickstart.sh predicts
ARMS = {"tiny_bert": "without", "further_pretrained": "with"}  # further pre-training


def accuracies(folder):
    """{seed: test accuracy after the last epoch} of a fine-tuning folder."""
    files = [file for where in ("", "seed_*") for file in sorted(glob.glob(os.path.join(folder, where, "results.json")))]
    if not files:
        raise UserError(f"there is no results.json in {folder}; run scripts/quickstart.sh first")
    results = [read_json(file, {"seed": int, "last": {"eval_accuracy": float}}) for file in files]
    return {result["seed"]: result["last"]["eval_accuracy"] for result in results}


def mean_and_error(values):
    """The mean and its standard error, None for a single value."""
    values = list(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def read_points(folder):
    """{number of labelled stories: [{seed: accuracy} without, with further pre-training]}, in the order of the numbers."""
    names = (os.path.basename(name) for name in glob.glob(os.path.join(folder, "ag_tiny_bert_*")))
    numbers = sorted(int(name[len("ag_tiny_bert_"):]) for name in names if re.fullmatch("ag_tiny_bert_[0-9]{1,9}", name))
    if not numbers:
        raise UserError(f"there is no ag_tiny_bert_N in {folder}; run scripts/quickstart.sh first")
    return {number: [accuracies(os.path.join(folder, f"ag_{arm}_{number}")) for arm in ARMS] for number in numbers}


def seconds_of(file):
    """The whole number in a file."""
    text = next((line for _, line in decode_lines(file)), "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{file}: {text[:60]!r} is no number of seconds; remove the file")
    return int(text)


def show_accuracies(points):
    """Prints mean and standard error over the seeds, and those of the difference, seed by seed."""
    print("\ntest accuracy after the last epoch: mean over the seeds, +- its standard error; each seed\n")
    print("labelled stories   further pre-training")
    for number, arms in points.items():
        differences = {seed: arms[1][seed] - arms[0][seed] for seed in arms[0] if seed in arms[1]}
        if not differences:
            raise UserError(f"with {number} labelled stories no seed was run both with and without further pre-training; "
                            "run scripts/quickstart.sh again")
        for name, values in (*zip(ARMS.values(), arms), ("difference", differences)):
            mean, error = mean_and_error(values.values())
            sign = "+" if name == "difference" else ""
            spread = "one seed " if error is None else f"+- {error:>6.2%}"
            print(f"{number:>16}   {name:<12}{mean:>{sign}9.2%} {spread}   "
                  + " ".join(f"{value:{sign}.2%}" for value in values.values()))


def draw(points, losses, picture):
    """Writes the picture: accuracy by labelled stories, and the loss of further pre-training by its updates."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, name in enumerate(ARMS.values()):
        means, errors = zip(*(mean_and_error(arms[arm].values()) for arms in points.values()))
        left.errorbar(list(points), means, [error or 0 for error in errors], marker="o", capsize=3,
                      label=f"{name} further pre-training")
    left.axhline(0.25, color="grey", linestyle=":", label="chance")
    left.set(title="fine-tuning: mean and standard error over the seeds", xlabel="labelled stories",
             ylabel="test accuracy", xscale="log")
    left.set_xticks(list(points), [f"{number}\nseeds: {len(arms[0])}" for number, arms in points.items()])
    left.minorticks_off()
    left.legend(fontsize="small")
    right.plot(*zip(*losses), color="C1")
    right.set(title="further pre-training on 1,600 stories without labels", xlabel="updates", ylabel="masked-LM loss")
    with atomic_write(picture, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    print(f"\nwrote {picture}")


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=path, help="Folder of the run, OUT of quickstart.sh.")
    folder = require_folder(parser.parse_args().folder, "folder")
    points = read_points(folder)
    show_accuracies(points)
    print(f"\n{'step':<34}{'seconds':>12}")
    for file in sorted(glob.glob(os.path.join(folder, "logs", "*.seconds")), key=os.path.getmtime):
        print(f"{os.path.basename(file).removesuffix('.seconds'):<34}{seconds_of(file):>12}")
    predictions = decode_lines(require_file(os.path.join(folder, "predictions", "predictions.tsv"), "predictions"))
    print(f"\n{next(predictions)[1]}   text")
    for (_, prediction), (_, text) in zip(predictions, decode_lines(NEW_TEXTS)):
        print(f"{prediction}   {text[:70]}")
    pretrained = os.path.join(folder, "tiny_bert_AGnews_pretrain")
    losses = read_metrics(pretrained, {"train": {"masked_lm_loss": float}}, "further pre-training")
    draw(points, [(line["global_step"], line["masked_lm_loss"]) for line in losses], os.path.join(folder, "results.png"))


if __name__ == "__main__":
    run(main)
