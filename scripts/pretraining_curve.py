"""Writes how a pre-training went, or several that go on from each other: curve.csv and curve.png.

    python scripts/pretraining_curve.py --runs pocket/L4_H128/128 pocket/L4_H128/256 --output_dir pocket/L4_H128

A row of curve.csv is an evaluation of run_pretraining.py (--eval_checkpoints: one at each checkpoint): the step, counted over
the runs, the length of the texts, the metrics, and the mean of the training loss of the masked LM in the log's lines since the
row before, empty where there is none.
"""
import os
import sys

import pandas as pd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import atomic_write, check_output_folder, read_json  # noqa: E402
from common.run_folder import read_metrics  # noqa: E402
from tables import write_csv  # noqa: E402

METRICS = {"train": {"masked_lm_loss": float}, "eval": {"masked_lm_loss": float, "masked_lm_accuracy": float}}


def curve_of(folders):
    """The evaluations of the runs in `folders`, one going on from the other, as a frame."""
    rows, before = [], 0
    for folder in folders:
        lines = read_metrics(folder, METRICS, "--runs")
        flags = read_json(os.path.join(folder, "run.json"), {"flags": {"max_seq_length": int, "num_train_steps": int}})["flags"]
        losses = []
        for line in lines:
            if line["kind"] == "train":
                losses.append(line["masked_lm_loss"])
            else:
                values = {name: value for name, value in line.items() if name not in ("kind", "global_step")}
                rows.append({"step": before + line["global_step"], "max_seq_length": flags["max_seq_length"]} | values
                            | {"training_masked_lm_loss": sum(losses) / len(losses) if losses else float("nan")})
                losses = []
        before += flags["num_train_steps"]
    if not rows:
        raise UserError(f"--runs: no evaluation in {' '.join(folders)}; run_pretraining.py makes some with --do_eval")
    return pd.DataFrame(rows).drop_duplicates("step", keep="last")


def draw(curve, target):
    """Writes the figure: the masked LM's loss, in training too, and its accuracy; a line for each length of texts."""
    from matplotlib.figure import Figure
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = picture.subplots(1, 2)
    for length, part in curve.groupby("max_seq_length"):
        loss.plot(part["step"], part["masked_lm_loss"], marker=".", label=f"held-out texts, {length} tokens")
        trained = part.dropna(subset="training_masked_lm_loss")
        loss.plot(trained["step"], trained["training_masked_lm_loss"], "--", label=f"training texts, {length} tokens")
        accuracy.plot(part["step"], 100 * part["masked_lm_accuracy"], marker=".", label=f"held-out texts, {length} tokens")
    loss.set(xlabel="step", ylabel="loss of the masked LM")
    accuracy.set(xlabel="step", ylabel="accuracy of the masked LM, %")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with atomic_write(target, "wb") as file:
        picture.savefig(file, format="png", dpi=150)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--runs", nargs="+", type=path, required=True, metavar="FOLDER",
                        help="Folders of run_pretraining.py, its --output_dir, in the order of the runs.")
    parser.add_argument("--output_dir", type=path, required=True, help="Folder for curve.csv and curve.png.")
    args = parser.parse_args()
    check_output_folder(args.output_dir, "--output_dir")
    curve = curve_of(args.runs)
    write_csv(curve, os.path.join(args.output_dir, "curve.csv"))
    draw(curve, os.path.join(args.output_dir, "curve.png"))
    end = curve.iloc[-1]
    print(f"wrote {args.output_dir}/curve.csv and .png; after {int(end['step'])} steps, on held-out texts: masked LM accuracy "
          f"{end['masked_lm_accuracy']:.1%}, loss {end['masked_lm_loss']:.3f}")


if __name__ == "__main__":
    run(main)
