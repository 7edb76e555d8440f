"""Fine-tuning and prediction on one GPU beside transformers' best loop: documents and tokens a second, MFU, memory.

    python benchmarks/gpu.py --peer_python "$(which python)"       # a Python with this project's packages and transformers

Both sides compute a BERT-base with random weights on ids of the lengths of IMDb's 25,000 training reviews, cut to 512, in
bfloat16: training of 24 documents an update with dropout and clipping, as the paper's IMDb recipe, and prediction of 128 at a
time. Ours is what the scripts run: finetuning.training.train and finetuning.evaluation.predict, plain and with --compile.
transformers' is its Trainer's loop without the Trainer's own time: batches of like length in the Trainer's order, padded and
pinned before the clock starts, SDPA attention, compiled, fused AdamW; once for shapes of any length and once, padded to
multiples of 64, for each shape. Every process warms up first: kernels, compilation, the memory allocator. MFU counts
the arithmetic that the task needs, without padding, by the device's peak. Needs no network, no TensorFlow and no data.
"""
import contextlib
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks import common  # noqa: E402
from common.command_line import UserError, add_boolean, number, run  # noqa: E402
from common.configuration import BertConfig  # noqa: E402

# Every 5 % of the lengths in WordPieces, [CLS] and [SEP] included, of IMDb's 25,000 training reviews; uncut 298 on average
IMDB_LENGTHS = [13, 83, 117, 140, 151, 161, 170, 181, 192, 206, 222, 240, 262, 289, 321, 361, 412, 480, 584, 763, 3047]
IMDB_SIZE = 25_000  # of its training and of its test set
# Dense bfloat16 products with float32 sums, TFLOP/s, of NVIDIA's data sheets, by the name that the driver gives
PEAKS = {"NVIDIA H200": 989.4, "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 NVL": 835.5, "NVIDIA H100 PCIe": 756.5,
         "NVIDIA A100-SXM4-80GB": 312.0, "NVIDIA A100-SXM4-40GB": 312.0, "NVIDIA A100 80GB PCIe": 312.0,
         "NVIDIA A100-PCIE-40GB": 312.0, "NVIDIA L40S": 362.05, "NVIDIA L4": 121.0}
TRAIN_BATCH, PREDICTION_BATCH, LONGEST, CLASSES = 24, 128, 512, 2
RATE, WARMUP = 2e-5, 0.1


def lengths_of(num_documents):
    """Lengths distributed as IMDb's, in a random order: int [documents]."""
    import numpy as np
    shares = (np.arange(num_documents) + 0.5) / num_documents
    lengths = np.interp(shares, np.linspace(0, 1, len(IMDB_LENGTHS)), IMDB_LENGTHS)
    return np.random.default_rng(0).permutation(np.minimum(lengths, LONGEST).astype(int))


def flops(config, lengths, training):
    """The arithmetic that the encoder needs: its matrix products and attention's for the real tokens, of the last layer keys
    and values, and the rest for [CLS] alone; twice more in training, once for each of both gradients. Embeddings, LayerNorm,
    pooler and classifier are not counted."""
    size, layers = config.hidden_size, config.num_hidden_layers
    keys, rest = 2 * size ** 2, 2 * size ** 2 + 2 * size * config.intermediate_size  # weights of a layer
    products = lengths.sum() * (layers * keys + (layers - 1) * rest) + len(lengths) * rest
    pairs = (layers - 1) * (lengths ** 2).sum() + lengths.sum()  # of tokens that look at each other
    return float((2 * products + 4 * size * pairs) * (3 if training else 1))


def peak_of(device, given):
    """FLOP/s of the device at most: `given` in TFLOP/s, else from the table; None for one that is not in it."""
    import torch
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return (given or PEAKS.get(name, 0)) * 1e12 or None


# Ours

def dataset_of(lengths):
    import numpy as np
    from finetuning.data import Dataset
    generator = np.random.default_rng(0)
    return Dataset(generator.integers(1000, 30000, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]),
                   np.arange(len(lengths) + 1), generator.integers(0, CLASSES, len(lengths)))


def ours(config, device, training, compiled):
    """A function that trains on or predicts documents of some lengths and returns the seconds."""
    from finetuning.evaluation import predict
    from finetuning.processes import World
    from modeling import BertForSequenceClassification, MultiTaskModel
    model, world = MultiTaskModel([BertForSequenceClassification(config, CLASSES)]).to(device), World(0, 1, device)
    if compiled:
        model.classifiers[0].bert.encoder.compile_layers()

    def work(lengths):
        dataset = dataset_of(lengths)
        if not training:
            started = time.monotonic()
            predict(model.classifiers[0], dataset, PREDICTION_BATCH, world, bf16=True)
            return time.monotonic() - started
        with tempfile.TemporaryDirectory() as folder:
            return common.train_epoch(model, dataset, ["negative", "positive"], world, folder, TRAIN_BATCH, RATE, WARMUP,
                                      PREDICTION_BATCH, "bf16", log_steps=10)
    return work


# transformers'

def padded_batches(order, lengths, size, multiple, pinned):
    """Batches of those documents in that order, padded to their longest one's next multiple."""
    import torch
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(order), size):
        own = torch.from_numpy(lengths[order[start:start + size]])
        longest = min(LONGEST, -(-int(own.max()) // multiple) * multiple)
        mask = (torch.arange(longest) < own[:, None]).long()
        batch = {"input_ids": torch.randint(1000, 30000, mask.shape, generator=generator) * mask, "attention_mask": mask,
                 "token_type_ids": torch.zeros_like(mask), "labels": torch.randint(CLASSES, (len(own),), generator=generator)}
        yield {name: value.pin_memory() if pinned else value for name, value in batch.items()}


def theirs(config, device, training, compiled, dynamic, multiple):
    """The same. dynamic: compiled once for all shapes, else for each; multiple: to which of lengths batches are padded."""
    import numpy as np
    import torch
    import transformers
    from transformers.trainer_pt_utils import get_length_grouped_indices
    values = {key: value for key, value in vars(config).items() if key != "others"}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        **values, num_labels=CLASSES, attn_implementation="sdpa")).to(device)
    if not training:
        model = model.to(torch.bfloat16).eval()
    if compiled:
        torch._dynamo.config.recompile_limit = LONGEST // multiple + 1  # else it gives up after eight shapes
        model = torch.compile(model, dynamic=dynamic)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01, fused=True)
    size = TRAIN_BATCH if training else PREDICTION_BATCH

    def update(batch, scheduler):
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return loss.detach()

    def work(lengths):
        order = (torch.tensor(get_length_grouped_indices(lengths.tolist(), size)).numpy() if training
                 else np.argsort(-lengths, kind="stable"))
        batches = list(padded_batches(order, lengths, size, multiple, device.type == "cuda"))
        steps = len(batches)
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
        started, results = time.monotonic(), []
        with contextlib.nullcontext() if training else torch.inference_mode():
            for number_, batch in enumerate(batches, 1):
                batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                results.append(update(batch, scheduler) if training else model(**batch).logits)
                if training and number_ % 10 == 0:
                    results[-1].item()  # the log's line
        results = [result.float().cpu() for result in results]
        return time.monotonic() - started
    return work


SIDES = {
    "ours": (ours, dict(compiled=False)),
    "ours, compiled": (ours, dict(compiled=True)),
    "transformers": (theirs, dict(compiled=True, dynamic=True, multiple=8)),
    "transformers, a shape each": (theirs, dict(compiled=True, dynamic=False, multiple=64)),
}
CASES = {"training 24 x 512": True, "prediction 128 x 512": False}
SMOKE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


def figures_of(side, training, args):
    """What one process measures of one side: a dict of figures."""
    import torch
    device = torch.device("cpu" if args.smoke else "cuda", None if args.smoke else 0)
    config = BertConfig(vocab_size=30522, **(SMOKE if args.smoke else {}))
    make, how = SIDES[side]
    if args.smoke:
        how = how | {"compiled": False}  # it takes a minute
    torch.manual_seed(0)
    work, lengths = make(config, device, training, **how), lengths_of(args.documents)
    work(lengths)  # the warm-up meets every shape
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = work(lengths)
    figures = {"documents_per_second": len(lengths) / seconds, "tokens_per_second": lengths.sum() / seconds,
               "tflops_per_second": flops(config, lengths, training) / seconds / 1e12,
               "imdb_seconds": IMDB_SIZE / len(lengths) * seconds}
    if peak := peak_of(device, args.peak_tflops):
        figures["mfu_percent"] = 100 * flops(config, lengths, training) / seconds / peak
    if device.type == "cuda":
        figures["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(float(value), 3) for name, value in figures.items()}


def check_device(args):
    """Raises UserError where there is no GPU."""
    import torch
    if not args.smoke and not torch.cuda.is_available():
        raise UserError("no GPU is here; --smoke runs a tiny model on the CPU, to test this script alone")
    if not args.smoke and not peak_of(torch.device("cuda", 0), args.peak_tflops):
        print(f"{torch.cuda.get_device_name(0)} is not in the table of peaks: no MFU; give --peak_tflops", flush=True)


def main():
    parser = common.benchmark_parser(__doc__, "gpu")
    parser.add_argument("--documents", type=number(int, minimum=TRAIN_BATCH), default=6144, help="Documents that are timed, "
                        "after a warm-up on as many; default: 6144, whole batches.")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="Whom to run; default: all, those of "
                        "transformers with --peer_python alone.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="What to measure; default: all.")
    parser.add_argument("--peak_tflops", type=number(float, above=0), help="The device's peak for dense bfloat16 products, for "
                        "MFU; default: from a table of NVIDIA's, or no MFU where the device is not in it.")
    add_boolean(parser, "--smoke", False, "Run a tiny model on the CPU, not compiled, to test this script (default: off).")
    add_boolean(parser, "--here", False, "Measure one side and one case in this process, and print the figures (default: off; "
                "set for the processes that are started).")
    args = common.parse(parser)
    check_device(args)
    if args.here:
        import json
        print("\n" + json.dumps(figures_of(args.sides[0], CASES[args.cases[0]], args)))
        return
    for case in args.cases:
        pythons = {side: sys.executable if SIDES[side][0] is ours else args.peer_python for side in args.sides}
        commands = {side: [python, os.path.abspath(__file__), "--here", "--sides", side, "--cases", case, "--documents",
                           str(args.documents), *(["--smoke"] if args.smoke else []),
                           *(["--peak_tflops", str(args.peak_tflops)] if args.peak_tflops else [])]
                    for side, python in pythons.items() if python}
        packages = {side: ["torch", "numpy", "transformers"] for side in commands}
        common.append(args.results, common.compare("gpu" + ", smoke" * args.smoke, case, commands, args.rounds, packages))


if __name__ == "__main__":
    run(main)
