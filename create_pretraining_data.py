"""Step 2: a corpus -> TFRecords of masked language modelling and, unless --next_sentence=False, next sentence prediction.

The corpus is UTF-8 text, one sentence a line, an empty line between documents (generate_corpus_agnews.py writes it).

    python create_pretraining_data.py \\
      --input_file=./AGnews_corpus.txt \\
      --output_file=tmp/tf_AGnews.tfrecord \\
      --vocab_file=./uncased_L-12_H-768_A-12/vocab.txt \\
      --do_lower_case=True --max_seq_length=128 --max_predictions_per_seq=20 \\
      --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5

Several corpora and several files of records:

    python create_pretraining_data.py --input_file='corpora/*_train.txt,extra.txt' \\
      --output_file=tmp/part0.tfrecord,tmp/part1.tfrecord --vocab_file=./uncased_L-12_H-768_A-12/vocab.txt

With the same flags and the same seed the records are those of google-research/bert's create_pretraining_data.py, in the same
order and equal in every feature, because one random generator is asked for the same numbers in the same order. A record is a
tf.train.Example with, L being max_seq_length and P max_predictions_per_seq,

    input_ids, input_mask, segment_ids      int64 [L]   [CLS] A [SEP] B [SEP], padded with 0
    masked_lm_positions, masked_lm_ids      int64 [P]   where tokens were masked and what they were, padded with 0
    masked_lm_weights                       float [P]   1 for a masked token, 0 for padding
    next_sentence_labels                    int64 [1]   0: B follows A in the corpus; 1: B is from another place

Tweets and other documents of one sentence have no next one: --next_sentence=False makes records of the masked LM alone, [CLS] A
[SEP] without the last feature. A is as many whole sentences of a document as fit.
"""
import glob
import itertools
import os
import random

from common.command_line import ArgumentParser, UserError, add_boolean, command, fields_of, number, path, run
from common.configuration import BertConfig, find_config
from common.files import check_output_file, expand_files
from common.hub import find_on_hub
from common.vocabulary import find_vocab
from pretraining.examples import write_instances
from pretraining.instances import Recipe, read_corpus, training_instances
from tokenization import FullTokenizer, read_never_split

EXAMPLES_SHOWN = 3
NEARLY_ALL = 0.9  # of the documents: from then on the note about next sentence prediction is printed


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_file", required=True, help="Corpus files: names and globs separated by commas; one sentence a "
                      "line, an empty line between documents.")
    data.add_argument("--vocab_file", required=True, type=path, help="WordPiece vocabulary of the BERT model: vocab.txt, "
                      "tokenizer.json, the model's folder, or its name on the Hub.")
    add_boolean(data, "--do_lower_case", None, "Lower-case the text and strip accents, for uncased models; default: as the "
                "tokenizer_config.json or tokenizer.json beside the vocabulary says, else as the case of its tokens shows.")
    data.add_argument("--never_split", type=path, metavar="FILE", help="Own tokens, one a line, such as [URL] or @user, each "
                      "of which stays one token; what the vocabulary lacks takes the place of an [unusedN]; default: none.")
    recipe = parser.add_argument_group("recipe (changes the records; the defaults are Google's)")
    recipe.add_argument("--max_seq_length", type=number(int, minimum=5), default=128, metavar="TOKENS", help="Length of a "
                        "record in tokens, [CLS] and two [SEP] included, the same as for run_pretraining.py; default: 128, at "
                        "least 5.")
    recipe.add_argument("--max_predictions_per_seq", type=number(int, minimum=1), default=20, metavar="TOKENS", help="Maximum "
                        "number of masked tokens in a record, about max_seq_length * masked_lm_prob and the same as for "
                        "run_pretraining.py; default: 20.")
    recipe.add_argument("--masked_lm_prob", type=number(float, above=0, maximum=1), default=0.15, metavar="SHARE",
                        help="Fraction of a record's tokens that is masked; default: 0.15.")
    recipe.add_argument("--short_seq_prob", type=number(float, minimum=0, maximum=1), default=0.1, metavar="SHARE",
                        help="Probability that a document's records are cut to a random length below max_seq_length; default: "
                        "0.1; 0 switches it off.")
    add_boolean(recipe, "--do_whole_word_mask", False,
                "Mask all WordPieces of a word together; default: False, each WordPiece on its own.")
    add_boolean(recipe, "--next_sentence", True, "Make pairs of texts for next sentence prediction; default: True; False packs "
                "the sentences of a document into single texts, for the masked LM alone (the same for run_pretraining.py).")
    recipe.add_argument("--dupe_factor", type=number(int, minimum=1), default=10, metavar="TIMES", help="Number of times each "
                        "document is used, each time masked anew; default: 10 (the paper's command: 5).")
    recipe.add_argument("--random_seed", type=int, default=12345, metavar="SEED",
                        help="Seed of all random numbers: the same seed gives the same records; default: 12345.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", required=True, help="TFRecord file to write, its folder created if it does not exist; "
                        "several files, separated by commas, get the records in turn.")
    return parser.parse_args()


def expand_output_files(names, input_files):
    """The files of `--output_file`, separated by commas. Raises UserError for a name that cannot be written to, is given twice,
    or is an input file."""
    files = [path(name) for name in names.split(",")]
    inputs = {os.path.realpath(file) for file in input_files}
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise UserError(f"--output_file: {names} names a file twice")
    for file in files:
        check_output_file(file, "--output_file")
        if os.path.realpath(file) in inputs:
            raise UserError(f"--output_file: {file} is also an input file")
    return files


def read_config(vocab_file, max_seq_length):
    """The configuration of the model beside the vocabulary, None without one. Raises UserError where it is no BERT, or has
    fewer positions than a record."""
    config_file = find_config([os.path.dirname(vocab_file)])
    config = config_file and BertConfig.from_json_file(config_file, "beside --vocab_file")
    if config:
        config.check_max_seq_length(max_seq_length)
    return config


def show_examples(instances, tokenizer):
    """Prints the first records in full, tokens first."""
    for features in map(instances.features, range(min(EXAMPLES_SHOWN, len(instances)))):
        num_tokens = sum(features["input_mask"])
        print("*** Example ***")
        print("tokens:", " ".join(tokenizer.convert_ids_to_tokens(features["input_ids"][:num_tokens])))
        for name, values in features.items():
            print(f"{name}:", " ".join(map(str, values)))


def starting_flags(vocab_file, hub):
    """The flags of run_pretraining.py that say where it starts: with the model beside the vocabulary, or that on the Hub."""
    if hub:
        return [f"--output_dir=./{os.path.basename(hub.split('@')[0])}_pretrain", f"--init_checkpoint={hub}"]
    folder = os.path.dirname(vocab_file) or "."
    start = os.path.join(folder, "bert_model.ckpt")  # Google's name
    if os.path.isfile(os.path.join(folder, "model.safetensors")):  # of a folder of transformers
        start = folder
    elif saved := glob.glob(os.path.join(glob.escape(folder), "model.ckpt-*.index")):  # of run_pretraining.py
        start = max(saved, key=lambda name: (len(name), name)).removesuffix(".index")  # the last number
    return [f"--output_dir={'./bert' if folder == '.' else folder}_pretrain",
            f"--bert_config_file={find_config([folder]) or os.path.join(folder, 'bert_config.json')}",
            f"--init_checkpoint={start}"]


def report(args, tokenizer, corpus, made, recipe, output_files, hub):
    """Prints what was made, how full it is, and the next command of the pipeline."""
    records, tokens, predictions = (int(count[0]) for count in (made.instances, made.tokens, made.masks))
    length, num_predictions = recipe.max_seq_length, recipe.max_predictions_per_seq
    shown, warning = tokenizer.unknown(corpus.ids, args.input_file)
    print(f"corpus: {corpus.num_documents} documents, {corpus.num_sentences} sentences, {len(corpus.ids)} tokens, {shown}")
    if warning:
        print(warning)
    random_next = f"{made.random_next[0] / records:.1%} with a random next sentence, " if args.next_sentence else ""
    print(f"instances: {records}, {random_next}{predictions / records:.1f} masked tokens each, "
          f"{1 - tokens / (records * length):.1%} of the {length} positions are padding")
    for number_of_file, file in enumerate(output_files):
        print(f"wrote {file}: {len(range(number_of_file, records, len(output_files)))} records")
    print("next:", command(
        "run_pretraining.py", f"--input_file={','.join(output_files)}", *starting_flags(args.vocab_file, hub),
        "--do_train=True", "--do_eval=True", "--train_batch_size=32",
        f"--max_seq_length={length}", f"--max_predictions_per_seq={num_predictions}", "--num_train_steps=100000",
        "--num_warmup_steps=10000", "--save_checkpoints_steps=10000", "--learning_rate=5e-5",
        *([] if args.next_sentence else ["--next_sentence=False"])))


def main():
    args = parse_arguments()
    recipe = fields_of(Recipe, args)
    input_files = expand_files(args.input_file, "--input_file")
    output_files = expand_output_files(args.output_file, input_files)
    found, hub = find_on_hub(args.vocab_file, "--vocab_file", ())
    args.vocab_file = find_vocab(found, [])
    config = read_config(args.vocab_file, args.max_seq_length)
    never_split = args.never_split and read_never_split(args.never_split)
    tokenizer = FullTokenizer.fitting(args.vocab_file, args.do_lower_case, config, never_split=never_split)
    print(*tokenizer.notes, sep="\n")
    print("reading", *input_files, sep="\n  ")
    corpus = read_corpus(input_files, tokenizer, args.next_sentence)
    if args.next_sentence and corpus.share_of_single_sentences >= NEARLY_ALL:
        print(f"note: {corpus.share_of_single_sentences:.1%} of the documents have one sentence, whose next one is always "
              "random, so next sentence prediction teaches nothing; --next_sentence=False, here and in run_pretraining.py, "
              "leaves it out")
    parts = training_instances(corpus, tokenizer, recipe, args.dupe_factor, random.Random(args.random_seed))
    first_part = next(parts)
    show_examples(first_part, tokenizer)
    write_instances(itertools.chain([first_part], parts), recipe, output_files)
    report(args, tokenizer, corpus, first_part.made, recipe, output_files, hub)


if __name__ == "__main__":
    run(main)
