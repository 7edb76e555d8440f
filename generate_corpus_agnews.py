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
through spaCy in batches: memory does not grow with the corpus, but for the words that spaCy keeps (its memory zones
would free them and take two to three times as long).
"""
import collections
import contextlib
import functools
import itertools
import os
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

from tqdm import tqdm

from command_line import ArgumentParser, UserError, atomic_write, number, run
from tasks import TASKS, read_documents

LINE_ENDS = str.maketrans("\r\n", "  ")  # the two that would end a line of the corpus; U+0085 or U+2028 stay
SPLITTING_PIPES = {"parser", "senter", "sentencizer"}
NEEDED_PIPES = SPLITTING_PIPES | {"tok2vec", "transformer"}
MAX_CHARACTERS = 1 << 24  # of a document; spaCy's own limit of a million protects parsers of models from long texts


@functools.cache
def load_splitter(spacy_model):
    """A spaCy pipeline that sets sentence boundaries: the trained model of that name or folder, reduced to what that
    takes, or with None the rule-based sentencizer for English. Raises UserError where it cannot be loaded.
    """
    import spacy  # takes seconds (it imports torch where that is installed), so only in a process that splits

    if spacy_model is None:
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
    else:
        try:
            nlp = spacy.load(spacy_model)
        except (OSError, ImportError, ValueError) as error:
            mend = (f"it does not load: {error}" if os.path.exists(spacy_model) else
                    f"it is not installed; python -m spacy download {spacy_model}")
            raise UserError(f"--spacy_model {spacy_model}: {mend}") from None
        nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in NEEDED_PIPES])
        if SPLITTING_PIPES.isdisjoint(nlp.pipe_names):
            raise UserError(f"--spacy_model {spacy_model}: it splits no sentences, having no component "
                            + ", ".join(sorted(SPLITTING_PIPES)))
    nlp.max_length = max(nlp.max_length, MAX_CHARACTERS)
    return nlp


def split_batch(spacy_model, batch):
    """Splits a batch (split, list of [title, description]): (split, list of (title, sentences of the description)).

    A line end inside a text becomes a space, because in the corpus it would end the sentence, or the document; for the
    same reason blank sentences are left out.
    """
    split, documents = batch
    parsed = load_splitter(spacy_model).pipe(description.translate(LINE_ENDS) for _, description in documents)
    return split, [(title.translate(LINE_ENDS), [sentence.text for sentence in document.sents if sentence.text.strip()])
                   for (title, _), document in zip(documents, parsed)]


def read_batches(data_dir, batch_size):
    """Yields ("test", list of [title, description]), at most batch_size of them, and then the same for "train"."""
    for split in ("test", "train"):
        documents = (fields for _, _, fields in read_documents(TASKS["ag"], data_dir, split))
        for batch in iter(lambda: list(itertools.islice(documents, batch_size)), []):
            yield split, batch


def map_in_order(function, items, num_processes):
    """Yields function(item) for each item in order, in processes of their own where num_processes is above 1.

    Items are read as processes get free, so that memory does not grow with their number. (spaCy's own
    `pipe(n_process=...)` sends whole documents between processes, slower than one process splits them, and hangs where
    reading the items fails.)
    """
    if num_processes == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(num_processes) as pool:
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"--num_processes {num_processes}: a process was killed, perhaps for want of memory; "
                            "use fewer") from None


def write_document(file, title, sentences):
    """Writes a document and an empty line. Returns 1, or 0 for one without any text, which is left out."""
    lines = [title, *sentences] if title.strip() else sentences
    if not lines:
        return 0
    file.write("\n".join(lines) + "\n\n")
    return 1


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default=".", metavar="FOLDER",
                      help="The folder of train.csv and test.csv: label 1 to 4, title, description, no header; "
                      "default: the current folder.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    recipe.add_argument("--spacy_model", metavar="NAME",
                        help="A trained spaCy model that splits sentences, by name or folder, as en_core_web_md; "
                        "default: none, sentences end at punctuation (spaCy's sentencizer).")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    speed.add_argument("--batch_size", type=number(int, minimum=1), default=1000, metavar="DOCUMENTS",
                       help="How many documents a process splits at a time; default 1000.")
    speed.add_argument("--num_processes", type=number(int, minimum=1), metavar="PROCESSES",
                       help="How many processes split sentences; default: one a CPU core with --spacy_model, else 1, "
                       "because in the seconds that a process takes to start the rules split 30,000 documents.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default=".", metavar="FOLDER",
                        help="The folder of the three corpus files; it is made where it does not exist; default: the "
                        "current folder.")
    args = parser.parse_args()
    if args.num_processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        args.num_processes = cores if args.spacy_model else 1
    return args


def main():
    args = parse_arguments()
    paths = {name: os.path.join(args.output_dir, f"AGnews_corpus{name}.txt") for name in ("", "_train", "_test")}
    written = collections.Counter()
    sentences_per_document = {"test": collections.Counter(), "train": collections.Counter()}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(path)) for name, path in paths.items()}
        bar = stack.enter_context(tqdm(desc="split", unit=" documents", disable=None))
        for split, documents in map_in_order(functools.partial(split_batch, args.spacy_model),
                                             read_batches(args.data_dir, args.batch_size), args.num_processes):
            for title, sentences in documents:
                for name in ("", f"_{split}"):
                    written[name] += write_document(files[name], title, sentences)
                sentences_per_document[split][len(sentences)] += 1
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
