"""Documents -> sentences, for the corpora of further pre-training: spaCy for English, punctuation for Chinese.

Documents stream through in batches, in processes of their own where asked for. spaCy keeps each new word: it is loaded
anew after so many documents, so that memory does not grow with their number.
"""
import collections
import functools
import os
import re
import signal
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

from common.command_line import UserError, end_with_parent, number

LINE_ENDS = str.maketrans("\r\n", "  ")  # the two that would end a line of the corpus; U+0085 or U+2028 stay
SPLITTING_PIPES = {"parser", "senter", "sentencizer"}
NEEDED_PIPES = SPLITTING_PIPES | {"tok2vec", "transformer"}
MAX_CHARACTERS = 1 << 24  # of a document; spaCy's own limit of a million protects parsers of models from long texts
RELOAD_AFTER = 100_000  # documents; loading takes a tenth of a second (a trained model: one or two)
CHINESE_SENTENCE = re.compile("[^。？！]*[。？！]+|[^。？！]+")


@functools.lru_cache(maxsize=1)
def load_splitter(spacy_model, generation=0):
    """A spaCy pipeline that sets sentence boundaries: the trained model of that name or folder, reduced to what that
    takes, or with None the rule-based sentencizer for English. Another `generation` loads it anew, without the words
    it has seen. Raises UserError where it cannot be loaded.
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


def split_english(spacy_model, texts, generation):
    """The sentences of each text: yields lists of str."""
    for document in load_splitter(spacy_model, generation).pipe(texts):
        yield [sentence.text for sentence in document.sents]


def split_chinese(texts, generation):
    """The same, at 。 ？ ！ (paper, section 5.2), which stay with the sentence that they end."""
    for text in texts:
        yield [sentence.strip() for sentence in CHINESE_SENTENCE.findall(text)]


def split_batch(split, batch):
    """Splits a batch of documents (split: one of the two above, without its arguments): (tag, generation, list of
    (title, texts)) -> (tag, list of (title, sentences of the texts)).

    A line end inside a text becomes a space, because in the corpus it would end the sentence, or the document; for the
    same reason blank sentences are left out.
    """
    tag, generation, documents = batch
    lists = split((text.translate(LINE_ENDS) for _, texts in documents for text in texts), generation=generation)
    return tag, [(title.translate(LINE_ENDS), [sentence for _ in texts for sentence in next(lists) if sentence.strip()])
                 for title, texts in documents]


def split_documents(batches, split, num_processes):
    """Yields (tag, list of (title, sentences)) for each (tag, list of (title, texts)) of `batches`, in order."""
    return map_in_order(functools.partial(split_batch, split), with_generation(batches), num_processes)


def with_generation(batches):
    """Adds to each batch how often spaCy is to be loaded anew before it."""
    seen = 0
    for tag, documents in batches:
        yield tag, seen // RELOAD_AFTER, documents
        seen += len(documents)


def become_worker():
    """Leaves Ctrl-C, which a terminal sends to all processes, to the process that started this one, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def map_in_order(function, items, num_processes):
    """Yields function(item) for each item in order, in processes of their own where num_processes is above 1.

    Items are read as processes get free, so that memory does not grow with their number. (spaCy's own
    `pipe(n_process=...)` sends whole documents between processes, slower than one process splits them, and hangs where
    reading the items fails.)
    """
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
            raise UserError(f"--num_processes {num_processes}: a process was killed, perhaps for want of memory; "
                            "use fewer") from None


def write_document(file, title, sentences):
    """Writes a document and an empty line. Returns 1, or 0 for one without any text, which is left out."""
    lines = [title, *sentences] if title.strip() else sentences
    if not lines:
        return 0
    file.write("\n".join(lines) + "\n\n")
    return 1


def add_flags(recipe, speed, default_processes):
    """Adds the flags of splitting to two argparse groups. default_processes: the end of --num_processes' help."""
    recipe.add_argument("--spacy_model", metavar="NAME",
                        help="A trained spaCy model that splits English sentences, by name or folder, as en_core_web_md; "
                        "default: none, sentences end at punctuation (spaCy's sentencizer).")
    speed.add_argument("--batch_size", type=number(int, minimum=1), default=1000, metavar="DOCUMENTS",
                       help="How many documents a process splits at a time; default 1000.")
    speed.add_argument("--num_processes", type=number(int, minimum=1), metavar="PROCESSES",
                       help=f"How many processes split sentences; default: {default_processes}.")


def cores():
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
