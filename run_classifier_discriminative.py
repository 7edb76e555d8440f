"""Step 5b: fine-tunes BERT with a learning rate for each layer (paper, section 5.3.4).

The top layer learns at --layer_learning_rate, each layer below at --layer_learning_rate_decay times the rate of the
one above it:

    python run_classifier_discriminative.py --task_name imdb --do_train --do_eval --do_lower_case \\
        --data_dir ./IMDB_data/ --vocab_file ./uncased_L-12_H-768_A-12/vocab.txt \\
        --bert_config_file ./uncased_L-12_H-768_A-12/bert_config.json \\
        --init_checkpoint ./uncased_L-12_H-768_A-12/bert_model.ckpt --max_seq_length 512 --train_batch_size 24 \\
        --learning_rate 2e-5 --layer_learning_rate 2e-5 --layer_learning_rate_decay 0.95 --num_train_epochs 4 \\
        --output_dir ./imdb_discriminative --seed 42 --trunc_medium 128

All else is as in run_classifier_single_layer.py.
"""
import argparse

import finetuning.command
from common.command_line import add_boolean, number, run
from finetuning.flags import make_parser, rate
from optimization import layer_rates


def add_flags(group, discr):
    """The flags of a rate for each layer. discr: whether there is one by default."""
    add_boolean(group, "--discr", discr, "Use a learning rate for each layer; if off, --learning_rate everywhere (default: "
                f"{'on' if discr else 'off'}).")
    group.add_argument("--layer_learning_rate", type=rate, nargs="+", default=[2e-5],
                       help="The top layer's rate, or one rate per layer, the lowest layer first (default: 2e-5).")
    group.add_argument("--layer_learning_rate_decay", type=number(float, above=0, maximum=1), default=0.95,
                       help="Factor from a layer's rate to that of the layer below; if a rate per layer is given, only from "
                       "layer 0's to a `decayed` one of the embeddings (default: 0.95; 1: the same rate for all).")
    group.add_argument("--embeddings_learning_rate", type=embeddings_rate, default="full",
                       help="The embeddings' rate: full is --learning_rate, as in the authors' code; decayed is one step below "
                       "layer 0; or a number (default: full).")


def embeddings_rate(text):
    """argparse type: `full`, `decayed` or a rate."""
    try:
        return text if text in ("full", "decayed") else rate(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; give full, decayed or a rate") from None


def rates_of(config, args):
    """The rate of each layer, the lowest first, and of the embeddings. The classifier and the pooler learn at
    --learning_rate."""
    if not args.discr:
        return None, None
    rates = layer_rates(config.num_hidden_layers, args.layer_learning_rate, args.layer_learning_rate_decay)
    named = {"full": args.learning_rate, "decayed": rates[0] * args.layer_learning_rate_decay}
    return rates, named.get(args.embeddings_learning_rate, args.embeddings_learning_rate)


def main():
    parser = make_parser(__doc__)
    add_flags(parser.recipe, discr=True)
    finetuning.command.run(parser, rates_of)


if __name__ == "__main__":
    run(main)
