"""A corpus -> instances of masked language modelling and next sentence prediction -> TFRecords.

With the same settings and seed the records are google-research/bert's, feature by feature, because one random generator is
asked for the same numbers in the same order: a line that draws a number may not move. The corpus and the instances are flat
arrays of integers, about 4 bytes a token, where Google's script keeps Python lists of strings.

    corpus = read_corpus(["AGnews_corpus.txt"], tokenizer)
    instances, order = create_training_instances(corpus, tokenizer, Recipe(), dupe_factor=5, rng=random.Random(12345))
    write_instances(instances, order, Recipe(), ["tf_AGnews.tfrecord"])
"""
import array
import bisect
import contextlib
import dataclasses
import itertools

import numpy as np
from tqdm import tqdm

from common.command_line import UserError, tensorflow_start_up
from common.files import decode_lines, whole_file
from pretraining.devices import cannot_write

SPECIAL_TOKENS = 3  # [CLS], [SEP], [SEP]; without a second text one [SEP] less


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How instances are made; the fields are the flags of the same names."""
    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    do_whole_word_mask: bool = False
    next_sentence: bool = True


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents of sentences of ids, none of them empty.

    ids                  int32 [tokens]
    sentence_offsets     memoryview of int64 [sentences + 1]: sentence s is ids[offsets[s]:offsets[s + 1]]
    document_offsets     memoryview of int64 [documents + 1]: d has the sentences offsets[d] to offsets[d + 1] - 1
    """
    ids: np.ndarray
    sentence_offsets: memoryview
    document_offsets: memoryview

    @property
    def num_sentences(self):
        return len(self.sentence_offsets) - 1

    @property
    def num_documents(self):
        return len(self.document_offsets) - 1

    @property
    def share_of_single_sentences(self):
        """The share of the documents that have one sentence: their second text is always a random one."""
        return float(np.mean(np.diff(self.document_offsets) == 1))


class Instances:
    """Instances one after another in flat arrays; `add` appends one, `features` gives one back as padded arrays."""

    def __init__(self):
        self.ids = array.array("i")  # [CLS] A [SEP] B [SEP] or [CLS] A [SEP], masked
        self.offsets = array.array("q", [0])
        self.first_segment_lengths = array.array("i")  # of [CLS] A [SEP]
        self.masked_positions = array.array("i")
        self.masked_ids = array.array("i")
        self.masked_offsets = array.array("q", [0])
        self.is_random_next = array.array("b")

    def __len__(self):
        return len(self.is_random_next)

    def add(self, ids, first_segment_length, masked_positions, masked_ids, is_random_next):
        """Appends an instance: lists of the ids, and of the positions that were masked and the ids they had."""
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))
        self.first_segment_lengths.append(first_segment_length)
        self.masked_positions.extend(masked_positions)
        self.masked_ids.extend(masked_ids)
        self.masked_offsets.append(len(self.masked_ids))
        self.is_random_next.append(is_random_next)

    def features(self, index, recipe):
        """The features of instance `index`, six or with next_sentence seven: a dict of lists, padded with 0; floats for the
        weights only."""
        ids = self.ids[self.offsets[index]:self.offsets[index + 1]].tolist()
        masked = slice(self.masked_offsets[index], self.masked_offsets[index + 1])
        positions, labels = self.masked_positions[masked].tolist(), self.masked_ids[masked].tolist()
        first = self.first_segment_lengths[index]
        padding = [0] * (recipe.max_seq_length - len(ids))
        no_prediction = [0] * (recipe.max_predictions_per_seq - len(labels))
        return {"input_ids": ids + padding,
                "input_mask": [1] * len(ids) + padding,
                "segment_ids": [0] * first + [1] * (len(ids) - first) + padding,
                "masked_lm_positions": positions + no_prediction,
                "masked_lm_ids": labels + no_prediction,
                "masked_lm_weights": [1.0] * len(labels) + [0.0] * len(no_prediction)} | (
                    {"next_sentence_labels": [self.is_random_next[index]]} if recipe.next_sentence else {})


# The corpus

def read_corpus(input_files, tokenizer, next_sentence=True):
    """Reads and tokenises text files into a Corpus; lines without tokens are left out, as are empty documents. A document goes
    on from one file to the next where no empty line stands between, as in Google's script. Raises UserError, with file and
    line, for what is not UTF-8 text, and for a corpus without text, or with `next_sentence` of one document."""
    document_of_line = array.array("q")

    def lines():
        document = 0
        with tqdm(desc="tokenize", unit=" lines", disable=None) as bar:
            for _, line in itertools.chain.from_iterable(map(decode_lines, input_files)):
                bar.update()
                if line.strip():
                    document_of_line.append(document)
                    yield line.strip()
                else:
                    document += 1

    ids, offsets = tokenizer.encode_batch(lines())
    has_tokens = np.diff(offsets) > 0
    documents = np.asarray(document_of_line, np.int64)[has_tokens]
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    if len(starts) < 1 + next_sentence:
        raise UserError(f"--input_file: {', '.join(input_files)}: "
                        + ("one document only, so no next sentence can be drawn from another one; put an empty line between "
                           "documents, or pass --next_sentence=False" if len(starts) else "no text in it"))
    # memoryviews, because offsets are read one by one, and are Python integers then
    return Corpus(ids, np.append(offsets[:-1][has_tokens], offsets[-1]).data, np.append(starts, len(documents)).data)


# Instances

def truncate_seq_pair(a, b, max_num_tokens, rng):
    """Shortens the longer of two spans (start, end), at a random end each time, until both fit in max_num_tokens."""
    (a_start, a_end), (b_start, b_end) = a, b
    while (a_end - a_start) + (b_end - b_start) > max_num_tokens:
        at_front = rng.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if at_front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if at_front else (b_start, b_end - 1)
    return (a_start, a_end), (b_start, b_end)


class Masking:
    """The masking of the tokens of an instance (Devlin et al. 2019, section 3.1)."""

    def __init__(self, tokenizer, recipe):
        self.recipe = recipe
        self.mask_id = tokenizer.mask_id
        self.vocab_ids = list(tokenizer.vocab.values())  # in the order of the file: what a random word is drawn from
        self.is_continuation = bytearray(max(self.vocab_ids) + 1)
        for token, index in tokenizer.vocab.items():
            self.is_continuation[index] = token.startswith("##")

    def candidates(self, ids, first_segment_length):
        """Lists of positions that are masked together: one token each, or with whole word masking one word each."""
        positions = [*range(1, first_segment_length - 1), *range(first_segment_length, len(ids) - 1)]
        if not self.recipe.do_whole_word_mask:
            return [(position,) for position in positions]
        words = []
        for position in positions:
            # A truncated segment may begin inside a word; that piece joins the word before it, as in Google's script.
            if words and self.is_continuation[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        return words

    def __call__(self, ids, first_segment_length, rng):
        """Masks the list `ids` in place: 80% [MASK], 10% kept, 10% a random word of the vocabulary. Returns (positions,
        labels): where predictions are made, ascending, and the ids that stood there."""
        words = self.candidates(ids, first_segment_length)
        rng.shuffle(words)
        num_to_predict = min(self.recipe.max_predictions_per_seq, max(1, int(round(len(ids) * self.recipe.masked_lm_prob))))
        labels = {}
        for word in words:
            if len(labels) >= num_to_predict:
                break
            if len(labels) + len(word) > num_to_predict:
                continue  # a shorter word may still fit
            for position in word:
                labels[position] = ids[position]
                if rng.random() < 0.8:
                    ids[position] = self.mask_id
                elif rng.random() >= 0.5:
                    ids[position] = self.vocab_ids[rng.randint(0, len(self.vocab_ids) - 1)]
        positions = sorted(labels)
        return positions, [labels[position] for position in positions]


def random_next(corpus, order, document_index, target_length, rng):
    """A span (start, end) of ids from a random sentence of another document on, sentences until target_length."""
    for _ in range(10):  # with two documents or more ten failures in a row are rare, and Google's script accepts them
        random_index = rng.randint(0, corpus.num_documents - 1)
        if random_index != document_index:
            break
    first, last = corpus.document_offsets[order[random_index]], corpus.document_offsets[order[random_index] + 1]
    sentence = first + rng.randint(0, last - first - 1)
    start = corpus.sentence_offsets[sentence]
    end = bisect.bisect_left(corpus.sentence_offsets, start + target_length, sentence + 1, last)
    return start, corpus.sentence_offsets[end]


def draw_target_length(recipe, max_num_tokens, rng):
    """How many tokens the instances of a document are to have: the maximum, or now and then fewer."""
    is_short = rng.random() < recipe.short_seq_prob
    return rng.randint(2, max_num_tokens) if is_short else max_num_tokens


def add_pairs(instances, corpus, order, document_index, tokenizer, masking, rng):
    """Appends the instances of document order[document_index] of the corpus to `instances`. Sentences are gathered until they
    fill an instance; A is a random number of the first ones. In half of the instances B is the rest of them; otherwise it comes
    from another document, and the rest is used again."""
    offsets, ids = corpus.sentence_offsets, corpus.ids
    max_num_tokens = masking.recipe.max_seq_length - SPECIAL_TOKENS
    target_length = draw_target_length(masking.recipe, max_num_tokens, rng)
    first, last = corpus.document_offsets[order[document_index]], corpus.document_offsets[order[document_index] + 1]
    chunk, sentence = first, first
    while sentence < last:
        if sentence == last - 1 or offsets[sentence + 1] - offsets[chunk] >= target_length:
            chunk_length = sentence + 1 - chunk
            middle = chunk + (rng.randint(1, chunk_length - 1) if chunk_length >= 2 else 1)
            # from here on rng is asked in Google's order: random or not, document, sentence, truncation, masks
            a, b = (offsets[chunk], offsets[middle]), (offsets[middle], offsets[sentence + 1])
            is_random_next = chunk_length == 1 or rng.random() < 0.5
            if is_random_next:
                b = random_next(corpus, order, document_index, target_length - (a[1] - a[0]), rng)
                sentence = middle - 1  # the sentences that would have followed A are used again
            (a_start, a_end), (b_start, b_end) = truncate_seq_pair(a, b, max_num_tokens, rng)
            instance = [tokenizer.cls_id, *ids[a_start:a_end].tolist(), tokenizer.sep_id,
                        *ids[b_start:b_end].tolist(), tokenizer.sep_id]
            first_segment_length = a_end - a_start + 2
            positions, labels = masking(instance, first_segment_length, rng)
            instances.add(instance, first_segment_length, positions, labels, is_random_next)
            chunk = sentence + 1
        sentence += 1


def add_packed(instances, corpus, order, document_index, tokenizer, masking, rng):
    """The same for the masked LM alone: [CLS] A [SEP], A being as many whole sentences as fit; one that does not fit alone is
    cut and goes on in the next instance, so that each token of the document stands in one instance."""
    offsets = corpus.sentence_offsets
    target_length = draw_target_length(masking.recipe, masking.recipe.max_seq_length - SPECIAL_TOKENS + 1, rng)
    first, last = corpus.document_offsets[order[document_index]], corpus.document_offsets[order[document_index] + 1]
    start = offsets[first]
    while start < offsets[last]:
        end = offsets[bisect.bisect_right(offsets, start + target_length, first, last + 1) - 1]
        end = end if end > start else start + target_length
        instance = [tokenizer.cls_id, *corpus.ids[start:end].tolist(), tokenizer.sep_id]
        instances.add(instance, len(instance), *masking(instance, len(instance), rng), False)
        start = end


def create_training_instances(corpus, tokenizer, recipe, dupe_factor, rng):
    """All instances of a corpus, each document used dupe_factor times with other masks. Returns (Instances, order): the
    instances as they were made, and the shuffled order in which they are written."""
    # Google shuffles the documents first and the instances at the end; both shuffles draw from rng
    order = array.array("q", range(corpus.num_documents))
    rng.shuffle(order)
    instances, masking = Instances(), Masking(tokenizer, recipe)
    add_document = add_pairs if recipe.next_sentence else add_packed
    with tqdm(total=dupe_factor * corpus.num_documents, desc="instances", unit=" documents", disable=None) as bar:
        for _ in range(dupe_factor):
            for document_index in range(corpus.num_documents):
                add_document(instances, corpus, order, document_index, tokenizer, masking, rng)
                bar.update()
    written = array.array("q", range(len(instances)))
    rng.shuffle(written)
    return instances, written


# Records

def write_instances(instances, order, recipe, output_files):
    """Writes the instances in the given order as tf.train.Examples, to the files in turn. Raises UserError, naming the file,
    where one cannot be written; none has its name then."""
    with tensorflow_start_up():
        import tensorflow as tf  # seconds and hundreds of MiB, so only when there is something to write

    def feature(name, values):
        if name == "masked_lm_weights":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with contextlib.ExitStack() as whole:  # all are renamed after the last record: a killed command leaves none of them
        writers = [tf.io.TFRecordWriter(whole.enter_context(whole_file(path))) for path in output_files]
        path, files = None, list(zip(output_files, writers))
        try:
            for (path, writer), index in zip(itertools.cycle(files), tqdm(order, desc="write", unit=" records", disable=None)):
                features = {name: feature(name, values) for name, values in instances.features(index, recipe).items()}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString(deterministic=True))  # the same flags give the same bytes
            for path, writer in files:
                writer.close()
        except tf.errors.OpError as error:
            raise cannot_write(f"--output_file: {path}", error) from None
