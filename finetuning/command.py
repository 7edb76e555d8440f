"""What the three fine-tuning scripts do with their flags: train, evaluate or predict, in a folder.

    run.json                          flags, versions, device, commit, recipe: what the run is
    metrics.jsonl, tensorboard/       its metrics
    eval_results_epN.txt, results_epN.txt, classification_report_epN.txt, confusion_matrix_epN.csv and .png    after epoch N
    best/, last/                      the models of the best and of the last epoch: load again here and in transformers
    checkpoint.pt                     what a stopped run goes on from; removed at the end
    results.json                      the figures of the finished run

Of several seeds each has such a folder, seed_N, and summary.json stands beside them. A run on several tasks writes what
belongs to one task into a folder by the task's name.
"""
import collections
import contextlib
import functools
import json
import math
import os
import platform
import re
import sys

import numpy as np
import torch

import tasks
from common.command_line import UserError, command, fields_of, warn_of_an_idle_gpu
from common.files import atomic_write, check_output_folder, check_schema, digest_of_file, read_json, remove, write_json
from common.precision import precision_of
from common.run_folder import RunFolder, check_reporters, versions
from common.tables import described, shortened, tab_separated
from finetuning.data import BALANCED, class_weights, make_dataset, make_pair_dataset, read_class_weights
from finetuning.evaluation import (METRICS, describe, describe_result, figures_by_task, measure, predict, summarize_seeds,
                                   write_evaluation)
from finetuning.flags import NOT_RECIPE, WATCHED, parse
from finetuning.model import describe_classifier, make_model, read_inputs
from finetuning.processes import choose_precision, connect, launch
from finetuning.training import Execution, Recipe, TaskRun, read_checkpoint, train
from finetuning.weights import digest_of_weights, save_classifier

KIND = "fine-tuning"  # of a run, in its run.json
OWNED = re.compile(r"run\.json|metrics\.jsonl|results\.json|checkpoint\.pt|(eval_results|results|classification_report)"
                   r"(_ep\d+|_saved_model)?\.txt|confusion_matrix(_ep\d+|_saved_model)?\.(csv|png)|best|last|tensorboard|wandb|"
                   r"\..*\.tmp")
SEED_FOLDER = re.compile(r"seed_(\d+)")
run_folder = functools.partial(RunFolder, kind=KIND, owned=OWNED)


def run(parser, rates_of=lambda config, args: (None, None)):
    """What a script does with its flags. rates_of(config, args) gives the rate of each layer and of the embeddings, or None
    and None: --learning_rate."""
    args, given = parse(parser)
    check_output_folder(args.output_dir, "--output_dir")
    check_reporters(args.report_to)
    use_gpu = torch.cuda.is_available() and not args.no_cuda
    if launch(args.num_processes, use_gpu):
        return
    with out_of_memory_in_one_line(), connect(max(args.local_rank, 0), use_gpu, args.rendezvous_timeout) as world:
        if world.main and not use_gpu and not args.no_cuda:
            warn_of_an_idle_gpu("PyTorch", "Its driver may be too old for this build, see nvidia-smi."
                                if torch.version.cuda else "This build is the one for CPUs: reinstall torch from PyPI.")
        inputs = world.together(read_inputs, args, given)
        world.print(*inputs.tokenizer.notes, sep="\n")
        if args.class_weights not in (None, BALANCED):  # what the file says decides the result, not where it lies
            args.class_weights = world.together(read_class_weights, args.class_weights, inputs.tasks[0].labels)
        # read before any work, so that hours of training do not end at a file that is missing
        to_predict = world.together(read_to_predict, args, inputs.tasks[0]) if args.do_predict else None
        model_folder = args.init_checkpoint
        if args.do_train:
            model_folder = fine_tune(args, inputs, world.together(rates_of, inputs.config, args), world)
        elif args.do_eval:
            evaluate_saved(args, inputs, world)
        if args.do_predict:
            write_predictions(args, inputs, *to_predict, model_folder, world)


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


# Data

def read_dataset(args, inputs, index, split, world, num=None):
    """The split train, dev or test of the task of that index, or a stratified part of it, as a finetuning.data.Dataset."""
    task, data_dir, left_out, name = inputs.tasks[index], inputs.data_dirs[index], unseen(args), f"{split} data"
    texts, labels = tasks.read_examples(task, data_dir, split, left_out)
    if task.name == "csv":
        name += f" {described(tasks.find_source(task, data_dir, split)[0], task.encoding)}"
    if left_out:
        world.print(f"{name}: rows left out for their unseen labels: {left_out.total():,} "
                    f"({shortened(', '.join(left_out), 200)})")
    if num:
        chosen = tasks.subsample(labels, num, seed=0)
        texts, labels = [texts[i] for i in chosen], labels[chosen]
    return tokenize(args, inputs, texts, labels, prefix_of(inputs, index) + name, world)


def unseen(args):
    """What counts labels that the task does not have, where their rows are left out, else None."""
    return collections.Counter() if args.unseen_labels == "ignore" else None


def has_own(inputs, index, split):
    """Whether the task of that index is tables of your own, with one of that split."""
    return inputs.tasks[index].name == "csv" and bool(tasks.own_tables(inputs.data_dirs[index], split))


def tokenize(args, inputs, texts, labels, name, world):
    """Texts and class indices as a finetuning.data.Dataset. name: what the log calls them."""
    if isinstance(texts[0], tuple):
        dataset = make_pair_dataset(inputs.tokenizer, texts, labels, args.max_seq_length)
    else:
        max_fractions = (args.max_fractions or math.inf) if args.hierarchical else 1
        dataset = make_dataset(inputs.tokenizer, texts, labels, args.max_seq_length, args.trunc_medium, max_fractions)
    fractions = f" in {np.diff(dataset.document_offsets).mean():.2f} fractions" if args.hierarchical else ""
    shown, warning = inputs.tokenizer.unknown(dataset.ids, name)
    world.print(f"{name}: {len(dataset):,} texts, {dataset.lengths.mean():.1f} tokens on average ({shown}){fractions}, "
                f"{dataset.num_cut:,} ({dataset.num_cut / len(dataset):.1%}) are truncated")
    if warning:
        world.print(warning)
    return dataset


def prefix_of(inputs, index):
    """What a line of the log about a task begins with: its name where there are several."""
    return f"{inputs.tasks[index].name}: " if len(inputs.tasks) > 1 else ""


def task_run(args, inputs, index, train_set, dev_set, test_set, seed, folder):
    """The TaskRun of one seed: its part of the training set, what is evaluated each epoch and what is tested at the end.
    dev_set and test_set may be None."""
    task = inputs.tasks[index]
    if args.num_datas:
        train_set = train_set.subset(tasks.subsample(train_set.labels, args.num_datas, seed))
    evaluated, evaluated_name, tested = (dev_set, "development", test_set) if dev_set else (test_set, "test", None)
    if args.dev_fraction:
        kept, held_out = tasks.split_train_dev(train_set.labels, args.dev_fraction, seed)
        evaluated, evaluated_name, tested = train_set.subset(held_out), "held-out", test_set
        train_set = train_set.subset(kept)
    if args.task_sampling == "fixed" and len(train_set) < args.train_batch_size:
        raise UserError(f"--task_sampling fixed: {task.name} has {len(train_set)} training examples, fewer than one batch of "
                        f"{args.train_batch_size}, and would never be learnt; lower --train_batch_size, or leave the task out")
    save = functools.partial(save_classifier, config=inputs.config, description=describe_classifier(args, task),
                             vocab_file=args.vocab_file)
    sample = evaluated
    if args.eval_sample:
        sample = evaluated.subset(tasks.subsample(evaluated.labels, args.eval_sample, seed=0))
    return TaskRun(task, prefix_of(inputs, index), part_of(folder, inputs.tasks, task), train_set, evaluated, evaluated_name,
                   sample, tested, class_weights(args.class_weights, train_set.labels, task.labels), save)


def show_examples(inputs, run, world):
    """Prints three full training examples, as the model sees them."""
    inverse = inputs.tokenizer.inv_vocab
    for index in range(min(3, len(run.train))):
        label = run.train.labels[index]
        world.print(f"{run.prefix}training example {index}: label {run.task.labels[label]} (class {label})")
        for sequence in run.train.sequences(index):
            world.print(f"  tokens: {' '.join(inverse[i] for i in sequence)}\n  input_ids: {' '.join(map(str, sequence))}")
        for segment in run.train.segments(index) or ():
            world.print(f"  segment_ids: {' '.join(map(str, segment.astype(int)))}")


# Training

def fine_tune(args, inputs, rates, world):
    """The runs of all seeds, one after the other. Returns the folder of the first one's (and first task's) best model."""
    world.together(check_start, args)
    indices = range(len(inputs.tasks))
    train_sets = [world.together(read_dataset, args, inputs, index, "train", world) for index in indices]
    dev_sets = [world.together(read_dataset, args, inputs, index, "dev", world) if has_own(inputs, index, "dev") else None
                for index in indices]
    develops = args.dev_fraction or any(dev_sets)
    tests = args.do_eval and (not develops or inputs.tasks[0].name != "csv" or has_own(inputs, 0, "test"))
    test_sets = [world.together(read_dataset, args, inputs, index, "test", world, args.num_test_datas) if tests else None
                 for index in indices]
    if inputs.tasks[0].name == "csv":
        splits = [split for split, sets in (("train", train_sets), ("dev", dev_sets), ("test", test_sets)) if any(sets)]
        world.print(*world.on_main(tasks.describe_tables, inputs.tasks[0], inputs.data_dirs[0], splits,
                                   unseen(args)), sep="\n")
    if args.do_eval and not tests:
        world.print(f"{args.data_dir} has no test table: the development set alone is evaluated, and chooses the best epoch")
    if args.do_eval and not develops:
        when = f"every {args.eval_epochs} epochs and the last one" if (args.eval_epochs or 1) > 1 else "each epoch"
        world.print(f"the test set is evaluated after {when} and chooses the best one, as in the authors' code; "
                    "--dev_fraction 0.1 chooses on held-out training data and tests once")
    recipe = world.on_main(recipe_of, args, inputs, train_sets, test_sets, dev_sets)
    folders = {seed: run_folder(seed_folder(args, seed)) for seed in args.seed}
    with contextlib.ExitStack() as locks:
        for path in dict.fromkeys([args.output_dir, *(folder.path for folder in folders.values())]):  # each once, in order
            world.on_main(lambda path: locks.enter_context(run_folder(path).lock()), path)
        # every folder is looked at before the first run, not hours later
        found = world.on_main(look_at_folders, args, inputs, folders, recipe)
        results = []
        for seed, folder in folders.items():
            finished = found[seed] and world.together(finished_result, folder, world)
            results.append(finished or run_seed(args, inputs, rates, recipe | {"seed": seed}, folder, found[seed],
                                                list(zip(train_sets, dev_sets, test_sets)), world))
    if len(args.seed) > 1 and world.main:
        summary, lines = summarize_seeds(args.seed, results)
        print(*lines, sep="\n")
        path = os.path.join(args.output_dir, "summary.json")
        if not os.path.exists(path) or read_json(path, {}) != json.loads(json.dumps(summary)):
            write_json(path, summary)
    first = part_of(seed_folder(args, args.seed[0]), inputs.tasks, inputs.tasks[0])
    saved = args.save_models if args.do_eval or develops else "last"
    model_folder = os.path.join(first, "last" if saved == "last" else "best")
    following = ""
    if os.path.isdir(model_folder):  # none was kept, the run diverged, or they have been moved away
        script = os.path.basename(sys.argv[0]).replace("multitask", "single_layer")
        following = "; next, predict with it:\n  " + command(
            script, do_predict=True, predict_file="FILE", init_checkpoint=model_folder, output_dir=args.output_dir)
    world.print(f"wrote {args.output_dir}{following}")
    if args.do_predict and not world.on_main(os.path.isdir, model_folder):
        world.fail(f"--do_predict: {model_folder} is not there, as the run diverged, or had another --save_models; give that "
                   "again, or name a model by --init_checkpoint, without --do_train")
    return model_folder


def run_seed(args, inputs, rates, recipe, folder, found, datasets, world):
    """The run of one seed: begins it in its folder, or goes on with it. found: its run.json, None where it is new. datasets: of
    each task (training set, development set or None, test set or None). Returns the figures of results.json."""
    checkpoint = os.path.join(folder.path, "checkpoint.pt")
    if found and not world.on_main(os.path.exists, checkpoint):
        found = None  # an attempt that ended before it saved anything
    args = with_precision(args, inputs, world, found)
    torch.manual_seed(recipe["seed"])
    # Before the folder changes, so that wrong weights, or too few examples, leave it as it is.
    model, lines = world.together(make_model, args, inputs, world.device)
    runs = [world.together(task_run, args, inputs, index, *sets, recipe["seed"], folder.path)
            for index, sets in enumerate(datasets)]
    flags = vars(args) | {"num_processes": world.size}
    state = world.together(read_checkpoint, checkpoint) if found else None
    if found is None:
        world.on_main(begin, args, inputs, folder, recipe, flags, world)

    def resumed():
        step = state["progress"]["global_step"]
        note = world.on_main(folder.resume, found, step, flags, WATCHED)
        world.print(f"going on after update {step} from {checkpoint}" + (f"\n{note}" if note else ""))

    if state is None:
        world.print(*lines, sep="\n")
        for run in runs:
            show_examples(inputs, run, world)
            if run.class_weights is not None:
                world.print(f"{run.prefix}class weights: " + ", ".join(
                    f"{name} {weight:.4g}" for name, weight in zip(run.task.labels, run.class_weights)))
    held_out = f", {sum(len(run.evaluated) for run in runs):,} held out" if args.dev_fraction else ""
    world.print(f"seed {recipe['seed']}: {sum(len(run.train) for run in runs):,} training examples{held_out}")
    of_this_run = fields_of(Recipe, args, seed=recipe["seed"], layer_rates=rates[0], embeddings_rate=rates[1])
    result = train(model, runs, of_this_run, fields_of(Execution, args), world, folder.path, state, resumed)
    if world.main:
        write_json(os.path.join(folder.path, "results.json"), result)
        remove(checkpoint)
    world.print(f"{folder.path}: {describe_result(result)}")
    return result


def with_precision(args, inputs, world, found=None):
    """The flags, with the precision that --precision auto stands for. found: the run.json of the run that goes on, or None."""
    precision, reason = world.on_main(choose_precision, args.precision, precision_of(found), inputs.config.hidden_size,
                                      world.device)
    world.print(f"precision: {precision} ({reason})")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"  # the latter: a biLSTM's
    return type(args)(**vars(args) | {"precision": precision})


# Whose folder it is

def recipe_of(args, inputs, train_sets, test_sets, dev_sets):
    """What decides the result of a run, beside the seed: the flags that do, and digests of all that is read. Two runs of
    an equal recipe are the same, wherever their files lie."""
    data = {f"{prefix_of(inputs, index)}{name} data": dataset.digest()
            for name, datasets in (("training", train_sets), ("test", test_sets), ("development", dev_sets))
            for index, dataset in enumerate(datasets) if dataset}
    labels = {f"{prefix_of(inputs, index)}labels": list(task.labels) for index, task in enumerate(inputs.tasks)}
    model = {"weights (--init_checkpoint)": digest_of_weights(args.init_checkpoint),
             "vocabulary (--vocab_file)": "sha256 " + digest_of_file(args.vocab_file)} | inputs.config.identity()
    return {key: value for key, value in vars(args).items() if key not in NOT_RECIPE} | model | labels | data


def seed_folder(args, seed):
    """The folder of one seed's run: --output_dir, or of several a folder in it."""
    return args.output_dir if len(args.seed) == 1 else os.path.join(args.output_dir, f"seed_{seed}")


def part_of(folder, all_tasks, task):
    """Where a run in `folder` writes what belongs to one of its tasks."""
    return os.path.join(folder, task.name) if len(all_tasks) > 1 else folder


def check_start(args):
    """Raises UserError where the run would write over the weights that it starts from."""
    inside = os.path.relpath(os.path.realpath(args.init_checkpoint or os.sep), os.path.realpath(args.output_dir))
    if inside == "." or not inside.startswith("..") and {"best", "last"} & set(inside.split(os.sep)):
        raise UserError(f"--output_dir: {args.output_dir} holds --init_checkpoint {args.init_checkpoint}, and would be "
                        "written anew; name another folder")


def look_at_folders(args, inputs, folders, recipe):
    """{seed: the run.json of the run that it goes on with, or None}. Changes nothing. Raises UserError where --output_dir
    holds another run that may not be overwritten."""
    found = {}
    run_folder(args.output_dir).earlier()  # refuses another script's, whose files have the same names
    one_seed = os.path.exists(os.path.join(args.output_dir, "run.json"))
    several = any(SEED_FOLDER.fullmatch(name) and os.path.exists(os.path.join(args.output_dir, name, "run.json"))
                  for name in os.listdir(args.output_dir))
    if not args.overwrite_output_dir and (one_seed if len(args.seed) > 1 else several and not one_seed):
        raise UserError(f"--output_dir: {args.output_dir} holds a run of {'one seed' if one_seed else 'several seeds'}; name "
                        "another folder, or add --overwrite_output_dir to remove it")
    for seed, folder in folders.items():
        found[seed] = folder.check(recipe | {"seed": seed}, args.overwrite_output_dir)
        for part in parts(folder, inputs.tasks):
            if os.path.exists(part.record):
                raise UserError(f"--output_dir: {part.path} holds a run of its own, and would get files of this one; name "
                                "another folder")
            if found[seed] is None and not args.overwrite_output_dir:
                part.check({})
    return found


def parts(folder, all_tasks):
    """The RunFolder of each task of a run on several."""
    return [run_folder(os.path.join(folder.path, task.name)) for task in all_tasks] if len(all_tasks) > 1 else []


def begin(args, inputs, folder, recipe, flags, world):
    """Removes other runs where --overwrite_output_dir says so, and writes run.json."""
    if args.overwrite_output_dir:
        several, begun = len(args.seed) > 1, args.seed[:args.seed.index(recipe["seed"])]
        # Old runs of later seeds go now: a command that is stopped before their turn could not go on otherwise.
        for name in filter(SEED_FOLDER.fullmatch, os.listdir(args.output_dir)):
            seed, other = int(SEED_FOLDER.fullmatch(name)[1]), run_folder(os.path.join(args.output_dir, name))
            if several and seed in args.seed:
                if seed not in begun:
                    clear(other, inputs.tasks)
            elif os.path.islink(other.path):
                remove(other.path)
            else:
                clear(other)
        if several:
            clear(run_folder(args.output_dir), inputs.tasks)
        remove(os.path.join(args.output_dir, "summary.json"))
    clear(folder, inputs.tasks)
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine() + " CPU"
    os.makedirs(folder.path, exist_ok=True)
    start = {"hub": inputs.hub} if inputs.hub else {}
    folder.begin(recipe, flags, **start, versions=versions("torch", "numpy", "tokenizers", "scikit-learn"), device=device,
                 processes=world.size, threads=torch.get_num_threads())


def clear(folder, own_tasks=()):
    """Removes a run, if one of ours is there: its files, those of its tasks, and folders that are empty then. own_tasks: of
    the run that begins here, whose folder is kept, as its lock is held."""
    found = folder.earlier()
    names = found["recipe"].get("task_name") if found else None
    known = [task for name, task in tasks.TASKS.items() if isinstance(names, list) and name in names]  # others are no tasks
    old = [part for part in parts(folder, [*known, *own_tasks])
           if not os.path.exists(part.record) and not os.path.islink(part.path)]  # a run of its own is left alone
    if found or own_tasks:
        old.append(folder)
    for each in old:
        each.clear()
        if not (own_tasks and each is folder) and os.path.isdir(each.path) and not os.listdir(each.path):
            os.rmdir(each.path)


def finished_result(folder, world):
    """The results.json of a finished run, or None. What a process that was killed just then left is removed."""
    path = os.path.join(folder.path, "results.json")
    if not os.path.exists(path):
        return None
    result = read_json(path, {"seed": int, "train_seconds": float, "peak_memory_mib": int})
    check_schema(result, {"tasks": {str: {"epochs": [dict]}}} if "tasks" in result else {"epochs": [dict]}, path)
    check_schema(result, {"diverged": {"global_step": int}} if "diverged" in result else {}, path)
    for _, figures in figures_by_task(result):
        for name in {"best", "last", "test"} & figures.keys():
            check_schema(figures[name], {"epoch": int} | {f"eval_{metric}": float for metric in METRICS}, f"{path}, {name}")
    world.print(f"{folder.path}: this run is finished: {describe_result(result)}")
    if world.main:
        remove(os.path.join(folder.path, "checkpoint.pt"))
    return result


# A saved model

def evaluate_saved(args, inputs, world):
    """Evaluates a fine-tuned model on the test set, or where your own tables have none, on the development set."""
    split = "dev" if has_own(inputs, 0, "dev") and not has_own(inputs, 0, "test") else "test"
    if split == "dev":
        world.print(f"{args.data_dir} has no test table: the development set is evaluated")
    test_set = world.together(read_dataset, args, inputs, 0, split, world, args.num_test_datas)
    model, args = world.together(make_model, args, inputs, world.device)[0], with_precision(args, inputs, world)
    classifier = model.classifiers[0]
    logits = predict(classifier, test_set, args.eval_batch_size, world, args.precision == "bf16")
    measured = measure(test_set.labels, logits)
    of_a_run = any(os.path.exists(os.path.join(args.output_dir, name)) for name in ("run.json", "last", "best"))
    suffix = "_saved_model" if of_a_run else ""  # the results of a run, or of one of its tasks, keep their names
    if world.main:
        write_evaluation(args.output_dir, suffix, measured, test_set.labels, logits, inputs.tasks[0].labels)
    path = os.path.join(args.output_dir, f"eval_results{suffix}.txt")
    world.print(f"{args.init_checkpoint}: {describe(measured)} on {len(test_set):,} {split} examples\nwrote {path}, "
                f"results{suffix}.txt, classification_report{suffix}.txt, confusion_matrix{suffix}.csv and "
                f"confusion_matrix{suffix}.png")


def read_to_predict(args, task):
    """(the texts of --predict_file, their --id_column or None)."""
    return (tasks.read_texts(task, args.predict_file, args.encoding),
            args.id_column and tasks.read_ids(task, args.predict_file, args.id_column, args.encoding))


def write_predictions(args, inputs, texts, ids, model_folder, world):
    """Writes predictions.tsv: a header, then for each text its id (--id_column), the label, each class's probability, and the
    text (--write_text)."""
    task = inputs.tasks[0]
    args = with_precision(args, inputs, world)
    args = type(args)(**vars(args) | {"do_train": False, "init_checkpoint": model_folder})
    classifier = world.together(make_model, args, inputs, world.device)[0].classifiers[0]
    name = described(args.predict_file, args.encoding or task.encoding)
    dataset = tokenize(args, inputs, texts, np.zeros(len(texts)), name, world)
    logits = predict(classifier, dataset, args.eval_batch_size, world, args.precision == "bf16")
    path = os.path.join(args.output_dir, "predictions.tsv")
    if world.main:
        columns = {} if ids is None else {"id" if args.id_column.isdecimal() else args.id_column: ids}
        of_text = dict(zip(("text", "text_pair"), zip(*texts) if task.num_second else [texts])) if args.write_text else {}
        with atomic_write(path) as file:
            file.write(tab_separated([*columns, "label", *task.labels, *of_text], task.quoting == "all"))
            for row, *more in zip(torch.from_numpy(logits).softmax(dim=1).numpy(), *columns.values(), *of_text.values()):
                fields = [*more[:len(columns)], task.labels[row.argmax()], *(f"{value:.6f}" for value in row),
                          *more[len(columns):]]
                file.write(tab_separated(fields, task.quoting == "all"))
    world.print(f"wrote {path}: the label and the probability of each class for {len(texts):,} texts")
