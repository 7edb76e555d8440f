"""Fine-tuning on a CPU beside transformers' Trainer: documents a second, memory, and the loss, so that both are seen to train.

    python benchmarks/fine_tuning.py --bert FOLDER --data_dir downloads --peer_python peers/bin/python

Real texts (AG's News at 128 tokens, IMDb at 512) and a real encoder, 32 documents an update, dropout on. Ours is what the
scripts run, finetuning.training.train; the peer is Trainer as its users call it, with dynamic padding. Texts are tokenised
before the clock starts; each process trains on a few batches first. The peers' environment:

    python3 -m venv peers && peers/bin/pip install -r tests/requirements.txt accelerate
"""
import json
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks import common  # noqa: E402
from common.command_line import add_boolean, number, path, run  # noqa: E402

BATCH, RATE = 32, 5e-5
MAIN_CASES = {"AG at 128": ("ag", 128), "IMDb at 512": ("imdb", 512)}
CASES = MAIN_CASES | {f"IMDb at {length}": ("imdb", length) for length in (32, 64, 128, 256)}  # for benchmarks/figures.py
SIDES = {  # precision, and for the peer whether batches are of like length
    "ours": ("float32", None), "ours, bf16": ("bf16", None), "Trainer": ("float32", False), "Trainer, bf16": ("bf16", False),
    "Trainer, bf16, length-grouped": ("bf16", True)}


def read_data(args, case, split, size):
    """(texts, class indices, classes, tokens at most) of a case: a stratified part of a split of at most that size."""
    import tasks
    name, length = CASES[case]
    task, = tasks.named_tasks([name])
    texts, labels = tasks.read_examples(task, os.path.join(args.data_dir, name), split)
    chosen = tasks.subsample(labels, min(len(labels), size), seed=0)
    return [texts[i] for i in chosen], labels[chosen], task.labels, length


def make_ours(args, names):
    """(our tokenizer, a MultiTaskModel of one classifier) of --bert, as a run begins."""
    import torch
    from common.configuration import BertConfig
    from finetuning.weights import load_weights, read_weights
    from modeling import BertForSequenceClassification, MultiTaskModel
    from tokenization import FullTokenizer
    torch.manual_seed(0)
    config = BertConfig.from_json_file(os.path.join(args.bert, "config.json"))
    model = MultiTaskModel([BertForSequenceClassification(config, len(names))])
    load_weights(model.classifiers[0], read_weights(args.bert, config), args.bert)
    return FullTokenizer(os.path.join(args.bert, "vocab.txt")), model


def make_theirs(args, names):
    """The same of transformers."""
    import transformers
    return (transformers.AutoTokenizer.from_pretrained(args.bert),
            transformers.AutoModelForSequenceClassification.from_pretrained(args.bert, num_labels=len(names)))


def ours(args, case, precision, _):
    import torch
    from finetuning.data import make_dataset
    from finetuning.processes import World, keep_freed_memory
    keep_freed_memory()
    texts, labels, names, length = read_data(args, case, "train", (args.warm_up + args.updates) * BATCH)
    tokenizer, model = make_ours(args, names)
    data = make_dataset(tokenizer, texts, labels, length)
    warm_up = args.warm_up * BATCH
    for part in (range(warm_up), range(warm_up, len(labels))):
        with tempfile.TemporaryDirectory() as folder:
            seconds = common.train_epoch(model, data.subset(list(part)), names, World(0, 1, torch.device("cpu")), folder, BATCH,
                                         RATE, 0.1, BATCH, precision, log_steps=1)
            with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
                losses = [json.loads(line)["loss"] for line in file]
    return len(part) / seconds, losses


def trainer(args, case, precision, grouped):
    import transformers
    texts, labels, names, length = read_data(args, case, "train", (args.warm_up + args.updates) * BATCH)
    tokenizer, model = make_theirs(args, names)
    ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    rows = [{"input_ids": one, "labels": int(label)} for one, label in zip(ids, labels)]
    losses, started = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, arguments, state, control, **_):
            if state.global_step == args.warm_up:
                started.append(time.monotonic())

        def on_log(self, arguments, state, control, logs=None, **_):
            losses.extend([logs["loss"]] if "loss" in logs else [])

        def on_train_end(self, *_, **__):
            started.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(model, transformers.TrainingArguments(
            folder, per_device_train_batch_size=BATCH, learning_rate=RATE, num_train_epochs=1, warmup_steps=0.1, use_cpu=True,
            weight_decay=0.01, bf16=precision == "bf16", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            train_sampling_strategy="group_by_length" if grouped else "random"),
            train_dataset=rows, data_collator=transformers.DataCollatorWithPadding(tokenizer), callbacks=[Clock()]).train()
    begin, end = started
    return (len(rows) - args.warm_up * BATCH) / (end - begin), losses


def measure(args, case, side):
    """The figures of one side in this process."""
    precision, grouped = SIDES[side]
    rate, losses = (ours if side.startswith("ours") else trainer)(args, case, precision, grouped)
    quarter = max(1, len(losses) // 4)
    return {"documents_per_second": round(rate, 2), "first_loss": round(statistics.mean(losses[:quarter]), 3),
            "last_loss": round(statistics.mean(losses[-quarter:]), 3)}


def add_flags(parser, sides):
    parser.add_argument("--bert", type=path, required=True, help="Folder of a PyTorch BERT with tokenizer.json and vocab.txt.")
    parser.add_argument("--data_dir", type=path, default="downloads", help="Folder of the data sets; default: downloads.")
    parser.add_argument("--sides", nargs="+", choices=sides, default=list(sides), help="Whom to run; default: all.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(MAIN_CASES),
                        help=f"What to measure; default: {', '.join(MAIN_CASES)}.")
    add_boolean(parser, "--here", False, "Measure one side and case in this process (default: off; set for the processes that "
                "are started).")


def main():
    parser = common.benchmark_parser(__doc__, "fine_tuning")
    add_flags(parser, SIDES)
    parser.add_argument("--warm_up", type=number(int, minimum=1), default=4, help="Updates before the clock starts; "
                        "default: 4.")
    parser.add_argument("--updates", type=number(int, minimum=1), default=24, help="Updates that are timed; default: 24.")
    args = common.parse(parser)
    if args.here:
        print("\n" + json.dumps(measure(args, args.cases[0], args.sides[0])))
        return
    flags = ("bert", "data_dir", "warm_up", "updates")
    compare_sides(args, "fine-tuning", [f"--{flag}={getattr(args, flag)}" for flag in flags])


def compare_sides(args, stage, flags):
    """Measures the sides in each case, in processes of this script with these flags, and keeps the results."""
    for case in args.cases:
        commands = {side: [python, os.path.abspath(sys.argv[0]), "--here", *flags, "--sides", side, "--cases", case]
                    for side in args.sides if (python := sys.executable if side.startswith("ours") else args.peer_python)}
        packages = {side: ["torch", "transformers", "accelerate"] for side in commands}
        common.append(args.results, common.compare(stage, case, commands, args.rounds, packages))


if __name__ == "__main__":
    run(main)
