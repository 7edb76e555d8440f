"""Further pre-training in TensorFlow 2: devices, steps, the training loop, evaluation, checkpoints to go on from.

`run_pretraining.py` checks the flags and calls `pretrain`. One update is made by `make_train_steps`; the loop around
it only saves, logs and watches for signals. All random numbers and the order of the records are functions of the seed
and the step, so a run that goes on from a checkpoint ends at the weights of one that was never stopped.
"""
import contextlib
import functools
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from command_line import UserError, atomic_write
from modeling_tf import (WRITING, BertForPreTraining, fitting_values, initial_values, read_checkpoint, variable_shapes,
                         write_checkpoint)
from optimization_tf import SLOTS, AdamWeightDecay
from records_tf import DENOMINATOR_EPSILON, Records, evaluation_batch, training_batch

SECONDS_A_CALL = 1.0  # how long training stays away from Python, bar and signals at a time
BAR_SECONDS = 1 if sys.stderr.isatty() else 30  # between two pictures of the bar; in a file each one is kept
TRAIN_METRICS = ("loss", "masked_lm_loss", "next_sentence_loss", "gradient_norm", "learning_rate")
CHECKPOINT = re.compile(r"model\.ckpt-(\d+)\.index")
OWN_FILES = re.compile(r"model\.ckpt-\d+\..*|checkpoint|run\.json|metrics\.jsonl|eval_results\.txt|train|eval|"
                       + re.escape(WRITING) + ".*")


# ----------------------------------------------------------------------------------------------------- devices

def make_strategy(flags, num_workers):
    """(tf.distribute.Strategy, the words for why it is this one) by --strategy, or by what the machine has."""
    name, reason = flags.strategy, "--strategy"
    if name is None and num_workers > 1:
        name, reason = "multi_worker", f"TF_CONFIG names {num_workers} workers"
    elif name is None:
        num_gpus = len(tf.config.list_physical_devices("GPU"))
        name, reason = ("mirrored" if num_gpus > 1 else "one"), f"{num_gpus} GPUs"
    if name == "multi_worker":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()  # refused once TensorFlow has touched a device
    elif name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    elif name == "tpu":
        strategy = tpu_strategy(flags)
    else:
        strategy = tf.distribute.get_strategy()
    return strategy, f"{name} ({reason}), {strategy.num_replicas_in_sync} replica(s)"


def tpu_strategy(flags):
    """The tf.distribute.TPUStrategy of the TPU that the flags name; UserError where there is none to be reached."""
    address = flags.master or flags.tpu_name or "local"
    try:
        if address.startswith("grpc://"):  # TensorFlow would wait for a server that is not there for ever
            host, _, port = address.removeprefix("grpc://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address, flags.tpu_zone, flags.gcp_project)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"--use_tpu: no TPU can be reached as '{address}' ({reason}); check --tpu_name, --tpu_zone and "
                        "--gcp_project, or train without --use_tpu") from None
    if strategy.num_replicas_in_sync != flags.num_tpu_cores:
        raise UserError(f"--num_tpu_cores is {flags.num_tpu_cores}, the TPU has {strategy.num_replicas_in_sync}")
    return strategy


def first_replica(strategy, value):
    """This process's first replica's part of a value or variable that may be spread over replicas."""
    return strategy.experimental_local_results(value)[0]


def distribute(strategy, records, batch_of_step, steps, batch_size, accumulation=1):
    """An iterator of the batches of `steps` (see Records.batches), each split over all replicas of the strategy."""
    def dataset(context):
        replicas = context.num_replicas_in_sync
        own = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * own
        return records.batches(batch_of_step, steps, batch_size, replicas, accumulation, slice(first, first + own))
    return iter(strategy.distribute_datasets_from_function(dataset))


# ------------------------------------------------------------------------------------------------------- steps

def make_train_steps(strategy, model, optimizer, accumulation=1, random_seed=0, xla=False):
    """A tf.function (iterator, count, stop) -> float32 [count, 6] that makes `count` updates.

    A row holds TRAIN_METRICS, of the weights before the update, and the sum of `stop` over the replicas: 0 unless a
    process asked to stop. The loss is google-research/bert's of the whole batch of an update, over all replicas and
    micro-batches: the weighted mean of the masked-LM losses plus the mean of the next-sentence losses.
    """
    variables = list(model.variables.values())

    def gradients_and_losses(features, seed):
        with tf.GradientTape() as tape:
            sums = model.pretraining_sums(features, training=True, seed=seed)
            masked_lm = sums["masked_lm_loss"] / features["masked_lm_denominator"]
            next_sentence = sums["next_sentence_loss"] / features["num_examples"]
            loss = masked_lm + next_sentence
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        return gradients, tf.stack([loss, masked_lm, next_sentence])

    apply = optimizer.apply
    if xla:
        gradients_and_losses = tf.function(gradients_and_losses, autograph=False, jit_compile=True)
        apply = tf.function(apply, autograph=False, jit_compile=True)

    def update(features, stop):
        context = tf.distribute.get_replica_context()
        step_seed = tf.stack([random_seed, tf.cast(optimizer.global_step, tf.int32)])

        def micro_batch(i):
            part = context.replica_id_in_sync_group * accumulation + i
            return gradients_and_losses({name: tensor[i] for name, tensor in features.items()},
                                        tf.random.experimental.stateless_fold_in(step_seed, part))

        def add_micro_batch(i, gradients, losses):
            more_gradients, more_losses = micro_batch(i)
            return i + 1, [total + more for total, more in zip(gradients, more_gradients)], losses + more_losses

        gradients, losses = micro_batch(0)
        if accumulation > 1:
            _, gradients, losses = tf.while_loop(lambda i, *_: i < accumulation, add_micro_batch,
                                                 [tf.constant(1), gradients, losses])
        sums = tf.concat([losses, [stop]], 0)
        *gradients, sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, sums])
        learning_rate = optimizer.learning_rate()
        gradient_norm = apply(gradients)
        return tf.concat([sums[:3], [gradient_norm, learning_rate], sums[3:]], 0)

    @functools.partial(tf.function, autograph=False)  # converting this much code takes longer than tracing it
    def train_steps(iterator, count, stop):
        def one_step(i, metrics):
            row = strategy.run(update, args=(next(iterator), stop))
            return i + 1, metrics.write(i, first_replica(strategy, row))

        metrics = tf.TensorArray(tf.float32, size=count, element_shape=[len(TRAIN_METRICS) + 1])
        return tf.while_loop(lambda i, _: i < count, one_step, [tf.constant(0), metrics])[1].stack()

    return train_steps


def evaluate(strategy, model, records, batch_size, max_batches, show_bar):
    """Name -> float of google-research/bert's five metrics, over the first `max_batches` batches of the records.

    The accuracies and the two tasks' losses are means over all masked tokens and all examples; `loss` is the mean of
    the batches' losses, a last batch that is not full counted by its examples.
    """
    def sums_of_part(features):
        features = {name: tensor[0] for name, tensor in features.items()}
        sums = model.pretraining_sums(features)
        weights = features["masked_lm_weights"] * features["example_weights"][:, tf.newaxis]
        row = tf.stack([sums["masked_lm_loss"], sums["masked_lm_correct"], tf.reduce_sum(weights),
                        sums["next_sentence_loss"], sums["next_sentence_correct"],
                        tf.reduce_sum(features["example_weights"])])
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, row)

    @functools.partial(tf.function, autograph=False)
    def evaluation_step(iterator):
        return first_replica(strategy, strategy.run(sums_of_part, args=(next(iterator),)))

    steps = range(min(max_batches, math.ceil(len(records) / batch_size)))
    padded_size = math.ceil(batch_size / strategy.num_replicas_in_sync) * strategy.num_replicas_in_sync
    batch_of_step = functools.partial(evaluation_batch, len(records), batch_size, padded_size=padded_size)
    iterator = distribute(strategy, records, batch_of_step, steps, padded_size)
    rows = np.array([evaluation_step(iterator).numpy()
                     for _ in tqdm(steps, "evaluation", unit="batch", disable=not show_bar, mininterval=BAR_SECONDS)],
                    np.float64)
    masked_lm_loss, masked_lm_correct, masked, next_sentence_loss, next_sentence_correct, examples = rows.T
    losses = masked_lm_loss / (masked + DENOMINATOR_EPSILON) + next_sentence_loss / examples
    num_masked = masked.sum() or 1.0  # without a masked token both masked-LM figures are 0
    return {"loss": float(np.average(losses, weights=examples)),
            "masked_lm_accuracy": masked_lm_correct.sum() / num_masked,
            "masked_lm_loss": masked_lm_loss.sum() / num_masked,
            "next_sentence_accuracy": next_sentence_correct.sum() / examples.sum(),
            "next_sentence_loss": next_sentence_loss.sum() / examples.sum()}


# ------------------------------------------------------------------------------------------------- checkpoints

def checkpoint_prefixes(output_dir):
    """The prefixes of the folder's checkpoints, oldest first. A checkpoint is there once its index is."""
    files = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = sorted(int(match[1]) for match in map(CHECKPOINT.fullmatch, files) if match)
    return [os.path.join(output_dir, f"model.ckpt-{step}") for step in steps]


def newest_checkpoint(output_dir):
    """(prefix, its values by name) of the newest whole checkpoint of the folder, (None, None) where it has none.

    Raises UserError where there are checkpoints but none is whole.
    """
    prefixes = checkpoint_prefixes(output_dir)
    for prefix in reversed(prefixes):
        try:
            return prefix, read_checkpoint(prefix, "--output_dir")
        except UserError as error:
            print(f"{error}; going back to the one before it")
    if prefixes:
        raise UserError(f"--output_dir: no checkpoint in {output_dir} is whole; --overwrite_output_dir starts anew")
    return None, None


def save_checkpoint(output_dir, step, variables, keep):
    """Writes model.ckpt-<step>, then the `checkpoint` file, then deletes all but the newest `keep` (0: keeps all).

    Killed between any two of these, the folder holds a whole checkpoint. Returns the prefix.
    """
    prefix = os.path.join(output_dir, f"model.ckpt-{step}")
    write_checkpoint(prefix, variables)
    prefixes = checkpoint_prefixes(output_dir)
    kept = prefixes[-keep:] if keep else prefixes
    with atomic_write(os.path.join(output_dir, "checkpoint")) as file:
        file.write(f'model_checkpoint_path: "{os.path.basename(prefix)}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{os.path.basename(path)}"\n' for path in kept)
    for old in prefixes[:len(prefixes) - len(kept)]:
        os.unlink(f"{old}.index")
        for file in os.listdir(output_dir):
            if file.startswith(f"{os.path.basename(old)}."):
                os.unlink(os.path.join(output_dir, file))
    return prefix


def clear_folder(output_dir, everything):
    """Deletes what a killed process left half written; with `everything`, all that a run writes into its folder."""
    for file in os.listdir(output_dir):
        path = os.path.join(output_dir, file)
        if file.startswith(WRITING) or everything and OWN_FILES.fullmatch(file):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


# -------------------------------------------------------------------------------------------------------- loop

class StopSignals:
    """While its block runs, SIGTERM and SIGINT only set `received` (0 before); a second one ends the process."""

    def __enter__(self):
        self.received = 0
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number, frame):
        self.received = number
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


class MetricsLog:
    """Metrics of a run: lines of <output_dir>/metrics.jsonl and TensorBoard events in its folders train and eval.

    What an earlier process logged after `step`, from where this one goes on, is dropped from metrics.jsonl.
    """

    def __init__(self, output_dir, step):
        self.output_dir, self.path = output_dir, os.path.join(output_dir, "metrics.jsonl")
        self.writers = {}
        lines = []
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                lines = [line for line in file if line.endswith("\n")]  # a killed process may leave half a line
            lines = [line for line in lines if json.loads(line)["global_step"] <= step]
        with atomic_write(self.path) as file:
            file.writelines(lines)

    def write(self, split, step, metrics):
        """Writes the metrics (name -> float) of `split` ("train" or "eval") at a step."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"split": split, "global_step": step} | metrics) + "\n")
        if split not in self.writers:
            self.writers[split] = tf.summary.create_file_writer(os.path.join(self.output_dir, split))
        with self.writers[split].as_default(step):
            for name, value in metrics.items():
                tf.summary.scalar(name, value)
        self.writers[split].flush()


def train(flags, strategy, model, optimizer, records, chief):
    """Trains from the optimizer's global_step to --num_train_steps: saves, logs, stops on a signal (SystemExit).

    Raises UserError at a loss or gradient that is not finite; the checkpoints written before stay.
    """
    output_dir, total = flags.output_dir, flags.num_train_steps
    step = int(first_replica(strategy, optimizer.global_step).numpy())
    if step == total:
        if chief:
            print(f"the run is complete, all {total} steps are in {output_dir}: nothing to train")
        return
    variables = {name: first_replica(strategy, variable)
                 for name, variable in (model.variables | optimizer.state()).items()}
    train_steps = make_train_steps(strategy, model, optimizer, flags.gradient_accumulation_steps, flags.random_seed,
                                   flags.xla)
    batch_of_step = functools.partial(training_batch, len(records), flags.train_batch_size, seed=flags.random_seed)
    iterator = distribute(strategy, records, batch_of_step, range(step, total), flags.train_batch_size,
                          flags.gradient_accumulation_steps)
    log = MetricsLog(output_dir, step) if chief else None
    # several processes agree on a stop at the end of a call, so each of their calls is one step
    one_step_calls = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    steps_a_call, logged, logged_at = 1, [], time.perf_counter()
    with StopSignals() as stop, tqdm(total=total, initial=step, desc="training", unit="step", disable=not chief,
                                     mininterval=BAR_SECONDS) as bar:
        while step < total:
            count = min(steps_a_call, total - step, flags.log_steps - step % flags.log_steps,
                        flags.save_checkpoints_steps - step % flags.save_checkpoints_steps)
            started = time.perf_counter()
            rows = train_steps(iterator, tf.constant(count), tf.constant(float(bool(stop.received)))).numpy()
            seconds_a_step = (time.perf_counter() - started) / count
            if not one_step_calls:
                steps_a_call = max(1, min(flags.iterations_per_loop, int(SECONDS_A_CALL / seconds_a_step)))
            broken = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(broken):
                raise UserError(not_finite(output_dir, step + int(broken[0]) + 1, rows[broken[0]]))
            step += count
            logged.extend(rows[:, :-1])
            bar.set_postfix(loss=f"{rows[-1, 0]:.4f}", refresh=False)
            bar.update(count)
            if chief and (step % flags.log_steps == 0 or step == total):
                now = time.perf_counter()
                means = dict(zip(TRAIN_METRICS, np.mean(logged, 0).tolist()))
                log.write("train", step, means | {"steps_per_second": len(logged) / (now - logged_at)})
                logged, logged_at = [], now
            stopping = rows[-1, -1] > 0 or stop.received and not one_step_calls
            if chief and (stopping or step == total or step % flags.save_checkpoints_steps == 0):
                prefix = save_checkpoint(output_dir, step, variables, flags.keep_checkpoint_max)
                tqdm.write(f"step {step}: wrote {prefix}")
            if stopping and step < total:
                number = stop.received or signal.SIGTERM
                bar.close()
                print(f"stopped by {signal.Signals(number).name} after step {step} of {total}, all of it saved; the "
                      "same command goes on from there", file=sys.stderr)
                sys.exit(128 + number)


def not_finite(output_dir, step, row):
    """The words for the first update whose loss or gradient (row of TRAIN_METRICS) is no finite number."""
    prefixes = checkpoint_prefixes(output_dir)
    kept = f"the last checkpoint, {prefixes[-1]}, is from before it" if prefixes else "no checkpoint is from before it"
    return (f"step {step}: the loss is {row[0]:.4g}, the gradient's norm {row[3]:.4g}; stopped, {kept}; try a lower "
            "--learning_rate or more --num_warmup_steps")


# -------------------------------------------------------------------------------------------------- the whole run

def starting_values(flags, config):
    """(values of all variables by name, optimizer state, names from the checkpoint, the checkpoint's prefix or None).

    From the newest checkpoint of --output_dir, unless --overwrite_output_dir; else from --init_checkpoint; else, and
    for the heads that a checkpoint may lack, new.
    """
    prefix, values = (None, None) if flags.overwrite_output_dir else newest_checkpoint(flags.output_dir)
    resumed = prefix is not None
    if not resumed and not flags.init_checkpoint and not flags.do_train:
        raise UserError(f"--do_eval: {flags.output_dir} holds no checkpoint and there is no --init_checkpoint")
    if not resumed and flags.init_checkpoint:
        prefix, values = flags.init_checkpoint, read_checkpoint(flags.init_checkpoint)
    if prefix is None:
        return initial_values(config, flags.random_seed), {}, [], None
    chosen = fitting_values(config, values, f"{'--output_dir' if resumed else '--init_checkpoint'}: {prefix}")
    state = {}
    if resumed and flags.do_train:
        names = ["global_step", *(f"{name}/{slot}" for name in variable_shapes(config) for slot in SLOTS)]
        lacking = [name for name in [*variable_shapes(config), *names] if name not in values]
        if lacking:
            raise UserError(f"--output_dir: {prefix} lacks {lacking[0]} and cannot be gone on from; "
                            "--overwrite_output_dir starts anew")
        state = {name: values[name] for name in names}
    elif resumed:
        state = {"global_step": values.get("global_step", 0)}
    return initial_values(config, flags.random_seed) | chosen, state, list(chosen), prefix


def describe_variables(config, from_checkpoint, prefix):
    """Prints each variable with its shape and where its value comes from."""
    known = set(from_checkpoint)
    print(f"variables (from {prefix}):" if prefix else "variables (no --init_checkpoint: all new):")
    for name, shape in variable_shapes(config).items():
        print(f"  {name} {list(shape)} {'*INIT_FROM_CKPT*' if name in known else 'initialised'}")


def describe_run(flags, config, num_records, start, replicas):
    """Prints what follows from the flags: batch, steps, epochs, parameters."""
    parameters = sum(math.prod(shape) for shape in variable_shapes(config).values())
    micro_batch = flags.train_batch_size // (replicas * flags.gradient_accumulation_steps)
    epochs = flags.num_train_steps * flags.train_batch_size / num_records
    print(f"model: {parameters:,} parameters, hidden_act {config.hidden_act}, "
          f"{'bfloat16 with float32 weights' if flags.bf16 else 'float32'}{', XLA' if flags.xla else ''}\n"
          f"batch: {flags.train_batch_size} sequences an update = {replicas} replicas x "
          f"{flags.gradient_accumulation_steps} micro-batches x {micro_batch}\n"
          f"steps: {start} to {flags.num_train_steps}, {epochs:.2f} epochs over {num_records} records; "
          f"warm-up {flags.num_warmup_steps}, peak learning rate {flags.learning_rate:g}")
    if flags.num_warmup_steps >= flags.num_train_steps:
        print("note: --num_warmup_steps is not below --num_train_steps, so the peak learning rate is never reached")


def write_results(output_dir, results):
    """Writes eval_results.txt: `key = value` lines, sorted, as google-research/bert."""
    path = os.path.join(output_dir, "eval_results.txt")
    with atomic_write(path) as file:
        file.writelines(f"{key} = {value:.7g}\n" if isinstance(value, float) else f"{key} = {value}\n"
                        for key, value in sorted(results.items()))
    return path


@contextlib.contextmanager
def one_line_errors(num_workers):
    """Turns a device's failure that the user can mend into a UserError; every other one is left as it is."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        told = [line for line in str(error).splitlines() if "OOM" in line or "No space" in line]
        raise UserError(f"out of memory or disk space ({''.join(told[:1])[:200]}); lower --train_batch_size, raise "
                        "--gradient_accumulation_steps or free some space") from None
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError):
        if num_workers == 1:
            raise
        raise UserError("another worker stopped or cannot be reached; start the same command on all workers again, it "
                        "goes on from the last checkpoint") from None


def pretrain(flags, config, files, eval_files, folder, num_workers):
    """Trains and evaluates as the checked flags say, in one process or as one of `num_workers`.

    files, eval_files: the TFRecords of --input_file and --eval_file. folder: a run_pretraining.RunFolder, None in a
    process that neither prints nor writes.
    """
    say = print if folder else lambda *words: None
    if flags.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = make_strategy(flags, num_workers)
    replicas = strategy.num_replicas_in_sync
    say(f"devices: {devices}")
    if flags.do_train and flags.train_batch_size % (replicas * flags.gradient_accumulation_steps):
        raise UserError(f"--train_batch_size {flags.train_batch_size} cannot be split over {replicas} replicas x "
                        f"{flags.gradient_accumulation_steps} --gradient_accumulation_steps")
    values, state, step = initial_values(config, flags.random_seed), {}, 0
    if folder:  # the other processes get this one's values when the variables are made
        values, state, from_checkpoint, prefix = starting_values(flags, config)
        step = int(state.get("global_step", 0))
    records, eval_records = read_records(flags, config, files, eval_files, say)
    if folder:
        if flags.do_train:
            folder.check(records)
        os.makedirs(flags.output_dir, exist_ok=True)
        describe_variables(config, from_checkpoint, prefix)
    if folder and flags.do_train:
        clear_folder(flags.output_dir, everything=flags.overwrite_output_dir)
        folder.prepare(records, devices)
        describe_run(flags, config, len(records), step, replicas)
    with one_line_errors(num_workers):
        with strategy.scope():
            model = BertForPreTraining(config, values, "bfloat16" if flags.bf16 else "float32")
        if flags.do_train:
            with strategy.scope():
                optimizer = AdamWeightDecay(model.variables, flags.learning_rate, flags.num_train_steps,
                                            flags.num_warmup_steps, state)
            train(flags, strategy, model, optimizer, records, bool(folder))
            step = flags.num_train_steps
        if flags.do_eval:
            results = evaluate(strategy, model, eval_records, flags.eval_batch_size, flags.max_eval_steps, bool(folder))
            if folder:
                MetricsLog(flags.output_dir, step).write("eval", step, results)
                path = write_results(flags.output_dir, {"global_step": step} | results)
                with open(path, encoding="utf-8") as file:
                    print(f"wrote {path}:\n{file.read()}", end="")


def read_records(flags, config, files, eval_files, say):
    """(records to train on, records to evaluate on), each None where its flag does not ask for it; checks them all."""
    started = time.perf_counter()

    def read(paths, flag):
        records = Records(paths, config, flags.max_seq_length, flags.max_predictions_per_seq)
        say(f"{flag}: {len(records)} records in {len(paths)} files, all of them right")
        return records

    records = read(files, "--input_file") if flags.do_train or not eval_files else None
    eval_records = None
    if flags.do_eval:
        eval_records = read(eval_files, "--eval_file") if eval_files else records
        if not eval_files:
            say("note: no --eval_file, so --do_eval evaluates on the records of --input_file, which are trained on")
    say(f"read and checked in {time.perf_counter() - started:.1f} s")
    return records, eval_records
