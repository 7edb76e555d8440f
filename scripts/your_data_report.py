"""Writes the report of scripts/your_data.sh: what your texts were worth with and without further pre-training.

    python scripts/your_data_report.py --runs your_data --data_dir my_data --output_dir your_data/report

report.md has a table of both models (mean and standard deviation over the seeds), what was chosen on the development data, its
confusion matrix, the learning curves, its ten worst mistakes on the test data (the wrong labels that it was surest of), notes
from the logs and the command to predict. Beside it: confusion_matrix.csv and .png, learning_curves.png, mistakes.csv.
"""
import os
import pathlib
import sys

import numpy as np
import pandas as pd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
import tasks  # noqa: E402
from common.command_line import ArgumentParser, UserError, command, path, run  # noqa: E402
from common.files import atomic_write, copy_file, read_json, require_folder  # noqa: E402
from common.run_folder import read_metrics  # noqa: E402
from finetuning.evaluation import METRICS  # noqa: E402
from read_runs import read_results  # noqa: E402
from tables import figure, markdown  # noqa: E402

MODELS = {"base": "BERT", "own": "BERT, further pre-trained on the texts"}
WORST = 10
SHOWN = 300  # characters of a text


def statistics(results, at, metric):
    """`91.20 (0.30)` of a metric of the seeds' evaluations `at`, in percent where it is a share."""
    values = np.array([result[at][f"eval_{metric}"] for result in results]) * (100 if METRICS[metric].in_percent else 1)
    return figure(values.mean(), values.std(ddof=1) if len(values) > 1 else None)


def draw_curves(runs, results, metric, target):
    """Writes the loss of further pre-training by its steps, and of fine-tuning the losses and the metric by epochs."""
    from matplotlib.figure import Figure
    picture = Figure(figsize=(12, 4), layout="constrained")
    pretraining, loss, score = picture.subplots(1, 3)
    lines = read_metrics(runs / "pretrained/own/checkpoints", {"train": {"loss": float}}, "--runs")
    pretraining.plot([line["global_step"] for line in lines], [line["loss"] for line in lines], color="C1")
    pretraining.set(title="further pre-training", xlabel="step", ylabel="loss")
    for color, (name, of_seeds) in enumerate(results.items()):
        for seed, result in enumerate(of_seeds):
            epochs = [epoch["epoch"] for epoch in result["epochs"]]
            style = {"color": f"C{color}", "alpha": 1 if seed == 0 else 0.4, "marker": "."}
            loss.plot(epochs, [epoch.get("loss", np.nan) for epoch in result["epochs"]], "--", **style)
            loss.plot(epochs, [epoch["eval_loss"] for epoch in result["epochs"]], **style)
            score.plot(epochs, [epoch[f"eval_{metric}"] for epoch in result["epochs"]], **style,
                       label=MODELS[name] if seed == 0 else None)
    loss.set(title="fine-tuning: -- training, — development", xlabel="epoch", ylabel="loss")
    score.set(title="fine-tuning, development data", xlabel="epoch", ylabel=metric)
    score.legend(fontsize="small")
    for axes in (pretraining, loss, score):
        axes.grid(alpha=0.3)
    with atomic_write(target, "wb") as file:
        picture.savefig(file, format="png", dpi=100)


def mistakes(task, data_dir, predictions):
    """The wrong predictions on the test data as a frame of true, predicted, probability, text, the surest first."""
    path, reader = tasks.find_source(task, data_dir, "test")
    labels, texts = zip(*((label, task.text(task.clean(fields))) for _, label, fields in reader(task, path)))
    found = pd.read_csv(predictions, sep="\t", dtype=str, keep_default_na=False)
    if len(found) != len(texts):
        raise UserError(f"{predictions} has {len(found)} rows, {path} has {len(texts)}; it was changed since "
                        "the prediction: remove the .done files in the folder predictions, and run your_data.sh again")
    frame = pd.DataFrame({"true": labels, "predicted": found["label"],
                          "probability": found[list(task.labels)].astype(float).max(axis=1),
                          "text": [" ".join(" | ".join([text] if isinstance(text, str) else text).split()) for text in texts]})
    tested = frame["true"].isin(task.labels)  # others are left out of the evaluation, too: --unseen_labels ignore
    return frame[tested & (frame["true"] != frame["predicted"])].sort_values("probability", ascending=False, kind="stable")


def notes(runs):
    """The notes and warnings in the logs, each once; not that pre-training is evaluated on its own records, as it always is."""
    lines = (line.strip() for log in sorted(runs.rglob("*.log")) for line in log.read_text(errors="replace").splitlines())
    return list(dict.fromkeys(line for line in lines if line.lower().startswith(("note:", "warning:"))
                              and "--eval_file" not in line and "absl::" not in line))


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--runs", type=path, default="your_data", help="Folder of the runs, OUT of your_data.sh. Default: "
                        "your_data.")
    parser.add_argument("--data_dir", type=path, required=True, help="Folder of the tables, DATA of your_data.sh.")
    parser.add_argument("--seed", type=int, default=42, help="The seed whose model is shown and predicted with, the first of "
                        "SEEDS of your_data.sh. Default: 42.")
    parser.add_argument("--output_dir", type=path, default="your_data/report", help="Folder to write into. Default: "
                        "your_data/report.")
    args = parser.parse_args()
    runs, output = pathlib.Path(require_folder(args.runs, "--runs")), pathlib.Path(args.output_dir)
    results = {name: read_results(runs, f"fine_tuned/{name}") for name in MODELS}
    for name, of_seeds in results.items():
        if not of_seeds or "test" not in of_seeds[0]:
            raise UserError(f"--runs: {runs}/fine_tuned/{name} has no finished run with a development set; run your_data.sh "
                            "first")
    folders = {name: runs / f"fine_tuned/{name}/seed_{args.seed}" for name in MODELS}
    metric = read_json(folders["own"] / "run.json", {"flags": {"best_metric": str}})["flags"]["best_metric"]
    sign = 1 if METRICS[metric].greater_is_better else -1
    chosen = max(MODELS, key=lambda name: sign * np.mean([result["best"][f"eval_{metric}"] for result in results[name]]))
    task = tasks.task_from_dict(read_json(folders[chosen] / "best/classifier.json", {"task": dict})["task"])

    output.mkdir(parents=True, exist_ok=True)
    columns = [("best", metric), *(("test", name) for name in dict.fromkeys([metric, "accuracy", "macro_f1"]))]
    table = pd.DataFrame([[MODELS[name], *(statistics(of_seeds, *column) for column in columns), str(len(of_seeds))]
                          for name, of_seeds in results.items()],
                         columns=["", *(f"{'development' if at == 'best' else at} {name}" for at, name in columns), "seeds"])
    wrong = mistakes(task, args.data_dir, runs / "predictions" / chosen / "predictions.tsv")
    with atomic_write(output / "mistakes.csv") as file:
        wrong.to_csv(file, index=False, lineterminator="\n")
    for kind in ("csv", "png"):
        copy_file(folders[chosen] / f"confusion_matrix.{kind}", output / f"confusion_matrix.{kind}")
    draw_curves(runs, results, metric, output / "learning_curves.png")
    worst = wrong.head(WORST).assign(probability=wrong["probability"].head(WORST).map("{:.3f}".format),
                                     text=wrong["text"].str.slice(0, SHOWN))
    worst = worst.map(lambda cell: cell.replace("|", "\\|"))
    predict = command("run_classifier_discriminative.py", do_predict=True, predict_file="FILE",
                      init_checkpoint=str(folders[chosen] / "best"), output_dir=str(output.parent / "new_predictions"))
    said = notes(runs)
    text = (f"# Your data\n\n{markdown(table)}\nIn percent, mean (standard deviation) over the seeds. The development data "
            f"choose: **{MODELS[chosen]}**. What follows is of its seed {args.seed}.\n\n"
            "![confusion matrix of the test data](confusion_matrix.png)\n\n![learning curves](learning_curves.png)\n\n"
            f"## The {len(worst)} worst of {len(wrong)} mistakes\n\n"
            f"The wrong labels that the model was surest of; `mistakes.csv` has all.\n\n{markdown(worst)}\n"
            f"## To predict\n\n```\n{predict}\n```\n\nFILE: a text a line, or a table as yours.\n"
            + ("\n## Notes from the logs\n\n" + "".join(f"- {line}\n" for line in said) if said else ""))
    with atomic_write(output / "report.md") as file:
        file.write(text)
    print(f"{table.to_string(index=False)}\nchosen on the development data: {MODELS[chosen]}", *said, f"to predict: {predict}",
          f"wrote {output}/report.md, learning_curves.png, confusion_matrix.csv and .png, mistakes.csv", sep="\n")


if __name__ == "__main__":
    run(main)
