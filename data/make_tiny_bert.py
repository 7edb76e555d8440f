"""Writes a tiny BERT with random weights as a folder like Google's uncased_L-12_H-768_A-12.

    python data/make_tiny_bert.py --output_dir tmp/tiny_bert

The folder gets the TensorFlow checkpoint bert_model.ckpt, with google-research/bert's variable names, and copies of
bert_config.json and vocab.txt. The same seed gives the same weights.
"""
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))  # the scripts of the pipeline are no installed package
from common.command_line import ArgumentParser, command, number, path, run, tensorflow_start_up  # noqa: E402
from common.configuration import BertConfig  # noqa: E402
from common.files import check_output_folder, copy_file  # noqa: E402
from common.vocabulary import copy_vocab, read_fitting_vocab  # noqa: E402


def main():
    parser = ArgumentParser(__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--bert_config_file", type=path, default=os.path.join(FOLDER, "tiny_bert", "bert_config.json"),
                       help="Shape of the model. Default: tiny_bert/bert_config.json beside this script.")
    model.add_argument("--vocab_file", type=path, default=os.path.join(FOLDER, "tiny_bert", "vocab.txt"),
                       help="Its vocabulary, a vocab.txt or tokenizer.json. Default: tiny_bert/vocab.txt beside this script.")
    model.add_argument("--seed", type=number(int, minimum=0, maximum=2 ** 31 - 1), default=0,
                       help="Seed of the weights. Default: 0.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=path, required=True,
                        help="Folder to write into; the files of an earlier call are replaced.")
    args = parser.parse_args()
    check_output_folder(args.output_dir, "--output_dir")
    config = BertConfig.from_json_file(args.bert_config_file)
    for line in read_fitting_vocab(args.vocab_file, config):
        print(line)
    with tensorflow_start_up():
        from pretraining.checkpoints import write_checkpoint  # takes seconds: wrong flags are refused before
        from pretraining.modeling_tf import initial_values
    values = initial_values(config, args.seed)
    prefix = os.path.join(args.output_dir, "bert_model.ckpt")
    write_checkpoint(prefix, values)
    copy_file(args.bert_config_file, os.path.join(args.output_dir, "bert_config.json"))
    copy_vocab(args.vocab_file, args.output_dir)
    num_parameters = sum(int(value.shape.num_elements()) for value in values.values())
    print(f"wrote {prefix}: {len(values)} variables, {num_parameters:,} parameters")
    print(f"wrote bert_config.json and vocab.txt in {args.output_dir}")
    print("next, with a corpus (generate_corpus_agnews.py):", command(
        "create_pretraining_data.py", input_file="AGnews_corpus.txt", output_file="tmp/tf_AGnews.tfrecord",
        vocab_file=os.path.join(args.output_dir, "vocab.txt"), max_seq_length=128, max_predictions_per_seq=20))


if __name__ == "__main__":
    run(main)
