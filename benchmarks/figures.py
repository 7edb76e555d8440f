"""A figure of benchmark results: ours and the peers' against the size of the corpus, or against the texts' length.

    python benchmarks/figures.py benchmarks/results/records.jsonl benchmarks/results/records.png
    python benchmarks/figures.py benchmarks/results/prediction.jsonl benchmarks/results/prediction.png

Sizes are those of benchmarks/records.py's cases, lengths those of `--cases "IMDb at 64" ...` of fine_tuning.py and
prediction.py.
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks.table import read_results  # noqa: E402
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import check_output_file, whole_file  # noqa: E402

MEMORY = ("peak_rss_mib", "peak memory of all processes, MiB")
RATE = ("documents_per_second", "documents a second")
# a stage: its cases, what their number is multiplied by and called, and a panel for each figure
FIGURES = {"records": (re.compile(r"AG test corpus x (\d+)"), 7600, "documents", (("seconds", "seconds"), MEMORY)),
           "fine-tuning": (re.compile(r"IMDb at (\d+)"), 1, "tokens of a text at most", (RATE, MEMORY)),
           "prediction": (re.compile(r"IMDb at (\d+)"), 1, "tokens of a text at most", (RATE, MEMORY))}


def curves_of(cases, stage):
    """{side: [(number of the case, figures), ...]} of a stage's results, ascending. Raises UserError where there are none."""
    pattern, factor, _, _ = FIGURES[stage]
    curves = {}
    for (of, case), sides in cases.items():
        if of == stage and (found := pattern.fullmatch(case)):
            for side, line in sides.items():
                curves.setdefault(side, []).append((int(found[1]) * factor, line["figures"]))
    curves = {side: sorted(points, key=lambda point: point[0]) for side, points in curves.items() if len(points) > 1}
    if not curves:
        raise UserError(f"results: no two cases of the stage {stage} in the file that differ in size or length; measure some")
    return curves


def draw(curves, stage, target):
    """Writes the figure of a stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    _, _, numbers, panels = FIGURES[stage]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels):
        for side, points in curves.items():
            axes.plot([number for number, _ in points], [figures[name] for _, figures in points], marker="o", label=side)
        axes.set(xlabel=numbers, ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with whole_file(target) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("results", type=path, help="File of JSON lines.")
    parser.add_argument("figure", type=path, help="PNG file to write.")
    args = parser.parse_args()
    check_output_file(args.figure, "figure")
    cases = read_results([args.results])
    stage = next((stage for stage, _ in cases if stage in FIGURES), None)
    if stage is None:
        raise UserError(f"results: no line of the stages {', '.join(FIGURES)} in {args.results}; their benchmarks write some")
    draw(curves_of(cases, stage), stage, args.figure)
    print(f"wrote {args.figure}")


if __name__ == "__main__":
    run(main)
