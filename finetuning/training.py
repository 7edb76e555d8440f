"""The fine-tuning loop: `train` reads from top to bottom; below it are its checkpoint and what it measures.

A run can be stopped at any moment and goes on from its last checkpoint, to the weights of an undisturbed run: the batches
are a function of seed and epoch, and the state of the random generators is saved.
"""
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from common.command_line import StopSignals, UserError
from common.files import check_schema, remove
from common.run_folder import MetricsLog
from finetuning.data import Dataset, plan_epoch
from finetuning.evaluation import best_of, describe, measure, predict, write_evaluation
from finetuning.gpu import moved_ahead
from finetuning.weights import load_weights, read_torch, read_weights, write_torch
from optimization import SCHEDULES, BertAdam, describe_groups, parameter_groups
from tasks import Task


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the result of a run, beside its data and the weights it starts from: the flags of the same names, and
    the rate of each layer, the lowest first, and of the embeddings, or None: learning_rate."""
    seed: int
    train_batch_size: int
    num_train_epochs: float
    learning_rate: float
    layer_rates: list | None
    embeddings_rate: float | None
    schedule: str
    warmup_proportion: float
    weight_decay: float
    clip_grad: str
    bias_correction: bool
    best_metric: str
    patience: int | None
    eval_epochs: int | None
    task_sampling: str
    task_sampling_alpha: float


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is computed and how often it is saved: the flags of the same names, none of which is part of its recipe."""
    gradient_accumulation_steps: int
    eval_batch_size: int
    precision: str
    save_checkpoints_steps: int
    save_models: str
    log_steps: int
    report_to: list
    eval_every: float | None
    allow_divergence: bool

    @property
    def bf16(self):
        return self.precision == "bf16"


@dataclasses.dataclass
class TaskRun:
    """A task in a run: its data, and where its results go."""
    task: Task
    prefix: str  # of a line of the log: "NAME: " where there are several tasks
    folder: str
    train: Dataset
    evaluated: Dataset | None  # after epochs: the test set or held-out training data
    evaluated_name: str  # which of them
    sample: Dataset | None  # within epochs (--eval_every): a part of it
    tested: Dataset | None  # with the best model, in the end
    class_weights: np.ndarray | None  # float64 [classes]: of each class in the loss, None: all the same
    save: Callable  # (classifier, folder): writes a model of the task


@dataclasses.dataclass
class Progress:
    """Where a run stands."""
    epoch: int = 0  # the next one, from 0
    update: int = 0  # the next one of it
    global_step: int = 0
    loss_sum: float = 0.0  # of the updates of this epoch
    train_seconds: float = 0.0
    num_summed: int = 0
    window: list = dataclasses.field(default_factory=list)  # [loss, norm, accuracy] of updates since the log's last line
    since_point: list = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0])  # [losses, accuracies, updates], summed
    evaluations: dict = dataclasses.field(default_factory=dict)  # a list for each task's name, an entry for each epoch due
    points: dict = dataclasses.field(default_factory=dict)  # the same within epochs
    diverged: int | None = None  # the first update whose loss or gradient was no number

    def take_in(self, pending, world):
        """Takes in the (examples; on the device loss, gradient norm, how many were predicted right) of the last updates, and
        empties `pending`. Returns the words for the first that is no number, from which on nothing is taken, or None."""
        sizes, *measured = zip(*pending)
        losses, norms, correct = map(torch.stack, measured)
        losses, correct = world.sum(torch.stack([losses, correct])).tolist()
        step = self.global_step - len(pending)
        pending.clear()
        for size, loss, norm, num_correct in zip(sizes, losses, norms.tolist(), correct):
            step, accuracy = step + 1, num_correct / size
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.diverged = step
                return f"update {step}: the loss is {loss}, the gradient's norm {norm}"
            self.loss_sum, self.num_summed = self.loss_sum + loss, self.num_summed + 1
            self.window.append([loss, norm, accuracy])
            self.since_point = [total + more for total, more in zip(self.since_point, (loss, accuracy, 1))]


CHECKPOINT_SCHEMA = {
    "model": dict, "optimizer": dict, "scheduler": dict, "random_states": [[object]],
    "progress": {"epoch": int, "update": int, "global_step": int, "loss_sum": float, "num_summed": int,
                 "train_seconds": float, "window": [[float]], "since_point": [float],
                 "evaluations": {str: [{"epoch": int, "global_step": int, str: float}]}, "points": {str: [{str: float}]},
                 "diverged": (int, type(None))}}


def train(model, runs, recipe, execution, world, folder, state=None, resumed=None):
    """Fine-tunes a MultiTaskModel into `folder`, or goes on with a stopped run.

    runs: a TaskRun for each of the model's classifiers. state: what `read_checkpoint` gives of a stopped run; once it is taken
    over, resumed() is called and it is emptied. Returns the figures of results.json. Raises UserError where the loss or the
    model is no longer finite, unless the run may diverge; ends the process, after saving, on SIGTERM or Ctrl-C.
    """
    checkpoint = os.path.join(folder, "checkpoint.pt")
    sizes = [len(run.train) for run in runs]
    plan = functools.partial(plan_epoch, sizes, recipe.train_batch_size, recipe.task_sampling, recipe.task_sampling_alpha,
                             recipe.seed)
    updates_per_epoch = len(plan(0))
    t_total = max(1, round(updates_per_epoch * recipe.num_train_epochs))

    def factor(updates):  # of every group's rate
        return SCHEDULES[recipe.schedule](updates / t_total, recipe.warmup_proportion)

    class_weights = [None if run.class_weights is None else torch.tensor(run.class_weights, dtype=torch.float32,
                                                                         device=world.device) for run in runs]
    groups = parameter_groups(model, recipe.learning_rate, recipe.layer_rates, recipe.embeddings_rate, recipe.weight_decay)
    optimizer = BertAdam(groups, recipe.learning_rate, clip_grad=recipe.clip_grad, bias_correction=recipe.bias_correction)
    scheduler = LambdaLR(optimizer, factor)
    torch.manual_seed(recipe.seed + world.rank)  # dropout differs between processes
    if state:
        progress = resume(state, model, optimizer, scheduler, recipe.seed, world, checkpoint)
        resumed()
        state.clear()  # its tensors, which model and optimizer have now, would take memory to the end
    else:
        progress = Progress()
        world.print(describe_groups(optimizer.param_groups))
    world.print(f"{t_total:,} updates of {recipe.train_batch_size} examples, over {world.size} process(es) x "
                f"{execution.gradient_accumulation_steps} micro-batch(es) on {world.device.type}, from update "
                f"{progress.global_step:,} on; the rate rises for {round(t_total * recipe.warmup_proportion):,} updates, then "
                f"the schedule is {recipe.schedule}")
    # find_unused: an update sees one task, and the others' classifiers get no gradient.
    parallel = model if world.size == 1 else DistributedDataParallel(
        model, device_ids=[world.device.index] if world.device.type == "cuda" else None, gradient_as_bucket_view=True,
        find_unused_parameters=len(runs) > 1)

    def micro_batches_of(indices):
        """Every process takes its share of an update's examples; one that has none left computes one, with weight 0, because
        all must take part in the sum of gradients."""
        parts = np.array_split(indices[world.rank::world.size], execution.gradient_accumulation_steps)
        return [part for part in parts if len(part)] or [indices[:1]]

    def is_done(line):  # of metrics.jsonl: it lies before the point where the run stands
        return (line["global_step"] <= progress.global_step
                and (not line["kind"].startswith("eval") or line.get("epoch", 0) <= progress.epoch))

    log_of_run = functools.partial(MetricsLog, folder, is_done, progress.global_step, execution.report_to)
    with log_of_run() if world.main else contextlib.nullcontext() as log:
        # An epoch under way (progress.update) is also finished where the run stopped after its very last update.
        while (progress.global_step < t_total or progress.update) and not (
                progress.diverged or out_of_patience(progress, recipe)):
            updates = plan(progress.epoch)[:t_total - progress.epoch * updates_per_epoch]  # the last need not be whole
            # of updates not looked at yet: how many examples; on the device: loss, gradient norm, how many predicted right
            pending, started = [], time.monotonic()
            bar = tqdm(total=len(updates), initial=progress.update, unit="update", desc=f"epoch {progress.epoch + 1}",
                       disable=not world.main, mininterval=1)
            batches = moved_ahead((runs[task].train.batch(part) for task, indices in updates[progress.update:]
                                   for part in micro_batches_of(indices)), world.device)
            model.train()
            with StopSignals() as stop, bar, contextlib.closing(batches):
                for task, indices in updates[progress.update:]:
                    # Forward and backward, a micro-batch at a time.
                    micro_batches = micro_batches_of(indices)
                    weighted = runs[task].class_weights  # the mean is weighted, as torch.nn.CrossEntropyLoss's
                    total = len(indices) if weighted is None else weighted[runs[task].train.labels[indices]].sum().item()
                    weight = 1 / total if len(indices) > world.rank else 0.0
                    update_loss, correct = torch.zeros(2, device=world.device)
                    for number, batch in enumerate(itertools.islice(batches, len(micro_batches)), 1):
                        is_last = number == len(micro_batches)  # gradients are summed over the processes once an update
                        with contextlib.nullcontext() if world.size == 1 or is_last else parallel.no_sync():
                            with torch.autocast(world.device.type, torch.bfloat16, enabled=execution.bf16):
                                logits = parallel(batch, task)
                            loss = weight * F.cross_entropy(logits, batch.labels, class_weights[task], reduction="sum")
                            (loss * world.size).backward()  # DistributedDataParallel divides by the number of processes
                        update_loss += loss.detach()
                        correct += (logits.detach().argmax(dim=1) == batch.labels).sum() * bool(weight)
                    # Update.
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                    progress.update += 1
                    progress.global_step += 1
                    pending.append((len(indices), update_loss, optimizer.grad_norm, correct))
                    bar.update()
                    # Log and save. Until then nothing waits for the device.
                    stopping = world.max(stop.received)
                    saving = (stopping or progress.update == len(updates)  # an evaluation comes, and may take long
                              or progress.global_step % execution.save_checkpoints_steps == 0)
                    logging = progress.global_step % execution.log_steps == 0 or progress.global_step == t_total
                    at_point = execution.eval_every and passes_point(progress.update, execution.eval_every * updates_per_epoch)
                    if saving or logging or at_point:
                        fault = progress.take_in(pending, world)
                        progress.train_seconds += time.monotonic() - started
                        if logging and progress.window:
                            loss, norm, accuracy = np.mean(progress.window, axis=0).tolist()
                            progress.window.clear()
                            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                            if log:
                                log.write("train", progress.global_step, {
                                    "epoch": progress.epoch + 1, "loss": loss, "gradient_norm": norm, "accuracy": accuracy,
                                    "learning_rate": recipe.learning_rate * factor(progress.global_step - 1)})
                        if saving and not fault:
                            fault = fault_of_output(model, task, runs[task].train, indices, progress, execution, world)
                        if fault and not execution.allow_divergence:
                            world.fail(f"{fault}; {DIVERGED}")
                        if fault:
                            world.print(f"\n{fault}; the run ends here")
                            break
                        if at_point:
                            evaluate_point(model, runs, progress, updates_per_epoch, execution, world, log)
                        if saving:
                            save_checkpoint(checkpoint, model, optimizer, scheduler, progress, world)
                        started = time.monotonic()
                    if stopping:
                        world.print(f"\nstopped by {signal.Signals(stopping).name} after update {progress.global_step}; the "
                                    "same command goes on from there, without --overwrite_output_dir")
                        sys.exit(128 + stopping)
            if progress.diverged and execution.eval_every and progress.since_point[2]:
                evaluate_point(model, runs, progress, updates_per_epoch, execution, world, log)
            loss = {"loss": progress.loss_sum / progress.num_summed} if progress.num_summed else {}
            progress.epoch, progress.update, progress.loss_sum, progress.num_summed = progress.epoch + 1, 0, 0.0, 0
            if progress.epoch % (recipe.eval_epochs or 1) == 0 or progress.global_step == t_total or progress.diverged:
                for run, classifier in zip(runs, model.classifiers):
                    end_epoch(run, classifier, loss, recipe, progress, execution, world, log)
            save_checkpoint(checkpoint, model, optimizer, scheduler, progress, world)
    return summarize(model, runs, recipe, progress, execution, world)


def end_epoch(run, classifier, loss, recipe, progress, execution, world, log):
    """Evaluates a task, and keeps its model: always as the last one, and, if it is, as the best one."""
    evaluation = {"epoch": progress.epoch, "global_step": progress.global_step} | loss
    if run.evaluated:
        evaluation |= evaluate_epoch(run, classifier, evaluation, execution, world, log)
    evaluations = progress.evaluations.setdefault(run.task.name, [])
    evaluations.append(evaluation)
    is_best = run.evaluated and best_of(evaluations, recipe.best_metric) is evaluation
    for name, is_new in (("last", True), ("best", is_best)):
        if world.main and is_new and not progress.diverged:
            path = os.path.join(run.folder, name)
            if execution.save_models in (name, "both"):
                run.save(classifier, path)
            else:
                remove(path)  # of the same run, begun with another --save_models


def evaluate_epoch(run, classifier, evaluation, execution, world, log):
    """Evaluates a task after an epoch, and writes the authors' files. Returns the figures."""
    started = time.monotonic()
    logits = logits_of(classifier, run.evaluated, execution, world)
    measured = measure(run.evaluated.labels, logits)
    epoch = evaluation["epoch"]
    if world.main:
        figures = {key: value for key, value in evaluation.items() if key != "epoch"} | measured
        write_evaluation(run.folder, f"_ep{epoch}", figures, run.evaluated.labels, logits, run.task.labels)
        log.write(f"eval/{run.task.name}" if run.prefix else "eval", evaluation["global_step"], {"epoch": epoch} | measured)
    world.print(f"{run.prefix}epoch {epoch}: {describe(measured)} on the {run.evaluated_name} data")
    return measured | {"seconds": round(time.monotonic() - started, 2)}


def logits_of(classifier, dataset, execution, world):
    """The logits of a dataset; those of a run that may diverge count as 0 where they are no finite numbers."""
    logits = predict(classifier, dataset, execution.eval_batch_size, world, execution.bf16)
    return np.where(np.isfinite(logits), logits, 0) if execution.allow_divergence else logits


def passes_point(update, updates_per_point):
    """Whether an update, counted from 1 in its epoch, is the first one at or after a multiple of `updates_per_point`."""
    done, before = (round(number / updates_per_point, 9) for number in (update, update - 1))  # 0.3 / 0.1 is not 3
    return math.floor(done) > math.floor(before)


def evaluate_point(model, runs, progress, updates_per_epoch, execution, world, log):
    """Adds a point to the learning curve of each task: training figures since the last one, over all tasks, and those of
    the task's sample. What follows in training stays as it was."""
    loss, accuracy, count = progress.since_point
    progress.since_point = [0.0, 0.0, 0]
    trained = {"epoch": progress.epoch + progress.update / updates_per_epoch, "train_loss": loss / count,
               "train_accuracy": accuracy / count}
    for run, classifier in zip(runs, model.classifiers):
        measured = trained | measure(run.sample.labels, logits_of(classifier, run.sample, execution, world))
        progress.points.setdefault(run.task.name, []).append({"global_step": progress.global_step} | measured)
        if log:
            log.write(f"point/{run.task.name}" if run.prefix else "point", progress.global_step, measured)
    model.train()


def out_of_patience(progress, recipe):
    """Whether no task got better in the last `patience` epochs."""
    if not recipe.patience or not progress.evaluations:
        return False
    best = [best_of(evaluations, recipe.best_metric)["epoch"] for evaluations in progress.evaluations.values()]
    return progress.epoch - max(best) >= recipe.patience


DIVERGED = ("what was saved before is kept; start again with a lower --learning_rate, or with --precision float32, in another "
            "--output_dir")


def fault_of_output(model, task, dataset, indices, progress, execution, world):
    """The words for a model whose logits for examples of the last update are not finite, or None. That update's loss told only
    of the model before it."""
    sequences = np.cumsum(np.diff(dataset.document_offsets)[indices])  # of a text several, if it is cut into fractions
    indices = indices[:max(1, np.searchsorted(sequences, execution.eval_batch_size, side="right"))]
    model.eval()
    with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=execution.bf16):
        logits = model(dataset.batch(indices).to(world.device), task)
    model.train()
    if not logits.isfinite().all():
        progress.diverged = progress.global_step + 1
        return f"update {progress.global_step} left a model whose output is not finite"


# The checkpoint of a run under way

def save_checkpoint(path, model, optimizer, scheduler, progress, world):
    """Writes what the run needs to go on as if it had not been stopped."""
    cuda = torch.cuda.get_rng_state(world.device) if world.device.type == "cuda" else None
    random_states = world.gather([torch.get_rng_state(), cuda])
    if world.main:
        write_torch({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                     "progress": dataclasses.asdict(progress), "random_states": random_states}, path)
    world.gather(None)  # no process goes on, or ends, before the file is whole


def read_checkpoint(path):
    """The state that `save_checkpoint` wrote. Raises UserError where the file is damaged, or has another form."""
    state = read_torch(path, "remove this file to start the run again")
    check_schema(state, CHECKPOINT_SCHEMA, f"{path} (remove this file to start the run again)")
    return state


def resume(state, model, optimizer, scheduler, seed, world, path):
    """Takes over the state of a stopped run, read from the file `path`. Returns its Progress."""
    try:
        for part, fresh in ((state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"]),
                            (state["scheduler"], scheduler.state_dict())):  # torch takes anything here
            if not has_form_of(part, fresh):
                raise ValueError("the state of optimizer or schedule has another form")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        for parameter, moments in optimizer.state.items():  # and here
            if not has_form_of(moments, dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter)):
                raise ValueError("the optimizer's moments have other shapes than their parameters")
        progress = Progress(**state["progress"])
        if any(len(row) != 3 for row in (*progress.window, progress.since_point)):
            raise ValueError("a row of the log's window has not three numbers")
        if len(state["random_states"]) == world.size:
            cpu, cuda = state["random_states"][world.rank]
            torch.set_rng_state(cpu)
            if cuda is not None and world.device.type == "cuda":
                torch.cuda.set_rng_state(cuda, world.device)
        else:  # of another number of processes: dropout is drawn anew
            torch.manual_seed(seed + world.rank + progress.global_step * world.size)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not of this run ({str(error).splitlines()[0][:120]}); remove it to start the run "
                        "again") from None
    return progress


def has_form_of(value, example):
    """Whether a value has the types, keys, lengths and shapes of an example."""
    if isinstance(example, torch.Tensor):
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (example.shape, example.dtype)
    if isinstance(example, dict):
        return isinstance(value, dict) and value.keys() == example.keys() and all(
            has_form_of(value[key], example[key]) for key in example)
    if isinstance(example, (list, tuple)):
        return type(value) is type(example) and len(value) == len(example) and all(map(has_form_of, value, example))
    return type(value) is type(example)


# Its figures

def summarize(model, runs, recipe, progress, execution, world):
    """The figures of a finished run, {seed, train_seconds, peak_memory_mib, and epochs, best, last, test of the task}; of
    several tasks, these four stand in `tasks` under the task's name. The best model is tested now, once."""
    figures = {}
    for run, classifier in zip(runs, model.classifiers):
        evaluations = progress.evaluations[run.task.name]
        figures[run.task.name] = own = {"epochs": evaluations}
        if run.task.name in progress.points:
            own["points"] = progress.points[run.task.name]
        sound = evaluations[:-1] if progress.diverged else evaluations  # a diverged model is not saved
        if run.evaluated:
            own |= {"best": best_of(sound or evaluations, recipe.best_metric), "last": evaluations[-1]}
        if run.tested:
            best = os.path.join(run.folder, "best")
            if sound:
                load_weights(classifier, read_weights(best, classifier.bert.config), best)
            logits = logits_of(classifier, run.tested, execution, world)
            own["test"] = measure(run.tested.labels, logits) | {key: own["best"][key] for key in ("epoch", "global_step")}
            if world.main:
                write_evaluation(run.folder, "", own["test"], run.tested.labels, logits, run.task.labels)
    return {"seed": recipe.seed, "train_seconds": round(progress.train_seconds, 2),
            "peak_memory_mib": round(peak_memory(world.device))} | (
                {"diverged": {"global_step": progress.diverged}} if progress.diverged else {}) | (
                {"tasks": figures} if len(runs) > 1 else own)


def peak_memory(device):
    """MiB: the process's peak resident set, or what the GPU gave out at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
