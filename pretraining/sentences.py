"""Documents -> sentences -> the corpora of further pre-training: spaCy for English, punctuation for Chinese.

A corpus is UTF-8 text, one sentence a line, an empty line between documents; a document's title is its first sentence.
Documents stream through in batches, split by several processes where asked for, and are written in their order.
"""
import collections
import dataclasses
import functools
import hashlib
import itertools
import operator
import os
import re
import signal
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

from tqdm import tqdm

import tasks
from common.command_line import UserError, command, end_with_parent, number

LINE_ENDS = str.maketrans("\r\n", "  ")  # the two that would end a line of the corpus; U+0085 or U+2028 stay
SPLITTING_PIPES = {"parser", "senter", "sentencizer"}
NEEDED_PIPES = SPLITTING_PIPES | {"tok2vec", "transformer"}
CHARACTERS_PER_BATCH = 1 << 22  # about; of several batches a process, read ahead
MAX_CHARACTERS = 1 << 24  # of a document; spaCy's own limit of a million protects parsers of models from long texts
# With the quotes and brackets that close after the mark; ASCII ones are left alone, which open as often.
CHINESE_SENTENCE = re.compile(r"[^。？！]*[。？！](?:\s*[。？！”’」』）》】〉〕])*|[^。？！]+")


@functools.lru_cache(maxsize=1)
def load_splitter(spacy_model):
    """A spaCy pipeline that sets sentence boundaries: the trained model of that name or folder, reduced to what that takes, or
    with None the rule-based sentencizer for English. Raises UserError where it cannot be loaded."""
    import spacy  # takes seconds (it imports torch where that is installed), so only in a process that splits

    if spacy_model is None:
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
    else:
        try:
            nlp = spacy.load(spacy_model)
        except (OSError, ImportError, ValueError) as error:
            remedy = (f"it does not load: {error}" if os.path.exists(spacy_model)
                      else f"it is not installed; python -m spacy download {spacy_model}")
            raise UserError(f"--spacy_model {spacy_model}: {remedy}") from None
        nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in NEEDED_PIPES])
        if SPLITTING_PIPES.isdisjoint(nlp.pipe_names):
            raise UserError(f"--spacy_model {spacy_model}: it splits no sentences, having no component "
                            + ", ".join(sorted(SPLITTING_PIPES)))
    nlp.max_length = max(nlp.max_length, MAX_CHARACTERS)
    return nlp


def split_english(texts, spacy_model):
    """The sentences of each text: lists of str."""
    nlp = load_splitter(spacy_model)

    def of_right_length():
        for text in texts:
            if len(text) > nlp.max_length:
                raise UserError(f"the text '{text[:60]}...' has {len(text):,} characters, and spaCy splits {nlp.max_length:,} "
                                "at most; make several texts of it")
            yield text

    with nlp.memory_zone():  # spaCy keeps each new word until the zone ends: without one, memory would grow with the corpus
        return [[sentence.text for sentence in document.sents] for document in nlp.pipe(of_right_length())]


def split_chinese(texts, spacy_model):
    """The same, at 。 ？ ！ (paper, section 5.2), which stay with the sentence that they end, as do quotes and brackets that
    close after them. No spaCy model is used."""
    return [[sentence.strip() for sentence in CHINESE_SENTENCE.findall(text)] for text in texts]


SPLITTERS = {"en": split_english, "zh": split_chinese}  # by a task's language
BERTS = {"en": "uncased_L-12_H-768_A-12", "zh": "chinese_L-12_H-768_A-12"}  # the paper's


def split_batch(language, spacy_model, batch):
    """Splits (tag, list of (title, texts)) into (tag, list of (title, sentences of the texts)). A line end inside a text is
    made a space, and a blank sentence is left out: in the corpus they would end the sentence, or the document."""
    tag, documents = batch
    lists = iter(SPLITTERS[language]((text.translate(LINE_ENDS) for _, texts in documents for text in texts), spacy_model))
    return tag, [(title.translate(LINE_ENDS), [sentence for _ in texts for sentence in next(lists) if sentence.strip()])
                 for title, texts in documents]


def in_batches(documents, batch_size):
    """Yields (tag, list of (title, texts)): at most batch_size consecutive documents (tag, title, texts) of a tag, fewer if
    they are long."""
    for tag, same_tag in itertools.groupby(documents, operator.itemgetter(0)):
        batch, size = [], 0
        for _, title, texts in same_tag:
            batch.append((title, texts))
            size += sum(map(len, texts))
            if len(batch) == batch_size or size >= CHARACTERS_PER_BATCH:
                yield tag, batch
                batch, size = [], 0
        if batch:
            yield tag, batch


def become_worker():
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that started this one, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def map_in_order(function, items, num_processes):
    """Yields function(item) for each item in order, in processes of their own where num_processes is above 1. Items are read as
    processes get free, so that memory does not grow with their number. (spaCy's own `pipe(n_process=...)` sends whole documents
    between processes, slower than one process splits them, and hangs where reading the items fails.)"""
    if num_processes == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(num_processes, initializer=become_worker) as pool:
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"--num_processes {num_processes}: a process was killed, perhaps for want of memory; use "
                            "fewer") from None


def cores():
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# Documents of tasks

def digest(fields):
    """16 bytes that stand for a text, for finding it again."""
    return hashlib.blake2b(" ".join(fields).strip().encode(), digest_size=16).digest()


def test_texts_of(tested, folders):
    """{digest: set of the names of the tasks that have the text in their test set}, of several tasks."""
    found = collections.defaultdict(set)
    if len(tested) > 1:
        for task, folder in zip(tested, folders):
            for fields in tasks.read_fields(task, folder, "test"):
                found[digest(fields)].add(task.name)
    return found


def documents_of(task, folder, split, reserved={}, left_out=None):
    """Yields (title, texts) of a split of a task, in file order; the title is "" where the task has none. A training text that
    `reserved` (see `test_texts_of`) has for another task is left out and counted in the Counter `left_out` under this task's
    name."""
    for fields in tasks.read_fields(task, folder, split):
        if split == "train" and reserved and reserved.get(digest(fields), set()) - {task.name}:
            left_out[task.name] += 1
        else:
            yield (fields[0], fields[1:]) if task.titled else ("", fields)


# Corpora

@dataclasses.dataclass
class Tally:
    """What was written of the documents of one tag: documents, lines, and how many documents had how many sentences, the title
    not counted and documents without any text among them."""
    documents: int = 0
    lines: int = 0
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def write_corpus(documents, files, language, spacy_model, batch_size, num_processes):
    """Splits documents, (tag, title, texts) each, and writes them in order. Returns tag -> Tally.

    files: tag -> the files, open for writing, that get its documents. language: a key of SPLITTERS. spacy_model: see
    `load_splitter`. batch_size: documents that a process splits at a time.
    """
    tallies = collections.defaultdict(Tally)
    split = functools.partial(split_batch, language, spacy_model)
    with tqdm(desc="split", unit=" documents", disable=None) as bar:
        for tag, batch in map_in_order(split, in_batches(documents, batch_size), num_processes):
            tally = tallies[tag]
            for title, sentences in batch:
                lines = [title, *sentences] if title.strip() else sentences
                if lines:  # a document without text is left out
                    for file in files[tag]:
                        file.write("\n".join(lines) + "\n\n")
                tally.documents += bool(lines)
                tally.lines += len(lines)
                tally.lengths[len(sentences)] += 1
            bar.update(len(batch))
    return tallies


def print_next(corpus, record, language):
    """Prints the command that makes TFRecords of a corpus, with the paper's settings and its BERT of that language."""
    print("next:", command("create_pretraining_data.py", f"--input_file={corpus}", f"--output_file={record}",
                           f"--vocab_file=./{BERTS[language]}/vocab.txt", "--do_lower_case=True",
                           "--max_seq_length=128", "--max_predictions_per_seq=20", "--masked_lm_prob=0.15",
                           "--random_seed=12345", "--dupe_factor=5"))


def add_flags(recipe, speed, default_processes):
    """Adds the flags of splitting to two argparse groups. default_processes: the default of --num_processes in words."""
    recipe.add_argument("--spacy_model", metavar="NAME", help="Name or folder of a trained spaCy model that splits English "
                        "sentences, such as the authors' en_core_web_md; default: none, so sentences end at punctuation "
                        "(spaCy's sentencizer).")
    speed.add_argument("--batch_size", type=number(int, minimum=1), default=1000, metavar="DOCUMENTS",
                       help="Number of documents that a process splits at a time; default: 1000.")
    speed.add_argument("--num_processes", type=number(int, minimum=1), metavar="PROCESSES", help="Number of processes that "
                       f"split sentences; default: {default_processes}; 1 splits without starting any.")
