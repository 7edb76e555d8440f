"""Writes a tiny BERT with random weights as a folder like Google's uncased_L-12_H-768_A-12.

    python data/make_tiny_bert.py --output_dir tmp/tiny_bert

The folder gets bert_config.json and vocab.txt (copies of those in data/tiny_bert) and the TensorFlow checkpoint
bert_model.ckpt with google-research/bert's variable names. The same seed gives the same weights.
"""
import os
import shutil
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from command_line import (ArgumentParser, atomic_write, check_output_folder, decode_lines, require_file,  # noqa: E402
                          run, tensorflow_start_up)
from configuration import BertConfig  # noqa: E402


def parse_arguments():
    parser = ArgumentParser(__doc__)
    # model
    group = parser.add_argument_group("model")
    group.add_argument("--bert_config_file", default=os.path.join(FOLDER, "tiny_bert", "bert_config.json"),
                       help="Shape of the model. Default: tiny_bert/bert_config.json, beside this script.")
    group.add_argument("--vocab_file", default=os.path.join(FOLDER, "tiny_bert", "vocab.txt"),
                       help="Its vocabulary. Default: tiny_bert/vocab.txt, beside this script.")
    group.add_argument("--seed", type=int, default=0, help="Seed of the weights; another seed gives others. Default 0.")
    # output
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="Folder to write; files of an earlier call are replaced.")
    return parser.parse_args()


def main():
    args = parse_arguments()
    check_output_folder(args.output_dir, "--output_dir")
    config = BertConfig.from_json_file(args.bert_config_file)
    config.check_vocab(sum(1 for _ in decode_lines(require_file(args.vocab_file, "--vocab_file"))), args.vocab_file)
    os.makedirs(args.output_dir, exist_ok=True)

    with tensorflow_start_up():
        from modeling_tf import initial_values, write_checkpoint  # it takes seconds: wrong flags are told first
    values = initial_values(config, args.seed)
    prefix = os.path.join(args.output_dir, "bert_model.ckpt")
    write_checkpoint(prefix, values)
    for source, name in ((args.bert_config_file, "bert_config.json"), (args.vocab_file, "vocab.txt")):
        with open(source, "rb") as original, atomic_write(os.path.join(args.output_dir, name), "wb") as copy:
            shutil.copyfileobj(original, copy)
    num_parameters = sum(int(value.shape.num_elements()) for value in values.values())
    print(f"wrote {prefix}: {len(values)} variables, {num_parameters:,} parameters")
    print(f"wrote bert_config.json and vocab.txt in {args.output_dir}")
    print("next, with a corpus (generate_corpus_agnews.py): python create_pretraining_data.py "
          "--input_file=AGnews_corpus.txt --output_file=tmp/tf_AGnews.tfrecord "
          f"--vocab_file={os.path.join(args.output_dir, 'vocab.txt')} --max_seq_length=128 "
          "--max_predictions_per_seq=20")


if __name__ == "__main__":
    run(main)
