"""A Markdown table of benchmark results, ours beside each peer's, from the JSON lines of benchmarks/common.py.

    python benchmarks/table.py benchmarks/results/records.jsonl benchmarks/results/tokens.jsonl

Of each contender in each case the last line counts, and of the peers those of the same machine, day and commit as ours. A
row's figure is the first of its line that ends in _per_second, else the seconds; the ratio says how many times as fast ours is.
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import decode_lines, parse_json, require_file  # noqa: E402

HEAD = ("| stage | case | ours | peer | times as fast | ours MiB | peer MiB | machine, date, commit |\n"
        "|---|---|---|---|---|---|---|---|")
ONE_RUN = ("machine", "date", "commit")  # a ratio is of figures that have these in common
OURS = "ours"  # the contenders of this project are called so, or begin so: "ours, bf16"


def read_results(files):
    """{(stage, case): {side: its last line}} of files of JSON lines; lines without a side, as measure.py writes, are left out.
    Raises UserError, with file and line, for what is not JSON."""
    cases = {}
    for file in files:
        for number, text in decode_lines(require_file(file, "results")):
            line = parse_json(text, f"{file}:{number}")
            if "side" in line:
                cases.setdefault((line["stage"], line["case"]), {})[line["side"]] = line
    return cases


def figure(line):
    """(the figure that counts in a line, its name)."""
    name = next((name for name in line["figures"] if name.endswith("_per_second")), "seconds")
    return line["figures"][name], name


def shown(line):
    """The figure with its unit; floats with three digits, larger numbers whole."""
    value, name = figure(line)
    unit = "s" if name == "seconds" else name.removesuffix("_per_second").replace("_", " ") + "/s"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def rows(cases):
    """The rows of the table, strings: in each case each of ours beside each peer, or alone where there is none."""
    for (stage, case), sides in cases.items():
        ours = [name for name in sides if name.startswith(OURS)]
        for mine in ours:
            line = sides[mine]
            peers = [name for name in sides if name not in ours and all(sides[name][key] == line[key] for key in ONE_RUN)]
            for peer in peers or [None]:
                other = sides.get(peer)
                ratio = "" if other is None else figure(line)[0] / figure(other)[0]
                if other is not None and figure(line)[1] == "seconds":
                    ratio = 1 / ratio
                yield "| " + " | ".join([
                    stage, case, f"{shown(line)}{mine.removeprefix(OURS)}", f"{peer}: {shown(other)}" if other else "",
                    f"{ratio:.2f}" if other else "", f"{line['figures']['peak_rss_mib']:,.0f}",
                    f"{other['figures']['peak_rss_mib']:,.0f}" if other else "",
                    f"{line['machine']}, {line['date']}, {line['commit']}"]) + " |"


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("results", nargs="+", type=path, help="Files of JSON lines.")
    cases = read_results(parser.parse_args().results)
    if not cases:
        raise UserError("results: no line of a contender in these files; benchmarks/records.py and its like write some")
    print(HEAD, *rows(cases), sep="\n")


if __name__ == "__main__":
    run(main)
