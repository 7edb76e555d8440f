"""A corpus -> instances of masked language modelling and next sentence prediction.

With the same settings and seed the instances are google-research/bert's, number by number, because one random generator is
asked for the same numbers in the same order: a line that draws a number may not move. The work is done by compiled functions on
flat arrays.

    corpus = read_corpus(["AGnews_corpus.txt"], tokenizer)
    for instances in training_instances(corpus, tokenizer, Recipe(), dupe_factor=5, rng=random.Random(12345)):
        print(instances.features(0))

An instance is kept as two spans of the corpus and its masks. The order in which instances are written is drawn after the last
one is made; where they would take more than STORE_BYTES together, they are made again for each part of that order.
"""
import array
import dataclasses
import itertools
import typing

import numpy as np
from tqdm import tqdm

from common.command_line import UserError
from common.compiled import compiled
from common.files import decode_lines
from pretraining.twister import below, draw_order, shuffle, twister, uniform

SPECIAL_TOKENS = 3  # [CLS], [SEP], [SEP]; without a second text one [SEP] less
STORE_BYTES = 384 << 20  # of instances in memory at a time; of a large corpus half as many as it has: each part makes all again
DOCUMENTS_PER_CALL = 4096  # of the compiled function, between which the bar moves
MOST_TOKENS = 2**31 - 1  # of a corpus: its offsets are int32


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How instances are made; the fields are the flags of the same names."""
    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    do_whole_word_mask: bool = False
    next_sentence: bool = True


class Corpus(typing.NamedTuple):
    """Documents of sentences of ids, none of them empty.

    ids                  uint16, or int32 for a large vocabulary [tokens]
    sentence_offsets     int32 [sentences + 1]: sentence s is ids[offsets[s]:offsets[s + 1]]
    document_offsets     int32 [documents + 1]: d has the sentences offsets[d] to offsets[d + 1] - 1
    """
    ids: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray

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


class Rules(typing.NamedTuple):
    """A recipe and a tokenizer as the compiled functions want them."""
    max_num_tokens: int  # of A and B together
    num_to_predict: np.ndarray  # int64 [max_seq_length + 1]: masks of an instance of that many tokens, at most
    short_seq_prob: float
    do_whole_word_mask: bool
    next_sentence: bool
    cls_id: int
    sep_id: int
    mask_id: int
    vocab_ids: np.ndarray  # int32, in the order of the file: what a random word is drawn from
    is_continuation: np.ndarray  # bool [largest id + 1]

    @classmethod
    def of(cls, recipe, tokenizer):
        length, vocab_ids = recipe.max_seq_length, np.array(list(tokenizer.vocab.values()), np.int32)
        is_continuation = np.zeros(vocab_ids.max() + 1, bool)
        is_continuation[vocab_ids] = [token.startswith("##") for token in tokenizer.vocab]
        num_to_predict = [min(recipe.max_predictions_per_seq, max(1, int(round(tokens * recipe.masked_lm_prob))))
                          for tokens in range(length + 1)]
        return cls(length - SPECIAL_TOKENS + (not recipe.next_sentence), np.array(num_to_predict), float(recipe.short_seq_prob),
                   bool(recipe.do_whole_word_mask), bool(recipe.next_sentence), tokenizer.cls_id, tokenizer.sep_id,
                   tokenizer.mask_id, vocab_ids, is_continuation)


class Store(typing.NamedTuple):
    """Instances one after another, as they were made.

    spans                int32 [instances, 4]: start and length in the corpus of A and of B (without next_sentence empty)
    is_random_next       int8 [instances]
    mask_ends            int64 [instances + 1]: instance i has the masks from ends[i] to ends[i + 1] - 1, by ascending position
    mask_positions       uint8 or uint16: where a token is predicted
    mask_ids             as the ids of the corpus: what stands there instead of it
    """
    spans: np.ndarray
    is_random_next: np.ndarray
    mask_ends: np.ndarray
    mask_positions: np.ndarray
    mask_ids: np.ndarray

    @classmethod
    def empty(cls, recipe, ids):
        """Room for as many instances as fit in STORE_BYTES, or in half the bytes of the corpus' ids where these are more; the
        system gives the memory as it is written to."""
        position_type, id_type, masks = np.min_scalar_type(recipe.max_seq_length), ids.dtype, recipe.max_predictions_per_seq
        room = max(1, max(STORE_BYTES, ids.nbytes // 2) // (25 + masks * (position_type.itemsize + id_type.itemsize)))
        return cls(np.empty((room, 4), np.int32), np.empty(room, np.int8), np.zeros(room + 1, np.int64),
                   np.empty(room * masks, position_type), np.empty(room * masks, id_type))


# The corpus

def read_corpus(input_files, tokenizer, next_sentence=True):
    """Reads and tokenises text files into a Corpus; lines without tokens are left out, as are empty documents. A document goes
    on from one file to the next where no empty line stands between, as in Google's script. Raises UserError, with file and
    line, for what is not UTF-8 text, and for a corpus without text, with `next_sentence` of one document, or too large."""
    document_of_line = array.array("i")

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

    files = f"--input_file: {', '.join(input_files)}"
    id_type = np.dtype(np.uint16 if max(tokenizer.vocab.values()) < 1 << 16 else np.int32)
    ids, sentence_offsets, first_sentences = array.array(id_type.char), array.array("i", [0]), array.array("i")
    last_document = -1
    for new_ids, lengths in tokenizer.encode_slices(lines()):
        if len(ids) + len(new_ids) > MOST_TOKENS:
            raise UserError(f"{files}: more than {MOST_TOKENS} tokens; make the records of some of the files at a time")
        documents, lengths = np.asarray(document_of_line)[lengths > 0], lengths[lengths > 0]
        del document_of_line[:]  # what it holds is the lines of these lengths
        starts = np.flatnonzero(np.diff(documents, prepend=last_document))
        first_sentences.frombytes((starts + len(sentence_offsets) - 1).astype(np.int32).tobytes())
        sentence_offsets.frombytes((np.cumsum(lengths) + len(ids)).astype(np.int32).tobytes())
        ids.frombytes(new_ids.astype(id_type).tobytes())
        last_document = documents[-1] if len(documents) else last_document
    if len(first_sentences) < 1 + next_sentence:
        raise UserError(f"{files}: "
                        + ("one document only, so no next sentence can be drawn from another one; put an empty line between "
                           "documents, or pass --next_sentence=False" if first_sentences else "no text in it"))
    first_sentences.append(len(sentence_offsets) - 1)
    return Corpus(*map(np.asarray, (ids, sentence_offsets, first_sentences)))


# One instance

@compiled
def truncated(a, a_end, b, b_end, max_num_tokens, state):
    """Shortens the longer of two spans, at a random end each time, until both fit in max_num_tokens. Returns the same four."""
    while (a_end - a) + (b_end - b) > max_num_tokens:
        at_front = uniform(state) < 0.5
        if a_end - a > b_end - b:
            a, a_end = (a + 1, a_end) if at_front else (a, a_end - 1)
        else:
            b, b_end = (b + 1, b_end) if at_front else (b, b_end - 1)
    return a, a_end, b, b_end


@compiled
def random_next(corpus, order, document_index, target_length, state):
    """A span (start, end) of ids from a random sentence of another document on, sentences until target_length."""
    offsets, random_index = corpus.sentence_offsets, document_index
    for _ in range(10):  # with two documents or more ten failures in a row are rare, and Google's script accepts them
        random_index = below(len(order), state)
        if random_index != document_index:
            break
    first, last = corpus.document_offsets[order[random_index]], corpus.document_offsets[order[random_index] + 1]
    sentence = first + below(last - first, state)
    end = sentence + 1
    while end < last and offsets[end] - offsets[sentence] < target_length:
        end += 1
    return np.int64(offsets[sentence]), np.int64(offsets[end])


@compiled
def next_pair(corpus, rules, order, document_index, sentence, target_length, state):
    """Two spans of a document, from a sentence of it on. Sentences are gathered until they fill an instance; A is a random
    number of the first ones. In half of the instances B is the rest of them; otherwise it comes from another document, and the
    rest is used again. Returns (A's start and end, B's, whether B is random, the sentence to go on with)."""
    offsets, chunk, last = corpus.sentence_offsets, sentence, corpus.document_offsets[order[document_index] + 1]
    while sentence < last - 1 and offsets[sentence + 1] - offsets[chunk] < target_length:
        sentence += 1
    sentence += 1
    middle = chunk + 1 + (below(sentence - chunk - 1, state) if sentence - chunk > 1 else 0)
    # from here on random numbers are drawn in Google's order: random or not, document, sentence, truncation, masks
    a, a_end, b_end = np.int64(offsets[chunk]), np.int64(offsets[middle]), np.int64(offsets[sentence])
    b = a_end
    is_random_next = sentence - chunk == 1 or uniform(state) < 0.5
    if is_random_next:
        b, b_end = random_next(corpus, order, document_index, target_length - (a_end - a), state)
        sentence = middle  # the sentences that would have followed A are used again
    a, a_end, b, b_end = truncated(a, a_end, b, b_end, rules.max_num_tokens, state)
    return a, a_end, b, b_end, is_random_next, sentence


@compiled
def next_text(corpus, last, sentence, start, target_length):
    """The same for the masked LM alone: A is as many whole sentences as fit, from token `start` of a sentence on and before
    sentence `last`; one that does not fit alone is cut and goes on in the next instance, so that each token of the document
    stands in one instance. Returns (A's end, the sentence that begins there or is cut there)."""
    offsets = corpus.sentence_offsets
    while sentence < last and offsets[sentence + 1] - start <= target_length:
        sentence += 1
    return (np.int64(offsets[sentence]) if offsets[sentence] > start else start + target_length), sentence


@compiled
def put_ids(corpus, a, a_length, b, b_length, rules, ids):
    """Writes [CLS] A [SEP] B [SEP], or [CLS] A [SEP] where B is empty, into `ids`. Returns the lengths of [CLS] A [SEP] and of
    all."""
    ids[0] = rules.cls_id
    for token in range(a_length):
        ids[1 + token] = corpus.ids[a + token]
    first = a_length + 2
    ids[first - 1] = rules.sep_id
    if b_length == 0:
        return first, first
    for token in range(b_length):
        ids[first + token] = corpus.ids[b + token]
    ids[first + b_length] = rules.sep_id
    return first, first + b_length + 1


@compiled
def mask(rules, scratch, first, length, state):
    """Chooses what is predicted of the instance in `scratch` (Devlin et al. 2019, section 3.1): `shown`, -1 before, becomes
    what stands there instead: 80% [MASK], 10% the same, 10% a random word of the vocabulary. Returns the number of masks."""
    ids, shown, positions, word_starts, words = scratch
    num_positions, num_words = 0, 0
    for position in range(1, length - 1):
        if position != first - 1:
            # A truncated segment may begin inside a word; that piece joins the word before it, as in Google's script.
            if not (rules.do_whole_word_mask and num_words and rules.is_continuation[ids[position]]):
                word_starts[num_words] = num_positions  # what is masked together begins there in `positions`
                words[num_words] = num_words
                num_words += 1
            positions[num_positions] = position
            num_positions += 1
    word_starts[num_words] = num_positions
    shuffle(words[:num_words], state)
    num_to_predict, num_masks = rules.num_to_predict[length], 0
    for word in words[:num_words]:
        if num_masks >= num_to_predict:
            break
        if num_masks + word_starts[word + 1] - word_starts[word] > num_to_predict:
            continue  # a shorter word may still fit
        for number in range(word_starts[word], word_starts[word + 1]):
            position = positions[number]
            shown[position] = ids[position]
            if uniform(state) < 0.8:
                shown[position] = rules.mask_id
            elif uniform(state) >= 0.5:
                shown[position] = rules.vocab_ids[below(len(rules.vocab_ids), state)]
            num_masks += 1
    return num_masks


@compiled
def pass_over(rules, first, length, state):
    """Draws the random numbers that `mask` draws where each token is masked on its own. Returns the number of masks."""
    num_words = length - 2 - (length > first)
    draw_order(num_words, state)
    num_masks = min(num_words, rules.num_to_predict[length])
    for _ in range(num_masks):
        if uniform(state) >= 0.8 and uniform(state) >= 0.5:
            below(len(rules.vocab_ids), state)
    return num_masks


# All instances

class Made(typing.NamedTuple):
    """Counts of what was made, each an int64 [1], which compiled functions can write to."""
    documents: np.ndarray  # of all times that the corpus is gone through
    instances: np.ndarray
    stored: np.ndarray
    tokens: np.ndarray
    masks: np.ndarray
    random_next: np.ndarray


class Scratch(typing.NamedTuple):
    """Arrays for one instance, int64 [max_seq_length]; `mask` says what they hold."""
    ids: np.ndarray
    shown: np.ndarray
    positions: np.ndarray
    word_starts: np.ndarray
    words: np.ndarray


@compiled
def store_instance(store, slot, a, a_end, b, b_end, is_random_next, shown, length):
    """Stores an instance."""
    store.spans[slot, 0], store.spans[slot, 1], store.spans[slot, 2], store.spans[slot, 3] = a, a_end - a, b, b_end - b
    store.is_random_next[slot] = is_random_next
    end = store.mask_ends[slot]
    for position in range(length):
        if shown[position] >= 0:
            store.mask_positions[end], store.mask_ids[end] = position, shown[position]
            end += 1
    store.mask_ends[slot + 1] = end


@compiled
def make_instances(corpus, rules, order, places, part, store, slots, made, scratch, state, num_documents):
    """Goes on, the whole corpus again and again, until that many documents are used.

    order                int32 [documents]: in which the corpus is gone through
    places               int32 [instances]: instance i is the record places[i]; empty: not known yet, as they are made
    part                 int64 [2]: the first of the places whose instances are stored, and the one after the last
    slots                int32 [part[1] - part[0]]: becomes which instance of the store is at place part[0] + i
    """
    while made.documents[0] < num_documents:
        document_index, target_length = made.documents[0] % len(order), rules.max_num_tokens
        if uniform(state) < rules.short_seq_prob:
            target_length = 2 + below(rules.max_num_tokens - 1, state)
        document = order[document_index]
        sentence, last = np.int64(corpus.document_offsets[document]), np.int64(corpus.document_offsets[document + 1])
        start, is_random_next = np.int64(corpus.sentence_offsets[sentence]), False
        while sentence < last if rules.next_sentence else start < corpus.sentence_offsets[last]:
            if rules.next_sentence:
                a, a_end, b, b_end, is_random_next, sentence = next_pair(
                    corpus, rules, order, document_index, sentence, target_length, state)
            else:
                end, sentence = next_text(corpus, last, sentence, start, target_length)
                a, a_end, b, b_end, start = start, end, end, end, end
            number, slot = made.instances[0], made.stored[0]
            place = places[number] if len(places) else number
            is_stored = part[0] <= place < part[1]
            first = a_end - a + 2
            length = first + b_end - b + rules.next_sentence
            if is_stored or rules.do_whole_word_mask:
                put_ids(corpus, a, a_end - a, b, b_end - b, rules, scratch.ids)
                made.masks[0] += mask(rules, scratch, first, length, state)
            else:
                made.masks[0] += pass_over(rules, first, length, state)
            if is_stored:
                store_instance(store, slot, a, a_end, b, b_end, is_random_next, scratch.shown, length)
                slots[place - part[0]] = slot
                made.stored[0] += 1
            scratch.shown[:length] = -1
            made.instances[0] += 1
            made.tokens[0] += length
            made.random_next[0] += is_random_next
        made.documents[0] += 1


@compiled
def inverse(order):
    """The permutation that undoes one."""
    places = np.empty_like(order)
    for place in range(len(order)):
        places[order[place]] = place
    return places


class Instances:
    """A part of the instances, in the order in which they are written; `len()` is their number, `made` the counts of all."""

    def __init__(self, corpus, recipe, rules, store, slots, made):
        self.corpus, self.recipe, self.rules, self.store, self.slots, self.made = corpus, recipe, rules, store, slots, made

    def __len__(self):
        return len(self.slots)

    def features(self, index):
        """The features of instance `index`, six or with next_sentence seven: a dict of lists, padded with 0; floats for the
        weights only."""
        recipe, slot = self.recipe, self.slots[index]
        ids = np.zeros(recipe.max_seq_length, np.int64)
        first, length = put_ids(self.corpus, *self.store.spans[slot].tolist(), self.rules, ids)
        masks = slice(*self.store.mask_ends[slot:slot + 2])
        positions = self.store.mask_positions[masks].astype(np.int32)
        labels = ids[positions].tolist()
        ids[positions] = self.store.mask_ids[masks]
        no_prediction = [0] * (recipe.max_predictions_per_seq - len(labels))
        padding = [0] * (recipe.max_seq_length - length)
        return {"input_ids": ids.tolist(),
                "input_mask": [1] * length + padding,
                "segment_ids": [0] * first + [1] * (length - first) + padding,
                "masked_lm_positions": positions.tolist() + no_prediction,
                "masked_lm_ids": labels + no_prediction,
                "masked_lm_weights": [1.0] * len(labels) + [0.0] * len(no_prediction)} | (
                    {"next_sentence_labels": [int(self.store.is_random_next[slot])]} if recipe.next_sentence else {})


def training_instances(corpus, tokenizer, recipe, dupe_factor, rng):
    """All instances of a corpus, each document used dupe_factor times with other masks. Yields Instances, part by part, one
    part where they fit in STORE_BYTES; a part is gone when the next one is made. rng: a random.Random, left as it is."""
    rules, state, store = Rules.of(recipe, tokenizer), twister(rng), Store.empty(recipe, corpus.ids)
    room = len(store.spans)
    # Google shuffles the documents first and the instances at the end
    order = np.arange(corpus.num_documents, dtype=np.int32)
    shuffle(order, state)

    def make(store, places, first, last):
        """Makes all instances; those from place first to last - 1 are stored. Returns (slots, counts, state afterwards)."""
        slots, made = np.empty(last - first, np.int32), Made(*np.zeros((len(Made._fields), 1), np.int64))
        scratch = Scratch(*np.full((len(Scratch._fields), recipe.max_seq_length), -1))
        part, own_state, total = np.array([first, last]), state.copy(), dupe_factor * corpus.num_documents
        with tqdm(total=total, desc="instances", unit=" documents", disable=None) as bar:
            for start in range(0, total, DOCUMENTS_PER_CALL):
                end = min(start + DOCUMENTS_PER_CALL, total)
                make_instances(corpus, rules, order, places, part, store, slots, made, scratch, own_state, end)
                bar.update(end - start)
        return slots, made, own_state

    # A first time for the counts, and for the random numbers that stand after them; if all fit, they are stored at once.
    _, made, state_afterwards = make(store, np.empty(0, np.int32), 0, room)
    num_instances = int(made.instances[0])
    if num_instances > room:
        store = None  # its memory is needed
    order_of_writing = np.arange(num_instances, dtype=np.int32)
    shuffle(order_of_writing, state_afterwards)
    if store:
        yield Instances(corpus, recipe, rules, store, order_of_writing, made)
        return
    places = inverse(order_of_writing)
    del order_of_writing
    store, num_parts = Store.empty(recipe, corpus.ids), -(-num_instances // room)
    bounds = [num_instances * part // num_parts for part in range(num_parts + 1)]
    for first, last in itertools.pairwise(bounds):
        yield Instances(corpus, recipe, rules, store, make(store, places, first, last)[0], made)
