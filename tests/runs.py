"""Fine-tuning runs on a tiny BERT, for the tests: their flags, how they are called, what they leave."""
import contextlib
import importlib
import json
import os
import pathlib
import resource
import signal
import socket
import sys
import time

import safetensors.torch
import torch

import optimization
from common import command_line
from common.configuration import BertConfig
from modeling import BertForPreTraining

ROOT = pathlib.Path(__file__).resolve().parent.parent
SINGLE, DISCRIMINATIVE = "run_classifier_single_layer", "run_classifier_discriminative"
NUM_TRAIN, NUM_TEST = 61, 37  # no multiple of a batch, a number of processes or of accumulation steps


def make_bert(folder, vocab_size, dropout=0.0):
    config = BertConfig(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=dropout,
                        attention_probs_dropout_prob=dropout, initializer_range=0.1)
    config.write(folder / "bert_config.json")
    torch.manual_seed(0)
    torch.save(BertForPreTraining(config).state_dict(), folder / "pytorch_model.bin")


def model_flags(tiny):
    return ["--vocab_file", tiny / "vocab.txt", "--bert_config_file", tiny / "bert_config.json",
            "--init_checkpoint", tiny / "pytorch_model.bin", "--do_lower_case", "--no_cuda"]


def train_flags(tiny, output_dir):
    """A run of 3 epochs of 8 updates each; a flag given again after these wins."""
    return ["--task_name", "ag", "--do_train", "--do_eval", "--data_dir", tiny, *model_flags(tiny),
            "--max_seq_length", 32, "--train_batch_size", 8, "--eval_batch_size", 8, "--learning_rate", 1e-3,
            "--num_train_epochs", 3, "--log_steps", 1, "--save_checkpoints_steps", 3, "--output_dir", output_dir]


def call(script, *flags):
    """Runs a script in this process as the shell would."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [str(ROOT / f"{script}.py"), *map(str, flags)]
    try:
        command_line.run(importlib.import_module(script).main)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_equal_weights(folder, other, tolerance=0.0):
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses_of(folder):
    """The training loss in each line of a run's metrics.jsonl."""
    return [line["loss"] for line in read_metrics(folder, "train")]


def read_evaluation(path):
    return {key: float(value) for key, value in (line.split(" = ") for line in path.read_text().splitlines())}


def predictions_of(path):
    return [int(line) for line in path.read_text().splitlines()]


def in_a_process(script, flags, log, event, environment):
    """What such a process does: the script, its output in the file `log`, and at `event` a signal to itself.

    event: (what, number, when, signal): "update" or "rename" (of a file that is whole to its final name), the how
    many-th of this process, "before" or "after" it; or ("file size", bytes), the longest file that may be written.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if event and event[0] == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (event[1], event[1]))
    elif event:
        what, number, when, signal_number = event
        owner, name = {"update": (optimization.BertAdam, "step"), "rename": (os, "replace")}[what]
        original, seen = getattr(owner, name), []

        def counted(*args, **kwargs):
            seen.append(1)
            if when == "before" and len(seen) == number:
                os.kill(os.getpid(), signal_number)
            result = original(*args, **kwargs)
            if when == "after" and len(seen) == number:
                os.kill(os.getpid(), signal_number)
            return result
        setattr(owner, name, counted)
    call(script, *flags)


def wait(*processes):
    """The exit codes of processes, each waited for at most two minutes."""
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def start_together(start, size, script, flags, log, events=None):
    """Starts `size` processes of one run, as a launcher does: the list of processes."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(script, flags, f"{log}.{rank}", (events or {}).get(rank),
                  {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank in range(size)]


def until(condition, seconds=300):
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_of(session):
    """The command lines of a session's processes, the script's own among them."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found
