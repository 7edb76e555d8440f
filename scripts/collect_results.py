"""Reads the runs of the experiments and writes the paper's tables and figures, ours beside the paper's.

    python scripts/collect_results.py --runs experiments --output_dir results

For each of Tables 2 to 8 a .csv and a .md: test error in percent of the best epoch on the test set (the paper's way) and
of the last epoch, mean and standard deviation (n - 1) over seeds, the paper's figure, and ours less the paper's. Figures
2, 3 and 4 as .png, with the paper's points where it gives them. A run that is not there is shown as missing.
"""
import csv
import glob
import json
import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from command_line import ArgumentParser, atomic_write, check_output_folder, require_folder, run  # noqa: E402

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper_results.csv")
COLUMNS = ("row", "data_set", "best_mean", "best_std", "last_mean", "last_std", "seeds", "paper", "difference")


def read_results(folder):
    """The results.json of each seed's run in a folder, by seed."""
    results = []
    for path in glob.glob(os.path.join(folder, "seed_*", "results.json")):
        with open(path, encoding="utf-8") as file:
            results.append(json.load(file))
    return sorted(results, key=lambda result: result["seed"])


def errors(results, epoch):
    """Test errors in percent of the `best` or `last` epoch, one for each seed."""
    return np.array([100 * (1 - result[epoch]["eval_accuracy"]) for result in results if epoch in result])


def mean_and_std(values):
    """Both, or None where there are no values, or one, which has no standard deviation."""
    return (values.mean() if len(values) else None, values.std(ddof=1) if len(values) > 1 else None)


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
    found = (os.path.relpath(path, runs).replace(os.sep, "/") for path in sorted(glob.glob(os.path.join(runs, first, "*", "*"))))
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


def write_table(lines, name, output_dir):
    with atomic_write(os.path.join(output_dir, f"{name}.csv")) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in line.items()}
                         for line in lines)
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


# Figures

def new_plot(title, x, y="test error, %"):
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot
    plot, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return plot, axes


def save_plot(plot, axes, name, output_dir):
    axes.legend()
    with atomic_write(os.path.join(output_dir, f"{name}.png"), "wb") as file:
        plot.savefig(file, format="png", dpi=150)


def draw(axes, points, label, style="o-"):
    """Draws mean and standard deviation of the best epoch's error. points: list of (x, results of all seeds)."""
    points = sorted((x, *mean_and_std(errors(results, "best"))) for x, results in points if results)
    if points:
        x, means, deviations = zip(*points)
        axes.errorbar(x, means, [deviation or 0 for deviation in deviations], fmt=style, capsize=3, label=label)
    return bool(points)


def figure2(runs, output_dir, paper):
    """Test error after each epoch, by learning rate."""
    plot, axes = new_plot("Figure 2: catastrophic forgetting, IMDb", "epoch")
    drawn = False
    for folder in sorted(glob.glob(os.path.join(runs, "catastrophic_forgetting", "*", "imdb")),
                         key=lambda path: float(path.split(os.sep)[-2])):
        results = read_results(folder)
        if results:
            curves = np.array([[100 * (1 - epoch["eval_accuracy"]) for epoch in result["epochs"]] for result in results])
            axes.errorbar(range(1, curves.shape[1] + 1), curves.mean(axis=0), curves.std(axis=0), fmt="o-", capsize=3,
                          label=f"rate {folder.split(os.sep)[-2]}")
            drawn = True
    return drawn and save_plot(plot, axes, "figure2", output_dir) is None


def figure3(runs, output_dir, paper):
    """Test error by the steps of further pre-training."""
    plot, axes = new_plot("Figure 3: further pre-training within the task, IMDb", "steps")
    folders = glob.glob(os.path.join(runs, "steps", "*", "imdb"))
    points = [(int(folder.split(os.sep)[-2]), read_results(folder)) for folder in folders]
    if not draw(axes, [(0, read_results(os.path.join(runs, "none", "imdb"))), *points], "ours, best epoch"):
        return False
    known = {(row, data_set): error for row, data_set, _, error in paper["table5"]}
    axes.plot([0, 100_000], [known["w/o pretrain", "imdb"], known["imdb", "imdb"]], "k*", label="paper (Table 5)")
    save_plot(plot, axes, "figure3", output_dir)
    return True


def figure4(runs, output_dir, paper):
    """Test error by the part of the training data."""
    plot, axes = new_plot("Figure 4: few examples, IMDb", "part of the training data")
    axes.set_xscale("log")
    drawn = []
    for name, label in (("none", "BERT-FiT"), ("imdb", "BERT-ITPT-FiT")):
        folders = glob.glob(os.path.join(runs, "few_shot", name, "*", "imdb"))
        points = [(float(folder.split(os.sep)[-2]), read_results(folder)) for folder in folders]
        drawn.append(draw(axes, [*points, (1.0, read_results(os.path.join(runs, name, "imdb")))], f"{label}, ours"))
    if not any(drawn):
        return False
    full = {row: error for row, data_set, _, error in paper["table6"] if data_set == "imdb"}
    for row, _, _, error in paper["figure4"]:
        label = row.split(",")[0]
        axes.plot([0.004, 1.0], [error, full[label]], "*", label=f"{label}, paper")
    save_plot(plot, axes, "figure4", output_dir)
    return True


FIGURES = {"figure2": figure2, "figure3": figure3, "figure4": figure4}


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
        if name in paper:
            lines = make_table(args.runs, paper[name])
            write_table(lines, name, args.output_dir)
            there = sum(line["best_mean"] is not None for line in lines)
            print(f"wrote {os.path.join(args.output_dir, name)}.csv and .md: {there} of {len(lines)} figures are there")
        if name in FIGURES:
            drawn = FIGURES[name](args.runs, args.output_dir, paper)
            print(f"wrote {os.path.join(args.output_dir, name)}.png" if drawn else f"{name}: none of its runs is there")


if __name__ == "__main__":
    run(main)
