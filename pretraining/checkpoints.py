"""TensorFlow checkpoints: read, written whole, found, pruned and repaired.

A checkpoint is name-based, as `tf.compat.v1.train.Saver` writes it (it works in eager mode), so google-research/bert reads ours
and we read Google's:

    values = read_checkpoint("uncased_L-12_H-768_A-12/bert_model.ckpt")
    write_checkpoint("folder/model.ckpt-0", model.variables)

The files of a run's checkpoint after update N are

    model.ckpt-N.window.json            metrics since the last line of metrics.jsonl, where there are any
    model.ckpt-N.data-00000-of-00001    the values
    model.ckpt-N.index                  names, places and checksums; it comes last, so with it the checkpoint is whole
"""
import collections
import contextlib
import logging
import math
import os
import pathlib
import re

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from common.command_line import UserError
from common.configuration import check_beside
from common.files import atomic_write, checkpoint_prefix, locked, read_json, remove, write_json
from common.names import (DUPLICATES, POOLER, TIED, check_names_of_weights, is_training_state, pytorch_name, with_our_names,
                          without_pooler)
from pretraining.devices import cannot_write
from pretraining.modeling_tf import initial_values, variable_shapes
from pretraining.optimization_tf import SLOTS

INDEX = re.compile(r"model\.ckpt-(\d+)\.index")
PART = re.compile(r"(model\.ckpt-\d+)\..+")  # a file of a checkpoint


# Reading

def read_checkpoint(prefix, flag="--init_checkpoint"):
    """Name -> numpy array of everything in the name-based checkpoint `prefix` (as model.ckpt-1000; no .index). Raises
    UserError, its text starting with `flag`, where there is no such checkpoint, or it is damaged or cut."""
    if not os.path.isfile(f"{prefix}.index"):
        stem = checkpoint_prefix(prefix)
        if stem != prefix and os.path.isfile(f"{stem}.index"):
            raise UserError(f"{flag}: {prefix} is one file of a checkpoint; give the prefix they share, {stem}")
        if os.path.isdir(prefix):
            raise UserError(f"{flag}: {prefix} is a folder; give a checkpoint's prefix, like {prefix}/model.ckpt-N")
        if os.path.exists(prefix):
            raise UserError(f"{flag}: {prefix} is no TensorFlow checkpoint (there is no {prefix}.index)")
        raise UserError(f"{flag}: there is no checkpoint {prefix} (no file {prefix}.index)")
    try:
        reader = tf.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:  # IndexError: a file is cut
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{flag}: {prefix} is no whole checkpoint ({reason})") from None


def safetensors_file(path):
    """The safetensors file that `path`, it or its folder, names; None where it names none."""
    found = path if path.endswith(".safetensors") else os.path.join(path, "model.safetensors")
    return found if os.path.isfile(found) else None


def read_start(path, config, flag="--init_checkpoint"):
    """What `read_checkpoint` gives, of a checkpoint's prefix; or of PyTorch's weights for `transformers`, in a safetensors file
    or its folder, by TensorFlow's names. Raises UserError as that does, and where the weights are not such a BERT's."""
    file = safetensors_file(path)
    if not file:
        return read_checkpoint(path, flag)
    where = f"{flag}: {file}"
    check_beside(os.path.dirname(file), flag)
    try:
        state = with_our_names(safetensors.numpy.load_file(file))
    except safetensors.SafetensorError as error:
        raise UserError(f"{where} is no whole safetensors file ({error})") from None
    check_names_of_weights(state, where)
    names = {pytorch_name(name)[0]: (name, pytorch_name(name)[1]) for name in variable_shapes(config)}
    for copy, original in TIED.items():
        if copy in state and original in state and not np.array_equal(state[copy], state[original]):
            raise UserError(f"{where}: {copy} is not the same as {original}; BERT in TensorFlow has one tensor for both")
    if other := [name for name in state if name.startswith("bert.") and name not in names and name not in DUPLICATES]:
        raise UserError(f"{where} has what this model has not: {min(other)}; take the config.json that came with it")
    if whole := [name for name in state if name in names and state[name].dtype.kind in "iub"]:
        raise UserError(f"{where}: {whole[0]} is of whole numbers, as in a quantized model; take the one that is not quantized")
    return {names[name][0]: value.T if names[name][1] else value for name, value in state.items() if name in names}


def fitting_values(config, values, where):
    """Those of a checkpoint's `values` that are the model's: name -> float32 array, pre-training heads if it has them.

    Optimizer slots, global_step and heads of other tasks are left out. Raises UserError, its text starting with `where`, where
    the checkpoint is of another model: no BERT, an encoder variable missing, other shapes, another depth.
    """
    shapes = variable_shapes(config)
    check_names_of_weights(values, where)
    if not any(name.startswith("bert/") for name in values):
        raise UserError(f"{where} holds no BERT: none of its variables is named bert/...")
    remedy = "take the bert_config.json that came with the checkpoint"
    layers = {int(name.split("/")[2].removeprefix("layer_")) for name in values if name.startswith("bert/encoder/layer_")}
    if layers and max(layers) + 1 != config.num_hidden_layers:
        raise UserError(f"{where} has {max(layers) + 1} layers, the config {config.num_hidden_layers}; {remedy}")
    may_lack = ("cls/", *POOLER[:without_pooler(values)])  # these may be new
    if missing := [name for name in shapes if not name.startswith(may_lack) and name not in values]:
        raise UserError(f"{where} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    if unknown := sorted(name for name in values.keys() - shapes.keys() if name.startswith("bert/")
                         and not is_training_state(name, shapes)):
        raise UserError(f"{where} has what this model has not: {unknown[0]}" + (f" and {len(unknown) - 1} more" if unknown[1:]
                                                                               else ""))
    for name, shape in shapes.items():
        if name in values and np.shape(values[name]) != shape:
            raise UserError(f"{where} does not fit the config: {name} has the shape {list(np.shape(values[name]))}, by the "
                            f"config {list(shape)}; {remedy}")
    return {name: np.asarray(values[name], np.float32) for name in shapes if name in values}


# Writing

def write_checkpoint(prefix, variables):
    """Writes `variables` (name -> tf.Variable, tensor or numpy array) as the name-based checkpoint `prefix`.

    The files are written in a folder of their own, flushed to disk and then renamed, the index last. The folder has the same
    name each time, so what a killed process leaves is removed by the next. Raises UserError where the checkpoint cannot be
    written, or another command is writing it.
    """
    folder, name = os.path.split(os.path.abspath(prefix))
    temporary = os.path.join(folder, f".{name}.tmp")
    variables = {key: value if isinstance(value, tf.Variable) else tf.Variable(value) for key, value in variables.items()}
    os.makedirs(temporary, exist_ok=True)
    with locked(temporary, f"{prefix} is being written by another command; wait for it, or name another file"):
        try:
            for file in os.listdir(temporary):
                os.unlink(os.path.join(temporary, file))
            logging.disable(logging.WARNING)  # each Saver advises in the log to leave name-based checkpoints
            saver = tf.compat.v1.train.Saver(variables)
            logging.disable(logging.NOTSET)
            saver.save(None, os.path.join(temporary, name), write_meta_graph=False, write_state=False)
            files = sorted(os.listdir(temporary), key=lambda file: file.endswith(".index"))
            for file in files:
                with open(os.path.join(temporary, file), "rb") as written:
                    os.fsync(written.fileno())
            with contextlib.suppress(FileNotFoundError):  # an older one of this name must not stand half replaced
                os.unlink(f"{prefix}.index")
            for file in files:
                os.replace(os.path.join(temporary, file), os.path.join(folder, file))
        except OSError as error:
            error.filename = prefix  # what is shown is the name that the user knows
            raise
        except tf.errors.OpError as error:
            raise cannot_write(prefix, error) from None
        finally:
            remove(temporary)


# The checkpoints of a run

def checkpoint_prefixes(folder):
    """The prefixes of the whole checkpoints in a run's folder, oldest first."""
    files = os.listdir(folder) if os.path.isdir(folder) else []
    steps = sorted(int(match[1]) for match in map(INDEX.fullmatch, files) if match)
    return [os.path.join(folder, f"model.ckpt-{step}") for step in steps]


def newest_checkpoint(folder):
    """(prefix, its values by name) of the newest undamaged checkpoint of the folder, (None, None) where it has none. Raises
    UserError where there are checkpoints but all are damaged."""
    prefixes = checkpoint_prefixes(folder)
    for prefix in reversed(prefixes):
        try:
            return prefix, read_checkpoint(prefix, "--output_dir")
        except UserError as error:
            print(f"{error}; going back to the one before it")
    if prefixes:
        raise UserError(f"--output_dir: no checkpoint in {folder} is whole; --overwrite_output_dir starts anew")
    return None, None


def save_checkpoint(folder, step, variables, window, keep):
    """Writes model.ckpt-<step> (its prefix is returned), has the file `checkpoint` name it, and removes all but the newest
    `keep` (0: keeps all). Killed between any two of these steps, the folder holds a whole checkpoint.

    window: rows of metrics since the last line of metrics.jsonl.
    """
    prefix = os.path.join(folder, f"model.ckpt-{step}")
    if window:
        write_json(f"{prefix}.window.json", window)
    write_checkpoint(prefix, variables)
    keep_newest(folder, keep)
    return prefix


def keep_newest(folder, keep, last_step=math.inf):
    """Has the file `checkpoint`, by which TensorFlow finds the newest, name the newest `keep` (0: all) of the whole checkpoints
    up to `last_step`, and removes all files of others: of older ones, of damaged later ones (which would crowd out whole ones),
    and those without an index, which a killed process left."""
    names = [os.path.basename(prefix) for prefix in checkpoint_prefixes(folder)]
    kept = [name for name in names if int(name.removeprefix("model.ckpt-")) <= last_step][-keep:]  # [-0:] is all of them
    if kept:
        lines = [f'model_checkpoint_path: "{kept[-1]}"\n', *(f'all_model_checkpoint_paths: "{name}"\n' for name in kept)]
        path = pathlib.Path(folder, "checkpoint")
        if not path.exists() or path.read_bytes() != "".join(lines).encode():
            with atomic_write(path) as file:
                file.writelines(lines)
    for file in sorted(os.listdir(folder), key=lambda file: not file.endswith(".index")):  # without data none may look whole
        match = PART.fullmatch(file)
        if match and match[1] not in kept:
            os.unlink(os.path.join(folder, file))


def read_window(folder, step, width):
    """The rows of `width` metrics that `save_checkpoint` wrote beside model.ckpt-<step>; none, with a word, where they are
    damaged: they make a line of the log, no weight."""
    path = os.path.join(folder, f"model.ckpt-{step}.window.json")
    if not os.path.exists(path):
        return []
    try:
        rows = read_json(path, [[float]])
        if any(len(row) != width for row in rows):
            raise UserError(f"{path}: a row has not {width} numbers")
        return rows
    except UserError as error:
        print(f"{error}; the next line of metrics.jsonl is a mean over fewer updates")
        return []


# Where a run starts

Start = collections.namedtuple("Start", "prefix step values state new")
Start.__doc__ = """prefix of the checkpoint that a run starts from (None: all is new) and its update; name -> value of
the model's variables and of the optimizer's (empty: new ones); the names of the variables that the checkpoint lacks."""


def start_of_run(config, seed, folder, init_checkpoint, to_train):
    """The Start of a run: the newest checkpoint of its `folder` (None: not to be looked at), else `init_checkpoint`, else new
    weights, as are the pre-training heads that a checkpoint lacks. Raises UserError where the checkpoint does not fit, one to
    go on from has no optimizer slots, or there is neither training nor a checkpoint."""
    names = list(variable_shapes(config))
    prefix, values = newest_checkpoint(folder) if folder else (None, None)
    resumed = prefix is not None
    if not resumed and init_checkpoint:
        prefix, values = init_checkpoint, read_start(init_checkpoint, config)
    if prefix is None:
        if folder and not to_train:
            raise UserError(f"--do_eval: {folder} holds no checkpoint and there is no --init_checkpoint")
        return Start(None, 0, initial_values(config, seed), {}, names)
    chosen = fitting_values(config, values, f"{'--output_dir' if resumed else '--init_checkpoint'}: {prefix}")
    state = {}
    if resumed and to_train:
        slots = ["global_step", *(f"{name}/{slot}" for name in names for slot in SLOTS)]
        if lacking := [name for name in [*names, *slots] if name not in values]:
            raise UserError(f"--output_dir: {prefix} lacks {lacking[0]} and cannot be gone on from; --overwrite_output_dir "
                            "starts anew")
        state = {name: values[name] for name in slots}
    step = int(values.get("global_step", 0)) if resumed else 0
    new = [name for name in names if name not in chosen]
    return Start(prefix, step, chosen | initial_values(config, seed, new), state, new)


def describe_variables(config, start):
    """Prints each variable with its shape and where its value comes from."""
    shapes = variable_shapes(config)
    source = f"from {start.prefix}" if start.prefix else "no --init_checkpoint: all new"
    print(f"{sum(map(math.prod, shapes.values())):,} parameters in {len(shapes)} variables ({source}):")
    for name, shape in shapes.items():
        print(f"  {name} {list(shape)} {'initialised' if name in start.new else '*INIT_FROM_CKPT*'}")
