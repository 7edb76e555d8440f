"""Runs a command and appends its wall time and peak memory, with machine and date, to a file of JSON lines.

    python benchmarks/measure.py --name ag --results benchmarks/results/real_run.jsonl -- python run_classifier_...
"""
import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time


def processor():
    """The processor's name, as the system gives it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="What is measured.")
    parser.add_argument("--results", required=True, help="The file of JSON lines to append to.")
    parser.add_argument("command", nargs="+", help="The command, after --.")
    args = parser.parse_args()
    started = time.monotonic()
    status = subprocess.run(args.command).returncode
    seconds = time.monotonic() - started
    if status:
        sys.exit(status)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    record = {"name": args.name, "seconds": round(seconds, 1), "peak_rss_mib": round(peak),
              "machine": f"{os.cpu_count()} cores, {processor()}", "date": datetime.date.today().isoformat(),
              "command": " ".join(args.command)}
    with open(args.results, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{args.name}: {record['seconds']} s, peak {record['peak_rss_mib']} MiB")


if __name__ == "__main__":
    main()
