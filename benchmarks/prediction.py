"""Prediction on a CPU beside transformers: texts in, probabilities out in their order; documents a second and memory.

    python benchmarks/prediction.py --bert FOLDER --data_dir downloads --peer_python peers/bin/python

Real texts (AG's News at 128 tokens, IMDb at 512), a real encoder with a new classifier. Ours is what --do_predict runs; the
peers are transformers' pipeline, as its users call it, and a careful user's loop: sorted by length, padded, bfloat16.
Tokenization is on the clock; each process predicts a few batches first. The peers' environment: benchmarks/fine_tuning.py.
"""
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks import common  # noqa: E402
from benchmarks.fine_tuning import BATCH, add_flags, compare_sides, make_ours, make_theirs, read_data  # noqa: E402
from common.command_line import run  # noqa: E402

SIZES = {"AG at 128": 2000}  # documents; of the others 200


def ours(args, names, length, precision):
    """A function from texts to probabilities [texts, classes]."""
    import numpy as np
    import torch
    from finetuning.data import make_dataset
    from finetuning.evaluation import predict
    from finetuning.processes import World, keep_freed_memory
    keep_freed_memory()
    tokenizer, model = make_ours(args, names)

    def predictions(texts):
        dataset = make_dataset(tokenizer, texts, np.zeros(len(texts)), length)
        logits = predict(model.classifiers[0], dataset, BATCH, World(0, 1, torch.device("cpu")), precision == "bf16")
        return torch.from_numpy(logits).softmax(1).numpy()
    return predictions


def pipeline(args, names, length, _):
    import numpy as np
    import transformers
    tokenizer, model = make_theirs(args, names)
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", batch_size=BATCH)

    def predictions(texts):
        results = classify(texts, truncation=True, max_length=length, top_k=None)
        return np.array([[one["score"] for one in sorted(row, key=lambda one: one["label"])] for row in results])
    return predictions


def hand_made(args, names, length, _):
    import numpy as np
    import torch
    tokenizer, model = make_theirs(args, names)
    model = model.to(torch.bfloat16).eval()

    def predictions(texts):
        ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(ids[index]))
        results = np.empty((len(texts), len(names)), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                own = order[start:start + BATCH]
                batch = tokenizer.pad({"input_ids": [ids[index] for index in own]}, return_tensors="pt")
                results[own] = model(**batch).logits.float().softmax(1).numpy()
        return results
    return predictions


SIDES = {"ours": (ours, "float32"), "ours, bf16": (ours, "bf16"), "pipeline": (pipeline, None),
         "sorted bf16 loop": (hand_made, None)}


def measure(args, case, side):
    """The figures of one side in this process."""
    texts, _, names, length = read_data(args, case, "test", SIZES.get(case, 200))
    make, precision = SIDES[side]
    predictions = make(args, names, length, precision)
    predictions(texts[:4 * BATCH])
    started = time.monotonic()
    probabilities = predictions(texts)
    seconds = time.monotonic() - started
    assert probabilities.shape == (len(texts), len(names))
    return {"documents_per_second": round(len(texts) / seconds, 2)}


def main():
    parser = common.benchmark_parser(__doc__, "prediction")
    add_flags(parser, SIDES)
    args = common.parse(parser)
    if args.here:
        print("\n" + json.dumps(measure(args, args.cases[0], args.sides[0])))
        return
    compare_sides(args, "prediction", [f"--bert={args.bert}", f"--data_dir={args.data_dir}"])


if __name__ == "__main__":
    run(main)
