"""Reads the runs of the experiments and writes the paper's tables and figures, with ours beside the paper's.

    python scripts/collect_results.py --runs experiments --output_dir results

Tables 2 to 8 become a .csv and a .md each: the test error in percent of the epoch that is best on the test set (the
paper's way) and of the last epoch, as mean and standard deviation (n - 1) over the seeds, the paper's figure, and the
difference of ours from it; then every further metric that the runs hold, of the best epoch. Figures 2, 3 and 4 become a
.png, and their points a .csv, with the paper's points where it gives them. A run that is absent is shown as missing.
"""
import csv
import glob
import os
import re
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import (atomic_write, check_output_folder, check_schema, decode_lines, read_json,  # noqa: E402
                          require_folder)

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper_results.csv")
COLUMNS = ("row", "data_set", "best_mean", "best_std", "last_mean", "last_std", "seeds", "paper", "difference")
POINTS = ("curve", "x", "mean", "std", "seeds")
NUMBER = r"[0-9]{1,15}(\.[0-9]{1,15})?(e-?[0-9]{1,2})?"  # not so long that it is infinite
EVALUATION = {"eval_accuracy": float}
# What the runs in one folder may differ in. A fine-tuning after a multi-task one starts from the multi-task run of its
# own seed, so its weights differ too.
OWN = {"seed"}
OWN_AFTER_MULTI_TASK = OWN | {"weights"}


def read_results(runs, folder):
    """The results.json of each seed's run in `folder` of the folder `runs`, ordered by seed.

    Raises UserError where one is damaged, and where the runs do not differ in the seed alone.
    """
    files = sorted(glob.glob(os.path.join(runs, folder, "seed_*", "results.json")))
    results, recipes = [read_result(file) for file in files], {}
    for file, result in zip(files, results):
        if [other["seed"] for other in results].count(result["seed"]) > 1:
            raise UserError(f"{file}: another run beside it has the seed {result['seed']} too; move one of them away")
        record = os.path.join(os.path.dirname(file), "run.json")
        if os.path.exists(record):
            recipes[record] = read_json(record, {"recipe": dict})["recipe"]
    own = OWN_AFTER_MULTI_TASK if folder.startswith("multitask") else OWN
    for record, recipe in recipes.items():
        first, known = next(iter(recipes.items()))
        for key in sorted(recipe.keys() | known.keys()):
            if recipe.get(key) != known.get(key) and key.partition(" (")[0] not in own:  # weights (--init_checkpoint)
                raise UserError(f"{record}: {key} is {recipe.get(key)}, in {first} it is {known.get(key)}; the runs in "
                                "one folder may differ in the seed alone, move those away that do not belong there")
    return sorted(results, key=lambda result: result["seed"])


def read_result(file):
    """The value of a results.json. Raises UserError where it is not what a fine-tuning run writes."""
    result = read_json(file, {"seed": int, "epochs": [dict]})
    named = [name for name in ("best", "last", "test") if name in result]
    if named:  # else the run was not evaluated
        check_schema(result, {"epochs": [EVALUATION], "best": EVALUATION, "last": EVALUATION}, file)
        check_schema(result, {"test": EVALUATION} if "test" in result else {}, file)
    for evaluation in [result[name] for name in named] + result["epochs"]:
        metrics = {key: value for key, value in evaluation.items() if key.startswith("eval_")}
        check_schema(metrics, {str: float}, file)
        if not 0 <= metrics.get("eval_accuracy", 0) <= 1:
            raise UserError(f"{file}: eval_accuracy is {metrics['eval_accuracy']}, a number from 0 to 1 is needed")
    return result


def errors(results, epoch):
    """Test errors in percent of the `best` or `last` epoch, one for each seed."""
    return np.array([test_error(evaluation) for evaluation in tested(results, epoch)])


def tested(results, epoch):
    """The runs' evaluations on the test set after the `best` or `last` epoch. With --dev_fraction a run has one, after
    the best epoch, and those of the epochs are of held-out training data."""
    found = [result.get("test" if epoch == "best" else None) if "test" in result else result.get(epoch)
             for result in results]
    return [evaluation for evaluation in found if evaluation]


def test_error(evaluation):
    return 100 * (1 - evaluation["eval_accuracy"])


def mean_and_std(values):
    """Both over the first axis; None where there are no values, and for the deviation of one."""
    return (values.mean(axis=0) if len(values) else None, values.std(axis=0, ddof=1) if len(values) > 1 else None)


def read_paper():
    """{table: list of (row, data set, folder of the run, the paper's test error in percent)} in the paper's order."""
    tables = {}
    lines = csv.DictReader(line for _, line in decode_lines(PAPER))
    try:
        for line in lines:
            if None in line:
                raise ValueError("too many columns")
            tables.setdefault(line["table"], []).append(
                (line["row"], line["data_set"], line["run"], float(line["paper_test_error_percent"])))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{PAPER}:{lines.line_num}: the table of the paper's figures is damaged ({error})") from None
    return tables


def further_rows(runs, entries):
    """Entries for runs that the paper's table lacks, such as the layers of a deeper BERT, where the table has a folder
    of its own."""
    first, *others = {folder.split("/")[0] for _, _, folder, _ in entries}
    if others:
        return []
    known = {folder for _, _, folder, _ in entries}
    folders = sorted(glob.glob(os.path.join(runs, first, "*", "*")))
    found = (os.path.relpath(folder, runs).replace(os.sep, "/") for folder in folders)
    return [(folder.split("/")[1], folder.split("/")[2], folder, None) for folder in found
            if folder not in known and read_results(runs, folder)]


def make_table(runs, entries):
    """The lines of a table: dicts of COLUMNS, then METRIC_mean and METRIC_std of each further metric that all seeds of
    the run hold, of the best epoch; None for what is missing."""
    lines = []
    for row, data_set, folder, paper in entries + further_rows(runs, entries):
        results = read_results(runs, folder)
        best, last = (mean_and_std(errors(results, epoch)) for epoch in ("best", "last"))
        difference = best[0] - paper if best[0] is not None and paper is not None else None
        line = dict(zip(COLUMNS, (row, data_set, *best, *last, len(results), paper, difference)))
        evaluations = tested(results, "best")
        for key in evaluations[0] if evaluations else ():
            values = [evaluation[key] for evaluation in evaluations if key in evaluation]
            if key.startswith("eval_") and key not in EVALUATION and len(values) == len(evaluations):
                name = key.removeprefix("eval_")
                line[f"{name}_mean"], line[f"{name}_std"] = mean_and_std(np.array(values, float))
        lines.append(line)
    return lines


def write_csv(lines, columns, name, output_dir):
    with atomic_write(os.path.join(output_dir, f"{name}.csv")) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in line.items()}
                         for line in lines)


def write_table(lines, name, output_dir):
    columns = list(dict.fromkeys(column for line in lines for column in (*COLUMNS, *line)))
    metrics = [column.removesuffix("_mean") for column in columns[len(COLUMNS)::2]]
    write_csv(lines, columns, name, output_dir)
    header = ["row", "data set", "best epoch", "last epoch", "seeds", "paper", "difference"]
    header += ["further metrics of the best epoch"] * bool(metrics)
    with atomic_write(os.path.join(output_dir, f"{name}.md")) as file:
        file.write(f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n")
        for line in lines:
            cells = [line["row"], line["data_set"], figure(line["best_mean"], line["best_std"]),
                     figure(line["last_mean"], line["last_std"]), str(line["seeds"]), figure(line["paper"]),
                     "" if line["difference"] is None else format(line["difference"], "+.2f")]
            if metrics:
                cells.append(", ".join(f"{metric} {figure(line[f'{metric}_mean'], line[f'{metric}_std'], 4)}"
                                       for metric in metrics if f"{metric}_mean" in line))
            file.write(f"| {' | '.join(cells)} |\n")


def figure(mean, std=None, digits=2):
    """`5.42 (0.07)`, or `missing`."""
    if mean is None:
        return "missing"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ({std:.{digits}f})")


# Figures: each function returns our curves, {label: list of (x, test errors of all seeds)}, and the paper's points,
# {label: list of (x, test error)}.

def point_of(folder):
    """The number in the name of a run's folder: 0.004 of few_shot/none/0.004/imdb."""
    return float(folder.split("/")[-2])


def folders_by_point(runs, where):
    """The folders of runs `where`/NUMBER/imdb in the folder `runs`, ordered by that number; others are not the
    experiments'."""
    names = [name for name in os.listdir(os.path.join(runs, where)) if re.fullmatch(NUMBER, name)] \
        if os.path.isdir(os.path.join(runs, where)) else []
    return sorted((f"{where}/{name}/imdb" for name in names), key=point_of)


def figure2(runs, paper):
    """Test error after each epoch, by learning rate, of runs that are tested then. The paper gives no figures."""
    curves = {}
    for folder in folders_by_point(runs, "catastrophic_forgetting"):
        results = [result for result in read_results(runs, folder) if "best" in result and "test" not in result]
        epochs = zip(*(result["epochs"] for result in results))  # of each epoch, that of every seed
        curves[f"rate {folder.split('/')[-2]}"] = [
            (number, np.array([test_error(epoch) for epoch in seeds])) for number, seeds in enumerate(epochs, 1)]
    return curves, {}


def best_errors(runs, points):
    """(x, the best epochs' test errors of the runs in the folder) of each (x, folder)."""
    return [(x, errors(read_results(runs, folder), "best")) for x, folder in points]


def figure3(runs, paper):
    """Best test error by the steps of further pre-training. The paper's ends are Table 5's."""
    points = [(0, "none/imdb"), *((point_of(folder), folder) for folder in folders_by_point(runs, "steps"))]
    known = {(row, data_set): error for row, data_set, _, error in paper["table5"]}
    return ({"ours": best_errors(runs, points)},
            {"paper (Table 5)": [(0, known["w/o pretrain", "imdb"]), (100_000, known["imdb", "imdb"])]})


def figure4(runs, paper):
    """Best test error by the part of the training data. The paper's errors with all of it are Table 6's."""
    ours, theirs = {}, {}
    full = {row: error for row, data_set, _, error in paper["table6"] if data_set == "imdb"}
    for row, _, run_folder, error in paper["figure4"]:
        label, name = row.split(",")[0], run_folder.split("/")[1]
        points = [(1.0, f"{name}/imdb")]
        points += [(point_of(folder), folder) for folder in folders_by_point(runs, f"few_shot/{name}")]
        ours[f"{label}, ours"] = best_errors(runs, points)
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
    curves = {label: [(x, *mean_and_std(values), len(values))
                      for x, values in sorted(points, key=lambda point: point[0]) if len(values)]
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
    parser.add_argument("--runs", type=path, default="experiments",
                        help="Folder of the experiments, their OUT. Default: experiments.")
    parser.add_argument("--output_dir", type=path, default="results",
                        help="Folder for the tables and figures. Default: results.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"Tables and figures to write: {', '.join(names)}. Default: all.")
    args = parser.parse_args()
    require_folder(args.runs, "--runs")
    check_output_folder(args.output_dir, "--output_dir")
    for name in args.only:
        if name in FIGURES:
            there = write_figure(name, args.runs, paper, args.output_dir)
            print(f"wrote {os.path.join(args.output_dir, name)}.csv and .png: {there} of our points" if there
                  else f"{name}: none of its runs is there")
        else:
            lines = make_table(args.runs, paper[name])
            write_table(lines, name, args.output_dir)
            there = sum(line["best_mean"] is not None for line in lines)
            print(f"wrote {os.path.join(args.output_dir, name)}.csv and .md: {there} of {len(lines)} rows have a run")


if __name__ == "__main__":
    run(main)
