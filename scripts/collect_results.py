"""Reads the runs of the experiments and writes the paper's tables, figures and findings, with ours beside the paper's.

    python scripts/collect_results.py --runs experiments --output_dir results

A table becomes a .csv and a .md: the test error in percent of the epoch that is best on the test set (the authors' way) and
of the last epoch, as mean and standard deviation (n - 1) over the seeds, the paper's figure, and the difference of ours from
it; then every further metric that the runs hold, of the best epoch. The .md of a table with several data sets begins with
the paper's form: a row for each method, a column for each data set. Tables are the paper's 2 to 8; `released`, the authors'
own further pre-trained BERT fine-tuned here; and `corpus`, further pre-training on texts prepared in different ways.
Figures 2, 3 and 4 become a .png, and their points a .csv, with the paper's points where it gives them. A run that is absent
is shown as missing. `findings` (findings.md, findings.csv) tests what the paper concludes, see scripts/findings.py.
"""
import os
import pathlib
import re
import sys

import numpy as np
import pandas as pd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
import findings  # noqa: E402
from common.command_line import ArgumentParser, path, run  # noqa: E402
from common.files import atomic_write, check_output_folder, require_folder  # noqa: E402
from figures import FIGURES, rate_folders, step_folders, write_figure  # noqa: E402
from read_runs import KEYS, own_name, own_rate, read_results, read_runs, read_settings  # noqa: E402
from tables import figure, markdown, read_figures, write_csv  # noqa: E402
from tasks import TASKS  # noqa: E402

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper_results.csv")
COLUMNS = ("row", "data_set", "best_mean", "best_std", "last_mean", "last_std", "seeds", "paper", "difference")
# The folder whose other runs, such as the layers of a deeper BERT, are further rows of a table
FOLDERS = {"table2": "long_text", "table3": "layers", "table4": "layer_wise_lr", "corpus": "corpus"}


def read_paper():
    """The paper's test errors as a frame: table, row, data_set, run (its folder here; empty: an earlier model), paper."""
    return read_figures(PAPER, ["paper_test_error_percent"]).rename(columns={"paper_test_error_percent": "paper"})


def own_runs(rows, settings):
    """Rows of the paper's tables with the folders of the runs as they are at these settings: Table 4's names its rates."""
    return rows.assign(run=[own_name(run, settings) if table == "table4" else run
                            for table, run in zip(rows["table"], rows["run"])])


def rows_of(runs, paper, name):
    """A table's rows: the paper's, in Table 3 this BERT's layers, and further runs in the table's folder of FOLDERS."""
    settings = read_settings(runs)
    rows = own_runs(paper[paper["table"] == name], settings)
    if name == "table3" and settings["layers"] != 12:
        rows = layers_of(settings["layers"], paper.columns)
    rows = rows.assign(row=rows["row"].map(lambda row: own_name(row, settings)))
    folders = sorted(pathlib.Path(runs, FOLDERS[name]).glob("*/*")) if name in FOLDERS else []
    others = pd.DataFrame([(folder.parent.name, folder.name, folder.relative_to(runs).as_posix()) for folder in folders],
                          columns=["row", "data_set", "run"])
    there = ~others["run"].isin(rows["run"]) & others["run"].map(lambda run: bool(read_results(runs, run))).astype(bool)
    return pd.concat([rows, others[there]], ignore_index=True)


def make_table(runs, rows):
    """A table's `rows` with our figures: a frame of COLUMNS and `run`, then METRIC_mean and METRIC_std of each further
    metric that all seeds of a run hold, of the best epoch. NaN is what is missing."""
    frame = read_runs(runs, rows["run"])
    best, last = (frame[frame["at"] == at].groupby("run") for at in ("best", "last"))
    metrics = frame.columns[len(KEYS):]
    metrics = metrics[best[list(metrics)].mean(skipna=False).notna().any()] if len(metrics) else metrics
    table = rows.assign(seeds=rows["run"].map(best.size()).fillna(0).astype(int))
    for name, values in (("best", best["test_error"]), ("last", last["test_error"]),
                         *((metric, best[metric]) for metric in metrics)):
        table[f"{name}_mean"] = rows["run"].map(values.mean(skipna=False))
        table[f"{name}_std"] = rows["run"].map(values.std(skipna=False))
    table["difference"] = table["best_mean"] - table["paper"]
    return table[[*COLUMNS, "run", *(f"{metric}_{kind}" for metric in metrics for kind in ("mean", "std"))]]


def reductions(table, baseline="BERT-Feat"):
    """Table 6's last column: by how many percent a row's error is below that of the baseline on the same data set, ours and
    from the paper's figures. The earlier models, which have no run here, have none."""
    theirs = table[table["row"] == baseline].set_index("data_set")
    for name, column in (("reduction", "best_mean"), ("paper_reduction", "paper")):
        known = table["data_set"].map(theirs[column].where(theirs[column] > 0))
        table[name] = (100 * (1 - table[column] / known)).where((table["run"] != "") & (table["row"] != baseline))
    return table


def beside(ours, theirs):
    """A cell of the paper's form: `5.42 (0.07) / 5.40`."""
    return f"{ours} / {theirs}".replace("missing", "–")


def by_data_set(table):
    """The table in the paper's form: a row for each method, a column for each data set."""
    cells = [beside(figure(line.best_mean, line.best_std), figure(line.paper)) for line in table.itertuples()]
    form = table.assign(cell=cells).pivot_table(index="row", columns="data_set", values="cell", aggfunc="first", sort=False)
    form = form[[*(name for name in TASKS if name in form), *(name for name in form if name not in TASKS)]]
    if "reduction" in table:
        mean = table.groupby("row")[["reduction", "paper_reduction"]].agg(["mean", "count"])
        form["mean reduction of the error, %"] = [
            beside(figure(ours) + f" (of {n})" * (0 < n < all_n), figure(theirs)) if all_n else ""
            for ours, n, theirs, all_n in mean.loc[form.index].itertuples(index=False)]
    return form.fillna("").reset_index(names="")


def write_table(table, name, output_dir):
    """Writes a table of `make_table` as csv and Markdown."""
    write_csv(table.drop(columns="run"), os.path.join(output_dir, f"{name}.csv"))
    form = table[["row", "data_set"]].rename(columns={"data_set": "data set"})
    for epoch in ("best", "last"):
        values = zip(table["run"], table[f"{epoch}_mean"], table[f"{epoch}_std"])
        form[f"{epoch} epoch"] = [figure(*value) if run else "" for run, *value in values]  # no run: an earlier model
    form["seeds"] = table["seeds"]
    form["paper"] = table["paper"].map(figure)
    form["difference"] = ["" if pd.isna(value) else f"{value:+.2f}" for value in table["difference"]]
    metrics = [column.removesuffix("_mean") for column in table.columns[len(COLUMNS) + 1:] if column.endswith("_mean")]
    if metrics:
        form["further metrics of the best epoch"] = [", ".join(
            f"{metric} {figure(line[f'{metric}_mean'], line[f'{metric}_std'], 4)}" for metric in metrics
            if pd.notna(line[f"{metric}_mean"])) for _, line in table.iterrows()]
    with atomic_write(os.path.join(output_dir, f"{name}.md")) as file:
        if table["data_set"].nunique() > 1:
            file.write("Test error in percent after the best epoch: ours (standard deviation) / the paper's.\n\n"
                       f"{markdown(by_data_set(table))}\n")
        file.write(markdown(form))


def layers_of(depth, columns):
    """Table 3's rows of single layers for a BERT of another depth than the paper's."""
    return pd.DataFrame([("table3", f"Layer-{layer} of {depth}", "imdb", f"layers/layer_{layer}/imdb", np.nan)
                         for layer in range(depth)], columns=columns)


def write_findings(runs, paper, output_dir):
    """Writes the findings of the tables, and of Figures 2 and 3, which have no rows in `paper`. Returns the verdicts."""
    settings = read_settings(runs)
    rates = {float(own_rate(rate, settings)): rate for rate in ("2e-5", "5e-5", "1e-4", "4e-4")}  # findings know the paper's
    figures = [("figure2", findings.CONSTANT, "imdb", "", 25.0)]
    figures += [("figure2", f"training at {rates.get(float(rate), rate)}", "imdb", findings.TRAINING + folder, np.nan)
                for rate, folder in rate_folders(runs).items()]
    steps = step_folders(runs)
    figures += [("figure3", "all updates" if step == settings["steps"] else f"{step:,.0f} updates", "imdb", folder, np.nan)
                for step, folder in steps.items()]
    if len(steps) == 2:  # the ends alone do not show which number is best
        figures.append(("figure3", "fewer updates", "imdb", "steps/fewer/imdb", np.nan))
    rows, depth = own_runs(paper, settings), settings["layers"]
    top = f"Layer-{depth - 1}" + f" of {depth}" * (depth != 12)  # findings know the paper's
    if depth != 12 or settings["train_parts"]:  # earlier models' figures are no measure of a small BERT or a part of the data
        rows = rows[rows["run"] != ""]
    rows = pd.concat([rows, pd.DataFrame(figures, columns=paper.columns)])
    if depth != 12:
        rows = pd.concat([rows[rows["table"] != "table3"], layers_of(depth, paper.columns).replace(top, "Layer-11")])
    frame = read_runs(runs, [*rows["run"], *rate_folders(runs).values()])
    best, last_point = frame.query("at == 'best'"), frame.query("at == 'point'").groupby(["run", "seed"]).last()
    training = last_point["training_error"].dropna().rename(index=findings.TRAINING.__add__, level="run")
    return findings.write_findings(rows, pd.concat([best.set_index(["run", "seed"])["test_error"], training]), output_dir,
                                   lambda text: own_name(re.sub(r"Layer-11(?! of)", top, text), settings))


def main():
    paper = read_paper()
    names = sorted({*paper["table"], *FIGURES}) + ["findings"]
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
        target = os.path.join(args.output_dir, name)
        if name == "findings":
            verdicts = [verdict.partition(" (")[0] for verdict in write_findings(args.runs, paper, args.output_dir)]
            counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
            print(f"wrote {target}.csv and .md: {counts}")
        elif name in FIGURES:
            there = write_figure(name, args.runs, paper, args.output_dir)
            print(f"wrote {target}.csv and .png: {there} of our points" if there else f"{name}: none of its runs is there")
        else:
            table = make_table(args.runs, rows_of(args.runs, paper, name))
            write_table(reductions(table) if name == "table6" else table, name, args.output_dir)
            print(f"wrote {target}.csv and .md: {table['best_mean'].count()} of {(table['run'] != '').sum()} rows have a run")


if __name__ == "__main__":
    run(main)
