"""Figures 2, 3 and 4 of the paper from our runs."""
import os
import pathlib
import re

import pandas as pd

from common.files import atomic_write
from read_runs import own_rate, read_runs, read_settings
from tables import write_csv

IMDB_EXAMPLES = 25_000  # for training
NUMBER = r"[0-9]{1,15}(\.[0-9]{1,15})?(e-?[0-9]{1,2})?"  # not so long that it is infinite


# Figures: each function returns its points, a frame of curve, x and error, ours with a row for each seed. paper: the paper's
# test error by table, row and data set.

def folders_by_point(runs, where):
    """{number, as it is written: folder} of the runs `where`/NUMBER/imdb in the folder `runs`; no other is an experiment's."""
    names = [folder.name for folder in pathlib.Path(runs, where).glob("*") if re.fullmatch(NUMBER, folder.name)]
    return {name: f"{where}/{name}/imdb" for name in names}


def best_errors(runs, curve, folders):
    """The best epochs' test errors of the runs of a curve; folders: {x: folder}."""
    frame = read_runs(runs, folders.values())
    points = pd.DataFrame({"curve": curve, "x": folders.keys(), "run": folders.values()})
    return points.merge(frame[frame["at"] == "best"].rename(columns={"test_error": "error"}), on="run")


def rate_folders(runs):
    """{rate: folder} of Figure 2: the paper's, as multiples of these runs' rate, and others that are there. The run at the rate
    of all experiments, the paper's 2e-5, is that of head+tail in Table 2."""
    settings = read_settings(runs)
    own = [own_rate(rate, settings) for rate in ("5e-5", "1e-4", "4e-4")]
    others = {rate: f"catastrophic_forgetting/{rate}/imdb" for rate in own}
    return {settings["rate"]: "long_text/head+tail/imdb"} | others | folders_by_point(runs, "catastrophic_forgetting")


def figure2(runs, paper):
    """Test and training error by learning rate. The paper gives no figures."""
    curves = []
    for rate, folder in sorted(rate_folders(runs).items(), key=lambda item: float(item[0])):
        frame = read_runs(runs, [folder]).rename(columns={"epoch": "x"}).query("at == 'point'")
        for column, words in (("test_error", ""), ("training_error", ", training error")):
            curves.append(frame.assign(curve=f"rate {rate}{words}", error=frame[column]).dropna(subset="error"))
    return pd.concat(curves)


def step_folders(runs):
    """{steps: folder} of Figure 3. The run after all steps, in the paper 100,000, is that of Tables 5 and 6."""
    between = {float(step): folder for step, folder in folders_by_point(runs, "steps").items()}
    return dict(sorted(({0: "none/imdb"} | between | {read_settings(runs)["steps"]: "imdb/imdb"}).items()))


def figure3(runs, paper):
    """Best test error by the steps of further pre-training. The paper's ends are Table 5's."""
    ends = [paper["table5", row, "imdb"] for row in ("w/o pretrain", "imdb")]
    return pd.concat([best_errors(runs, "ours", step_folders(runs)),
                      pd.DataFrame({"curve": "paper (Table 5)", "x": [0, 100_000], "error": ends})])


def figure4(runs, paper):
    """Best test error by the part of the training data. The paper's errors with all of it are Table 6's."""
    curves = []
    shared = float(dict(part.split("=") for part in read_settings(runs)["train_parts"].split()).get("imdb", 1))
    if shared > 1:  # examples
        shared /= IMDB_EXAMPLES
    for label, name in (("BERT-FiT", "none"), ("BERT-ITPT-FiT", "imdb")):  # the last run is that of other experiments, too
        folders = {float(share): folder for share, folder in folders_by_point(runs, f"few_shot/{name}").items()}
        folders[shared] = f"{name}/imdb"
        ends = [paper["figure4", f"{label}, 0.4%", "imdb"], paper["table6", label, "imdb"]]
        curves += [best_errors(runs, f"{label}, ours", folders),
                   pd.DataFrame({"curve": f"{label}, paper", "x": [0.004, 1], "error": ends})]
    return pd.concat(curves)


FIGURES = {  # the points, title, x axis and its scale
    "figure2": (figure2, "Figure 2: catastrophic forgetting, IMDb", "epoch", "linear"),
    "figure3": (figure3, "Figure 3: further pre-training within the task, IMDb", "steps", "linear"),
    "figure4": (figure4, "Figure 4: few examples, IMDb", "part of the training data", "log")}


def write_figure(name, runs, paper, output_dir):
    """Writes a figure as .png and its points as .csv where one of ours is there. Returns how many of ours are there."""
    points_of, title, x_label, x_scale = FIGURES[name]
    points = points_of(runs, paper.set_index(["table", "row", "data_set"])["paper"])
    order = pd.CategoricalDtype(points["curve"].unique(), ordered=True)
    points = points.astype({"curve": order, "x": float}).groupby(["curve", "x"], observed=True)["error"]
    points = points.agg(["mean", "std", "count"]).reset_index()
    is_paper = points["curve"].str.contains("paper")
    if is_paper.all():
        return 0
    seeds = points["count"].astype(str).mask(is_paper, "")
    write_csv(points.assign(x=points["x"].map("{:g}".format), count=seeds).rename(columns={"count": "seeds"}),
              os.path.join(output_dir, f"{name}.csv"))

    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot
    plot, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.set(title=title, xlabel=x_label, ylabel="error, %" if name == "figure2" else "test error, %", xscale=x_scale)
    axes.grid(alpha=0.3)
    colors = {}  # what belongs together, "rate 2e-5" and "rate 2e-5, training error", has one
    for label, curve in points.groupby("curve", observed=True):
        style = "*" if "paper" in label else "--" if "training" in label else "o-"
        axes.errorbar(curve["x"], curve["mean"], curve["std"].fillna(0), fmt=style, capsize=3, markersize=4, label=label,
                      color=colors.setdefault(label.split(", ")[0], f"C{len(colors)}"))
    axes.legend(fontsize="small")
    with atomic_write(os.path.join(output_dir, f"{name}.png"), "wb") as file:
        plot.savefig(file, format="png", dpi=150)
    pyplot.close(plot)
    return int((~is_paper).sum())
