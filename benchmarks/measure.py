"""Runs a command and appends its wall time and peak memory, the machine and the date to a file of JSON lines.

    python benchmarks/measure.py --name ag --results benchmarks/results/real_run.jsonl -- python run_classifier_...
"""
import os
import shlex
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks.common import append, machine, timed, without_folders  # noqa: E402
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import check_output_file  # noqa: E402


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--name", required=True, help="Name of what is measured.")
    parser.add_argument("--results", type=path, required=True, help="File of JSON lines to append to.")
    parser.add_argument("command", nargs="+", help="The command, after --.")
    args = parser.parse_args()
    check_output_file(args.results, "--results")
    process = subprocess.Popen(args.command)
    figures = timed(process)
    if process.returncode:
        raise UserError(f"{shlex.join(args.command)} ended with status {process.returncode}; nothing was measured")
    append(args.results, [{"name": args.name, **figures, **machine(), "command": without_folders(args.command)}])
    print(f"{args.name}: {figures['seconds']} s, peak {figures['peak_rss_mib']} MiB")


if __name__ == "__main__":
    run(main)
