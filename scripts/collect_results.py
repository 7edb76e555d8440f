"""Reads the runs of the experiments and writes the paper's tables and figures, ours beside the paper's.

    python scripts/collect_results.py --runs experiments --output_dir results

For each of Tables 2 to 8 a .csv and a .md: test error in percent of the best epoch on the test set (the paper's way) and
of the last epoch, mean and standard deviation (n - 1) over seeds, the paper's figure, and ours less the paper's. Figures
2, 3 and 4 as .png and their points as .csv, with the paper's where it gives them. A run that is not there is shown as
missing.
"""
import csv
import glob
import json
import os
import re
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from command_line import (ArgumentParser, UserError, atomic_write, check_output_folder, read_recipe,  # noqa: E402
                          require_folder, run)

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper_results.csv")
COLUMNS = ("row", "data_set", "best_mean", "best_std", "last_mean", "last_std", "seeds", "paper", "difference")
OWN = {"seed", "init_checkpoint", "vocab_file", "bert_config_file"}  # what the runs of several seeds may differ in
NUMBER = r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?"
POINTS = ("curve", "x", "mean", "std", "seeds")


def read_results(folder):
    """The results.json of each seed's run in a folder, by seed. Raises UserError where they are of several settings."""
    results, recipes = [], {}
    for path in sorted(glob.glob(os.path.join(folder, "seed_*", "results.json"))):
        with open(path, encoding="utf-8") as file:
            results.append(json.load(file))
        record = os.path.join(os.path.dirname(path), "run.json")
        if os.path.exists(record):
            recipes[record] = read_recipe(record, "fine-tuning")
    for record, recipe in recipes.items():
        first, known = next(iter(recipes.items()))
        for key in sorted(recipe.keys() - OWN):
            if recipe[key] != known.get(key):
                raise UserError(f"{record}: {key} is {recipe[key]}, in {first} {known.get(key)}; runs of one folder differ "
                                "in the seed alone, move those away that do not belong")
    return sorted(results, key=lambda result: result["seed"])


def errors(results, epoch):
    """Test errors in percent of the `best` or `last` epoch, one for each seed."""
    evaluations = [tested(result, epoch) for result in results]
    return np.array([test_error(evaluation) for evaluation in evaluations if evaluation])


def tested(result, epoch):
    """A run's evaluation on the test set after the `best` or `last` epoch, or None. With --dev_fraction there is one, after
    the best epoch, and the evaluations of the epochs are of held-out training data."""
    if "test" in result:
        return result["test"] if epoch == "best" else None
    return result.get(epoch)


def test_error(epoch):
    return 100 * (1 - epoch["eval_accuracy"])


def mean_and_std(values):
    """Both over the first axis, or None where there are no values, or one, which has no standard deviation."""
    return (values.mean(axis=0) if len(values) else None, values.std(axis=0, ddof=1) if len(values) > 1 else None)


def read_paper():
    """{table: list of (row, data set, folder of the run, the paper's test error in percent)} in the paper's order."""
    tables = {}
    with open(PAPER, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            tables.setdefault(line["table"], []).append(
                (line["row"], line["data_set"], line["run"], float(line["paper_test_error_percent"])))
    return tables


def further_rows(runs, entries):
    """Entries of runs that the paper's table has not, as of a deeper BERT's layers, where the table has a folder of its
    own."""
    first, *others = {folder.split("/")[0] for _, _, folder, _ in entries}
    if others:
        return []
    known = {folder for _, _, folder, _ in entries}
    paths = sorted(glob.glob(os.path.join(runs, first, "*", "*")))
    found = (os.path.relpath(path, runs).replace(os.sep, "/") for path in paths)
    return [(folder.split("/")[1], folder.split("/")[2], folder, None) for folder in found
            if folder not in known and read_results(os.path.join(runs, folder))]


def make_table(runs, entries):
    """The lines of a table: dicts of COLUMNS, None for what is missing."""
    lines = []
    for row, data_set, folder, paper in entries + further_rows(runs, entries):
        results = read_results(os.path.join(runs, folder))
        best, last = (mean_and_std(errors(results, epoch)) for epoch in ("best", "last"))
        difference = best[0] - paper if best[0] is not None and paper is not None else None
        lines.append(dict(zip(COLUMNS, (row, data_set, *best, *last, len(results), paper, difference))))
    return lines


def write_csv(lines, columns, name, output_dir):
    with atomic_write(os.path.join(output_dir, f"{name}.csv")) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in line.items()}
                         for line in lines)


def write_table(lines, name, output_dir):
    write_csv(lines, COLUMNS, name, output_dir)
    with atomic_write(os.path.join(output_dir, f"{name}.md")) as file:
        file.write("| row | data set | best epoch | last epoch | seeds | paper | difference |\n|---|---|---|---|---|---|---|\n")
        for line in lines:
            file.write(f"| {line['row']} | {line['data_set']} | {figure(line['best_mean'], line['best_std'])} | "
                       f"{figure(line['last_mean'], line['last_std'])} | {line['seeds']} | {figure(line['paper'])} | "
                       f"{'' if line['difference'] is None else format(line['difference'], '+.2f')} |\n")


def figure(mean, std=None):
    """`5.42 (0.07)`, or `missing`."""
    if mean is None:
        return "missing"
    return f"{mean:.2f}" + ("" if std is None else f" ({std:.2f})")


# Figures: each function returns our curves, {label: list of (x, test errors of all seeds)}, and the paper's points,
# {label: list of (x, test error)}.

def point_of(folder):
    """The number that stands in the name of a run's folder: 0.004 of few_shot/none/0.004/imdb."""
    return float(folder.split(os.sep)[-2])


def folders_by_point(runs, *where):
    """The folders of runs `where`/NUMBER/imdb, by that number; others are not the experiments'."""
    folders = glob.glob(os.path.join(runs, *where, "*", "imdb"))
    return sorted((folder for folder in folders if re.fullmatch(NUMBER, folder.split(os.sep)[-2])), key=point_of)


def figure2(runs, paper):
    """Test error after each epoch, by learning rate, of runs that are tested then. The paper gives no figures."""
    curves = {}
    for folder in folders_by_point(runs, "catastrophic_forgetting"):
        results = [result for result in read_results(folder) if "test" not in result]
        epochs = zip(*(result["epochs"] for result in results))  # of each epoch, that of every seed
        curves[f"rate {folder.split(os.sep)[-2]}"] = [
            (number, np.array([test_error(epoch) for epoch in seeds])) for number, seeds in enumerate(epochs, 1)]
    return curves, {}


def figure3(runs, paper):
    """Best test error by the steps of further pre-training. The paper's ends are Table 5's."""
    points = [(0, os.path.join(runs, "none", "imdb"))]
    points += [(point_of(folder), folder) for folder in folders_by_point(runs, "steps")]
    known = {(row, data_set): error for row, data_set, _, error in paper["table5"]}
    return ({"ours": [(x, errors(read_results(folder), "best")) for x, folder in points]},
            {"paper (Table 5)": [(0, known["w/o pretrain", "imdb"]), (100_000, known["imdb", "imdb"])]})


def figure4(runs, paper):
    """Best test error by the part of the training data. The paper's errors with all of it are Table 6's."""
    ours, theirs = {}, {}
    full = {row: error for row, data_set, _, error in paper["table6"] if data_set == "imdb"}
    for row, _, run_folder, error in paper["figure4"]:
        label, name = row.split(",")[0], run_folder.split("/")[1]
        points = [(1.0, os.path.join(runs, name, "imdb"))]
        points += [(point_of(folder), folder) for folder in folders_by_point(runs, "few_shot", name)]
        ours[f"{label}, ours"] = [(x, errors(read_results(folder), "best")) for x, folder in points]
        theirs[f"{label}, paper"] = [(0.004, error), (1.0, full[label])]
    return ours, theirs


FIGURES = {  # title, x axis and its scale
    "figure2": (figure2, "Figure 2: catastrophic forgetting, IMDb", "epoch", "linear"),
    "figure3": (figure3, "Figure 3: further pre-training within the task, IMDb", "steps", "linear"),
    "figure4": (figure4, "Figure 4: few examples, IMDb", "part of the training data", "log")}


def write_figure(name, runs, paper, output_dir):
    """Writes a figure as .png and its points as .csv where one of ours is there. Returns how many of ours are there."""
    points_of, title, x_label, x_scale = FIGURES[name]
    ours, theirs = points_of(runs, paper)
    curves = {label: sorted((x, *mean_and_std(values), len(values)) for x, values in points if len(values))
              for label, points in ours.items()}
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        return 0
    lines = [(label, f"{x:g}", *figures) for label, points in curves.items() for x, *figures in points]
    lines += [(label, f"{x:g}", error, None, None) for label, points in theirs.items() for x, error in points]
    write_csv([dict(zip(POINTS, line)) for line in lines], POINTS, name, output_dir)

    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot
    plot, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.set(title=title, xlabel=x_label, ylabel="test error, %", xscale=x_scale)
    axes.grid(alpha=0.3)
    for label, points in curves.items():
        x, means, deviations, _ = zip(*points)
        axes.errorbar(x, means, [deviation or 0 for deviation in deviations], fmt="o-", capsize=3, label=label)
    for label, points in theirs.items():
        axes.plot(*zip(*points), "*", label=label)
    axes.legend()
    with atomic_write(os.path.join(output_dir, f"{name}.png"), "wb") as file:
        plot.savefig(file, format="png", dpi=150)
    return sum(map(len, curves.values()))


def main():
    paper = read_paper()
    names = sorted({*paper, *FIGURES})
    parser = ArgumentParser(__doc__)
    parser.add_argument("--runs", default="experiments", help="The experiments' folder, OUT (default: experiments).")
    parser.add_argument("--output_dir", default="results", help="Where tables and figures go (default: results).")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="Some of them (default: all).")
    args = parser.parse_args()
    require_folder(args.runs, "--runs")
    check_output_folder(args.output_dir, "--output_dir")
    for name in args.only:
        if name in FIGURES:
            there = write_figure(name, args.runs, paper, args.output_dir)
            print(f"wrote {os.path.join(args.output_dir, name)}.csv and .png: {there} points of ours" if there
                  else f"{name}: none of its runs is there")
        else:
            lines = make_table(args.runs, paper[name])
            write_table(lines, name, args.output_dir)
            there = sum(line["best_mean"] is not None for line in lines)
            print(f"wrote {os.path.join(args.output_dir, name)}.csv and .md: {there} of {len(lines)} figures are there")


if __name__ == "__main__":
    run(main)
