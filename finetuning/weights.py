"""Weights of every kind in, folders for `transformers` out, and the TensorFlow <-> PyTorch map of names.

    state = read_weights("uncased_L-12_H-768_A-12/bert_model.ckpt", config)  # or a folder, a .bin, a .safetensors
    matched, ignored, missing = load_weights(model, state, "the checkpoint")

TensorFlow is imported here alone, and only for a TensorFlow checkpoint.
"""
import dataclasses
import fnmatch
import os
import re
import warnings
import zipfile

import numpy as np
import safetensors
import safetensors.torch
import torch

from common.command_line import UserError, tensorflow_start_up
from common.configuration import check_beside
from common.files import atomic_write, checkpoint_prefix, digest_of_file, require_file, write_json
from common.names import (DUPLICATES, POOLER, TIED, WEIGHT_FILES, check_names_of_weights, is_training_state, pytorch_name,
                          with_our_names, without_pooler)
from common.vocabulary import write_tokenizer
from finetuning.data import pack
from modeling import BertForPreTraining
from tokenization import FullTokenizer

HEADS = {"masked LM": ("cls/predictions/", "cls.predictions."),
         "next sentence": ("cls/seq_relationship/", "cls.seq_relationship.")}  # name in TensorFlow, in PyTorch
ARCHITECTURES = {(): "BertForPreTraining", ("next sentence",): "BertForMaskedLM",
                 ("masked LM",): "BertForNextSentencePrediction", ("masked LM", "next sentence"): "BertModel"}
CLASSIFIER = {"output_weights": "classifier.weight", "output_bias": "classifier.bias"}  # Google's, of run_classifier.py
TOLERANCE = 1e-5  # of --verify, times the largest value where that is above 1
OTHER_CONFIG = "is --bert_config_file the one that came with it?"


# Reading

def find_weights(path, flag="--init_checkpoint"):
    """The file of weights, or the prefix of a TensorFlow checkpoint, that `path` names. Raises UserError where it has none."""
    prefix = checkpoint_prefix(path)
    if prefix != path and os.path.exists(prefix + ".index"):
        raise UserError(f"{flag}: {path} is one file of a TensorFlow checkpoint; give the prefix they share, {prefix}")
    if os.path.exists(path + ".index"):
        return path
    if os.path.isdir(path):
        found = [name for name in WEIGHT_FILES if os.path.exists(os.path.join(path, name))]
        if not found:
            raise UserError(f"{flag}: the folder {path} has neither {' nor '.join(WEIGHT_FILES)}; for a TensorFlow "
                            "checkpoint give its prefix (.../bert_model.ckpt)")
        path = os.path.join(path, found[0])
    return require_file(path, flag)


def digest_of_weights(path):
    """A digest of the weights that `path` names, `none` without any."""
    if not path:
        return "none"
    found = find_weights(path)
    index = found + ".index"  # of a TensorFlow checkpoint: it has the checksums of all tensors
    return "sha256 " + digest_of_file(index if os.path.exists(index) else found)


def read_torch(path, where, device="cpu"):
    """What torch.save wrote to `path`, tensors and plain values alone; on the device `meta` tensors have only their shapes.
    Raises UserError, its text starting with `where`, for all else, also for a file of which a bit is not what was written."""
    try:
        if device == "cpu" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # torch does not look at its checksums
            if damaged:
                raise UserError(f"{where}: {path} is damaged (the checksum of {damaged} is wrong); copy or make it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's words on how to load what is refused here anyway
            return torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign pickle fails in any way at all
        raise UserError(f"{where}: {path} is no whole PyTorch checkpoint of tensors ({type(error).__name__}); a safetensors "
                        "file's name ends in .safetensors") from None


def read_weights(path, config, flag="--init_checkpoint", device="cpu"):
    """Reads a checkpoint as a state dict with the names of modeling.py; on the device `meta` values are left unread.

    path: a folder with model.safetensors or pytorch_model.bin, one such file (also the authors' released files: gamma
    and beta, no `bert.` prefix), or the prefix of a TensorFlow checkpoint (which imports TensorFlow). Raises UserError
    where there is none, the file is no checkpoint, or its sizes are not the configuration's.
    """
    path = find_weights(path, flag)
    where = f"{flag}: {path}"
    if os.path.exists(path + ".index"):
        values = read_tf_checkpoint(path, flag, device)
        heads = {name for name in values if not is_training_state(name, values) and ".ATTRIBUTES" not in name
                 and not name.startswith(("bert/", *(prefix for prefix, _ in HEADS.values())))}
        heads -= CLASSIFIER.keys() if CLASSIFIER.keys() <= heads else set()
        state = tf_to_pytorch({name: values[name] for name in values.keys() - heads}, config, where=where)[0]
        return state | {name: torch.empty(0) for name in heads}  # of other tasks: load_weights lists their names
    check_beside(os.path.dirname(path), flag)
    if path.endswith(".safetensors"):
        try:
            state = safetensors.torch.load_file(path)  # maps the file: what is not used is not read
        except safetensors.SafetensorError as error:
            raise UserError(f"{where} is no whole safetensors file ({error})") from None
    else:
        state = read_torch(path, flag, device)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{where} is a pickle, but no dictionary of tensors, so no checkpoint of a model")
    state = with_our_names(state)
    check_names_of_weights(state, where)
    if whole := [name for name, value in state.items() if re.fullmatch(r"bert\..*\.(weight|bias)", name)
                 and not value.is_floating_point()]:
        raise UserError(f"{where}: {whole[0]} is of whole numbers ({state[whole[0]].dtype}), as in a quantized model; take the "
                        "model that is not quantized")
    check_sizes(state, config, where)
    return state


def check_sizes(state, config, where):
    """Raises UserError, its text starting with `where`, where an encoder's weights have not the sizes of the configuration:
    before a model of these takes memory. Whether every weight is there, and fits, is looked at by `load_weights`."""
    layers = 1 + max((int(name.split(".")[3]) for name in state if re.match(r"bert\.encoder\.layer\.\d+\.", name)), default=-1)
    if layers != config.num_hidden_layers:
        raise UserError(f"{where} {'lacks' if layers < config.num_hidden_layers else 'has more'} layers ({layers}, by the "
                        f"configuration {config.num_hidden_layers}); {OTHER_CONFIG}")
    hidden = config.hidden_size
    check_shapes(state, {"bert.embeddings.word_embeddings.weight": (config.vocab_size, hidden),
                         "bert.embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
                         "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
                         "bert.encoder.layer.0.intermediate.dense.weight": (config.intermediate_size, hidden)}, where)


def check_shapes(state, shapes, where):
    """Raises UserError at the first weight of `state` that has another shape than it has by name in `shapes`."""
    for name, shape in shapes.items():
        if name in state and state[name].shape != shape:
            raise UserError(f"{where}: {name} is {list(state[name].shape)} there, the model's is {list(shape)}; {OTHER_CONFIG}")


def load_weights(model, state, where):
    """Loads a state dict into a model of modeling.py, where names match.

    Returns three lists of names: matched, ignored (only in the file, or of a part above BERT that has another shape),
    missing (not taken from the file: they keep the values they were drawn with). Raises UserError, its text starting with
    `where`, for a weight of the encoder that is missing or has another shape.
    """
    own = model.state_dict()
    other_parts = {part_of(name) for name in own.keys() & state.keys() if part_of(name) not in ("bert", "cls")
                   and state[name].shape != own[name].shape}
    other_head = sorted(name for name in state if part_of(name) in other_parts)
    state = {name: value for name, value in state.items() if name not in other_head}
    matched, missing = sorted(own.keys() & state.keys()), sorted(own.keys() - state.keys())
    ignored = sorted(state.keys() - own.keys()) + other_head
    needed = [name for name in missing if name.startswith("bert.")
              and (model.get_parameter(name).requires_grad or "pooler" not in name)]
    if needed == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]:  # as BertForMaskedLM is saved
        raise UserError(f"{where} has no pooler, which --layers -2 reads; take the last layer instead, --layers "
                        f"{len(model.bert.encoder.layer) - 1}")
    if needed:
        raise UserError(f"{where} lacks {len(needed)} of the encoder's weights, first {needed[0]}; {OTHER_CONFIG}")
    check_shapes(state, {name: own[name].shape for name in matched}, where)
    model.load_state_dict({name: state[name] for name in matched}, strict=False)
    return matched, ignored, missing


def part_of(name):
    """The part of a model that a weight belongs to: bert, cls, classifier, ..."""
    return name.partition(".")[0]


# Writing

def write_torch(value, path):
    """torch.save to a temporary name, then renamed. Raises OSError or UserError where it cannot be written."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # no space left, which torch hides behind words of its own
                raise error.__context__ from None
            raise UserError(f"{path} cannot be written ({str(error).splitlines()[0]}), what was there before is kept; mend "
                            "that and run the same command again") from None


def write_safetensors(state, path):
    """A state dict as a safetensors file for transformers; two names of one tensor are written once."""
    once = {name: value.detach().cpu().contiguous() for name, value in state.items() if name not in TIED}
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save(once, metadata={"format": "pt"}))


def save_classifier(classifier, folder, config, description, vocab_file):
    """Writes a BertForSequenceClassification as a folder that loads here and in transformers; the weights come last, in one
    rename. description: what classifier.json holds, from which the model is built again here (finetuning/model.py)."""
    plain = classifier.use_pooler and not classifier.pool_fractions  # what transformers' own head computes
    describe_classifier_folder(folder, config, description, vocab_file, plain)
    write_safetensors(classifier.state_dict(), os.path.join(folder, WEIGHT_FILES[0]))


def describe_classifier_folder(folder, config, description, vocab_file, plain=True):
    """Writes all files of such a folder but the weights."""
    labels = description["task"]["labels"]
    os.makedirs(folder, exist_ok=True)
    config.write(os.path.join(folder, "config.json"), model_type="bert",
                 architectures=["BertForSequenceClassification" if plain else "BertModel"],
                 id2label={str(index): label for index, label in enumerate(labels)},
                 label2id={label: index for index, label in enumerate(labels)})
    write_json(os.path.join(folder, "classifier.json"), description)
    lower, never_split = description["do_lower_case"], description.get("never_split")
    own = FullTokenizer(vocab_file, lower, never_split).own if never_split else None
    write_tokenizer(vocab_file, folder, lower, description["max_seq_length"], own)


# TensorFlow <-> PyTorch

@dataclasses.dataclass
class Report:
    """What became of every name: converted (name there, name here, shape, transposed), left out, the optimizer's (left out as
    well), heads absent."""
    converted: list
    left_out: list
    optimizer: list
    absent_heads: tuple

    def print(self):
        kinds = sorted({name.rsplit("/", 1)[-1] for name in self.optimizer})
        print(*(f"  {source} {list(shape)} -> {target}{' (transposed)' if transposed else ''}"
                for source, target, shape, transposed in self.converted),
              *(f"  {name}: left out" for name in self.left_out),
              *(f"  the {head} head: absent, so it is not written" for head in self.absent_heads),
              *([f"  {len(self.optimizer)} variables of the optimizer ({', '.join(kinds)}): left out"] if kinds else []),
              f"{len(self.converted)} tensors converted, {len(self.left_out) + len(self.optimizer)} left out", sep="\n")


def names_and_shapes(config):
    """{name in TensorFlow: (name in PyTorch, transposed, shape in TensorFlow)} of all of BERT with its pre-training heads."""
    with tensorflow_start_up():
        from pretraining.modeling_tf import variable_shapes
    return {name: (*pytorch_name(name), shape) for name, shape in variable_shapes(config).items()}


def read_tf_checkpoint(prefix, flag="--tf_checkpoint_path", device="cpu"):
    """{variable name: array} of a name-based TensorFlow checkpoint, read without session or graph; on the device `meta`
    zeros, of the shapes in its index. Raises UserError, its text starting with `flag`, where there is none or it is damaged."""
    with tensorflow_start_up():
        import tensorflow as tf
        from pretraining.checkpoints import read_checkpoint
    if device == "cpu":
        return read_checkpoint(prefix, flag)
    try:
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in tf.train.list_variables(prefix)}
    except Exception:  # a damaged index, in any way: read_checkpoint says in which
        return read_checkpoint(prefix, flag)


def check_names(expected, present, side, where):
    """The heads that are absent as a whole. Raises UserError where other names than those `expected` are `present`, or
    one of the encoder's, the pooler's or of half a head is missing. `side`: 0: TensorFlow's names, 1: PyTorch's."""
    unmatched = sorted(set(present) - set(expected))
    if any(".ATTRIBUTES" in name for name in unmatched):
        raise UserError(f"{where} is an object-based checkpoint of TensorFlow 2; a name-based one is needed, "
                        "as run_pretraining.py and google-research/bert write it")
    absent = tuple(head for head, prefixes in HEADS.items() if not any(n.startswith(prefixes[side]) for n in present))
    may_lack = [HEADS[head][side] for head in absent] + [POOLER[side]] * without_pooler(present)
    missing = [name for name in expected if name not in present and not name.startswith(tuple(may_lack))]
    for names, fault, remedy in ((missing, "lacks", ""), (unmatched, "has what this model has not:", " Name what shall be "
                                  "dropped with --leave_out of convert_tf_checkpoint_to_pytorch.py")):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise UserError(f"{where} {fault} {names[0]}{more}; {OTHER_CONFIG}{remedy}")
    return absent


def translate(values, config, side, leave_out, where):
    """Weights by the names of one framework, {name: array}, as those of the other: ({name: float32 array}, Report).

    side: 0 from TensorFlow's names to PyTorch's, 1 back. Kernels are transposed. leave_out: names or patterns (cls/*) to drop
    beside the optimizer's. Raises UserError, its text starting with `where`, for a name that is missing or that the model
    has not, and for a shape that does not fit the configuration.
    """
    for pattern in leave_out:
        if not fnmatch.filter(values, pattern):
            raise UserError(f"{where} has no {pattern}, which --leave_out names")
    both = names_and_shapes(config)
    optimizer = sorted(name for name in values if side == 0 and is_training_state(name, values.keys() | both.keys()))
    left_out = sorted(name for name in values.keys() - set(optimizer) if name in DUPLICATES
                      or any(fnmatch.fnmatchcase(name, pattern) for pattern in leave_out))
    present = values.keys() - {*optimizer, *left_out}
    check_names_of_weights(present, where)
    weight, bias = (CLASSIFIER.keys(), CLASSIFIER.values())[side]
    if {weight, bias} <= present:
        classes = len(values[bias])
        both |= {name: (target, False, (classes, config.hidden_size)[:1 + target.endswith("weight")])
                 for name, target in CLASSIFIER.items()}
    names = {(source, target)[side]: ((target, source)[side], transposed, shape)
             for source, (target, transposed, shape) in both.items()}
    absent_heads = check_names(names, present, side, where)
    translated, converted = {}, []
    for name, (target, transposed, shape) in names.items():
        if name in present:
            value = np.asarray(values[name], np.float32)
            turned = value.T if transposed else value
            found = (value, turned)[side].shape  # in TensorFlow
            if found != tuple(shape):
                raise UserError(f"{where} does not fit --bert_config_file: {name} has the shape {list(found)}, by the "
                                f"configuration it is {list(shape)}")
            translated[target] = np.array(turned, order="C")
            converted.append((name, target, shape, transposed))
    return translated, Report(converted, left_out, optimizer, absent_heads)


def tf_to_pytorch(variables, config, leave_out=(), where="the TensorFlow checkpoint"):
    """TensorFlow's variables as a PyTorch state dict: (float32 tensors, Report), see `translate`. The masked-LM decoder is
    the word embeddings' tensor itself."""
    arrays, report = translate(variables, config, 0, leave_out, where)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "masked LM" not in report.absent_heads:
        state |= {copy: state[original] for copy, original in TIED.items()}
    return state, report


def pytorch_to_tf(state, config, leave_out=(), where="the PyTorch file"):
    """The reverse: a state dict as ({name: float32 array}, Report). A decoder that is not tied to the word embeddings has no
    place in TensorFlow's checkpoint: UserError."""
    for copy, original in TIED.items():
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise UserError(f"{where}: {copy} is not the same as {original}; BERT in TensorFlow has one tensor for both")
    return translate({name: value.float().numpy() for name, value in state.items()}, config, 1, leave_out, where)


def verification_batch(config, num_sequences=4, max_length=64):
    """Two-segment sequences of random ids and different lengths: a list of id arrays and one of segment id arrays."""
    rng = np.random.default_rng(0)
    longest = min(max_length, config.max_position_embeddings)
    lengths = [max(2, longest - longest * i // num_sequences) for i in range(num_sequences)]
    sequences = [rng.integers(0, config.vocab_size, length) for length in lengths]
    segments = [(np.arange(length) >= length // 2).astype(np.int64) % config.type_vocab_size for length in lengths]
    return sequences, segments


def run_tensorflow(variables, config, sequences, segments):
    """TensorFlow's outputs for the batch, padded: hidden states [layers + 1, T, hidden] and masked-LM logits [T, vocabulary]
    of the real tokens, pooled output [sequences, hidden], next-sentence logits [sequences, 2]."""
    import tensorflow as tf
    from pretraining import modeling_tf
    absent = {name: np.zeros(shape, np.float32) for name, shape in modeling_tf.variable_shapes(config).items()
              if name not in variables}
    model = modeling_tf.BertForPreTraining(config, variables | absent)
    longest = max(map(len, sequences))
    input_ids, segment_ids, input_mask = (
        tf.constant(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]).astype(np.int32))
        for rows in (sequences, segments, [np.ones(len(row)) for row in sequences]))
    hidden_states, real = model.encode(input_ids, input_mask, segment_ids), input_mask.numpy().astype(bool)
    pooled = model.pooled(hidden_states[-1][:, 0])
    outputs = {"hidden states": np.stack([layer.numpy()[real] for layer in hidden_states]),
               "pooled output": pooled.numpy(),
               "masked LM": model.masked_lm_logits(tf.boolean_mask(hidden_states[-1], real)).numpy(),
               "next sentence": model.next_sentence_logits(pooled).numpy()}
    if CLASSIFIER.keys() <= variables.keys():
        weight, bias = (variables[name] for name in CLASSIFIER)
        outputs["classifier"] = (tf.matmul(pooled, weight, transpose_b=True) + bias).numpy()
    return outputs


def run_pytorch(state, config, sequences, segments):
    """The same of PyTorch, packed."""
    model = BertForPreTraining(config).eval()
    model.load_state_dict(state, strict=False)  # a head may be absent; tf_to_pytorch has checked the names
    weight, bias = (state.get(name) for name in CLASSIFIER.values())
    with torch.no_grad():
        hidden_states, pooled, logits, next_sentence = model(pack(sequences, segments))
        classifier = {} if weight is None else {"classifier": torch.nn.functional.linear(pooled, weight, bias).numpy()}
    return {"hidden states": torch.stack(hidden_states).numpy(), "pooled output": pooled.numpy(),
            "masked LM": logits.numpy(), "next sentence": next_sentence.numpy()} | classifier


def verify(variables, state, config, absent_heads):
    """Runs both frameworks in float32 on one batch and prints the largest difference of each output. Raises UserError where
    one is over TOLERANCE."""
    batch = verification_batch(config)
    theirs, ours = run_tensorflow(variables, config, *batch), run_pytorch(state, config, *batch)
    wrong = []
    for output in theirs:
        if output in absent_heads or output == "pooled output" and without_pooler(state):
            continue
        difference = np.abs(theirs[output] - ours[output]).max()
        allowed = TOLERANCE * max(1.0, np.abs(theirs[output]).max())
        print(f"verify: {output}: largest difference {difference:.2e} (allowed {allowed:.2e})")
        if not difference <= allowed:  # NaN is not
            wrong.append(output)
    if wrong:
        raise UserError(f"--verify: TensorFlow and PyTorch differ in {', '.join(wrong)}; nothing was written")
