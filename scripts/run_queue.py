"""Runs a plan of jobs, as many at a time as there are GPUs, each as soon as what it needs is done.

    DECLARE=1 bash scripts/exp1_layers.sh | python scripts/run_queue.py --out experiments

The experiments' scripts write the plan and start this (scripts/experiment.sh). A line of it is a job: its name, its kind, the
names of jobs that it needs, a file that can be made again (or -), its command; with tabs between. Kinds: `gpu` takes one of
the GPUs (or --per_run of them), which its CUDA_VISIBLE_DEVICES names; `cpu` runs beside those and sees none; so does `source`,
which takes in a BERT from elsewhere, and never another one in its place; `last` comes after all others, every time.

OUT/NAME.log is a job's output and, while the job runs, its lock: two queues that share OUT do no job at once. OUT/NAME.done
says that it is done, by which command, after what and in how many seconds (of the longest try that ended; what a stopped one
took is not known); OUT/NAME.failed that it failed. What most others
wait for comes first. A failed job stops those that need it and no others. Ctrl-C and SIGTERM are passed on, so that trainings
save; run the same again to go on.
"""
import collections
import dataclasses
import fcntl
import os
import re
import shlex
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, StopSignals, UserError, add_boolean, number, path, run  # noqa: E402
from common.files import atomic_write, digest, read_json, remove, write_json  # noqa: E402
from common.names import WEIGHT_FILES  # noqa: E402

KINDS = ("source", "cpu", "gpu", "last")
RECORD = {"command": str, "seconds": float, "identity": str}
POLL = 0.1  # seconds between two looks at the running jobs


# The plan

@dataclasses.dataclass(eq=False)
class Job:
    """A line of the plan. needs: the Jobs that it names; dependants: those that need it, directly or not, in their order."""
    name: str
    kind: str
    needs: list
    product: str
    command: list
    path: str  # OUT/NAME
    dependants: list = dataclasses.field(default_factory=list)
    state: str = "waiting"  # or running, done, failed, or left: out of this queue's hands, as what it needs has failed

    def __post_init__(self):
        # so a job is to be done again when what it is made from was made in another way
        self.identity = digest(shlex.join(self.command), *(need.identity for need in self.needs))
        self.script = self.command[1 if self.command[0] == "python" else 0]
        self.task = re.findall(r" --task_name ([\w ]+)", shlex.join(self.command))[:1]

    def record_of_any_command(self):
        """What NAME.done says, None where it is not there."""
        try:
            return read_json(f"{self.path}.done", RECORD)
        except (FileNotFoundError, UserError):  # UserError: an earlier version's, whose folder is looked at again
            return None

    def record(self):
        """The same; None, too, where it was not this command after these others. Raises UserError where a BERT is taken in that
        is another one now."""
        record = self.record_of_any_command()
        if record is None:
            return None
        if record["identity"] != self.identity and self.kind == "source" and record["command"] != shlex.join(self.command):
            raise UserError(f"{self.path} is of another BERT, made by `{record['command']}`; name another OUT")
        if self.kind == "source":
            taken = os.path.getmtime(f"{self.path}.done")
            files = [file for word in filter(os.path.isabs, self.command)  # a file, a folder, or a checkpoint's prefix
                     for file in (word, f"{word}.index", *(os.path.join(word, name) for name in WEIGHT_FILES))]
            if newer := [file for file in files if os.path.isfile(file) and os.path.getmtime(file) > taken]:
                raise UserError(f"{newer[0]} is newer than what {self.path} was made from; name another OUT, or, if it holds "
                                f"the same as then: touch {self.path}.done")
        return record if record["identity"] == self.identity else None

    @property
    def users(self):
        """The jobs that need it directly."""
        return [other for other in self.dependants if self in other.needs]

    def has_product(self):
        return self.product == "-" or os.path.exists(self.product)


def read_plan(lines, out):
    """The jobs {name: Job} in their order. Each comes after what it needs; the same line again is the same job."""
    jobs, texts = {}, {}
    for text in filter(None, (line.rstrip("\n") for line in lines)):
        fields = text.split("\t")
        if len(fields) != 5 or fields[1] not in KINDS or not fields[4].strip():
            raise UserError(f"the plan's line '{text}' has not the form name, kind, needs, product, command")
        name, kind, needs, product, command = fields
        if texts.setdefault(name, text) != text:
            raise UserError(f"{name} is declared twice, as `{texts[name]}` and as `{text}`; give one of them another name")
        if name in jobs:
            continue
        for need in needs.split():
            if need not in jobs:
                raise UserError(f"{name} needs {need}, which is not declared before it")
        found = [jobs[need] for need in dict.fromkeys(needs.split())]
        job = jobs[name] = Job(name, kind, found, product, shlex.split(command), os.path.join(out, name))
        before, reached = list(found), set()
        while before:  # all that it needs, directly or not
            if (need := before.pop()).name not in reached:
                reached.add(need.name)
                need.dependants.append(job)
                before += need.needs
    return jobs


def to_do(jobs):
    """Those jobs that are not done, and those whose product is gone although one of the first kind needs it."""
    found = {}
    for job in reversed(jobs.values()):
        wanted = not job.has_product() and any(other.name in found for other in job.users)
        if job.kind == "last" or wanted or not job.record():
            found[job.name] = job
    return dict(reversed(found.items()))


def print_commands(jobs, keep_products):
    """Prints the commands in the order of the plan, as the shell runs them; a product goes after its last use."""
    print("set -e")
    for job in jobs.values():
        if job.command[0] != "python":  # the scripts make their folders themselves
            print(shlex.join(["mkdir", "-p", os.path.dirname(job.path)]))
        print(shlex.join(job.command))
        for need in job.needs:
            if need.product != "-" and need.users[-1] is job and not keep_products:
                print(shlex.join(["rm", "-f", need.product]))


# Slots and time

def visible_gpus(given):
    """The names of the GPUs to use: those given, else those of CUDA_VISIBLE_DEVICES, else all of this machine."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES") if given is None else given
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return [str(index) for index in range(len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)))]


def make_slots(args):
    """{kind: its slots}, a slot being the CUDA_VISIBLE_DEVICES of a job (None: as it is). Without GPUs all share a list."""
    gpus, size = visible_gpus(args.gpus), args.per_run
    if not gpus:
        return dict.fromkeys(KINDS, [None if args.gpus is None else ""] * args.jobs)
    if len(gpus) < size:
        raise UserError(f"a run on {size} GPUs (PER_RUN) needs more than {len(gpus)}: {','.join(gpus)}")
    groups = [",".join(gpus[first:first + size]) for first in range(0, len(gpus) - size + 1, size)]
    beside = [""] * args.cpu_jobs  # else TensorFlow would take the memory of a GPU that trains
    return {kind: groups if kind == "gpu" else beside for kind in KINDS}


def hours_left(jobs, slots):
    """(hours until all are done, as long as done ones of the same script and task took; scripts of which none is done)."""
    known, seconds, unknown = collections.defaultdict(list), collections.Counter(), set()
    for job in jobs.values():
        if job.kind != "last" and (record := job.record()):
            for key in {(job.script, *job.task), job.script}:
                known[key].append(record["seconds"])
    for job in to_do(jobs).values():
        measured = known.get((job.script, *job.task)) or known.get(job.script)
        if measured:
            pool = slots[job.kind]
            seconds[id(pool)] += statistics.median(measured) / len(pool)
        elif job.kind != "last":
            unknown.add(job.script)
    return max(seconds.values(), default=0) / 3600, sorted(unknown)


def in_words(hours, unknown):
    time_left = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{time_left} left" + (f" and what is not yet known: none of {', '.join(unknown)} is done" if unknown else "")


def lock(path, how=fcntl.LOCK_EX):
    """A descriptor that holds the lock of the file `path`, or None where another process does, see `common.files.locked`."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        pass
    return descriptor


def print_status(jobs, slots):
    """Prints how many jobs are done, running, waiting and failed, which, and the time that is left. Changes nothing."""
    found = collections.defaultdict(list)
    left = to_do(jobs)
    for job in jobs.values():
        state = "waiting" if job.name in left else "done"
        if job.kind == "last":
            continue
        if state == "waiting" and os.path.exists(f"{job.path}.log"):
            descriptor = lock(f"{job.path}.log", fcntl.LOCK_SH)
            if descriptor is None:
                state = "running"
            else:
                os.close(descriptor)
        if state == "waiting" and os.path.exists(f"{job.path}.failed"):
            state = "failed"
        found[state].append(job)
    print(", ".join(f"{len(found[state])} {state}" for state in ("done", "running", "waiting", "failed")))
    for state in ("running", "failed"):
        for job in found[state]:
            print(f"{state}: {job.name} ({job.path}.log)")
    print(in_words(*hours_left(jobs, slots)))


# The queue

class Queue:
    """jobs: {name: Job}; only: those of them that this queue is to do; slots: see `make_slots`."""

    def __init__(self, jobs, only, slots, python, keep_products):
        self.jobs, self.slots, self.python, self.keep_products = jobs, slots, python, keep_products
        for job in jobs.values():
            job.state = "waiting" if job.name in only else "done"
        # what most others wait for first, and among equals the order of the plan
        self.order = sorted(only.values(), key=lambda job: -len(job.dependants))
        self.running = {}  # Job -> (process, (pool, number of its slot), start, descriptors of its locks)
        self.elsewhere = collections.Counter()  # how often another queue had a job's lock
        self.line, self.estimate = "", None

    def run(self):
        """Does the jobs. Returns the exit status."""
        with StopSignals() as signals:
            try:
                while not signals.received and (self.running or any(job.state == "waiting" for job in self.order)):
                    self.start_ready()
                    self.draw()
                    time.sleep(POLL)
                    self.end_finished(stopped=bool(signals.received))
            finally:  # stopped, or the disk is full
                self.say(f"stopping: {len(self.running)} running jobs save what they have" if self.running else "")
                for process, *_ in self.running.values():
                    process.terminate()
                while self.running:
                    time.sleep(POLL)
                    self.end_finished(stopped=True)
            if signals.received:
                sys.exit(128 + signals.received)
        self.remove_products()
        failed, left = ([job.name for job in self.order if job.state == state] for state in ("failed", "left"))
        if failed:
            print(f"{len(failed)} of {len(self.jobs)} jobs failed: {', '.join(failed)}" + (
                f"; not started, as they need these: {len(left)}" if left else "")
                + "; mend what their logs say and run the same again", file=sys.stderr)
        return 1 if failed else 0

    def start_ready(self):
        """Starts what can be; what needs a failed job is left."""
        for job in self.order:
            if job.state != "waiting":
                continue
            if any(need.state in ("failed", "left") for need in job.needs):
                job.state = "left"
            if any(need.state != "done" for need in job.needs):
                continue
            if job.kind == "last" and any(other.state in ("waiting", "running") for other in self.order
                                          if other.kind != "last"):
                continue
            used = [slot for _, slot, *_ in self.running.values()]
            pool = self.slots[job.kind]
            free = [slot for slot in ((id(pool), index) for index in range(len(pool))) if slot not in used]
            if free:
                self.start(job, free[0])

    def start(self, job, slot):
        """Starts a job, unless another queue is at it, or has done it, or has removed what it needs."""
        os.makedirs(os.path.dirname(job.path), exist_ok=True)
        locks = [lock(f"{job.path}.log")]
        if locks[0] is not None:
            # nobody removes the products that it reads
            locks += [lock(f"{need.path}.log", fcntl.LOCK_SH) for need in job.needs if need.product != "-"]
        if None in locks:
            self.elsewhere[job] += 1
            if self.elsewhere[job] == 2:  # --status has it for a moment
                self.say(f"{job.name}: under way in another script, waiting for it")
        elif job.name not in to_do(self.jobs):
            job.state = "done"
        elif gone := [need for need in job.needs if not need.has_product()]:
            for need in gone:
                need.state = "waiting"
                self.order += [need] if need not in self.order else []
        else:
            gpus = self.slots[job.kind][slot[1]]
            self.say(job.name + (f" on GPU {gpus}" if gpus else ""))
            environment = os.environ if gpus is None else os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
            command = [self.python if word == "python" else word for word in job.command[:1]] + job.command[1:]
            output = None if job.kind == "last" else locks[0]
            process = subprocess.Popen(  # in a group of its own, which the terminal's Ctrl-C does not reach: once is enough
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, process_group=0,
                pass_fds=locks)  # a job that outlives this queue keeps its locks
            job.state = "running"
            self.running[job] = process, slot, time.monotonic(), locks
            return
        for descriptor in filter(None, locks):
            os.close(descriptor)

    def end_finished(self, stopped=False):
        """Sees to the jobs that have ended. stopped: because they were told to."""
        for job, (process, _, start, locks) in list(self.running.items()):
            if process.poll() is None:
                continue
            job.state = "done" if process.returncode == 0 else "waiting" if stopped else "failed"
            if job.kind != "last":
                if job.state == "done":
                    # with another --seed or speed flag, a run that is there is only looked at, in seconds
                    before = (job.record_of_any_command() or {"seconds": 0.0})["seconds"]
                    write_json(f"{job.path}.done", {"command": shlex.join(job.command), "identity": job.identity,
                                                    "seconds": max(before, round(time.monotonic() - start, 1))})
                    remove(f"{job.path}.failed")
                elif job.state == "failed":
                    with atomic_write(f"{job.path}.failed") as file:
                        file.write(f"exit status {process.returncode}\n")
                    self.say(f"{job.name} failed; the end of {job.path}.log:\n{end_of(f'{job.path}.log')}", sys.stderr)
            for descriptor in locks:
                os.close(descriptor)
            del self.running[job]
            self.estimate = None
            if job.state == "done" and not stopped:
                self.remove_products()

    def remove_products(self):
        """Removes what all jobs that need it are done with, unless another queue reads it."""
        for job in self.jobs.values():
            is_there = job.product != "-" and os.path.exists(job.product)
            if is_there and job.users and not self.keep_products and all(other.record() for other in job.users):
                descriptor = lock(f"{job.path}.log")
                if descriptor is not None:
                    remove(job.product)
                    os.close(descriptor)

    def say(self, text="", stream=None):
        """Prints a line in place of the bar."""
        if self.line:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.line = ""
        if text:
            print(text, file=stream or sys.stdout, flush=True)

    def draw(self):
        """Shows on a terminal, in one line, how far all is."""
        if not sys.stderr.isatty():
            return
        if self.estimate is None:
            self.estimate = in_words(*hours_left(self.jobs, self.slots))
        count = collections.Counter(job.state for job in self.jobs.values())
        bar = "#" * (20 * count["done"] // len(self.jobs))
        line = (f"[{bar:20}] {count['done']}/{len(self.jobs)} done, {count['running']} running, {count['waiting']} waiting, "
                f"{count['failed']} failed, {self.estimate}")[:(os.get_terminal_size(2).columns or 80) - 1]
        if line != self.line:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self.line = line


def end_of(path):
    """The last three lines of a log."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 10_000, 0))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").strip())  # \r: of a bar
    return "\n".join(lines[-3:])


def write_levels(jobs, folder):
    """Writes the names of the jobs that are to be done into files LEVEL_KIND of `folder`, and prints these files' names: what
    a job needs is in an earlier level."""
    left, levels, found = to_do(jobs), {}, collections.defaultdict(list)
    for job in left.values():
        before = left.values() if job.kind == "last" else job.needs
        levels[job.name] = 1 + max((levels.get(other.name, 0) for other in before), default=0)
        found[levels[job.name], "gpu" if job.kind == "gpu" else "cpu"].append(job.name)
    for (level, kind), names in sorted(found.items()):
        file_name = os.path.join(folder, f"{level}_{kind}")
        with atomic_write(file_name) as file:
            file.writelines(f"{name}\n" for name in names)
        print(file_name)


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--out", type=path, required=True, help="Folder of the jobs' logs, the experiments' OUT.")
    add("--python", type=path, default=sys.executable, help="Python to run the commands with; default: this one.")
    add("--gpus", help="GPUs to use, separated by commas, empty for none; default: those of CUDA_VISIBLE_DEVICES, else all.")
    add("--per_run", type=number(int, minimum=1), default=1, help="GPUs of a job of kind gpu; default: 1.")
    add("--cpu_jobs", type=number(int, minimum=1), default=1, help="Jobs at a time beside those on GPUs; default: 1.")
    add("--jobs", type=number(int, minimum=1), default=1, help="Jobs at a time where there is no GPU; default: 1.")
    add_boolean(parser, "--keep_products", False, "Keep files that no job of the plan needs any more; default: off.")
    add_boolean(parser, "--dry_run", False, "Print the commands and run none; default: off.")
    add_boolean(parser, "--status", False, "Print how far the jobs are and stop; default: off.")
    add("--levels", type=path, metavar="FOLDER", help="Write there the names of the jobs that are to be done, in levels for "
        "scripts/slurm.sh, and stop.")
    add("--only", metavar="NAME", help="Do this job of the plan alone, on the GPUs that are visible; what it needs is done.")
    return parser.parse_args()


def main():
    args = parse_arguments()
    jobs = read_plan(sys.stdin, args.out)
    if args.dry_run:
        print_commands(jobs, args.keep_products)
    elif args.levels:
        write_levels(jobs, args.levels)
    elif args.status:
        print_status(jobs, make_slots(args))
    else:
        only, slots = to_do(jobs), make_slots(args)
        if args.only:
            if args.only not in jobs:
                raise UserError(f"--only: the plan has no job {args.only}")
            missing = [need.name for need in jobs[args.only].needs if need.name in only]
            if args.only in only and missing:
                raise UserError(f"{args.only} needs {', '.join(missing)}, which failed or did not come to its turn")
            only = {name: job for name, job in only.items() if name == args.only}
            slots = dict.fromkeys(KINDS, [None])
        sys.exit(Queue(jobs, only, slots, args.python, args.keep_products).run())


if __name__ == "__main__":
    run(main)
