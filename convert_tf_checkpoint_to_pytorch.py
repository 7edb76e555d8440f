"""Converts a TensorFlow checkpoint of BERT to PyTorch weights that this project and `transformers` load, and back.

    python convert_tf_checkpoint_to_pytorch.py \\
        --tf_checkpoint_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/model.ckpt-100000 \\
        --bert_config_file ./uncased_L-12_H-768_A-12_AGnews_pretrain/bert_config.json \\
        --pytorch_dump_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/pytorch_model.bin

Encoder, pooler and both pre-training heads are converted; the optimizer's slots and global_step are left out. Every
name is printed with what became of it. A name that is neither is an error, and so is a missing one, but a checkpoint
may lack a head as a whole. config.json and vocab.txt are written beside the weights, so that the folder loads:

    transformers.BertForPreTraining.from_pretrained("./uncased_L-12_H-768_A-12_AGnews_pretrain")

Add --verify to run TensorFlow and PyTorch on the same batch and see the largest difference, --safetensors for
model.safetensors as well. And back, from PyTorch weights (a folder, .bin or .safetensors), bit for bit:

    python convert_tf_checkpoint_to_pytorch.py --reverse \\
        --pytorch_dump_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/pytorch_model.bin \\
        --bert_config_file ./uncased_L-12_H-768_A-12_AGnews_pretrain/bert_config.json \\
        --tf_checkpoint_path ./back_in_tensorflow/bert_model.ckpt
"""
import dataclasses
import os
import shutil

import numpy as np
import torch

from batching import pack
from command_line import (ArgumentParser, UserError, add_boolean, atomic_write, check_output_file,
                          checkpoint_prefix, decode_lines, require_file, run, tensorflow_start_up)
from configuration import BertConfig
from modeling import WEIGHT_FILES, BertForPreTraining, read_weights, write_torch

OPTIMIZER_SLOTS = ("adam_m", "adam_v", "Adam", "Adam_1", "lamb_m", "lamb_v")  # last part of a slot's name
TRAINING_STATE = ("global_step", "beta1_power", "beta2_power")
HEADS = {"masked LM": ("cls/predictions/", "cls.predictions."),
         "next sentence": ("cls/seq_relationship/", "cls.seq_relationship.")}  # name in TensorFlow, in PyTorch
ARCHITECTURES = {(): "BertForPreTraining", ("next sentence",): "BertForMaskedLM",
                 ("masked LM",): "BertForNextSentencePrediction", ("masked LM", "next sentence"): "BertModel"}
TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias"}  # two names of one tensor, in PyTorch alone
DUPLICATES = (*TIED, "bert.embeddings.position_ids")  # the last: a counter that old `transformers` files hold
TOLERANCE = 1e-5


@dataclasses.dataclass
class Report:
    """What became of every name: converted (name there, name here, shape, transposed), left out, heads absent."""
    converted: list
    left_out: list
    absent_heads: tuple

    def print(self):
        for source, target, shape, transposed in self.converted:
            print(f"  {source} {list(shape)} -> {target}{' (transposed)' if transposed else ''}")
        for name in self.left_out:
            print(f"  {name}: left out")
        for head in self.absent_heads:
            print(f"  the {head} head: absent, so it is not written")
        print(f"{len(self.converted)} tensors converted, {len(self.left_out)} left out")


def pytorch_name(name):
    """(name in PyTorch, whether the matrix is transposed) of google-research/bert's variable `name`."""
    *path, last = name.replace("/layer_", "/layer/").split("/")
    path = ".".join(path)
    if name.startswith("bert/embeddings/") and last.endswith("_embeddings"):
        return f"{path}.{last}.weight", False
    renamed = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias",
               "output_weights": "weight", "output_bias": "bias"}
    return f"{path}.{renamed[last]}", last == "kernel"


def names_and_shapes(config):
    """Of every tensor of BERT with its pre-training heads: {name in TensorFlow: (name in PyTorch, transposed, shape in
    TensorFlow)}."""
    with tensorflow_start_up():
        from modeling_tf import variable_shapes
    return {name: (*pytorch_name(name), shape) for name, shape in variable_shapes(config).items()}


def read_tf_checkpoint(prefix, flag="--tf_checkpoint_path"):
    """Reads a name-based TensorFlow checkpoint without session or graph: {variable name: array}.

    Raises UserError, its text starting with `flag`, where there is none or it is damaged.
    """
    with tensorflow_start_up():
        from modeling_tf import read_checkpoint
    return read_checkpoint(prefix, flag)


def is_training_state(name):
    """Whether a variable belongs to the optimizer and not to the model."""
    return name in TRAINING_STATE or name.rsplit("/", 1)[-1] in OPTIMIZER_SLOTS


def check_names(expected, present, side, where):
    """The heads that are absent as a whole. Raises UserError where other names than those `expected` are `present`, or
    one of the encoder's, the pooler's or of half a head is missing. `side`: 0: TensorFlow's names, 1: PyTorch's."""
    unmatched = sorted(set(present) - set(expected))
    if any(".ATTRIBUTES" in name for name in unmatched):
        raise UserError(f"{where} is an object-based checkpoint of TensorFlow 2; a name-based one is needed, "
                        "as run_pretraining.py and google-research/bert write it")
    absent = tuple(head for head, prefixes in HEADS.items() if not any(n.startswith(prefixes[side]) for n in present))
    missing = [name for name in expected if name not in present
               and not any(name.startswith(HEADS[head][side]) for head in absent)]
    for names, fault, mend in (
            (missing, "lacks", "is --bert_config_file the one that came with it?"),
            (unmatched, "has what this model has not:", "is --bert_config_file the one that came with it? "
             "What shall be dropped is named with --leave_out of convert_tf_checkpoint_to_pytorch.py")):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise UserError(f"{where} {fault} {names[0]}{more}; {mend}")
    return absent


def check_left_out(leave_out, present, where):
    """Raises UserError where a name of --leave_out is not `present`."""
    unknown = sorted(set(leave_out) - set(present))
    if unknown:
        raise UserError(f"{where} has no {unknown[0]}, which --leave_out names")


def check_shape(where, name, shape, expected):
    if tuple(shape) != tuple(expected):
        raise UserError(f"{where} does not fit --bert_config_file: {name} has the shape {list(shape)}, "
                        f"by the configuration it is {list(expected)}")


def tf_to_pytorch(variables, config, leave_out=(), where="the TensorFlow checkpoint"):
    """TensorFlow's variables as a PyTorch state dict.

    variables: {name: array} with google-research/bert's names, see `read_tf_checkpoint`. Kernels are transposed. The
    masked-LM decoder is the word embeddings' tensor itself. leave_out: names to drop beside the optimizer's.
    Returns (state dict of float32 tensors, Report). Raises UserError, its text starting with `where`, for a name that
    is missing or that the model has not, and for a shape that does not fit the configuration.
    """
    names = names_and_shapes(config)
    check_left_out(leave_out, variables, where)
    left_out = sorted(name for name in variables if is_training_state(name) or name in leave_out)
    absent_heads = check_names(names, variables.keys() - set(left_out), 0, where)
    state, converted = {}, []
    for name, (target, transposed, shape) in names.items():
        if name not in variables:
            continue
        check_shape(where, name, variables[name].shape, shape)
        value = np.asarray(variables[name], np.float32)
        state[target] = torch.from_numpy(np.array(value.T if transposed else value, order="C"))
        converted.append((name, target, shape, transposed))
    if "masked LM" not in absent_heads:
        state |= {copy: state[original] for copy, original in TIED.items()}
    return state, Report(converted, left_out, absent_heads)


def pytorch_to_tf(state, config, leave_out=(), where="the PyTorch file"):
    """The reverse of `tf_to_pytorch`: (a state dict, configuration) -> ({name: float32 array}, Report).

    A decoder that is not tied to the word embeddings has no place in TensorFlow's checkpoint: UserError.
    """
    names = {target: (name, transposed, shape)
             for name, (target, transposed, shape) in names_and_shapes(config).items()}
    if "cls.predictions.bias" not in state and "cls.predictions.decoder.bias" in state:
        state = state | {"cls.predictions.bias": state["cls.predictions.decoder.bias"]}
    for copy, original in TIED.items():
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise UserError(f"{where}: {copy} is not the same as {original}; "
                            "BERT in TensorFlow has one tensor for both")
    check_left_out(leave_out, state, where)
    left_out = sorted(name for name in state if name in DUPLICATES or name in leave_out)
    absent_heads = check_names(names, state.keys() - set(left_out), 1, where)
    variables, converted = {}, []
    for name, (target, transposed, shape) in names.items():
        if name not in state:
            continue
        value = state[name].float().numpy()
        value = np.array(value.T if transposed else value, order="C")
        check_shape(where, name, value.shape, shape)
        variables[target] = value
        converted.append((name, target, value.shape, transposed))
    return variables, Report(converted, left_out, absent_heads)


def verification_batch(config, num_sequences=4, max_length=64):
    """Two-segment sequences of random ids and different lengths: a list of id arrays and one of segment id arrays."""
    rng = np.random.default_rng(0)
    longest = min(max_length, config.max_position_embeddings)
    lengths = [max(2, longest - longest * i // num_sequences) for i in range(num_sequences)]
    sequences = [rng.integers(0, config.vocab_size, length) for length in lengths]
    segments = [(np.arange(length) >= length // 2).astype(np.int64) % config.type_vocab_size for length in lengths]
    return sequences, segments


def run_tensorflow(variables, config, sequences, segments):
    """TensorFlow's outputs for the batch, padded: hidden states [layers + 1, T, hidden] and masked-LM logits
    [T, vocabulary] of the real tokens, pooled output [sequences, hidden], next-sentence logits [sequences, 2]."""
    import tensorflow as tf
    import modeling_tf
    absent = {name: np.zeros(shape, np.float32) for name, shape in modeling_tf.variable_shapes(config).items()
              if name not in variables}
    model = modeling_tf.BertForPreTraining(config, variables | absent)
    longest = max(map(len, sequences))
    input_ids, segment_ids, input_mask = (
        tf.constant(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]).astype(np.int32))
        for rows in (sequences, segments, [np.ones(len(row)) for row in sequences]))
    hidden_states, pooled = model.encode(input_ids, input_mask, segment_ids)
    positions = tf.tile(tf.range(longest)[tf.newaxis], [len(sequences), 1])
    logits = model.masked_lm_logits(hidden_states[-1], positions)
    real = input_mask.numpy().astype(bool)
    return {"hidden states": np.stack([layer.numpy()[real] for layer in hidden_states]),
            "pooled output": pooled.numpy(), "masked LM": logits.numpy()[real],
            "next sentence": model.next_sentence_logits(pooled).numpy()}


def run_pytorch(state, config, sequences, segments):
    """The same of PyTorch, packed."""
    model = BertForPreTraining(config).eval()
    model.load_state_dict(state, strict=False)  # a head may be absent; tf_to_pytorch has checked the names
    with torch.no_grad():
        hidden_states, pooled, logits, next_sentence = model(pack(sequences, segments))
    return {"hidden states": torch.stack(hidden_states).numpy(), "pooled output": pooled.numpy(),
            "masked LM": logits.numpy(), "next sentence": next_sentence.numpy()}


def verify(variables, state, config, absent_heads):
    """Runs both frameworks in float32 on one batch and prints the largest difference of each output.

    Raises UserError where one is over 1e-5, or over 1e-5 of the output's largest value where that is above 1.
    """
    batch = verification_batch(config)
    theirs, ours = run_tensorflow(variables, config, *batch), run_pytorch(state, config, *batch)
    wrong = []
    for output in theirs:
        if output in absent_heads:
            continue
        difference = np.abs(theirs[output] - ours[output]).max()
        allowed = TOLERANCE * max(1.0, np.abs(theirs[output]).max())
        print(f"verify: {output}: largest difference {difference:.2e} (allowed {allowed:.2e})")
        if not difference <= allowed:  # NaN is not
            wrong.append(output)
    if wrong:
        raise UserError(f"--verify: TensorFlow and PyTorch differ in {', '.join(wrong)}; nothing was written")


def find_vocab(vocab_file, folders, config):
    """The vocabulary that goes with the weights: --vocab_file, else a vocab.txt in one of the folders, else None.

    Raises UserError where it has another number of tokens than the model has embeddings.
    """
    beside = [os.path.join(folder, "vocab.txt") for folder in folders]
    path = vocab_file or next(filter(os.path.exists, beside), None)
    if path:
        config.check_vocab(sum(1 for _ in decode_lines(require_file(path, "--vocab_file"))), path)
    return path


def copy_vocab(source, folder):
    """Copies the vocabulary into `folder` as vocab.txt and says so, or what to do where there is none."""
    target = os.path.join(folder, "vocab.txt")
    if source is None:
        print(f"no vocab.txt found beside the weights or the configuration: copy it to {target}, or give --vocab_file")
    elif not (os.path.exists(target) and os.path.samefile(source, target)):
        with open(source, "rb") as original, atomic_write(target, "wb") as copy:
            shutil.copyfileobj(original, copy)
        print(f"wrote {target}")


def write_pytorch(state, path, safetensors_too):
    """Writes the state dict at `path`, and with `safetensors_too` as model.safetensors beside it (tied names once)."""
    write_torch(state, path)
    print(f"wrote {path}")
    if safetensors_too:
        import safetensors.torch
        other = os.path.join(os.path.dirname(path), WEIGHT_FILES[0])
        once = {name: value for name, value in state.items() if name not in TIED}
        with atomic_write(other, "wb") as file:
            file.write(safetensors.torch.save(once, metadata={"format": "pt"}))
        print(f"wrote {other}")


def convert(args):
    """TensorFlow -> PyTorch."""
    check_output_file(args.pytorch_dump_path, "--pytorch_dump_path")
    config = BertConfig.from_json_file(args.bert_config_file)
    folder = os.path.dirname(args.pytorch_dump_path)
    beside = map(os.path.dirname, (args.tf_checkpoint_path, args.bert_config_file))
    vocab_file = find_vocab(args.vocab_file, beside, config)
    variables = read_tf_checkpoint(args.tf_checkpoint_path)
    state, report = tf_to_pytorch(variables, config, args.leave_out, f"--tf_checkpoint_path: {args.tf_checkpoint_path}")
    report.print()
    if args.verify:
        verify({name: variables[name] for name, *_ in report.converted}, state, config, report.absent_heads)
    write_pytorch(state, args.pytorch_dump_path, args.safetensors)
    config_file = os.path.join(folder, "config.json")
    config.write(config_file, model_type="bert", architectures=[ARCHITECTURES[report.absent_heads]])
    print(f"wrote {config_file}")
    copy_vocab(vocab_file, folder)
    if os.path.basename(args.pytorch_dump_path) not in WEIGHT_FILES and not args.safetensors:
        print(f"note: transformers finds weights in a folder under the name {' or '.join(WEIGHT_FILES)} only")
    print("next: python run_classifier_single_layer.py --task_name ag --do_train --do_eval --do_lower_case "
          f"--data_dir ./ag --vocab_file {os.path.join(folder, 'vocab.txt')} "
          f"--bert_config_file {args.bert_config_file} --init_checkpoint {args.pytorch_dump_path} "
          "--max_seq_length 128 --output_dir ./ag_classifier")


def reverse(args):
    """PyTorch -> TensorFlow."""
    check_output_file(args.tf_checkpoint_path, "--tf_checkpoint_path")
    if checkpoint_prefix(args.tf_checkpoint_path) != args.tf_checkpoint_path:
        raise UserError(f"--tf_checkpoint_path: {args.tf_checkpoint_path} is the name of one file of a checkpoint; give the "
                        "prefix of all of them, without the end")
    config = BertConfig.from_json_file(args.bert_config_file)
    folder = os.path.dirname(args.tf_checkpoint_path)
    source = args.pytorch_dump_path
    source_folder = source if os.path.isdir(source) else os.path.dirname(source)
    vocab_file = find_vocab(args.vocab_file, (source_folder, os.path.dirname(args.bert_config_file)), config)
    state = read_weights(source, config, "--pytorch_dump_path")
    variables, report = pytorch_to_tf(state, config, args.leave_out, f"--pytorch_dump_path: {source}")
    report.print()
    if args.verify:
        state = {name: state[name].float() for name, *_ in report.converted}
        verify(variables, state, config, report.absent_heads)

    from modeling_tf import write_checkpoint
    os.makedirs(folder or ".", exist_ok=True)
    write_checkpoint(args.tf_checkpoint_path, variables)
    print(f"wrote {args.tf_checkpoint_path}")
    config_file = os.path.join(folder, "bert_config.json")
    config.write(config_file)
    print(f"wrote {config_file}")
    copy_vocab(vocab_file, folder)
    print("next: python run_pretraining.py --input_file=./tmp/tf_AGnews.tfrecord --output_dir=./pretrained_further "
          f"--do_train=True --bert_config_file={config_file} --init_checkpoint={args.tf_checkpoint_path}")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    # model
    group = parser.add_argument_group("model")
    group.add_argument("--tf_checkpoint_path", required=True,
                       help="Prefix of the TensorFlow checkpoint (.../model.ckpt-100000, no .index): read, or with "
                            "--reverse written.")
    group.add_argument("--bert_config_file", required=True,
                       help="The model's bert_config.json (or config.json), which came with the checkpoint.")
    group.add_argument("--pytorch_dump_path", required=True,
                       help="File of the PyTorch weights (.../pytorch_model.bin): written, or with --reverse read; "
                            "then it may also be a .safetensors file or a folder.")
    group.add_argument("--vocab_file", help="Vocabulary to copy beside what is written. Default: vocab.txt beside the "
                                            "weights that are read or beside the configuration, if there is one.")
    # recipe
    group = parser.add_argument_group("recipe")
    add_boolean(group, "--reverse", False, "Convert from PyTorch to TensorFlow instead. Default False.")
    group.add_argument("--leave_out", nargs="+", default=[], metavar="NAME",
                       help="Names in what is read to drop, as a classifier's output_weights output_bias. Default: "
                            "none; the optimizer's slots and global_step are always left out.")
    # output
    group = parser.add_argument_group("output")
    add_boolean(group, "--verify", False,
                "Run TensorFlow and PyTorch on one batch of random ids first, print the largest differences, and write "
                "nothing where one is over 1e-5 (of the largest value, where that is above 1). Default False.")
    add_boolean(group, "--safetensors", False, "Write model.safetensors beside --pytorch_dump_path too. Default False.")
    args = parser.parse_args()
    if args.reverse and args.safetensors:
        parser.error("--safetensors writes PyTorch weights, --reverse reads them: leave one out")
    return args


def main():
    args = parse_arguments()
    reverse(args) if args.reverse else convert(args)


if __name__ == "__main__":
    run(main)
