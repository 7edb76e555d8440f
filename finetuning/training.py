"""The loop that the fine-tuning scripts share: train, evaluate, predict, save, resume; one process or many.

Every run can be stopped at any moment and typed again: it goes on from its last checkpoint and ends at the weights of
an undisturbed run. run_folder.py says what a run leaves.
"""
import contextlib
import dataclasses
import math
import os
import resource
import signal
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import batching
import modeling
import optimization
import tasks
from command_line import UserError, atomic_write, check_output_folder
from configuration import BertConfig
from fine_tuning_flags import FEATURE_FLAGS, MODEL_FLAGS, NOT_RECIPE, parse
from processes import StopRequest, World, join, launch
from run_folder import (begin_run, check_seeds, check_start, look_at_folder, metrics_log, read_json, save_model, seed_folder,
                        task_folder, write_evaluation, write_json)
from tokenization import FullTokenizer


# The model

@dataclasses.dataclass
class Setup:
    """What the runs of a command have in common."""
    args: object
    config: BertConfig
    tokenizer: FullTokenizer
    tasks: list
    data_dirs: list
    world: World
    rates: tuple


def read_setup(args, given, world, rates_of):
    """Reads the configuration, vocabulary and tasks that the flags name, or those stored in --init_checkpoint."""
    args.init_checkpoint = of_multitask_run(args.init_checkpoint, args.task_name)
    folder = args.init_checkpoint if args.init_checkpoint and os.path.isdir(args.init_checkpoint) else None
    restored = None if args.do_train else restore_flags(args, given, folder)
    if args.init_checkpoint:
        modeling.find_weights(args.init_checkpoint)
    for flag, names in (("bert_config_file", ("config.json", "bert_config.json")), ("vocab_file", ("vocab.txt",))):
        if getattr(args, flag) is None:
            found = [os.path.join(folder, name) for name in names if os.path.exists(os.path.join(folder, name))] \
                if folder else []
            if not found:
                raise UserError(f"--{flag} is needed: --init_checkpoint is no folder with {' or '.join(names)}")
            setattr(args, flag, found[0])
    config = BertConfig.from_json_file(args.bert_config_file)
    config.check_max_seq_length(args.max_seq_length)
    if args.layers is None:
        args.layers = [config.num_hidden_layers - 1] if args.hierarchical or args.classifier != "linear" else [-2]
    modeling.check_features(config, args.layers, args.layer_pooling, args.pooling_type, args.classifier)
    batching.head_and_tail((args.max_fractions or 1) * (args.max_seq_length - 2), args.trunc_medium)
    if (args.frozen_layers or 0) > config.num_hidden_layers:
        raise UserError(f"--frozen_layers {args.frozen_layers}: this model has {config.num_hidden_layers} layers")
    tokenizer = FullTokenizer(args.vocab_file, do_lower_case=args.do_lower_case)
    config.check_vocab(len(tokenizer.vocab), args.vocab_file)
    return Setup(args, config, tokenizer, *read_tasks(args, restored), world, rates_of(config, args))


def read_tasks(args, restored):
    """(the tasks of the command, the data directory of each). restored: the task stored with a model, or None."""
    if isinstance(args.task_name, list):
        return [tasks.TASKS[name] for name in args.task_name], tasks.data_folders(args.task_name, args.data_dir)
    if restored is None and args.task_name == "csv":
        restored = tasks.csv_task(args.data_dir, args.label_column, args.text_columns, args.sep)
    return [restored or tasks.TASKS[args.task_name]], [args.data_dir]


def of_multitask_run(path, task_name):
    """The folder of a task's best model (the last, where none was evaluated) if `path` is that of a multi-task run, else
    `path` as it is."""
    for name in ("best", "last"):
        found = os.path.join(path or "", str(task_name), name)
        if os.path.exists(os.path.join(found, "model.safetensors")):
            return found
    return path


def restore_flags(args, given, folder):
    """Sets the flags of a fine-tuned model to what it was trained with. Returns its task."""
    path = os.path.join(folder or "", "classifier.json")
    if folder is None or not os.path.exists(path):
        raise UserError(f"--init_checkpoint: {args.init_checkpoint} is no folder of a fine-tuned model (it has no "
                        "classifier.json); name a run's best or last folder, or add --do_train")
    stored = read_json(path)
    absent = [key for key in ("task", *MODEL_FLAGS) if key not in stored]
    if absent:
        raise UserError(f"{path} lacks {', '.join(absent)}; fine-tune again, or restore it")
    task = tasks.task_from_dict(stored["task"])
    if args.task_name not in (None, task.name):
        raise UserError(f"--task_name {args.task_name}: the model in {folder} was trained for {task.name}; leave the "
                        "flag out")
    for flag in MODEL_FLAGS:
        if flag in given and getattr(args, flag) != stored[flag]:
            raise UserError(f"--{flag} {getattr(args, flag)}: the model in {folder} was trained with {stored[flag]}; "
                            "leave the flag out")
        setattr(args, flag, stored[flag])
    return task


def make_model(setup, where):
    """The modeling.MultiTaskModel on the device, with the weights of `where` (or random ones if None), and what was
    loaded for each task."""
    args, classifiers, loaded, bert = setup.args, [], [], None
    for task in setup.tasks:
        classifier = modeling.BertForSequenceClassification(
            setup.config, len(task.labels), bert=bert, **{flag: getattr(args, flag) for flag in FEATURE_FLAGS})
        loaded.append(modeling.load_weights(classifier, where) if where else ([], [], sorted(classifier.state_dict())))
        classifiers.append(classifier)
        bert = classifier.bert
    if args.frozen_bert:
        bert.freeze(setup.config.num_hidden_layers)
        bert.pooler.requires_grad_(False)
    elif args.frozen_layers:
        bert.freeze(args.frozen_layers)
    bert.encoder.gradient_checkpointing = args.gradient_checkpointing
    if args.compile:
        bert.encoder.compile_layers()
    return modeling.MultiTaskModel(classifiers).to(setup.world.device), loaded


def report_weights(setup, where, loaded):
    """Prints which weights of each task's classifier came from the checkpoint and which did not."""
    if not where:
        setup.world.print("no --init_checkpoint: all weights are random")
        return
    for task, (matched, ignored, missing) in zip(setup.tasks, loaded):
        setup.world.print(f"{of_task(setup, task)}{where}: {len(matched)} weights taken; {len(ignored)} in the file are "
                          f"not used{': ' + ', '.join(ignored) if ignored else ''}; {len(missing)} drawn anew"
                          f"{': ' + ', '.join(missing) if missing else ''}")


def of_task(setup, task):
    """What a line of the log about a task begins with: its name where there are several."""
    return f"{task.name}: " if len(setup.tasks) > 1 else ""


# Data

def max_fractions(args):
    """How many sequences a text may have."""
    return (args.max_fractions or math.inf) if args.hierarchical else 1


def make_dataset(setup, texts, labels, name):
    """Texts and class indices as a batching.Dataset. name: what the log calls them."""
    args = setup.args
    tokenized = batching.tokenize(setup.tokenizer, texts)
    most = max_fractions(args)
    dataset = batching.Dataset(*batching.make_sequences(tokenized, args.max_seq_length, args.trunc_medium, most), labels)
    cut = (np.diff(tokenized.offsets) > most * (args.max_seq_length - 2)).sum()
    fractions = f" in {np.diff(dataset.document_offsets).mean():.2f} fractions" if args.hierarchical else ""
    setup.world.print(f"{name}: {len(dataset):,} texts, {dataset.lengths.mean():.1f} tokens on average{fractions}, "
                      f"{cut:,} ({cut / len(dataset):.1%}) are cut")
    return dataset


def read_dataset(setup, index, split, num=None):
    """The split `train` or `test` of the task of that index, or a stratified part of it, as a batching.Dataset."""
    task = setup.tasks[index]
    texts, labels = tasks.read_examples(task, setup.data_dirs[index], split)
    if num:
        chosen = tasks.subsample(labels, num, seed=0)
        texts, labels = [texts[i] for i in chosen], labels[chosen]
    return make_dataset(setup, texts, labels, f"{of_task(setup, task)}{split} data")


def divide(setup, train, test, seed):
    """The data of one seed's run on a task: (training set, the set evaluated each epoch, the set tested at the end), the
    last two None where there is none."""
    args = setup.args
    if args.num_datas:
        train = train.subset(tasks.subsample(train.labels, args.num_datas, seed))
    if not args.dev_fraction:
        return train, test, None
    kept, held_out = tasks.split_train_dev(train.labels, args.dev_fraction, seed)
    return train.subset(kept), train.subset(held_out), test


def show_examples(setup, task, dataset):
    """Prints three full training examples, as the model sees them."""
    inverse = setup.tokenizer.inv_vocab
    for index in range(min(3, len(dataset))):
        setup.world.print(f"{of_task(setup, task)}training example {index}: label {task.labels[dataset.labels[index]]} "
                          f"(class {dataset.labels[index]})")
        for sequence in dataset.sequences(index):
            setup.world.print(f"  tokens: {' '.join(inverse[i] for i in sequence)}\n"
                              f"  input_ids: {' '.join(map(str, sequence))}")


def plan_epoch(sizes, batch_size, alpha, seed, epoch):
    """The updates of an epoch: a list of (task's index, indices of its examples), each of one batch of one task.

    sizes: training examples of each task; their batches make up an epoch. A task is drawn for each update by its size
    to the power `alpha`, and takes the next batch of its own passes, each over a fresh permutation of its examples: with
    one task, an epoch is a pass.
    """
    batches = [math.ceil(size / batch_size) for size in sizes]
    chances = np.array(sizes, float) ** alpha
    draws = [np.random.default_rng([seed, earlier, 1]).choice(len(sizes), sum(batches), p=chances / chances.sum())
             for earlier in range(epoch + 1)]
    taken = np.bincount(np.concatenate([[], *draws[:-1]]).astype(int), minlength=len(sizes))
    updates, orders = [], {}
    for task in draws[-1]:
        pass_, batch = divmod(int(taken[task]), batches[task])
        if (task, pass_) not in orders:
            orders[task, pass_] = np.random.default_rng([seed, pass_]).permutation(sizes[task])
        updates.append((int(task), orders[task, pass_][batch * batch_size:(batch + 1) * batch_size]))
        taken[task] += 1
    return updates


# Training

@dataclasses.dataclass
class Progress:
    """Where a run stands: epoch and update are the next ones; `loss_sum` belongs to the epoch under way; `evaluations`
    holds a list for each task's name, an entry for each epoch."""
    epoch: int = 0
    update: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    train_seconds: float = 0.0
    evaluations: dict = dataclasses.field(default_factory=dict)


def fine_tune(setup, seed, folder, recipe, is_new, data):
    """One run: fine-tunes with one seed into `folder`, or goes on with it. data: what `divide` gives, for each task.
    Returns the figures of results.json."""
    args, world = setup.args, setup.world
    train = [parts[0] for parts in data]
    torch.manual_seed(seed)
    model, loaded = make_model(setup, args.init_checkpoint)
    if is_new and world.main:  # not before: a run whose weights are refused leaves nothing behind
        begin_run(setup, folder, recipe)
    world.gather(None)
    updates_per_epoch = sum(math.ceil(len(dataset) / args.train_batch_size) for dataset in train)
    t_total = max(1, round(updates_per_epoch * args.num_train_epochs))
    groups = optimization.parameter_groups(model, args.learning_rate, *setup.rates, weight_decay=args.weight_decay)
    optimizer = optimization.BertAdam(groups, lr=args.learning_rate, warmup=args.warmup_proportion, t_total=t_total,
                                      clip_grad=args.clip_grad, bias_correction=args.bias_correction)
    progress = resume(setup, folder, model, optimizer, seed)
    if progress.global_step == 0:
        report_weights(setup, args.init_checkpoint, loaded)
        world.print(optimization.describe_groups(groups))
        for task, dataset in zip(setup.tasks, train):
            show_examples(setup, task, dataset)
    held_out = sum(len(evaluated) for _, evaluated, _ in data) if args.dev_fraction else 0
    world.print(f"seed {seed}: {sum(map(len, train)):,} training examples{f', {held_out:,} held out' if held_out else ''}; "
                f"{t_total} updates of {args.train_batch_size} examples over {world.size} process(es) x "
                f"{args.gradient_accumulation_steps} accumulation step(s) on {world.device.type}; the rate rises for "
                f"{round(t_total * args.warmup_proportion)} updates, then falls to 0")
    parallel = model
    if world.size > 1:
        parallel = DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None,
                                           gradient_as_bucket_view=True, find_unused_parameters=len(setup.tasks) > 1)
    with metrics_log(folder, progress) if world.main else contextlib.nullcontext() as log:
        # an epoch under way (progress.update) is also finished where the run stopped after its very last update
        while (progress.global_step < t_total or progress.update) and not out_of_patience(progress, args.patience):
            last_update = min(updates_per_epoch, t_total - progress.epoch * updates_per_epoch)
            with StopRequest(world) as stop:
                train_epoch(setup, parallel, optimizer, train, seed, progress, last_update, folder, log, stop)
            progress.epoch, progress.update = progress.epoch + 1, 0
            finish_epoch(setup, model, data, progress, folder, log)
            progress.loss_sum = 0.0
            save_checkpoint(setup, folder, model, optimizer, progress)
    result = summarize(setup, seed, model, data, progress, folder)
    if world.main:
        write_json(os.path.join(folder, "results.json"), result)
        os.unlink(os.path.join(folder, "checkpoint.pt"))
    world.print(f"{folder}: {describe_result(result)}")
    return result


def train_epoch(setup, model, optimizer, train, seed, progress, last_update, folder, log, stop):
    """The updates of one epoch from progress.update on. train: a batching.Dataset for each task."""
    args, world = setup.args, setup.world
    updates = plan_epoch([len(dataset) for dataset in train], args.train_batch_size,
                         getattr(args, "task_sampling_alpha", 1.0), seed, progress.epoch)
    model.train()
    pending, started = [], time.monotonic()  # (loss, gradient norm) of the updates since the last look at them
    bar = tqdm(total=last_update, initial=progress.update, unit="update", desc=f"epoch {progress.epoch + 1}",
               disable=not world.main, mininterval=1)

    def take_stock():
        """Adds up the losses since the last call, says so in the log, and stops where one is not finite."""
        nonlocal started
        losses, norms = (torch.stack(values) for values in zip(*pending))
        losses, norms = world.sum(losses).tolist(), norms.tolist()
        for step, values in enumerate(zip(losses, norms), progress.global_step - len(pending) + 1):
            if not all(map(math.isfinite, values)):
                raise UserError(f"update {step}: the loss is {values[0]}, the gradient's norm {values[1]}; stopped, "
                                + mend_of_divergence(args, folder))
        pending.clear()
        progress.loss_sum += sum(losses)
        progress.train_seconds += time.monotonic() - started
        started = time.monotonic()
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
        if log:
            log(progress.global_step, "train", loss=sum(losses) / len(losses), gradient_norm=sum(norms) / len(norms),
                learning_rate=args.learning_rate * rate, epoch=progress.epoch + 1)

    for task, indices in updates[progress.update:last_update]:
        rate = optimizer.factor()
        loss = backward(setup, model, task, train[task], indices)
        optimizer.step()
        pending.append((loss, optimizer.grad_norm))
        optimizer.zero_grad()
        progress.update += 1
        progress.global_step += 1
        bar.update()
        stopping = stop.agreed()
        # the epoch's last update is saved before its evaluation, which may take long
        save = progress.global_step % args.save_checkpoints_steps == 0 or progress.update == last_update
        if stopping or save or progress.global_step % args.log_steps == 0:
            take_stock()
        if stopping or save:
            if not has_finite_output(setup, model, task, train[task], indices):
                raise UserError(f"update {progress.global_step} left a model whose output is not finite; stopped, "
                                + mend_of_divergence(args, folder))
            save_checkpoint(setup, folder, unwrap(model), optimizer, progress)
            if stopping:
                stop.received = 0
                world.print(f"\nstopped by {signal.Signals(stopping).name} after update {progress.global_step}; the same "
                            "command goes on from there")
                sys.exit(128 + stopping)
    bar.close()


def mend_of_divergence(args, folder):
    """The end of the message of a run that diverged."""
    return (f"{folder} keeps its last good checkpoint; start again with a lower --learning_rate"
            + (" or without --bf16" if args.bf16 else ""))


def has_finite_output(setup, model, task, dataset, indices):
    """Whether the model's logits for examples of an update are finite after it: a loss tells only of the model before
    its update."""
    model.eval()
    with torch.no_grad(), autocast(setup):
        logits = unwrap(model)(dataset.batch(indices[:setup.args.eval_batch_size]).to(setup.world.device), task)
    model.train()
    return bool(logits.isfinite().all())


def unwrap(model):
    return model.module if isinstance(model, DistributedDataParallel) else model


def backward(setup, model, task, dataset, indices):
    """Adds the gradient of the mean loss over the examples `indices` (of all processes) of a task's data. Returns this
    process's part of that loss, a scalar tensor on the device.

    A process takes every size-th example, in as many parts as there are accumulation steps. One that has none left
    computes one with weight 0, because every process must take part in the sum of the gradients.
    """
    args, world = setup.args, setup.world
    own = indices[world.rank::world.size]
    parts = [part for part in np.array_split(own, args.gradient_accumulation_steps) if len(part)] or [indices[:1]]
    weight = 1 / len(indices) if len(own) else 0.0
    total = torch.zeros((), device=world.device)
    for number_, part in enumerate(parts, 1):
        batch = dataset.batch(part).to(world.device)
        synchronise = world.size == 1 or number_ == len(parts)
        with contextlib.nullcontext() if synchronise else model.no_sync():
            with autocast(setup):
                logits = model(batch, task)
            loss = weight * F.cross_entropy(logits, batch.labels, reduction="sum")
            (loss * world.size).backward()  # DistributedDataParallel divides the sum by the number of processes
        total += loss.detach()
    return total


def autocast(setup):
    return torch.autocast(setup.world.device.type, torch.bfloat16, enabled=setup.args.bf16)


def finish_epoch(setup, model, data, progress, folder, log):
    """Evaluates each task after an epoch and keeps its model, as the last one and, if it is, as the best one."""
    loss = progress.loss_sum / updates_in_epoch(progress)
    for task, classifier, (_, evaluated, _) in zip(setup.tasks, model.classifiers, data):
        evaluation = {"epoch": progress.epoch, "global_step": progress.global_step, "loss": loss}
        earlier = progress.evaluations.setdefault(task.name, [])
        where, best = task_folder(setup, folder, task), False
        if evaluated is not None:
            evaluation |= evaluate_epoch(setup, task, classifier, evaluated, evaluation, where, log)
            best = all(evaluation["eval_accuracy"] > before["eval_accuracy"] for before in earlier)
        earlier.append(evaluation)
        if setup.world.main:
            save_model(classifier, setup, task, os.path.join(where, "last"))
            if best:
                save_model(classifier, setup, task, os.path.join(where, "best"))


def evaluate_epoch(setup, task, classifier, dataset, evaluation, folder, log):
    """Evaluates a task after an epoch, and writes the authors' two files. Returns the figures."""
    started = time.monotonic()
    measured, predictions = evaluate(setup, classifier, dataset)
    measured |= {"seconds": round(time.monotonic() - started, 2)}
    if setup.world.main:
        epoch = evaluation["epoch"]
        write_evaluation(folder, f"_ep{epoch}", evaluation | measured, predictions)
        log(evaluation["global_step"], f"eval/{task.name}" if len(setup.tasks) > 1 else "eval", epoch=epoch,
            eval_accuracy=measured["eval_accuracy"], eval_loss=measured["eval_loss"])
        print(f"{of_task(setup, task)}epoch {epoch}: accuracy {measured['eval_accuracy']:.4%}, loss "
              f"{measured['eval_loss']:.4f} on the {'held-out' if setup.args.dev_fraction else 'test'} data", flush=True)
    return measured


def updates_in_epoch(progress):
    """How many updates the epoch had that has just ended."""
    return progress.global_step - max((evaluations[-1]["global_step"] for evaluations in progress.evaluations.values()),
                                      default=0)


def out_of_patience(progress, patience):
    """Whether no task got better in the last `patience` epochs."""
    if not patience or not progress.evaluations:
        return False
    return progress.epoch - max(best_of(each)["epoch"] for each in progress.evaluations.values()) >= patience


def best_of(evaluations):
    """The first of the most accurate evaluations."""
    return max(evaluations, key=lambda evaluation: evaluation["eval_accuracy"])


def logits_of(setup, model, dataset):
    """A task's logits, float32 [N, labels] in the dataset's order. Each example is computed once, by one process."""
    args, world = setup.args, setup.world
    model.eval()
    own = dataset.batches_by_length(args.eval_batch_size)[world.rank::world.size]
    bar = tqdm(own, unit="batch", desc="evaluation", disable=not world.main, mininterval=1, leave=False)
    logits = np.empty((len(dataset), model.classifier.out_features), np.float32)
    with torch.inference_mode(), autocast(setup):
        computed = [model(dataset.batch(batch).to(world.device)).cpu().numpy() for batch in bar]
    seen = 0
    for indices, values in zip(*map(lambda lists: sum(lists, []), zip(*world.gather((own, computed))))):
        logits[indices] = values
        seen += len(indices)
    assert seen == len(dataset), f"{seen} of {len(dataset)} examples were evaluated"
    return logits


def evaluate(setup, model, dataset):
    """Returns ({eval_accuracy, eval_loss}, the predicted class indices [N])."""
    logits = torch.from_numpy(logits_of(setup, model, dataset))
    labels = torch.from_numpy(dataset.labels)
    predictions = logits.argmax(dim=1)
    return {"eval_accuracy": (predictions == labels).double().mean().item(),
            "eval_loss": F.cross_entropy(logits.double(), labels).item()}, predictions.numpy()


# Checkpoints and results

def save_checkpoint(setup, folder, model, optimizer, progress):
    """Writes what the run needs to go on as if it had not been stopped."""
    random_states = setup.world.gather(random_state(setup.world.device))
    if setup.world.main:
        modeling.write_torch({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                              "progress": dataclasses.asdict(progress), "random_states": random_states},
                             os.path.join(folder, "checkpoint.pt"))
    setup.world.gather(None)  # no process goes on, or ends, before the file is whole


def random_state(device):
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def resume(setup, folder, model, optimizer, seed):
    """Loads the run's checkpoint if there is one. Returns its Progress, or that of a fresh run."""
    world, path = setup.world, os.path.join(folder, "checkpoint.pt")
    if not os.path.exists(path):
        torch.manual_seed(seed + world.rank)  # dropout differs between processes
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); remove it to start this run again") from None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    if len(state["random_states"]) == world.size:
        cpu, cuda = state["random_states"][world.rank]
        torch.set_rng_state(cpu)
        if cuda is not None and world.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, world.device)
    else:
        torch.manual_seed(seed + world.rank + progress.global_step * world.size)
        world.print("the run was started with another number of processes: dropout is drawn anew from here")
    world.print(f"going on after update {progress.global_step} from {path}")
    return progress


def recipe_of(setup, seed, train, test):
    """What decides the result of a run: two with an equal recipe are the same. train, test: the data of each task."""
    sizes = {f"{of_task(setup, task)}{name} data [examples, tokens]": [len(dataset), int(dataset.offsets[-1])]
             for name, datasets in (("training", train), ("test", test))
             for task, dataset in zip(setup.tasks, datasets) if dataset is not None}
    return {key: value for key, value in vars(setup.args).items() if key not in NOT_RECIPE} | {"seed": seed} | sizes


def summarize(setup, seed, model, data, progress, folder):
    """The figures of a finished run; with --dev_fraction, each task's best model on its test set, measured now and once.

    {seed, train_seconds, peak_memory_mib, and epochs, best, last, test of the task}; of several tasks, these four stand
    in `tasks` under the task's name.
    """
    figures = {}
    for task, classifier, (_, _, tested) in zip(setup.tasks, model.classifiers, data):
        evaluations, where = progress.evaluations[task.name], task_folder(setup, folder, task)
        figures[task.name] = own = {"epochs": evaluations}
        if "eval_accuracy" in evaluations[-1]:
            own |= {"best": best_of(evaluations), "last": evaluations[-1]}
        if tested is not None:
            modeling.load_weights(classifier, os.path.join(where, "best"))
            measured, predictions = evaluate(setup, classifier, tested)
            own["test"] = measured | {key: own["best"][key] for key in ("epoch", "global_step")}
            if setup.world.main:
                write_evaluation(where, "", own["test"], predictions)
    return {"seed": seed, "train_seconds": round(progress.train_seconds, 2),
            "peak_memory_mib": round(peak_memory(setup.world.device))} | (
                {"tasks": figures} if len(setup.tasks) > 1 else own)


def peak_memory(device):
    """MiB: the process's peak resident set, or what the GPU gave out at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def describe_result(result):
    """A run's figures in one line."""
    words = [f"{task}{name} {figures[name]['eval_accuracy']:.4%} (epoch {figures[name]['epoch']})"
             for task, figures in figures_of(result) for name in ("best", "last", "test") if name in figures]
    return ", ".join(words + [f"{result['train_seconds']:.0f} s of training, {result['peak_memory_mib']:,} MiB"])


def figures_of(result):
    """[("", the figures)] of a run on one task, [("NAME: ", its figures), ...] of one on several."""
    return [(f"{name}: ", figures) for name, figures in result["tasks"].items()] if "tasks" in result else [("", result)]


# A command

def run(parser, rates_of=lambda config, args: (None, None), argv=None):
    """What a script does with its flags.

    rates_of(config, args) gives the rate of each layer and of the embeddings, or None and None: --learning_rate.
    """
    args, given = parse(parser, argv)
    check_output_folder(args.output_dir, "--output_dir")
    if launch(args):
        return
    with out_of_memory_in_one_line(), join(args) as world:
        setup = read_setup(args, given, world, rates_of)
        if args.do_train:
            folder = train_seeds(setup)
        else:
            folder = args.init_checkpoint
            if args.do_eval:
                evaluate_saved(setup, folder)
        if args.do_predict:
            predict(setup, folder)


@contextlib.contextmanager
def out_of_memory_in_one_line():
    """Turns what torch raises where the device's or the machine's memory is used up into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f"out of memory ({str(error).splitlines()[0][:160]}); raise --gradient_accumulation_steps, lower "
                        "--eval_batch_size, or add --gradient_checkpointing") from None


def train_seeds(setup):
    """The runs of all seeds, one after the other. Returns the folder of the model to go on with: the best of the first
    seed (and, of several tasks, of the first)."""
    args, world = setup.args, setup.world
    check_start(args)
    indices = range(len(setup.tasks))
    train = [read_dataset(setup, index, "train") for index in indices]
    test = [read_dataset(setup, index, "test", args.num_test_datas) if args.do_eval else None for index in indices]
    if args.do_eval and not args.dev_fraction:
        world.print("the test set is evaluated after each epoch and chooses the best one, as in the paper; "
                    "--dev_fraction 0.1 chooses on held-out training data and tests once")
    if not args.overwrite_output_dir:
        check_seeds(args)
    # every folder is looked at before the first run, not hours later
    runs = [(seed, folder, recipe, *look_at_folder(setup, folder, recipe)) for seed, folder, recipe in
            ((seed, seed_folder(args, seed), recipe_of(setup, seed, train, test)) for seed in args.seed)]
    results = []
    for seed, folder, recipe, is_new, finished in runs:
        if finished:
            world.print(f"{folder}: this run is finished: {describe_result(finished)}")
        results.append(finished or fine_tune(setup, seed, folder, recipe, is_new,
                                             [divide(setup, *datasets, seed) for datasets in zip(train, test)]))
    folder = task_folder(setup, seed_folder(args, args.seed[0]), setup.tasks[0])
    folder = os.path.join(folder, "best" if args.do_eval or args.dev_fraction else "last")
    if world.main:
        if len(args.seed) > 1:
            sum_up(args, results)
        if os.path.isdir(folder):  # a finished run's models may have been moved away
            print(f"wrote {args.output_dir}; next, predict with it:\n  python {predicting_script()} --do_predict "
                  f"--predict_file FILE --init_checkpoint {folder} --output_dir {args.output_dir}")
    return folder


def predicting_script():
    """The script to predict with: this one, unless it learns several tasks."""
    name = os.path.basename(sys.argv[0])
    return "run_classifier_single_layer.py" if name == "run_classifier_multitask.py" else name


def sum_up(args, results):
    """Writes and prints the mean and the standard deviation (n - 1) over the seeds, of best, last and test."""
    summary = {"seeds": args.seed}
    for position, (task, figures) in enumerate(figures_of(results[0])):
        own = summary.setdefault("tasks", {}).setdefault(task.removesuffix(": "), {}) if task else summary
        for name in ("best", "last", "test"):
            if name in figures:
                values = np.array([figures_of(result)[position][1][name]["eval_accuracy"] for result in results])
                own[name] = {"mean": values.mean(), "std": values.std(ddof=1), "values": values.tolist()}
                print(f"{task}{name} accuracy over {len(values)} seeds: {values.mean():.4%} "
                      f"(std {values.std(ddof=1):.4%})")
    write_json(os.path.join(args.output_dir, "summary.json"), summary)


def evaluate_saved(setup, folder):
    """Evaluates a fine-tuned model on the test set."""
    args, world = setup.args, setup.world
    test = read_dataset(setup, 0, "test", args.num_test_datas)
    classifier = make_model(setup, folder)[0].classifiers[0]
    measured, predictions = evaluate(setup, classifier, test)
    if world.main:
        write_evaluation(args.output_dir, "", measured, predictions)
        print(f"{folder}: accuracy {measured['eval_accuracy']:.4%}, loss {measured['eval_loss']:.4f} on {len(test):,} test "
              f"examples\nwrote {os.path.join(args.output_dir, 'eval_results.txt')} and results.txt")


def predict(setup, folder):
    """Writes predictions.tsv: a header, then the label and each class's probability for each text of --predict_file."""
    args, world, task = setup.args, setup.world, setup.tasks[0]
    texts = tasks.read_texts(task, args.predict_file)
    classifier = make_model(setup, folder)[0].classifiers[0]
    dataset = make_dataset(setup, texts, np.zeros(len(texts)), args.predict_file)
    probabilities = torch.from_numpy(logits_of(setup, classifier, dataset)).softmax(dim=1).numpy()
    if not world.main:
        return
    labels, path = task.labels, os.path.join(args.output_dir, "predictions.tsv")
    with atomic_write(path) as file:
        file.write("\t".join(["label", *labels]) + "\n")
        for row in probabilities:
            file.write("\t".join([labels[row.argmax()], *(f"{value:.6f}" for value in row)]) + "\n")
    print(f"wrote {path}: the label and the probability of each class for {len(texts):,} texts")
