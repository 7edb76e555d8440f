"""Runs a command and appends its wall time and peak memory, the machine and the date to a file of JSON lines.

    python benchmarks/measure.py --name ag --results benchmarks/results/real_run.jsonl -- python run_classifier_...
"""
import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import check_output_file, naming  # noqa: E402


def processor():
    """The processor's name, as the system gives it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--name", required=True, help="Name of what is measured.")
    parser.add_argument("--results", type=path, required=True, help="File of JSON lines to append to.")
    parser.add_argument("command", nargs="+", help="The command, after --.")
    args = parser.parse_args()
    check_output_file(args.results, "--results")
    started = time.monotonic()
    status = subprocess.run(args.command).returncode
    seconds = time.monotonic() - started
    if status:
        raise UserError(f"{shlex.join(args.command)} ended with status {status}; nothing was measured")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    record = {"name": args.name, "seconds": round(seconds, 1), "peak_rss_mib": round(peak),
              "machine": f"{os.cpu_count()} cores, {processor()}", "date": datetime.date.today().isoformat(),
              "command": shlex.join(args.command)}
    os.makedirs(os.path.dirname(os.path.abspath(args.results)), exist_ok=True)
    with naming(args.results), open(args.results, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{args.name}: {record['seconds']} s, peak {record['peak_rss_mib']} MiB")


if __name__ == "__main__":
    run(main)
