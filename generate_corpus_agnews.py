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

and prints the authors' statistics: the most and the average number of sentences of a description. Documents stream
through spaCy in batches, so memory does not grow with the corpus.
"""
import contextlib
import os

from tqdm import tqdm

from command_line import ArgumentParser, UserError, atomic_write, number, run
from tasks import TASKS, read_documents

LINE_ENDS = str.maketrans("\r\n", "  ")  # the two that would end a line of the corpus; U+0085 or U+2028 stay
SPLITTING_PIPES = {"parser", "senter", "sentencizer"}
NEEDED_PIPES = SPLITTING_PIPES | {"tok2vec", "transformer"}
MAX_CHARACTERS = 1 << 24  # of a document; spaCy's own limit of a million protects parsers of models from long texts


def load_splitter(spacy_model):
    """A spaCy pipeline that sets sentence boundaries: the trained model of that name or folder, reduced to what that
    takes, or with None the rule-based sentencizer for English. Raises UserError where it cannot be loaded.
    """
    import spacy  # takes seconds (it imports torch where that is installed), so only after the flags are checked

    if spacy_model is None:
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
    else:
        try:
            nlp = spacy.load(spacy_model)
        except (OSError, ImportError, ValueError) as error:
            mend = "" if os.path.exists(spacy_model) else f"; install it: python -m spacy download {spacy_model}"
            raise UserError(f"--spacy_model: spaCy cannot load {spacy_model}{mend} ({error})") from None
        nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in NEEDED_PIPES])
        if SPLITTING_PIPES.isdisjoint(nlp.pipe_names):
            raise UserError(f"--spacy_model: {spacy_model} splits no sentences: it has none of the components "
                            + ", ".join(sorted(SPLITTING_PIPES)))
    nlp.max_length = max(nlp.max_length, MAX_CHARACTERS)
    return nlp


def split_documents(nlp, documents, batch_size, num_processes):
    """Yields (title, sentences) for each (title, description) of an iterable, in order; nothing blank among sentences.

    A line end inside a text becomes a space, because in the corpus it would end the sentence, or the document.
    """
    texts = ((description.translate(LINE_ENDS), title.translate(LINE_ENDS)) for title, description in documents)
    for parsed, title in nlp.pipe(texts, as_tuples=True, batch_size=batch_size, n_process=num_processes):
        yield title, [sentence.text for sentence in parsed.sents if sentence.text.strip()]


def write_document(files, title, sentences):
    """Writes a document to each of `files`; one without any text is left out, its empty line would mean nothing."""
    lines = [title, *sentences] if title.strip() else sentences
    if lines:
        for file in files:
            file.write("\n".join(lines) + "\n\n")
    return bool(lines)


def write_split(nlp, split, args, files):
    """Writes the documents of "train" or "test" to `files`. Returns (documents written, description sentences of each
    document that was read).
    """
    rows = read_documents(TASKS["ag"], args.data_dir, split)
    documents = tqdm((fields for _, _, fields in rows), desc=split, unit=" documents", disable=None)
    written, counts = 0, []
    for title, sentences in split_documents(nlp, documents, args.batch_size, args.num_processes):
        written += write_document(files, title, sentences)
        counts.append(len(sentences))
    return written, counts


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default=".", metavar="FOLDER",
                      help="The folder of train.csv and test.csv: label 1 to 4, title, description, no header; default: "
                      "the current folder.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    recipe.add_argument("--spacy_model", metavar="NAME",
                        help="A trained spaCy model that splits sentences, by name or folder, as en_core_web_md; default: "
                        "none, sentences end at punctuation (spaCy's sentencizer).")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    speed.add_argument("--batch_size", type=number(int, minimum=1), default=1000, metavar="DOCUMENTS",
                       help="How many documents spaCy works on at a time; default 1000.")
    speed.add_argument("--num_processes", type=number(int, minimum=1), metavar="PROCESSES",
                       help="How many processes split sentences; default: one a CPU core with --spacy_model, else 1, "
                       "because the rules take less time than sending documents to another process.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default=".", metavar="FOLDER",
                        help="The folder of the three corpus files; it is made where it does not exist; default: the "
                        "current folder.")
    args = parser.parse_args()
    if args.num_processes is None:
        args.num_processes = len(os.sched_getaffinity(0)) if args.spacy_model else 1
    return args


def main():
    args = parse_arguments()
    paths = {name: os.path.join(args.output_dir, f"AGnews_corpus{name}.txt") for name in ("", "_train", "_test")}
    nlp = load_splitter(args.spacy_model)
    written, statistics = {}, {}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(path)) for name, path in paths.items()}
        for split in ("test", "train"):
            written[f"_{split}"], statistics[split] = write_split(nlp, split, args, (files[""], files[f"_{split}"]))
    written[""] = written["_test"] + written["_train"]
    for split, counts in statistics.items():
        print(f"{split}_max={max(counts)}")
        print(f"{split}_avg={sum(counts) / len(counts)}")
    for name, path in paths.items():
        print(f"wrote {path}: {written[name]} documents")
    print(f"next: python create_pretraining_data.py --input_file={paths['']} --output_file=tmp/tf_AGnews.tfrecord "
          "--vocab_file=./uncased_L-12_H-768_A-12/vocab.txt --do_lower_case=True --max_seq_length=128 "
          "--max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5")


if __name__ == "__main__":
    run(main)
