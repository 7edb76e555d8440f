"""Further pre-training beside its peers, on the same batches: steps a second, peak memory, losses.

    python benchmarks/pretraining.py --input_file tmp/tf_AGnews.tfrecord --peer_python "$(which python)"
    git worktree add ../before COMMIT && python benchmarks/pretraining.py ... --before ../before      # an earlier commit

All sides train a BERT of 4 layers x 256 with the uncased vocabulary's 30,522 tokens and dropout from new weights, 32 records an
update. Ours is run_pretraining.py itself, in float32 and in bfloat16. The peers are transformers' BertForPreTraining (torch,
fused AdamW, clipping; plain and by autocast) and, where --peer_python has it (pip install --no-deps tf-models-official tf_keras
gin-config), the BertPretrainerV2 of tf-models-official in a tf.function. A figure is the median of the windows of WINDOW
updates after the first one, which holds start and compilation; losses are the windows' means, to show that all of them train.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks import common  # noqa: E402
from common.command_line import UserError, run  # noqa: E402

BATCH, WINDOW, WINDOWS, RATE, WARMUP = 32, 5, 4, 1e-3, 5
CONFIG = {"vocab_size": 30522, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
PACKAGES = {"ours": ["tensorflow", "numpy"], "transformers": ["torch", "transformers"],
            "tf-models-official": ["tensorflow", "tf-models-official", "tf_keras"]}
THERE = "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; from official.nlp.modeling import models"


# Sides: each runs in a process of its own and prints its figures

def ours(folder, root, *flags):
    """The command of the checkout `root` on the records of `folder`; what it logs."""
    with tempfile.TemporaryDirectory() as output:
        done = subprocess.run([
            sys.executable, "run_pretraining.py", "--do_train", f"--input_file={folder}/records.tfrecord",
            f"--output_dir={output}", f"--bert_config_file={folder}/bert_config.json", f"--train_batch_size={BATCH}",
            f"--learning_rate={RATE}", f"--num_train_steps={WINDOW * WINDOWS}", f"--num_warmup_steps={WARMUP}",
            f"--log_steps={WINDOW}", *flags], cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"run_pretraining.py failed: {done.stderr[-500:]}")
        with open(os.path.join(output, "metrics.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    report([line["steps_per_second"] for line in lines], [line["loss"] for line in lines])


def report(speeds, losses):
    """Prints a side's figures, of all windows."""
    print(json.dumps({"steps_per_second": round(statistics.median(speeds[1:]), 4)}
                     | {f"loss_{i + 1}": round(loss, 3) for i, loss in enumerate(losses)}))


def timed_windows(batches, update):
    """Calls update(batch), which returns the loss, for each batch; reports windows."""
    speeds, losses = [], []
    for _ in range(WINDOWS):
        begun = time.perf_counter()
        losses.append(statistics.fmean([float(update(next(batches))) for _ in range(WINDOW)]))
        speeds.append(WINDOW / (time.perf_counter() - begun))
    report(speeds, losses)


def rate_at(step):
    """Google's schedule."""
    return RATE * (step / WARMUP if step < WARMUP else 1 - step / (WINDOW * WINDOWS))


def batches_of(folder):
    """The batches, dicts of arrays [32, ...], in our order."""
    import numpy as np
    with np.load(os.path.join(folder, "batches.npz")) as file:
        arrays = dict(file)
    return ({name: values[i] for name, values in arrays.items()} for i in range(WINDOW * WINDOWS))


def transformers_side(folder, bf16):
    import numpy as np
    import torch
    import transformers
    model = transformers.BertForPreTraining(transformers.BertConfig(**CONFIG)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step) / RATE)

    def update(batch):
        labels = np.full_like(batch["input_ids"], -100)
        rows, places = np.nonzero(batch["masked_lm_weights"])
        labels[rows, batch["masked_lm_positions"][rows, places]] = batch["masked_lm_ids"][rows, places]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["input_mask"], "labels": labels,
                  "token_type_ids": batch["segment_ids"], "next_sentence_label": batch["next_sentence_labels"][:, 0]}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**{name: torch.from_numpy(values).long() for name, values in inputs.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return loss.detach()
    timed_windows(batches_of(folder), update)


def official_side(folder):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras
    from official.nlp.modeling import layers, models, networks
    encoder = networks.BertEncoder(
        vocab_size=CONFIG["vocab_size"], hidden_size=CONFIG["hidden_size"], num_layers=CONFIG["num_hidden_layers"],
        num_attention_heads=CONFIG["num_attention_heads"], inner_dim=CONFIG["intermediate_size"], dict_outputs=True)
    heads = [layers.ClassificationHead(CONFIG["hidden_size"], num_classes=2, name="next_sentence")]
    model = models.BertPretrainerV2(encoder, classification_heads=heads)
    optimizer = tf_keras.optimizers.AdamW(RATE, weight_decay=0.01, global_clipnorm=1.0)

    @tf.function
    def train_step(batch):
        inputs = {"input_word_ids": batch["input_ids"], "input_mask": batch["input_mask"],
                  "input_type_ids": batch["segment_ids"], "masked_lm_positions": batch["masked_lm_positions"]}
        with tf.GradientTape() as tape:
            found = model(inputs, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["masked_lm_ids"], found["mlm_logits"])
            weights = batch["masked_lm_weights"]
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights) + tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(batch["next_sentence_labels"][:, 0], found["next_sentence"]))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    def update(batch):
        optimizer.learning_rate = rate_at(int(optimizer.iterations))
        return train_step({name: tf.constant(values) for name, values in batch.items()})
    timed_windows(batches_of(folder), update)


SIDES = {"ours, float32": lambda folder: ours(folder, common.ROOT, "--precision=float32"),
         "ours, bf16": lambda folder: ours(folder, common.ROOT, "--precision=bf16"),
         "before, float32": lambda folder: ours(folder, os.environ["BEFORE"]),
         "before, bf16": lambda folder: ours(folder, os.environ["BEFORE"], "--bf16"),
         "transformers, float32": lambda folder: transformers_side(folder, False),
         "transformers, bf16": lambda folder: transformers_side(folder, True),
         "tf-models-official": official_side}


# The benchmark

def prepare(folder, input_file):
    """Writes what the sides read: the records, the configuration, the batches in our order."""
    import functools

    import numpy as np

    from common.configuration import BertConfig
    from pretraining.records import Records, training_batch
    config = BertConfig(**CONFIG)
    with open(os.path.join(folder, "bert_config.json"), "w", encoding="utf-8") as file:
        json.dump(CONFIG, file)
    os.symlink(os.path.abspath(input_file), os.path.join(folder, "records.tfrecord"))
    records = Records([input_file], config, 128, 20)
    read = functools.partial(training_batch, len(records), BATCH, seed=12345)
    import tensorflow as tf
    batches = [{name: values.numpy().astype(np.float32 if name == "masked_lm_weights" else np.int32) for name, values in
                tf.io.parse_example(records.read(read(step)[0]), records.schema).items()} for step in range(WINDOW * WINDOWS)]
    np.savez(os.path.join(folder, "batches.npz"), **{name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
    real = sum(int(batch["input_mask"].sum()) for batch in batches) / (len(batches) * BATCH)
    print(f"{len(records)} records; {real:.1f} of 128 positions of those that are trained on are tokens")


def main():
    parser = common.benchmark_parser(__doc__, "pretraining")
    parser.add_argument("--input_file", help="TFRecords of length 128 to train on, one file, of the uncased vocabulary.")
    parser.add_argument("--before", help="Folder of an earlier checkout of this project, with --bf16; default: none.")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="Contenders; default: all that there are.")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help="Run one side alone on a prepared folder and print "
                        "its figures: what the benchmark does in each process.")
    args = common.parse(parser)
    if args.side:
        return SIDES[args.side[0]](args.side[1])
    if not args.input_file:
        raise UserError("--input_file is needed: the TFRecords of create_pretraining_data.py")
    chosen = [name for name in SIDES if name.startswith("ours") or args.before and name.startswith("before")]
    if args.peer_python:
        chosen += ["transformers, float32", "transformers, bf16"]
        if not subprocess.run([args.peer_python, "-c", THERE], capture_output=True).returncode:
            chosen.append("tf-models-official")
    chosen = [name for name in chosen if name in (args.sides or chosen)]
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, args.input_file)
        peers = {name: name.startswith(("transformers", "tf-models")) for name in chosen}
        sides = {name: [args.peer_python if peers[name] else sys.executable, os.path.abspath(__file__), "--side", name, folder]
                 for name in chosen}
        packages = {name: PACKAGES.get(name.partition(",")[0], PACKAGES["ours"]) for name in chosen}
        environment = {"BEFORE": os.path.abspath(args.before or "."), "TF_CPP_MIN_LOG_LEVEL": "3"}
        lines = common.compare("pretraining", "4 x 256, 32 x 128", sides, args.rounds, packages, environment)
        common.append(args.results, lines)


if __name__ == "__main__":
    run(main)
