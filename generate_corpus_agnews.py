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
import collections
import contextlib
import functools
import itertools
import os

from tqdm import tqdm

import sentences
from command_line import ArgumentParser, atomic_write, check_output_file, run
from tasks import TASKS, read_documents


def read_batches(data_dir, batch_size):
    """Yields ("test", list of (title, [description])), at most batch_size of them, and then the same for "train"."""
    for split in ("test", "train"):
        documents = ((title, [text]) for _, _, (title, text) in read_documents(TASKS["ag"], data_dir, split))
        for batch in iter(lambda: list(itertools.islice(documents, batch_size)), []):
            yield split, batch


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default=".", metavar="FOLDER",
                      help="The folder of train.csv and test.csv: label 1 to 4, title, description, no header; "
                      "default: the current folder.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    sentences.add_flags(recipe, speed, "one a CPU core with --spacy_model, else 1, because in the seconds that a process "
                        "takes to start the rules split 30,000 documents")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default=".", metavar="FOLDER",
                        help="The folder of the three corpus files; it is made where it does not exist; default: the "
                        "current folder.")
    args = parser.parse_args()
    if args.num_processes is None:
        args.num_processes = sentences.cores() if args.spacy_model else 1
    return args


def main():
    args = parse_arguments()
    paths = {name: os.path.join(args.output_dir, f"AGnews_corpus{name}.txt") for name in ("", "_train", "_test")}
    for path in paths.values():
        check_output_file(path, "--output_dir")
    written = collections.Counter()
    sentences_per_document = {"test": collections.Counter(), "train": collections.Counter()}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(path)) for name, path in paths.items()}
        bar = stack.enter_context(tqdm(desc="split", unit=" documents", disable=None))
        for split, documents in sentences.split_documents(read_batches(args.data_dir, args.batch_size),
                                                          functools.partial(sentences.split_english, args.spacy_model),
                                                          args.num_processes):
            for title, description in documents:
                for name in ("", f"_{split}"):
                    written[name] += sentences.write_document(files[name], title, description)
                sentences_per_document[split][len(description)] += 1
            bar.update(len(documents))
    for split, counts in sentences_per_document.items():
        print(f"{split}_max= {max(counts)}")
        print(f"{split}_avg= {sum(count * documents for count, documents in counts.items()) / counts.total()}")
    for name, path in paths.items():
        print(f"wrote {path}: {written[name]} documents")
    print(f"next: python create_pretraining_data.py --input_file={paths['']} --output_file=tmp/tf_AGnews.tfrecord "
          "--vocab_file=./uncased_L-12_H-768_A-12/vocab.txt --do_lower_case=True --max_seq_length=128 "
          "--max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5")


if __name__ == "__main__":
    run(main)
