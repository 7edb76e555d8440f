"""Measures how far this project is from Google's google-research/bert and the paper's authors' code.

tests/goldens holds what both gave for the project's own sample and a tiny BERT; its README.md says how that was made.
The functions here do the same with this project and return the differences: tests/test_parity.py holds them to BOUNDS,
tests/parity_table.py prints them.
"""
import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
import random
import re
import sys
import tempfile
import unicodedata

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tasks
from common.configuration import BertConfig
from pretraining.instances import Recipe, read_corpus, training_instances
from tokenization import FullTokenizer

GOLDENS = ROOT / "tests" / "goldens"
TOKENIZERS = ("lower", "cased", "lower_extended", "cased_extended")
SETTINGS = [setting["name"] for setting in json.loads((GOLDENS / "records.json").read_text())["settings"]]
ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_new"}  # as run_pretraining.py --gelu
FINE_TUNINGS = {  # name -> (max_seq_length, trunc_medium, arguments of BertForSequenceClassification)
    "pooled": (64, -2, {}),
    "concat": (64, -2, {"layers": [1, 0]}),
    "all_layers_max": (64, -2, {"layers": [-1], "layer_pooling": "max"}),
    "all_layers_mean": (64, -2, {"layers": [-1], "layer_pooling": "mean"}),
    "half_half": (32, 0, {}),
    "tail": (32, -1, {}),
    "head_8": (32, 8, {}),
    # The authors count 12 layers whatever the model has, so the lowest rate belongs to a layer that is not there.
    "discriminative": (64, -2, {}),
}
# Rounding moves these on other machines; what is wrong in an update moves at least one of them by more (tests/goldens).
BOUNDS = {"input ids": 0, "labels": 0, "groups": 0, "losses": 1e-5, "gradient norms": 1e-5, "rates": 1e-5,
          "final weights": 1e-5, "key biases": 1e-4, "Adam slots": 1e-4}
CONVERSION_BOUND = 1e-5
SLOT = re.compile(r"/adam_[mv]$")
# The exact gradient of an attention's key bias is 0, for softmax is blind to it: what it gets is rounding.
KEY_BIAS = re.compile(r"[./]key[./]bias")
SUMS = {"final weights": lambda name: not KEY_BIAS.search(name) and not SLOT.search(name),
        "key biases": lambda name: KEY_BIAS.search(name) and not SLOT.search(name),
        "Adam slots": lambda name: not KEY_BIAS.search(name) and SLOT.search(name)}


def read_json(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def relative(ours, golden):
    """The largest |ours - golden| / |golden| of two arrays of one shape; where the golden is 0, |ours|."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    assert ours.shape == golden.shape, (ours.shape, golden.shape)
    return float((np.abs(ours - golden) / np.where(golden == 0, 1, np.abs(golden))).max())


# Tokens

def token_lists(tokenizer, texts, convert):
    """The ids of each text, or what `convert` makes of them."""
    ids, offsets = tokenizer.encode_batch(texts)
    ids = convert(ids)
    return [ids[start:end] for start, end in zip(offsets.tolist(), offsets[1:].tolist())]


@functools.cache
def small_tokenizer(name):
    """The tokenizer of one of TOKENIZERS: the sample's vocabulary, `extended` by 4,954 lines of single characters."""
    content = (GOLDENS / "inputs" / "vocab.txt").read_text(encoding="utf-8")
    if name.endswith("_extended"):
        for first, last in read_json(GOLDENS / "tokenization.json.gz")["extra_ranges"]:
            content += "".join(f"{chr(code)}\n##{chr(code)}\n" for code in range(first, last + 1))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "vocab.txt")
        path.write_text(content, encoding="utf-8", newline="")
        return FullTokenizer(str(path), do_lower_case=name.startswith("lower"))


def different_texts(name):
    """(texts of which the ids are not Google's, texts). Those with characters that this Python's Unicode may have
    assigned since are left out where it is another version."""
    golden = read_json(GOLDENS / "tokenization.json.gz")
    left_out = set() if unicodedata.unidata_version == golden["unicode"] else set(golden["texts_with_unassigned"])
    kept = [index for index in range(len(golden["texts"])) if index not in left_out]
    ours = token_lists(small_tokenizer(name), [golden["texts"][index] for index in kept], np.ndarray.tolist)
    return sum(ids != golden[name][index] for ids, index in zip(ours, kept)), len(kept)


def different_blocks(tokenizer, digests, blocks):
    """How many blocks of 256 code points, each alone, doubled and between letters, have other tokens than Google's."""
    wrong = 0
    for block in blocks:
        characters = [chr(code) for code in range(block * 256, block * 256 + 256) if not 0xD800 <= code <= 0xDFFF]
        tokens = token_lists(tokenizer, (text for c in characters for text in ("a" + c + "b", c, c + c)),
                             tokenizer.convert_ids_to_tokens)
        digest = hashlib.sha256(json.dumps(tokens, separators=(",", ":")).encode()).hexdigest()[:16]
        wrong += digest != digests[block]
    return wrong


def some_blocks():
    """All blocks below U+20000, and of the others, which are ideographs, private or unassigned, one in 16."""
    return [block for block in range(0x1100) if block < 0x200 or block % 16 == 0]


# Records

def digest_of_records(records):
    """The digest that tests/goldens/README.md describes, of dicts of lists."""
    sha = hashlib.sha256()
    for record in records:
        for name in sorted(record):
            kind = "<f4" if name == "masked_lm_weights" else "<i8"
            sha.update(name.encode("ascii") + b"\0" + np.array(record[name], kind).tobytes())
    return sha.hexdigest()


@functools.cache
def small_corpora():
    """Unpacks the two corpora of the goldens: {name: path}; the folder is removed as the program ends."""
    folder = tempfile.TemporaryDirectory()
    paths = {}
    for name in ("test", "train"):
        paths[name] = pathlib.Path(folder.name, f"{name}.txt")
        paths[name].write_bytes(gzip.decompress((GOLDENS / "inputs" / f"corpus_{name}.txt.gz").read_bytes()))
    paths[None] = folder  # kept as long as the paths are
    return paths


def make_records(tokenizer, corpus_files, flags):
    """The Instances of a setting's flags."""
    recipe = Recipe(**{field.name: flags[field.name] for field in dataclasses.fields(Recipe) if field.name in flags})
    corpus = read_corpus([str(path) for path in corpus_files], tokenizer)
    made, = training_instances(corpus, tokenizer, recipe, flags["dupe_factor"], random.Random(flags["random_seed"]))
    return made


def small_records(name):
    """The same of one of SETTINGS, and what the golden says of its files."""
    setting = next(setting for setting in read_json(GOLDENS / "records.json")["settings"] if setting["name"] == name)
    tokenizer = FullTokenizer(str(GOLDENS / "inputs" / "vocab.txt"), setting["flags"]["do_lower_case"])
    made = make_records(tokenizer, [small_corpora()[corpus] for corpus in setting["corpora"]], setting["flags"])
    return made, setting["files"]


def different_files(instances, files):
    """(files whose records are not Google's in number, order or any feature; records in all)."""
    wrong = 0
    for number, golden in enumerate(files):
        own = range(number, len(instances), len(files))
        digest = digest_of_records(map(instances.features, own))
        wrong += (len(own), digest) != (golden["records"], golden["sha256"])
    return wrong, len(instances)


# Pre-training

def pretrain(config, values, batches, learning_rate, num_train_steps, num_warmup_steps):
    """Makes an update of each of the batches: features [updates, batch, ...].

    Returns (TRAIN_METRICS before each update [updates, 5], the absolute sums of the final weights by name, and those of
    the Adam slots).
    """
    import tensorflow as tf

    from pretraining.modeling_tf import BertForPreTraining
    from pretraining.optimization_tf import AdamWeightDecay
    from pretraining.packing import pack
    from pretraining.records import split
    from pretraining.training import make_train_steps

    model = BertForPreTraining(config, values)
    optimizer = AdamWeightDecay(model.variables, learning_rate, num_train_steps, num_warmup_steps)
    num_updates = len(batches["input_ids"])
    batches = batches | {"example_weights": np.ones(batches["input_ids"].shape[:2], np.float32)}
    dataset = tf.data.Dataset.from_tensor_slices(batches).map(lambda batch: split(batch, 1, 1)).unbatch().map(pack)
    train_steps = make_train_steps(tf.distribute.get_strategy(), model, optimizer)
    rows = train_steps(iter(dataset), tf.constant(num_updates), tf.constant(0.0)).numpy()[:, :5]

    def sums(variables):
        return {name: float(np.abs(variable.numpy()).sum(dtype=np.float64)) for name, variable in variables.items()}
    return rows, sums(model.variables), sums(optimizer.slots)


def pretraining_differences(gelu):
    """{what: largest relative difference} of 20 updates, with gelu by `erf` or `tanh`."""
    golden = read_json(GOLDENS / "pretraining.json")
    wanted, size = golden[gelu], golden["batch_size"]
    instances, _ = small_records("length_64")
    records = [instances.features(index) for index in range(golden["num_steps"] * size)]
    batches = {name: np.array([record[name] for record in records],
                              np.float32 if name == "masked_lm_weights" else np.int32) for name in records[0]}
    batches = {name: values.reshape(-1, size, *values.shape[1:]) for name, values in batches.items()}
    config = BertConfig.from_json_file(str(GOLDENS / "bert_config.json"))
    config.hidden_act = ACTIVATIONS[gelu]
    rows, weights, slots = pretrain(config, dict(np.load(GOLDENS / "init.npz")), batches, golden["learning_rate"],
                                    golden["num_train_steps"], golden["num_warmup_steps"])
    return differences_of_training(
        {"losses": rows[:, :3], "gradient norms": rows[:, 3], "rates": rows[:, 4]},
        {"losses": np.transpose([wanted["loss"], wanted["masked_lm_loss"], wanted["next_sentence_loss"]]),
         "gradient norms": wanted["gradient_norm"], "rates": wanted["learning_rate"]},
        weights | slots, wanted["final_abs_sums"])


def differences_of_training(ours, golden, our_sums, golden_sums):
    """{what: largest relative difference} of each update's figures and of the sums of the final weights and slots."""
    differences = {what: relative(ours[what], golden[what]) for what in ours}
    for what, belongs in SUMS.items():
        names = sorted(filter(belongs, golden_sums))
        assert names == sorted(filter(belongs, our_sums)), what
        if names:
            differences[what] = relative([our_sums[name] for name in names], [golden_sums[name] for name in names])
    return differences


# Fine-tuning

def our_name(name):
    return name.replace("gamma", "weight").replace("beta", "bias")


def fine_tune(model, groups, batches, learning_rate, warmup, t_total):
    """Makes an update of each of the batches, as finetuning.training does. Returns (losses before each update, norms of
    their gradients before clipping, absolute sums of the final weights by name)."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    from optimization import SCHEDULES, BertAdam

    optimizer = BertAdam(groups, learning_rate)
    scheduler = LambdaLR(optimizer, lambda updates: SCHEDULES["slanted_triangular"](updates / t_total, warmup))
    losses, norms = [], []
    model.train()
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(model(batch), batch.labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        norms.append(optimizer.grad_norm.item())
    return losses, norms, {name: parameter.detach().double().abs().sum().item()
                           for name, parameter in model.named_parameters()}


def different_groups(groups, golden_groups, frozen):
    """How many parameters have another rate or decay than in the authors' groups, or are in one of the two only.

    frozen: a part that the authors list though it gets no gradient, and that is frozen and in no group here; or None.
    """
    ours = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    wanted = {our_name(name): (group["lr"], group["weight_decay_rate"]) for group in golden_groups
              for name in group["params"] if frozen is None or frozen not in name}
    return len(ours.keys() ^ wanted.keys()) + sum(
        not np.allclose(ours[name], wanted[name], rtol=1e-12, atol=0) for name in ours.keys() & wanted.keys())


def make_classifier(config, options, state, head):
    """A BertForSequenceClassification of 4 classes with the encoder of a state dict and the classifier `head`."""
    import torch

    from finetuning.weights import load_weights
    from modeling import BertForSequenceClassification

    model = BertForSequenceClassification(config, 4, **options)
    load_weights(model, state, "the goldens")
    with torch.no_grad():
        for name, value in head.items():
            model.classifier.get_parameter(name).copy_(torch.from_numpy(value))
    return model


def fine_tuning_differences(name):
    """{what: difference} of 20 updates of one of FINE_TUNINGS from the authors': whether the input ids differ, how many
    labels and parameters in groups do, and relative differences."""
    from finetuning.data import make_dataset
    from finetuning.weights import tf_to_pytorch
    from optimization import parameter_groups

    golden = read_json(GOLDENS / "fine_tuning" / f"{name}.json")
    head = np.load(GOLDENS / "fine_tuning" / f"{name}_classifier.npz")
    max_seq_length, trunc_medium, options = FINE_TUNINGS[name]
    texts, labels = tasks.read_examples(tasks.TASKS["ag"], str(GOLDENS / "inputs"), "train")
    tokenizer = FullTokenizer(str(GOLDENS / "inputs" / "vocab.txt"))
    dataset = make_dataset(tokenizer, texts, labels, max_seq_length, trunc_medium)
    ids = hashlib.sha256()
    for index in range(len(dataset)):
        (sequence,) = dataset.sequences(index)
        ids.update(np.array([len(sequence), *sequence], "<i4").tobytes())

    config = BertConfig.from_json_file(str(GOLDENS / "bert_config.json"))
    state, _ = tf_to_pytorch(dict(np.load(GOLDENS / "init.npz")), config)
    model = make_classifier(config, options, state, {key.removeprefix("classifier/"): head[key] for key in head})
    base, decay = golden["learning_rate"], 0.95
    rates = [base * decay ** (11 - layer) for layer in range(2)] if name == "discriminative" else None
    groups = parameter_groups(model, base, rates)
    wrong_groups = different_groups(groups, golden["param_groups"], None if model.use_pooler else "pooler")
    size = golden["batch_size"]
    batches = [dataset.batch(np.arange(start, start + size)) for start in range(0, golden["steps"] * size, size)]
    losses, norms, sums = fine_tune(model, groups, batches, base, golden["warmup"], golden["t_total"])
    same_ids = (len(dataset.ids), ids.hexdigest()) == (golden["num_input_ids"], golden["input_ids_sha256"])
    return {"input ids": int(not same_ids),
            "labels": int((dataset.labels != golden["labels"]).sum()),
            "groups": wrong_groups} | differences_of_training({"losses": losses, "gradient norms": norms},
                                        {"losses": golden["losses"], "gradient norms": golden["gradient_norms"]}, sums,
                                        {our_name(key): value for key, value in golden["final_abs_sums"].items()})


# Conversion

def outputs_of_transformers(state, config, sequences, segments):
    """What finetuning.weights.run_pytorch returns, of transformers' BertForPreTraining on the padded batch."""
    import torch
    import transformers

    model = transformers.BertForPreTraining(transformers.BertConfig(**config.to_dict(), attn_implementation="eager"))
    model.load_state_dict(state, strict=False)
    longest = max(map(len, sequences))
    input_ids, segment_ids, mask = (
        torch.tensor(np.stack([np.pad(row, (0, longest - len(row))) for row in rows])).long()
        for rows in (sequences, segments, [np.ones(len(row)) for row in sequences]))
    real = mask.bool()
    with torch.no_grad():
        found = model.eval()(input_ids=input_ids, token_type_ids=segment_ids, attention_mask=mask,
                             output_hidden_states=True)
        pooled = model.bert.pooler(found.hidden_states[-1])
    return {"hidden states": np.stack([states[real].numpy() for states in found.hidden_states]),
            "pooled output": pooled.numpy(), "masked LM": found.prediction_logits[real].numpy(),
            "next sentence": found.seq_relationship_logits.numpy()}


def conversion_differences(peer, variables, config):
    """{output: largest difference} of TensorFlow's outputs on one batch from those of `peer` with the converted variables:
    absolute, or relative to the output's largest value where that is above 1. peer: `pytorch` or `transformers`."""
    from finetuning.weights import run_pytorch, run_tensorflow, tf_to_pytorch, verification_batch

    batch = verification_batch(config)
    theirs = run_tensorflow(variables, config, *batch)
    run = {"pytorch": run_pytorch, "transformers": outputs_of_transformers}[peer]
    ours = run(tf_to_pytorch(variables, config)[0], config, *batch)
    return {output: float(np.abs(ours[output] - theirs[output]).max() / max(1, np.abs(theirs[output]).max()))
            for output in theirs}
