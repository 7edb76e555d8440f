"""The folder of a run, of either framework: whose it is, its lock, its record and its metrics.

    run.json         kind of run, recipe, flags, versions, device, commit: what the run is
    metrics.jsonl    a line for each --log_steps updates and each evaluation; --report_to shows them, in tensorboard/ or wandb/

A run is known by its recipe: the flags that decide its result, and digests of what it reads (weights, vocabulary, data),
never their paths. So a run whose files were moved is the same run, and other files under the same path make another.
"""
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import time

from common.command_line import LEFT_BY_EXIT, UserError
from common.files import (
    digest, atomic_write, check_schema, decode_lines, locked, naming, parse_json, read_json, remove, require_file, write_json)

LOCK = ".lock"  # stands in a folder while a command is at work there
RUN_SCHEMA = {"kind": str, "recipe": dict, "flags": dict}
LINE_SCHEMA = {"kind": str, "global_step": int}


class RunFolder:
    """The folder `path` of a run of this `kind`. owned: a compiled regular expression of the names that such a run gives
    to its files and folders; nothing else is ever removed."""

    def __init__(self, path, kind, owned):
        self.path, self.kind, self.owned = path, kind, owned
        self.record = os.path.join(path, "run.json")

    @contextlib.contextmanager
    def lock(self):
        """Keeps the folder for this process while the block runs; it is made if it is not there, and goes again if it is
        still empty then. Raises UserError where another command has it."""
        made = not os.path.isdir(self.path)
        os.makedirs(self.path, exist_ok=True)
        # a file's lock, which other machines see on a shared disk: NFS keeps that of a folder to itself
        path = os.path.join(self.path, LOCK)
        is_left = os.path.exists(path)  # by a killed command: a refused one changes nothing, not even that
        try:
            with locked(path, f"--output_dir: another command is at work in {self.path}; wait for it, or name another folder",
                        os.O_RDWR | os.O_CREAT):
                LEFT_BY_EXIT.add(path)
                try:
                    yield
                    is_left = False
                finally:
                    LEFT_BY_EXIT.discard(path)
                    if not is_left:
                        remove(path)  # while it is held, so that it is no other command's
        finally:
            if made and os.path.isdir(self.path) and not os.listdir(self.path):  # a refused command leaves nothing
                os.rmdir(self.path)

    def earlier(self):
        """The run.json of the run that is here, or None. Raises UserError where it is not one of this kind: no run writes
        over what another script made."""
        if not os.path.exists(self.record):
            return None
        try:
            found = read_json(self.record, {"kind": str})
            if found["kind"] != self.kind:
                raise UserError(f"{self.path} holds a run of another script (run.json says {found['kind']}, needed is "
                                f"{self.kind})")
            check_schema(found, RUN_SCHEMA, self.record)
            check_schema(found.get("resumed", []), [{"flags": dict}], f"{self.record}, resumed")
        except UserError as error:
            raise UserError(f"--output_dir: {error}; name another folder") from None
        return found

    def check(self, recipe, overwrite=False):
        """The run.json of the run that `recipe` goes on with, None where it starts anew. Raises UserError, naming the first
        difference, where the folder holds another run and `overwrite` is off."""
        found = self.earlier()
        if overwrite:
            return None
        if found is None:
            names = [name for name in os.listdir(self.path) if not name.endswith(".tmp")] if os.path.isdir(self.path) else []
            if any(map(self.owned.fullmatch, names)):
                raise UserError(f"--output_dir: {self.path} holds files of a run without a run.json; name another folder, or "
                                "add --overwrite_output_dir to remove them")
            return None
        for key in recipe | found["recipe"]:
            old, new = found["recipe"].get(key), recipe.get(key)
            if old != json.loads(json.dumps(new)):  # as the file has it: a tuple becomes a list
                raise UserError(f"--output_dir: {self.path} holds another run: {key} was {old}, now it is {new}; name "
                                "another folder (to go on from its weights, name them with --init_checkpoint), or add "
                                "--overwrite_output_dir to remove it")
        return found

    def clear(self):
        """Removes what an earlier run wrote here, run.json last: it says whose the rest is."""
        if os.path.isdir(self.path):
            for name in sorted(os.listdir(self.path), key=lambda name: name == "run.json"):
                if self.owned.fullmatch(name):
                    remove(os.path.join(self.path, name))
            if os.path.exists(path := os.path.join(self.path, LOCK)):
                with contextlib.suppress(UserError), locked(path, "", os.O_RDWR):
                    remove(path)  # what a killed process left

    def begin(self, recipe, flags, **environment):
        """Removes an earlier run and writes run.json."""
        self.clear()
        write_json(self.record, {"kind": self.kind, "recipe": recipe, "flags": flags, "command": sys.argv,
                                 "commit": source_commit(), "started": now()} | environment)

    def resume(self, found, global_step, flags, watched):
        """Notes in run.json (`found` is what it held) that the run goes on after update `global_step`. Returns the line to
        print where a flag of `watched`, which change rounding or the drawing of dropout, has another value than before."""
        earlier = found.get("resumed", [])
        before = [found, *earlier][-1]["flags"]
        changed = [f"--{name} was {before.get(name)}, now it is {flags[name]}" for name in watched
                   if before.get(name) != flags[name]]
        write_json(self.record, found | {"resumed": [
            *earlier, {"global_step": global_step, "at": now(), "flags": {name: flags[name] for name in watched}}]})
        return (f"note: {', '.join(changed)}: from here on the run is the undisturbed one in distribution only, its "
                "dropout or rounding differs") if changed else None


def source_commit():
    """The git commit of this code, for the record of a run; None where it is no clone or there is no git."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=os.path.dirname(os.path.abspath(__file__)),
                              capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:
        return None


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions(*packages):
    """The versions of Python and of these packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


class MetricsLog:
    """The metrics of a run: lines of FOLDER/metrics.jsonl, and what `report_to`, names of REPORTERS, shows. A context.

    keep(line) says which lines of an earlier process stand: those of updates that are still to come, of a run that was
    stopped later than it was saved, do not. The others are dropped, and so, with a word, is a damaged line.
    """

    def __init__(self, folder, keep=lambda line: True, step=0, report_to=("tensorboard",)):
        self.path = os.path.join(folder, "metrics.jsonl")
        self.reporters = [REPORTERS[name](folder, step) for name in report_to if name in REPORTERS]
        if os.path.exists(self.path):
            self.drop_lines(keep)

    def drop_lines(self, keep):
        with open(self.path, "rb") as file:
            lines = file.readlines()
        kept = []
        for number, raw in enumerate(lines, 1):
            if not raw.endswith(b"\n"):
                break  # a killed process left half of the last line
            try:
                line = parse_json(raw, f"{self.path}:{number}")
                check_schema(line, LINE_SCHEMA, f"{self.path}:{number}")
                check_schema(line.get("epoch", 0), float, f"{self.path}:{number}, epoch")  # `keep` compares it
                if keep(line):
                    kept.append(raw)
            except UserError as error:
                print(f"{error}; the line is dropped")
        if len(kept) < len(lines):
            with atomic_write(self.path, "wb") as file:
                file.writelines(kept)

    def write(self, kind, global_step, values):
        """Writes the metrics (name -> number) of this kind, such as `train` or `eval`, at a step."""
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "global_step": global_step} | values) + "\n")
        for reporter in self.reporters:
            reporter.write(global_step, {f"{kind}/{name}": value for name, value in values.items() if name != "epoch"})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for reporter in self.reporters:
            reporter.close()


def read_metrics(folder, schemas, flag):
    """The lines of FOLDER/metrics.jsonl of the kinds in `schemas`, {kind: schema}, in their order.

    flag: the flag that names the folder. Raises UserError, with the line, where the file is missing or damaged.
    """
    path, found = require_file(os.path.join(folder, "metrics.jsonl"), flag), []
    for number, text in decode_lines(path):
        where = f"{path}:{number}"
        line = parse_json(text, where)
        check_schema(line, LINE_SCHEMA, where)
        if line["kind"] in schemas:
            check_schema(line, schemas[line["kind"]], where)
            found.append(line)
    return found


class TensorBoard:
    """Events in FOLDER/tensorboard, by TensorBoard's record writer, in this thread: its SummaryWriters import TensorFlow where
    that is installed, and their own thread prints a traceback when the disk is full."""

    def __init__(self, folder, step):
        self.folder, self.step, self.events = os.path.join(folder, "tensorboard"), step, None

    def write(self, global_step, values):
        with naming(self.folder):
            self.write_event(global_step, values)

    def write_event(self, global_step, values):
        # imported here: a fifth of a second that a refused command does not wait for
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        def write(**fields):
            self.events.write(Event(wall_time=time.time(), **fields).SerializeToString())

        if self.events is None:
            os.makedirs(self.folder, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
            self.events = RecordWriter(open(os.path.join(self.folder, name), "ab"))
            write(file_version="brain.Event:2")
            if self.step:  # TensorBoard drops what an earlier process wrote from here on
                write(step=self.step + 1, session_log=SessionLog(status=SessionLog.START))
        write(step=global_step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)
                                                       for name, value in values.items()]))
        self.events.flush()  # TensorBoard shows it at once, and a full disk is seen here

    def close(self):
        with naming(self.folder):  # closing tries once more to write what did not fit
            if self.events:
                self.events.close()


class Wandb:
    """A run of Weights & Biases, whose own variables (WANDB_PROJECT, WANDB_MODE, ...) say where. A run that is gone on with
    here is the same one there."""

    def __init__(self, folder, step):
        self.folder, self.run = folder, None

    def write(self, global_step, values):
        if self.run is None:
            import wandb
            path, place = os.path.join(self.folder, "run.json"), os.path.abspath(self.folder)
            known = {}
            if os.path.exists(path):  # not where a checkpoint is evaluated without training
                record = read_json(path, RUN_SCHEMA | {"started": str})
                known = {"id": digest(place, record["started"]), "resume": "allow", "config": record["flags"]}
            self.run = wandb.init(name=os.path.basename(place), dir=self.folder, **known)
        self.run.log(values, step=global_step)

    def close(self):
        if self.run:
            self.run.finish()


# Each is made of the run's folder and the step it stands at; write(global_step, {name: number}) and close().
REPORTERS = {"tensorboard": TensorBoard, "wandb": Wandb}


def add_report_to(group, default):
    """Adds --report_to to an argparse group. default: the words for it."""
    group.add_argument("--report_to", nargs="+", choices=[*REPORTERS, "none"], default=["tensorboard"], help="What shows the "
                       f"metrics beside metrics.jsonl: tensorboard, wandb (Weights & Biases), both or none{default}")


def check_reporters(names):
    """Raises UserError where --report_to contradicts itself or names a package that is not installed."""
    if "none" in names and len(names) > 1:
        raise UserError("--report_to: none stands alone")
    spec = "wandb" in names and importlib.util.find_spec("wandb")
    if "wandb" in names and not (spec and spec.origin):  # without an origin it is a folder that wandb left here
        raise UserError("--report_to wandb: the package is not installed; pip install wandb, or leave it out")


def write_key_values(path, values):
    """Writes `key = value` lines, sorted by key: the format of both reference implementations' results."""
    with atomic_write(path) as file:
        file.writelines(f"{key} = {value}\n" for key, value in sorted(values.items()))
