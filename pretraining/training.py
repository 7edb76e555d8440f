"""Further pre-training in TensorFlow 2: one update, the loop around it, evaluation.

One update is made by `make_train_steps`; `train` calls it, logs, saves and watches for signals. All random numbers and the
order of the records are functions of the seed and the step, so a run that goes on from a checkpoint ends at the weights of one
that was never stopped.
"""
import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common.command_line import StopSignals, UserError
from common.run_folder import MetricsLog
from pretraining.checkpoints import checkpoint_prefixes, read_window, save_checkpoint
from pretraining.records import DENOMINATOR_EPSILON, evaluation_batch, training_batch

SECONDS_A_CALL = 1.0  # how long training stays away from Python, bar and signals at a time
BAR_SECONDS = 1 if sys.stderr.isatty() else 30  # between two pictures of the bar; in a file each one is kept
TRAIN_METRICS = ("loss", "masked_lm_loss", "next_sentence_loss", "gradient_norm", "learning_rate")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the result of a run depends on; the fields are the flags of the same names."""
    train_batch_size: int = 32
    learning_rate: float = 5e-5
    num_train_steps: int = 100000
    num_warmup_steps: int = 10000
    random_seed: int = 12345


@dataclasses.dataclass(frozen=True)
class Pace:
    """How an update is computed and when something is written, on which the result depends by rounding and dropout at most."""
    gradient_accumulation_steps: int = 1
    xla: bool = False
    iterations_per_loop: int = 1000
    log_steps: int = 100
    save_checkpoints_steps: int = 1000
    keep_checkpoint_max: int = 5
    report_to: tuple = ("tensorboard",)


# Devices

def first_replica(strategy, value):
    """This process's first replica's part of a value or variable that may be spread over replicas."""
    return strategy.experimental_local_results(value)[0]


def distribute(strategy, records, batch_of_step, steps, batch_size, accumulation=1, xla=False):
    """An iterator of the batches of `steps` (see Records.batches), each split over all replicas of the strategy, and packed but
    for XLA, which would compile anew for every number of rows."""
    packed = not (xla or isinstance(strategy, tf.distribute.TPUStrategy))

    def dataset(context):
        replicas = context.num_replicas_in_sync
        own = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * own
        return records.batches(batch_of_step, steps, batch_size, replicas, accumulation, slice(first, first + own),
                               packed)
    return iter(strategy.distribute_datasets_from_function(dataset))


# One update

def make_train_steps(strategy, model, optimizer, accumulation=1, random_seed=0, xla=False):
    """A tf.function (iterator, count, stop) -> float32 [count, 6] that makes `count` updates.

    A row holds TRAIN_METRICS, of the weights before the update, and the sum of `stop` over the replicas: 0 unless a process
    asked to stop. The loss is google-research/bert's of the whole batch of an update, over all replicas and micro-batches: the
    weighted mean of the masked-LM losses plus, where that is a task of the model, the mean of the next-sentence losses.
    """
    variables = list(model.trained.values())

    def gradients_and_losses(features, seed):
        with tf.GradientTape() as tape:
            sums = model.pretraining_sums(features, training=True, seed=seed)
            masked_lm = sums["masked_lm_loss"] / features["masked_lm_denominator"]
            next_sentence = sums["next_sentence_loss"] / features["num_examples"] if model.next_sentence else 0.0
            loss = masked_lm + next_sentence
        # that of packed rows' position embeddings comes as rows of a sparse matrix; micro-batches and replicas add dense ones
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        return gradients, tf.stack([loss, masked_lm, next_sentence])

    apply = optimizer.apply
    if xla:  # in two parts: the sum over the replicas between them is the strategy's, and is not compiled
        gradients_and_losses = tf.function(gradients_and_losses, autograph=False, jit_compile=True)
        apply = tf.function(apply, autograph=False, jit_compile=True)

    def update(features, stop):
        context = tf.distribute.get_replica_context()
        # Dropout is a function of seed, update and part of the batch: the same after a resume, another one with another number
        # of parts (command.WATCHED_FLAGS)
        step_seed = tf.stack([random_seed, tf.cast(optimizer.global_step, tf.int32)])

        def micro_batch(i):
            part = context.replica_id_in_sync_group * accumulation + i
            return gradients_and_losses({name: tensor[i] for name, tensor in features.items()},
                                        tf.random.experimental.stateless_fold_in(step_seed, part))

        def add_micro_batch(i, gradients, losses):
            more_gradients, more_losses = micro_batch(i)
            return i + 1, [total + more for total, more in zip(gradients, more_gradients)], losses + more_losses

        gradients, losses = micro_batch(0)
        if accumulation > 1:  # a loop of the graph: one of Python would keep all micro-batches' activations
            _, gradients, losses = tf.while_loop(lambda i, *_: i < accumulation, add_micro_batch,
                                                 [tf.constant(1), gradients, losses])
        sums = tf.concat([losses, [stop]], 0)
        # parts are divided by the whole batch's denominators, so their plain sum is the batch's gradient and loss
        *gradients, sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, sums])
        learning_rate = optimizer.learning_rate()  # of this update: apply counts it
        gradients = dict(zip(model.trained, gradients))
        gradient_norm = apply([gradients.get(name) for name in model.variables])
        return tf.concat([sums[:3], [gradient_norm, learning_rate], sums[3:]], 0)

    @functools.partial(tf.function, autograph=False)  # converting this much code takes longer than tracing it
    def train_steps(iterator, count, stop):
        def one_step(i, metrics):
            row = strategy.run(update, args=(next(iterator), stop))
            return i + 1, metrics.write(i, first_replica(strategy, row))

        metrics = tf.TensorArray(tf.float32, size=count, element_shape=[len(TRAIN_METRICS) + 1])
        return tf.while_loop(lambda i, _: i < count, one_step, [tf.constant(0), metrics])[1].stack()

    return train_steps


# Training

def train(strategy, model, optimizer, records, recipe, pace, output_dir, evaluate_too=None):
    """Trains from the optimizer's global_step to num_train_steps; a signal saves and ends the process (SystemExit).

    output_dir: the folder of the checkpoints and the log, None in a process that neither writes nor prints. evaluate_too: a
    function that gives metrics for the log at each checkpoint but the last. Raises UserError at a loss or gradient that is not
    finite; the checkpoints written before stay.
    """
    step, total = int(first_replica(strategy, optimizer.global_step).numpy()), recipe.num_train_steps
    variables = {name: first_replica(strategy, variable) for name, variable in (model.variables | optimizer.state()).items()}
    train_steps = make_train_steps(strategy, model, optimizer, pace.gradient_accumulation_steps, recipe.random_seed, pace.xla)
    batch_of_step = functools.partial(training_batch, len(records), recipe.train_batch_size, seed=recipe.random_seed)
    batches = distribute(strategy, records, batch_of_step, range(step, total), recipe.train_batch_size,
                         pace.gradient_accumulation_steps, pace.xla)
    # several processes agree on a stop at the end of a call, so each of their calls is one step
    one_step_calls = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    steps_a_call, timed_step, timed_at = 1, step, time.perf_counter()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        bar = stack.enter_context(tqdm(total=total, initial=step, desc="training", unit="step", disable=not output_dir,
                                       mininterval=BAR_SECONDS))
        window = []  # rows of metrics since the last line of the log
        if output_dir:
            window = read_window(output_dir, step, len(TRAIN_METRICS))
            log = stack.enter_context(MetricsLog(output_dir, lambda line: line["global_step"] <= step, step, pace.report_to))
        while step < total:
            # as many updates as there are until something is due; their batches are drawn inside the call
            count = min(steps_a_call, total - step, pace.log_steps - step % pace.log_steps,
                        pace.save_checkpoints_steps - step % pace.save_checkpoints_steps)
            started = time.perf_counter()
            rows = train_steps(batches, tf.constant(count), tf.constant(float(bool(stop.received)))).numpy()
            if not one_step_calls:
                seconds_a_step = (time.perf_counter() - started) / count
                steps_a_call = max(1, min(pace.iterations_per_loop, int(SECONDS_A_CALL / seconds_a_step)))
            if len(broken := np.flatnonzero(~np.isfinite(rows).all(1))):
                raise UserError(not_finite(output_dir, step + int(broken[0]) + 1, rows[broken[0]]))
            step += count
            bar.set_postfix(loss=f"{rows[-1, 0]:.4f}", refresh=False)
            bar.update(count)
            stopping = rows[-1, -1] > 0 or stop.received and not one_step_calls
            window += rows[:, :-1].tolist() if output_dir else []
            if output_dir and (step % pace.log_steps == 0 or step == total):
                now = time.perf_counter()
                means = np.mean(np.asarray(window, np.float32), 0).tolist()  # float32 after a resume too: same digits
                log.write("train", step, {name: mean for name, mean in zip(TRAIN_METRICS, means)
                                          if model.next_sentence or name != "next_sentence_loss"}
                          | {"steps_per_second": (step - timed_step) / (now - timed_at)})
                window, timed_step, timed_at = [], step, now
            if evaluate_too and step % pace.save_checkpoints_steps == 0 and step < total:
                started = time.perf_counter()
                results = evaluate_too()
                if output_dir:  # before the checkpoint: a run that is killed here comes here again, and drops this line
                    log.write("eval", step, results)
                timed_at += time.perf_counter() - started
            if output_dir and (stopping or step == total or step % pace.save_checkpoints_steps == 0):
                prefix = save_checkpoint(output_dir, step, variables, window, pace.keep_checkpoint_max)
                tqdm.write(f"step {step}: wrote {prefix}")
            if stopping and step < total:
                bar.close()
                number = stop.received or signal.SIGTERM  # another process received it
                print(f"stopped by {signal.Signals(number).name} after step {step} of {total}, all of it saved; run the same "
                      "command again, without --overwrite_output_dir, to go on from there", file=sys.stderr)
                sys.exit(128 + number)


def not_finite(output_dir, step, row):
    """The words for the first update whose loss or gradient (row of TRAIN_METRICS) is no finite number."""
    prefixes = checkpoint_prefixes(output_dir) if output_dir else []
    kept = f"the last checkpoint, {prefixes[-1]}, is from before it" if prefixes else "no checkpoint is from before it"
    return (f"step {step}: the loss is {row[0]:.4g}, the gradient's norm {row[3]:.4g}; stopped, {kept}; try a lower "
            "--learning_rate or more --num_warmup_steps")


# Evaluation

def make_evaluation_step(strategy, model):
    """A tf.function (iterator) -> float32 [n]: the next batch's sums (`pretraining_sums`), its masked tokens and examples."""
    def sums_of_part(features):
        features = {name: tensor[0] for name, tensor in features.items()}
        weights = features["example_weights"]
        row = tf.stack([*model.pretraining_sums(features).values(), tf.reduce_sum(features["masked_lm_weights"]),
                        tf.reduce_sum(weights)])
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, row)

    @functools.partial(tf.function, autograph=False)
    def evaluation_step(iterator):
        return first_replica(strategy, strategy.run(sums_of_part, args=(next(iterator),)))
    return evaluation_step


def evaluate(strategy, evaluation_step, records, batch_size, max_batches, show_bar):
    """Name -> float of google-research/bert's five metrics (three where the model has no next sentence prediction), over the
    first `max_batches` batches of the records. The accuracies and the two tasks' losses are means over all masked tokens and
    all examples; `loss` is the mean of the batches' losses, a last batch that is not full counted by its examples.
    evaluation_step: of `make_evaluation_step`, made once, as it is compiled when it is first called."""
    batch_size = min(batch_size, len(records))  # more would be padding
    steps = range(min(max_batches, math.ceil(len(records) / batch_size)))
    padded_size = math.ceil(batch_size / strategy.num_replicas_in_sync) * strategy.num_replicas_in_sync
    batch_of_step = functools.partial(evaluation_batch, len(records), batch_size, padded_size=padded_size)
    iterator = distribute(strategy, records, batch_of_step, steps, padded_size)
    bar = tqdm(steps, "evaluation", unit="batch", disable=not show_bar, mininterval=BAR_SECONDS)
    rows = np.array([evaluation_step(iterator).numpy() for _ in bar], np.float64)  # float32 would lose a sum's last digits
    masked_lm_loss, masked_lm_correct, *next_sentence, masked, examples = rows.T
    losses = masked_lm_loss / (masked + DENOMINATOR_EPSILON)
    num_masked = masked.sum() or 1.0  # without a masked token both masked-LM figures are 0
    results = {"masked_lm_accuracy": masked_lm_correct.sum() / num_masked, "masked_lm_loss": masked_lm_loss.sum() / num_masked}
    if next_sentence:
        loss, correct = next_sentence
        losses += loss / examples
        results |= {"next_sentence_accuracy": correct.sum() / examples.sum(),
                    "next_sentence_loss": loss.sum() / examples.sum()}
    return {"loss": float(np.average(losses, weights=examples))} | results
