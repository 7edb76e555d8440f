"""Converts a TensorFlow checkpoint of BERT to PyTorch weights that this project and `transformers` load, and back.

    python convert_tf_checkpoint_to_pytorch.py \\
        --tf_checkpoint_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/model.ckpt-100000 \\
        --bert_config_file ./uncased_L-12_H-768_A-12_AGnews_pretrain/bert_config.json \\
        --pytorch_dump_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/pytorch_model.bin

Encoder, pooler and both pre-training heads are converted; what is the optimizer's is left out and counted. Every other
name is printed with what became of it. A name that is neither is an error, and so is a missing one, but a checkpoint
may lack a head as a whole. A classifier that Google's run_classifier.py fine-tuned becomes a folder to predict with.
config.json and vocab.txt are written beside the weights, so that the folder loads:

    transformers.BertForPreTraining.from_pretrained("./uncased_L-12_H-768_A-12_AGnews_pretrain")

Add --verify to run TensorFlow and PyTorch on the same batch and see the largest difference, --safetensors for
model.safetensors as well. And back, from PyTorch weights (a folder, .bin or .safetensors), bit for bit:

    python convert_tf_checkpoint_to_pytorch.py --reverse \\
        --pytorch_dump_path ./uncased_L-12_H-768_A-12_AGnews_pretrain/pytorch_model.bin \\
        --bert_config_file ./uncased_L-12_H-768_A-12_AGnews_pretrain/bert_config.json \\
        --tf_checkpoint_path ./back_in_tensorflow/bert_model.ckpt
"""
import os

from common.command_line import ArgumentParser, UserError, add_boolean, command, path, run, tensorflow_start_up
from common.configuration import CONFIG_NAMES, BertConfig, find_config
from common.files import check_output_file, checkpoint_prefix
from common.hub import find_on_hub
from common.vocabulary import carry_vocab, choose_case, find_vocab, read_fitting_vocab
from finetuning.model import describe_google_classifier
from finetuning.weights import (ARCHITECTURES, WEIGHT_FILES, describe_classifier_folder, pytorch_to_tf,
                                read_tf_checkpoint, read_weights, tf_to_pytorch, verify, write_safetensors, write_torch)
from tokenization import FullTokenizer


def to_pytorch(args, config, folder, vocab_file):
    """TensorFlow -> PyTorch. Returns the command that comes next."""
    safetensors = os.path.join(folder, WEIGHT_FILES[0])
    if os.path.basename(args.pytorch_dump_path) == WEIGHT_FILES[1] and not args.safetensors and os.path.exists(safetensors):
        raise UserError(f"{safetensors} is there from before, and whoever reads {folder or '.'} would take that one: add "
                        "--safetensors, which writes it anew, or remove it")
    variables = read_tf_checkpoint(args.tf_checkpoint_path)
    state, report = tf_to_pytorch(variables, config, args.leave_out, f"--tf_checkpoint_path: {args.tf_checkpoint_path}")
    classes = len(state.get("classifier.bias", ()))
    if args.labels and len(args.labels) != classes:
        raise UserError(f"--labels: {len(args.labels)} names, but {args.tf_checkpoint_path} has a classifier of {classes} "
                        "classes" if classes else f"--labels: {args.tf_checkpoint_path} has no classifier")
    if classes and not vocab_file:
        raise UserError(f"{args.tf_checkpoint_path} has a classifier, whose folder needs its vocabulary: add --vocab_file")
    report.print()
    if classes:
        lower, notes = choose_case(None, vocab_file, FullTokenizer(vocab_file).vocab)
        print(*notes, sep="\n")
    if args.verify:
        verify({name: variables[name] for name, *_ in report.converted}, state, config, report.absent_heads)
    write = write_safetensors if args.pytorch_dump_path.endswith(".safetensors") else write_torch
    write(state, args.pytorch_dump_path)
    print(f"wrote {args.pytorch_dump_path}")
    if args.safetensors:
        write_safetensors(state, safetensors)
        print(f"wrote {safetensors}")
    elif os.path.basename(args.pytorch_dump_path) not in WEIGHT_FILES:
        print(f"note: transformers finds weights in a folder under the name {' or '.join(WEIGHT_FILES)} only")
    if classes:
        description = describe_google_classifier(args.labels or list(map(str, range(classes))), lower, config)
        describe_classifier_folder(folder or ".", config, description, vocab_file)
        print(f"wrote the files of a classifier of {classes} classes into {folder or '.'}")
        return command("run_classifier_single_layer.py", do_predict=True, predict_file="FILE", init_checkpoint=folder or ".",
                       output_dir="./predictions")
    write_config(config, os.path.join(folder, "config.json"), model_type="bert",
                 architectures=[ARCHITECTURES[report.absent_heads]])
    lower = write_vocab(vocab_file, folder)
    return command(
        "run_classifier_single_layer.py", task_name="ag", do_train=True, do_eval=True, do_lower_case=lower, data_dir="./ag",
        vocab_file=os.path.join(folder, "vocab.txt"), bert_config_file=args.bert_config_file,
        init_checkpoint=args.pytorch_dump_path, max_seq_length=128, output_dir="./ag_classifier")


def to_tensorflow(args, config, folder, vocab_file):
    """PyTorch -> TensorFlow; returns the same."""
    state = read_weights(args.pytorch_dump_path, config, "--pytorch_dump_path")
    variables, report = pytorch_to_tf(state, config, args.leave_out, f"--pytorch_dump_path: {args.pytorch_dump_path}")
    report.print()
    if args.verify:
        verify(variables, {name: state[name].float() for name, *_ in report.converted}, config, report.absent_heads)
    with tensorflow_start_up():
        from pretraining.checkpoints import write_checkpoint
    os.makedirs(folder or ".", exist_ok=True)
    write_checkpoint(args.tf_checkpoint_path, variables)
    print(f"wrote {args.tf_checkpoint_path}")
    config_file = os.path.join(folder, "bert_config.json")
    write_config(config, config_file)
    write_vocab(vocab_file, folder)
    return command(
        "run_pretraining.py", input_file="./tmp/tf_AGnews.tfrecord", output_dir="./pretrained_further", do_train=True,
        bert_config_file=config_file, init_checkpoint=args.tf_checkpoint_path)


def write_config(config, path, **more):
    config.write(path, **more)
    print(f"wrote {path}")


def write_vocab(vocab_file, folder):
    """Writes the vocabulary, if there is one. Returns whether text is to be lower-cased."""
    if not vocab_file:
        print("no vocab.txt found beside the weights or the configuration: copy it to "
              f"{os.path.join(folder, 'vocab.txt')}, or give --vocab_file")
        return True
    lower, notes = carry_vocab(vocab_file, folder)
    print(*notes, f"wrote {os.path.join(folder, 'vocab.txt')}", sep="\n")
    return lower


def parse_arguments():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument_group("model").add_argument
    add("--tf_checkpoint_path", type=path, required=True, help="Prefix of the TensorFlow checkpoint (.../model.ckpt-100000, "
        "without .index): the input, or with --reverse the output.")
    add("--bert_config_file", type=path, help="The model's bert_config.json or config.json, as it came with the checkpoint "
        "(default: the one beside the weights that are read).")
    add("--pytorch_dump_path", type=path, required=True, help="File of the PyTorch weights (.../pytorch_model.bin): the "
        "output, or with --reverse the input, which may also be a .safetensors file, a folder, or a model's name on the Hub.")
    add("--vocab_file", type=path, help="Vocabulary to copy beside the output (default: vocab.txt beside the weights that are "
        "read or beside the configuration, if there is one).")
    group = parser.add_argument_group("recipe")
    add_boolean(group, "--reverse", False, "Convert from PyTorch to TensorFlow instead (default: off).")
    group.add_argument("--leave_out", nargs="+", default=[], metavar="NAME", help="Names in the input to drop, or patterns "
                       "such as 'cls/*' (default: none; the optimizer's slots and global_step are always left out).")
    group.add_argument("--labels", nargs="+", metavar="NAME", help="The names of the classes, in their order, where the "
                       "checkpoint is a classifier fine-tuned by Google's code (default: 0 1 2 ...).")
    group = parser.add_argument_group("output")
    add_boolean(group, "--verify", False, "First run TensorFlow and PyTorch on one batch of random ids, print the largest "
                "differences, and write nothing if one is over 1e-5 (relative to the largest value if that is above 1) "
                "(default: off).")
    add_boolean(group, "--safetensors", False, "Also write model.safetensors beside --pytorch_dump_path (default: off).")
    args = parser.parse_args()
    if args.labels and len(set(args.labels)) < len(args.labels):
        parser.error("--labels names a class twice")
    if args.reverse and args.labels:
        parser.error("--labels names the classes of a TensorFlow classifier, --reverse writes one: leave one out")
    if args.reverse and args.safetensors:
        parser.error("--safetensors writes PyTorch weights, --reverse reads them: leave one out")
    return args


def main():
    args = parse_arguments()
    source, target, flag = args.tf_checkpoint_path, args.pytorch_dump_path, "--pytorch_dump_path"
    if args.reverse:
        args.pytorch_dump_path, hub = find_on_hub(target, flag)
        source, target, flag = args.pytorch_dump_path, source, "--tf_checkpoint_path"
        if hub:
            print(f"{hub} from the Hub, in {source}")
    check_output_file(target, flag)
    if args.reverse and checkpoint_prefix(target) != target:
        raise UserError(f"{flag}: {target} is the name of one file of a checkpoint; give the prefix of all of them, without "
                        "the end")
    beside = source if os.path.isdir(source) else os.path.dirname(source)
    args.bert_config_file = args.bert_config_file or find_config([beside])
    if args.bert_config_file is None:
        raise UserError(f"--bert_config_file is needed: beside {source} is no {' or '.join(CONFIG_NAMES)}")
    config = BertConfig.from_json_file(args.bert_config_file)
    vocab_file = find_vocab(args.vocab_file, [beside, os.path.dirname(args.bert_config_file)])
    for line in read_fitting_vocab(vocab_file, config):
        print(line)
    print("next:", (to_tensorflow if args.reverse else to_pytorch)(args, config, os.path.dirname(target), vocab_file))


if __name__ == "__main__":
    run(main)
