"""Trains a WordPiece vocabulary on texts of your own: for a language without a BERT, or a BERT trained from nothing.

    python data/make_vocab.py --input_file corpus.txt --vocab_size 8000 --output_file my_bert/vocab.txt
    python data/make_vocab.py --input_file 'corpora/*.txt' --do_lower_case=False --output_file my_cased_bert/vocab.txt

The corpus is UTF-8 text in lines, as generate_corpus.py writes it. vocab.txt has a token a line in the order of Google's:
[PAD], [unused0] ... (rows for words of your own, see --never_split), [UNK], [CLS], [SEP], [MASK], the characters that begin a
word, with ## those inside one, and longer pieces, the first merged first. Texts are cleaned and split into words by
tokenization.py, so the vocabulary is of the words that the pipeline will look up, and no word of the corpus is [UNK] unless it
has a character rarer than --min_frequency, or more than 200 characters. The same corpus gives the same vocabulary.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, add_boolean, command, number, path, run  # noqa: E402
from common.files import atomic_write, check_output_file, decode_lines, expand_files  # noqa: E402


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_file", required=True, help="Texts to train on: names and globs separated by commas.")
    recipe = parser.add_argument_group("recipe (changes the vocabulary)")
    recipe.add_argument("--vocab_size", type=number(int, minimum=5, maximum=1_000_000), default=30522, metavar="TOKENS",
                        help="Tokens of the vocabulary, the special ones included; default: 30522, as in BERT-base uncased.")
    add_boolean(recipe, "--do_lower_case", True, "Lower-case the texts and strip accents, for an uncased model; default: True.")
    recipe.add_argument("--min_frequency", type=number(int, minimum=1), default=2, metavar="TIMES", help="How often a "
                        "character, or two pieces side by side, must occur to become a token; default: 2.")
    recipe.add_argument("--num_unused", type=number(int, minimum=0), default=99, metavar="ROWS", help="Number of [unusedN] "
                        "between [PAD] and [UNK], which --never_split puts words of one's own into; default: 99, as in "
                        "Google's, so that [UNK] is 100.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", type=path, default="vocab.txt", metavar="FILE", help="File to write, its folder "
                        "created if it does not exist; default: vocab.txt in the current folder.")
    return parser.parse_args()


def main():
    args = parse_arguments()
    files = expand_files(args.input_file, "--input_file")
    check_output_file(args.output_file, "--output_file")
    if os.path.realpath(args.output_file) in map(os.path.realpath, files):
        raise UserError(f"--output_file: {args.output_file} is also one of --input_file")
    from tokenization import normalize, train_vocab

    def read():
        return (normalize(line, args.do_lower_case) for file in files for _, line in decode_lines(file))

    tokens = train_vocab(read, args.vocab_size, args.min_frequency, args.num_unused)
    if len(tokens) != args.vocab_size:
        raise UserError(f"--vocab_size {args.vocab_size}: the texts give {len(tokens)} tokens that occur at least "
                        f"{args.min_frequency} times; ask for fewer tokens, or give more text")
    with atomic_write(args.output_file) as file:
        file.writelines(f"{token}\n" for token in tokens)
    print(f"wrote {args.output_file}: {len(tokens)} tokens, {'lower-cased' if args.do_lower_case else 'cased'}")
    print("next:", command("create_pretraining_data.py", f"--input_file={args.input_file}",
                           f"--output_file={os.path.splitext(files[0])[0]}.tfrecord", f"--vocab_file={args.output_file}",
                           f"--do_lower_case={args.do_lower_case}"))


if __name__ == "__main__":
    run(main)
