"""Step 1: AG's News -> the corpus for further pre-training, one sentence a line, an empty line between documents.

Run where train.csv and test.csv of AG's News (Zhang et al. 2015) are:

    python generate_corpus_agnews.py

or name the folders, and a trained spaCy model (the authors' is en_core_web_md) in place of the rules for punctuation:

    python -m spacy download en_core_web_md
    python generate_corpus_agnews.py --data_dir ./ag_news --output_dir ./corpora --spacy_model en_core_web_md

Writes, in the authors' format, a document's title as its first sentence and then the sentences of its description:

    AGnews_corpus.txt          the test documents and then the training documents, as the authors pre-trained on
    AGnews_corpus_train.txt    the training documents, as the paper describes
    AGnews_corpus_test.txt     the test documents

and prints the authors' statistics: the most and the average number of sentences of a description. Other data sets:
generate_corpus.py.
"""
import contextlib
import os

from common.command_line import ArgumentParser, path, run
from common.files import atomic_write, check_output_file
from pretraining import sentences
from tasks import TASKS


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", type=path, default=".", metavar="FOLDER", help="Folder of train.csv and test.csv (label 1 "
                      "to 4, title, description; no header); default: the current folder.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    sentences.add_flags(recipe, speed, "one for each CPU core with --spacy_model, else 1, because a process takes as long to "
                        "start as the rules take to split 30,000 documents")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=path, default=".", metavar="FOLDER",
                        help="Folder for the three corpus files, created if it does not exist; default: the current folder.")
    args = parser.parse_args()
    if args.num_processes is None:
        args.num_processes = sentences.cores() if args.spacy_model else 1
    return args


def main():
    args = parse_arguments()
    paths = {name: os.path.join(args.output_dir, f"AGnews_corpus{name}.txt") for name in ("", "_train", "_test")}
    for corpus in paths.values():
        check_output_file(corpus, "--output_dir")
    documents = ((split, *document) for split in ("test", "train")
                 for document in sentences.documents_of(TASKS["ag"], args.data_dir, split))
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(corpus)) for name, corpus in paths.items()}
        files_of = {split: [files[""], files[f"_{split}"]] for split in ("test", "train")}
        tallies = sentences.write_corpus(documents, files_of, "en", args.spacy_model, args.batch_size, args.num_processes)
    for split, tally in tallies.items():
        print(f"{split}_max= {max(tally.lengths)}")
        print(f"{split}_avg= {sum(count * number for count, number in tally.lengths.items()) / tally.lengths.total()}")
    written = {f"_{split}": tally.documents for split, tally in tallies.items()}
    for name, corpus in paths.items():
        print(f"wrote {corpus}: {written.get(name, sum(written.values()))} documents")
    sentences.print_next(paths[""], "tmp/tf_AGnews.tfrecord", TASKS["ag"].language)


if __name__ == "__main__":
    run(main)
