"""The folder of a fine-tuning run. What a run writes into it:

    run.json               flags, versions, device, commit, data: what the run is
    metrics.jsonl          a line for each --log_steps updates and each evaluation; TensorBoard's in tensorboard/
    eval_results_epN.txt   accuracy and loss after epoch N, the authors' format
    results_epN.txt        the predicted class index of each evaluated example, a line each
    best/, last/           the model of the best and of the last epoch: load again here and in transformers
    checkpoint.pt          what a stopped run goes on from; removed at the end
    results.json           the figures of the finished run

A run on several tasks writes the files of one task (eval_results_epN.txt, results_epN.txt, best/, last/) into a folder by
the task's name.
"""
import contextlib
import datetime
import json
import os
import platform
import shutil
import sys

import numpy as np
import safetensors.torch
import torch

from command_line import UserError, atomic_write, read_recipe, source_commit
from fine_tuning_flags import MODEL_FLAGS

KIND = "fine-tuning"  # of a run, in its run.json
RUN_FILES = ("run.json", "results.json", "metrics.jsonl", "checkpoint.pt", "results.txt", "eval_results.txt")
RUN_FOLDERS = ("best", "last", "tensorboard")


def seed_folder(args, seed):
    """The folder of one seed's run: --output_dir, or where there are several seeds one in it."""
    return args.output_dir if len(args.seed) == 1 else os.path.join(args.output_dir, f"seed_{seed}")


def task_folder(setup, folder, task):
    """Where a run in `folder` writes what belongs to one task."""
    return os.path.join(folder, task.name) if len(setup.tasks) > 1 else folder


def save_model(classifier, setup, task, folder):
    """Writes a folder that loads here and in transformers. The weights come last, in one rename."""
    os.makedirs(folder, exist_ok=True)
    args, labels = setup.args, task.labels
    hugging_face_head = args.layers == [-2] and not args.hierarchical
    setup.config.write(os.path.join(folder, "config.json"), model_type="bert",
                       architectures=["BertForSequenceClassification" if hugging_face_head else "BertModel"],
                       id2label={str(index): label for index, label in enumerate(labels)},
                       label2id={label: index for index, label in enumerate(labels)})
    write_json(os.path.join(folder, "classifier.json"),
               {"task": task.to_dict()} | {flag: getattr(args, flag) for flag in MODEL_FLAGS})
    write_json(os.path.join(folder, "tokenizer_config.json"),
               {"tokenizer_class": "BertTokenizer", "do_lower_case": args.do_lower_case,
                "model_max_length": args.max_seq_length})
    with open(args.vocab_file, "rb") as vocab, atomic_write(os.path.join(folder, "vocab.txt"), "wb") as copy:
        shutil.copyfileobj(vocab, copy)
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    with atomic_write(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(safetensors.torch.save(state, metadata={"format": "pt"}))


def read_json(path):
    """The value in a file that `write_json` wrote. Raises UserError where it has been damaged since."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def write_json(path, value):
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def write_evaluation(folder, suffix, evaluation, predictions):
    """The authors' two files: `key = value` lines, and a predicted class index a line."""
    with atomic_write(os.path.join(folder, f"results{suffix}.txt")) as file:
        file.writelines(f"{prediction}\n" for prediction in predictions)
    keys = [key for key in ("eval_accuracy", "eval_loss", "global_step", "loss") if key in evaluation]
    with atomic_write(os.path.join(folder, f"eval_results{suffix}.txt")) as file:
        file.writelines(f"{key} = {evaluation[key]}\n" for key in keys)


# Whose folder it is

def is_of_a_run(name):
    return name in RUN_FILES + RUN_FOLDERS or name.startswith(("eval_results_ep", "results_ep"))


def check_start(args):
    """Raises UserError where the run would write over the weights that it starts from."""
    inside = os.path.relpath(os.path.realpath(args.init_checkpoint or os.sep), os.path.realpath(args.output_dir))
    if inside == "." or not inside.startswith("..") and {"best", "last"} & set(inside.split(os.sep)):
        raise UserError(f"--output_dir: {args.output_dir} holds --init_checkpoint {args.init_checkpoint}, and would be "
                        "written anew; name another folder")


def check_seeds(args):
    """Raises UserError where --output_dir holds a run of one seed and this command has several, or the reverse."""
    one = os.path.exists(os.path.join(args.output_dir, "run.json"))
    if len(args.seed) > 1 and one:
        raise UserError(f"--output_dir: {args.output_dir} holds a run of one seed; name another folder")
    if len(args.seed) == 1 and not one and os.path.exists(os.path.join(args.output_dir, "summary.json")):
        raise UserError(f"--output_dir: {args.output_dir} holds a run of several seeds; name another folder")


def look_at_folder(setup, folder, recipe):
    """Returns (whether the run of `recipe` is to be started anew in `folder`, its results if it is finished there).

    Changes nothing. Raises UserError where the folder holds another run that may not be overwritten.
    """
    is_new, finished, fault = True, None, None
    if setup.world.main and os.path.isdir(folder):
        try:
            is_new, finished = compare_run(folder, recipe, setup.args.overwrite_output_dir)
        except UserError as error:
            fault = str(error)
    is_new, finished, fault = setup.world.gather((is_new, finished, fault))[0]
    if fault:
        raise UserError(fault)
    return is_new, finished


def parts_of(folder, recipe):
    """The folder of a run, and the folder in it of each of its tasks where it has several."""
    names = recipe.get("task_name")
    return [folder, *(os.path.join(folder, name) for name in (names if isinstance(names, list) else []))]


def compare_run(folder, recipe, overwrite):
    """`look_at_folder` of a folder that exists, in one process."""
    mend = "name another folder or add --overwrite_output_dir"
    path = os.path.join(folder, "run.json")
    earlier = read_recipe(path, KIND) if os.path.exists(path) else None
    for part in parts_of(folder, recipe)[1:]:
        if os.path.exists(os.path.join(part, "run.json")):
            raise UserError(f"--output_dir: {part} holds a run of its own, and would get files of this one; name another "
                            "folder")
    if overwrite:
        return True, None
    if earlier is None:
        for part in filter(os.path.isdir, parts_of(folder, recipe)):
            if any(map(is_of_a_run, os.listdir(part))):
                raise UserError(f"--output_dir: {part} holds files of another run; {mend}")
        return True, None
    for key in recipe | earlier:
        if recipe.get(key) != earlier.get(key):
            raise UserError(f"--output_dir: {folder} holds another run ({key} was {earlier.get(key)}, "
                            f"now {recipe.get(key)}); {mend}")
    results = os.path.join(folder, "results.json")
    return False, read_json(results) if os.path.exists(results) else None


def remove_run(folder, recipe):
    """Removes the files that an earlier run wrote into the folder of the run of `recipe`, and nothing else.

    Of several tasks' folders only the run's own are looked into: one that has a run.json holds a run of its own.
    """
    path = os.path.join(folder, "run.json")
    earlier = read_recipe(path, KIND) if os.path.exists(path) else {}
    for part in {*parts_of(folder, earlier)[1:], *parts_of(folder, recipe)[1:]}:
        if os.path.isdir(part) and not os.path.exists(os.path.join(part, "run.json")):
            remove_run_files(part)
            if not os.listdir(part):
                os.rmdir(part)
    if os.path.isdir(folder):
        remove_run_files(folder)


def remove_run_files(folder):
    for name in sorted(os.listdir(folder), key=lambda name: name == "run.json"):  # which says whose they are: last
        path = os.path.join(folder, name)
        if name in RUN_FOLDERS:
            shutil.rmtree(path)
        elif is_of_a_run(name):
            os.unlink(path)


# The record of a run

def begin_run(setup, folder, recipe):
    """Removes an earlier run's files and writes run.json."""
    remove_run(folder, recipe)
    write_json(os.path.join(folder, "run.json"), {"kind": KIND, "recipe": recipe, "flags": vars(setup.args),
                                                  "command": sys.argv} | environment(setup.world))


def environment(world):
    """Versions, device and commit, for the record."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine() + " CPU"
    return {"versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "device": device, "processes": world.size, "threads": torch.get_num_threads(), "commit": source_commit(),
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


@contextlib.contextmanager
def metrics_log(folder, progress):
    """Yields log(global_step, kind, **values), which writes to metrics.jsonl and TensorBoard.

    Lines of updates and evaluations that are still to come, of a run that was stopped later than it was saved, are
    dropped.
    """
    keep_tensorflow_out()
    from torch.utils.tensorboard import SummaryWriter
    path = os.path.join(folder, "metrics.jsonl")
    kept = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file if line.endswith("\n")]
        kept = [line for line in lines if is_done(json.loads(line), progress)]
    with atomic_write(path) as file:
        file.writelines(kept)
    board = SummaryWriter(os.path.join(folder, "tensorboard"),
                          purge_step=progress.global_step + 1 if progress.global_step else None)
    with open(path, "a", encoding="utf-8") as file, contextlib.closing(board):
        def log(step, kind, **values):
            file.write(json.dumps({"global_step": step, "kind": kind, **values}) + "\n")
            file.flush()
            for name, value in values.items():
                if name != "epoch":
                    board.add_scalar(f"{kind}/{name}", value, step)
        yield log


def keep_tensorflow_out():
    """Lets tensorboard choose its own file functions now: later it would import TensorFlow for them where that is
    installed, which takes seconds and memory. A module `notf` is its switch."""
    switch = "tensorboard.compat.notf"
    sys.modules[switch] = type(sys)(switch)
    try:
        from tensorboard.compat import tf
        tf.io  # any attribute: the choice is made at the first one, and kept
    finally:
        del sys.modules[switch]


def is_done(line, progress):
    """Whether a line of metrics.jsonl lies before the point where a run stands."""
    return line["global_step"] <= progress.global_step and (line["kind"] == "train" or line["epoch"] <= progress.epoch)
