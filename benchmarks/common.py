"""What the benchmarks share: contenders (ours, a peer) run in turn as processes, their time and memory, JSON lines of results.

    sides = {"ours": [sys.executable, "create_pretraining_data.py", ...], "google": [args.peer_python, "-m", ...]}
    lines = compare("records", "x 4", sides, rounds=3, packages={"ours": ["numpy"], "google": ["tensorflow"]})
    append(args.results, lines)

A command may print, as its last line, a JSON object of figures that it took itself, such as {"documents_per_second": 41200.0}
after a warm-up: they are kept beside "seconds" and "peak_rss_mib", which are those of the whole process. A line of results is
one contender in one case: the median of each figure, and all rounds. Names of figures end in _per_second where more is better.
"""
import datetime
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, number, path  # noqa: E402
from common.files import check_output_file, naming  # noqa: E402

SAMPLED_EVERY = 0.02  # seconds between two looks at the memory of a tree of processes
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what decides about the speed of matrix products


# The machine

def first_match(file, pattern):
    """The first group of `pattern` in a text file, None where there is none."""
    if not os.path.exists(file):
        return None
    with open(file, encoding="utf-8") as lines:
        found = re.search(pattern, lines.read(), re.MULTILINE)
    return found and found[1]


def output_of(command):
    """What a command prints, stripped; empty where it cannot be run or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor():
    """The processor's name, as the system gives it."""
    return first_match("/proc/cpuinfo", r"^model name\s*: (.*)") or platform.processor() or platform.machine()


def machine():
    """What the figures are of: {"machine": cores, processor and GPUs, "cpu_features": those of CPU_FEATURES, "load_average":
    processes that wanted a core in the last minute, "commit": of this project, with + where files differ from it, "date"}."""
    flags = (first_match("/proc/cpuinfo", r"^flags\s*: (.*)") or "").split()
    gpus = output_of(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    changed = output_of(["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py"])
    return {"machine": ", ".join([f"{os.cpu_count()} cores", processor(), *gpus]),
            "cpu_features": [name for name in CPU_FEATURES if name in flags], "load_average": round(os.getloadavg()[0], 1),
            "commit": output_of(["git", "rev-parse", "--short", "HEAD"]) + ("+" if changed else ""),
            "date": datetime.date.today().isoformat()}


def interpreter(command):
    """The Python of a command, which may begin with another program (taskset, nice)."""
    return next((word for word in command if "python" in os.path.basename(word)), command[0])


def versions(python, packages):
    """{"python": its version, package: its version} of the interpreter `python`; a package it lacks is None."""
    program = ("import importlib.metadata as m, json, platform, sys\nfound = {'python': platform.python_version()}\n"
               "for name in sys.argv[1:]:\n  try: found[name] = m.version(name)\n"
               "  except m.PackageNotFoundError: found[name] = None\nprint(json.dumps(found))")
    return json.loads(output_of([python, "-c", program, *packages]) or "{}")


# Measuring

def tree(pid):
    """The process ids of a process and of its descendants."""
    found = [pid]
    for parent in found:  # grows while it is gone through
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as file:
                    found += map(int, file.read().split())
        except OSError:  # it has ended, or there is no /proc
            continue
    return found


def resident(pid):
    """The resident memory of a process in MiB, 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


class PeakMemory(threading.Thread):
    """Looks at the memory of a tree of processes until `stop`; `mib` is the largest sum of resident memory seen."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.mib, self.done = pid, 0.0, threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(SAMPLED_EVERY):
            self.mib = max(self.mib, sum(map(resident, tree(self.pid))))

    def stop(self):
        self.done.set()
        self.join()


def figures_in(output):
    """The figures that a command printed as its last line, a dict of numbers; empty where that line is no JSON object."""
    last = output.strip().rpartition("\n")[2]
    try:
        figures = json.loads(last)
    except ValueError:
        return {}
    return figures if isinstance(figures, dict) else {}


def timed(process):
    """Waits for a process (Popen) that was just started. Returns {"seconds": of wall time, "peak_rss_mib": of the tree of its
    processes}; the process has its returncode then."""
    started, memory = time.monotonic(), PeakMemory(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    memory.stop()
    # The system's own account misses no peak, but of many processes it knows the largest one only, and it begins with the peak
    # of this process, from which the other was forked.
    largest, own = usage.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mib = largest / (2**20 if sys.platform == "darwin" else 1024) if largest > own else 0.0
    return {"seconds": round(seconds, 3), "peak_rss_mib": round(max(memory.mib, mib), 1)}


def measure(command, environment=None):
    """Runs a command in the project's root. Returns its figures: those of `timed`, and those it printed. Raises UserError with
    the end of its output where it fails."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True,
                                   env={**os.environ, **(environment or {})})
        figures = timed(process)
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise UserError(f"{shlex.join(command)} ended with status {process.returncode}; nothing was measured: {printed[-500:]}")
    return figures | figures_in(printed)


def without_folders(command):
    """A command as text for results: paths are relative to the project, or bare names; no folder of this machine is told."""
    return re.sub(r"(?<![\w.])/(?:[^/\s=,'\"]+/)+", "", shlex.join(command).replace(ROOT + os.sep, ""))


def compare(stage, case, sides, rounds, packages, environment=None):
    """Runs the commands of `sides`, {name: command}, in turn, `rounds` times, so that what else the machine does meets all of
    them. packages: {name: those whose versions count}. Returns a line of results a side, a dict."""
    taken = {name: [] for name in sides}
    for round_number in range(rounds):
        for name, command in sides.items():
            taken[name].append(measure(command, environment))
            print(f"{stage}, {case}, round {round_number + 1}: {name} "
                  + ", ".join(f"{key} {value}" for key, value in taken[name][-1].items()), flush=True)
    where = machine()
    return [{"stage": stage, "case": case, "side": name,
             "figures": {key: statistics.median(one[key] for one in taken[name]) for key in taken[name][0]},
             "rounds": taken[name], "command": without_folders(command),
             "versions": versions(interpreter(command), packages.get(name, ())), **where} for name, command in sides.items()]


# Ours

def train_epoch(model, dataset, labels, world, folder, batch, rate, warmup, eval_batch, precision, log_steps):
    """An epoch of ours as the scripts train, without checkpoints and evaluation: its seconds. labels: the classes' names."""
    from finetuning.training import Execution, Recipe, TaskRun, train
    recipe = Recipe(seed=0, train_batch_size=batch, num_train_epochs=1, learning_rate=rate, layer_rates=None,
                    embeddings_rate=None, schedule="slanted_triangular", warmup_proportion=warmup, weight_decay=0.01,
                    clip_grad="tensor", bias_correction=False, best_metric="accuracy", patience=None, eval_epochs=None,
                    task_sampling="by_size", task_sampling_alpha=1.0)
    execution = Execution(gradient_accumulation_steps=1, eval_batch_size=eval_batch, precision=precision,
                          save_checkpoints_steps=10**9, save_models="none", log_steps=log_steps, report_to=[], eval_every=None,
                          allow_divergence=False)
    task = types.SimpleNamespace(name="benchmark", labels=labels)
    runs = [TaskRun(task, "", folder, dataset, None, "", None, None, None, None)]
    return train(model, runs, recipe, execution, world, folder)["train_seconds"]


# Results

def append(results, lines):
    """Appends dicts to a file of JSON lines."""
    os.makedirs(os.path.dirname(os.path.abspath(results)), exist_ok=True)
    with naming(results), open(results, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def benchmark_parser(description, stage):
    """The parser of a benchmark's flags; `description` is its docstring, which says how to make the peer's environment."""
    parser = ArgumentParser(description)
    parser.add_argument("--peer_python", type=path, help="Python of the environment in which the peers are installed; default: "
                        "none, ours alone is measured.")
    parser.add_argument("--rounds", type=number(int, minimum=1), default=3, help="How often each contender runs, in turn; the "
                        "median counts; default: 3.")
    parser.add_argument("--results", type=path, default=os.path.join(ROOT, "benchmarks", "results", f"{stage}.jsonl"),
                        help=f"File of JSON lines to append to; default: benchmarks/results/{stage}.jsonl.")
    return parser


def parse(parser):
    """The flags. Raises UserError where the results cannot be written or there is no such Python."""
    args = parser.parse_args()
    check_output_file(args.results, "--results")
    if args.peer_python and not os.access(args.peer_python, os.X_OK):
        raise UserError(f"--peer_python: {args.peer_python} is no program; --help says how to make that environment")
    return args
