"""A figure of benchmarks/records.py's results: time and memory against the size of the corpus, ours and the peer's.

    python benchmarks/figures.py benchmarks/results/records.jsonl benchmarks/results/records.png
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks.table import read_results  # noqa: E402
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import check_output_file, whole_file  # noqa: E402

CASE = re.compile(r"AG test corpus x (\d+)")
DOCUMENTS = 7600  # of one copy
PANELS = (("seconds", "seconds"), ("peak_rss_mib", "peak memory of all processes, MiB"))


def curves_of(cases):
    """{side: [(documents, figures), ...]} of records.py's results, sizes ascending. Raises UserError where there are none."""
    curves = {}
    for (_, case), sides in cases.items():
        if found := CASE.fullmatch(case):
            for side, line in sides.items():
                curves.setdefault(side, []).append((int(found[1]) * DOCUMENTS, line["figures"]))
    if not curves:
        raise UserError("results: no line of benchmarks/records.py in the file; run that first")
    return {side: sorted(points, key=lambda point: point[0]) for side, points in curves.items() if len(points) > 1}


def draw(curves, target):
    """Writes the figure, a panel for each of PANELS."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS):
        for side, points in curves.items():
            axes.plot([documents for documents, _ in points], [figures[name] for _, figures in points], marker="o", label=side)
        axes.set(xlabel="documents", ylabel=label, xlim=(0, None), ylim=(0, None))
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
    draw(curves_of(read_results([args.results])), args.figure)
    print(f"wrote {args.figure}")


if __name__ == "__main__":
    run(main)
