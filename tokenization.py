"""Text -> WordPiece tokens and ids, exactly as google-research/bert's tokenization.py, at the speed of Rust.

    from tokenization import FullTokenizer
    tokenizer = FullTokenizer("uncased_L-12_H-768_A-12/vocab.txt", do_lower_case=True)
    tokenizer.tokenize("unaffable")               # ['una', '##ffa', '##ble']
    ids, offsets = tokenizer.encode_batch(texts)  # text i is ids[offsets[i]:offsets[i + 1]]

Two stages. Characters are cleaned, lower-cased and stripped of accents by Python's own string functions, a whole text at once:
Google's code calls them character by character, so the Unicode tables agree (those of Rust libraries are of another version).
Splitting and WordPiece run in HF `tokenizers`, in Rust threads, with classes of characters from `unicodedata` for that reason.
A word (what stands between white space) has the same ids in every text, so those that were met before are looked up.
"""
import array
import collections
import functools
import itertools
import re
import unicodedata

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from common.command_line import UserError
from common.files import decode_lines, require_file
from common.vocabulary import check_vocab, choose_case, read_vocab

REQUIRED_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
MOST_UNKNOWN = 0.05  # of the tokens, before it is warned of; English in bert-base-uncased has 0.0%
CHARACTERS_PER_SLICE = 1 << 20  # of the texts that are held at a time
IDS_COUNTED = 1 << 20  # at a time
WORDS_PER_CALL = 256  # of Rust, which is called for all words that are new in a slice, on all cores
CHARACTERS_KNOWN = 1 << 20  # of the words whose ids are kept, about 120,000 English ones; beyond that they are all forgotten
SEPARATOR = "\0"  # is no part of any text: Google deletes it

# What Google calls Chinese: each such character is a word. Hiragana, Katakana and Hangul are none.
CJK_RANGES = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
              (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
# ASCII that is no letter, digit, space or control is punctuation, also where Unicode says symbol ($ + < = > ^ ` | ~).
ASCII_PUNCTUATION = ((33, 47), (58, 64), (91, 96), (123, 126))
# The planes that hold characters other than private ones; the others are unassigned or private use in every Unicode.
ASSIGNED_PLANES = (range(0x0, 0x40000), range(0xE0000, 0xF0000))
# What str.split takes for white space and Google's clean-up deletes, so that it must not end a word; and the separator.
DELETED_BEFORE_SPLIT = re.compile("[\x00\x0b\x0c\x1c-\x1f\x85]")
SURROGATES = re.compile("[\ud800-\udfff]")
NONCHARACTER = "\ufdd0"  # stands for a lone surrogate, which Rust cannot hold; the word around either is [UNK]


@functools.cache
def character_classes():
    """The classes of this Python's Unicode: (deleted characters, accents, regular expression of one-character words). Deleted
    are control and format characters except tab, newline and return, and U+0000 and U+FFFD."""
    deleted, accents, isolated = {SEPARATOR, "\ufffd"}, set(), [(0, 0), *CJK_RANGES, *ASCII_PUNCTUATION]
    for code_point in itertools.chain(*ASSIGNED_PLANES):
        character = chr(code_point)
        category = unicodedata.category(character)
        if category[0] == "P":
            isolated.append((code_point, code_point))
        elif category == "Mn":
            accents.add(character)
        elif category in ("Cc", "Cf") and character not in "\t\n\r":
            deleted.add(character)
    pattern = "[" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in isolated) + "]"
    return frozenset(deleted), frozenset(accents), pattern


def without(text, characters):
    """`text` without those of its characters that are in the set `characters`."""
    present = characters.intersection(text)
    return text.translate(dict.fromkeys(map(ord, present))) if present else text


def normalize(text, do_lower_case):
    """Google's clean-up of a text; lower-cased, it also loses its accents. The splits into words are left to do."""
    deleted, accents, _ = character_classes()
    if not text.isprintable() or "\ufffd" in text:  # a printable text has no control and no format character
        text = without(text, deleted)
    if do_lower_case:
        text = text.lower()
    if not text.isascii():
        text = SURROGATES.sub(NONCHARACTER, text)
        if do_lower_case:
            text = without(unicodedata.normalize("NFD", text), accents)
    return text


def word_splitter():
    """The pre-tokenizer that splits a normalized text into words: at white space, and around punctuation and Chinese."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(character_classes()[2]), "isolated"), pre_tokenizers.WhitespaceSplit()])


UNUSED = re.compile(r"\[unused\d+\]")  # rows of Google's vocabularies that no text has


def count_characters(lines, splitter):
    """(Counter of the characters that normalized lines have, set of those that stand inside words)."""
    counts = collections.Counter()
    for line in lines:
        counts.update(line)
    counts = collections.Counter({letter: count for letter, count in counts.items() if not letter.isspace()})
    return counts, {letter for letter in counts if len(splitter.pre_tokenize_str(f"a{letter}a")) == 1}


def train_vocab(read, vocab_size, min_frequency=2, num_unused=99):
    """The tokens of a WordPiece vocabulary in the order of their ids, fewer than `vocab_size` where the texts have no more
    pieces. read: a function that gives an iterable of normalized texts, called twice. Raises UserError where special tokens and
    single characters alone are more.

    The characters are given to the trainer as special tokens. Otherwise it would number them in the order of a hash table,
    which differs from run to run, and break ties between merges by those numbers.
    """
    splitter = word_splitter()
    counts, inside = count_characters(read(), splitter)
    letters = sorted(letter for letter, count in counts.items() if count >= min_frequency)
    first = ["[PAD]", *(f"[unused{index}]" for index in range(num_unused)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters,
             *(f"##{letter}" for letter in letters if letter in inside)]
    if len(first) > vocab_size:
        raise UserError(f"--vocab_size {vocab_size}: {len(first)} tokens are needed for special tokens and single characters; "
                        "ask for more tokens, or for more frequent characters with --min_frequency")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.train_from_iterator(read(), trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, limit_alphabet=len(letters), special_tokens=first,
        continuing_subword_prefix="##", show_progress=False))
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.get)


def read_never_split(path):
    """The own tokens of a file, one a line. Raises UserError, with the line, for one with white space and one given twice."""
    tokens = []
    for number, line in decode_lines(require_file(path, "--never_split")):
        token = line.strip()
        if token and len(normalize(token, do_lower_case=True).split()) != 1 or token in tokens:
            raise UserError(f"{path}:{number}: {token[:80]!r} {'is there twice' if token in tokens else 'is no single token'}; "
                            "give one token a line, without white space inside")
        tokens += [token] if token else []
    return tokens


def place(vocab, tokens, do_lower_case):
    """(the vocabulary with those of `tokens` that it lacks in place of its first [unusedN], {token as a normalized text has it:
    its id}). Raises UserError where the vocabulary has too few of them."""
    own = {*tokens, *(normalize(token, do_lower_case) for token in tokens)}
    unused = (name for name in vocab if UNUSED.fullmatch(name) and name not in own)
    renamed, ids = {}, {}
    for token in tokens:
        form = normalize(token, do_lower_case)
        known = next((name for name in (token, form) if name in vocab), None)
        if form not in ids:  # else it differs from another one by capital letters, of which an uncased model knows nothing
            if known is None and (known := next(unused, None)) is None:
                raise UserError(f"--never_split: the vocabulary has no [unusedN] left for {token} and those after it")
            renamed |= {known: token} if UNUSED.fullmatch(known) else {}
            ids[form] = vocab[known]
    return {renamed.get(token, token): index for token, index in vocab.items()}, ids


def stands_alone(form):
    """Whether a token counts only beside what is no letter or digit: @user, but not [URL], nor a word of Chinese."""
    return any(edge.isalnum() and not any(first <= ord(edge) <= last for first, last in CJK_RANGES)
               for edge in (form[0], form[-1]))


class FullTokenizer:
    """WordPiece tokenization with Google's interface and Google's output.

    `vocab` is the dict token -> id, `inv_vocab` its inverse; `cls_id`, `sep_id`, `mask_id`, `unk_id` and `pad_id` are
    the ids of the special tokens ([PAD] is 0 where the vocabulary has none). A special token written in a text is
    punctuation and letters, as any other text. vocab_file: a vocab.txt or tokenizer.json. `notes` are lines for the log.
    Raises UserError as `read_vocab` does, and where the vocabulary lacks one of REQUIRED_TOKENS.

    never_split: own tokens, each of which stays one token in a text; one that the vocabulary lacks takes the row of an
    [unusedN], in their order. `own` is {token: (id, whether it counts only where it stands alone)}.
    """

    def __init__(self, vocab_file, do_lower_case=True, never_split=()):
        self.vocab, self.notes = read_vocab(vocab_file)
        if missing := [token for token in REQUIRED_TOKENS if token not in self.vocab]:
            raise UserError(f"--vocab_file: {vocab_file} has no line {' '.join(missing)}; it is no BERT vocabulary "
                            "(one token a line, as vocab.txt beside a BERT checkpoint)")
        self.do_lower_case = do_lower_case
        self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self.vocab[token] for token in REQUIRED_TOKENS)
        self.pad_id = self.vocab.get("[PAD]", 0)
        self.keep_whole(never_split)

    def keep_whole(self, tokens):
        """Makes own tokens of these, which may be None, as the case of the text now is."""
        self.vocab, forms = place(self.vocab, tokens or (), self.do_lower_case)
        self.inv_vocab = {index: token for token, index in self.vocab.items()}
        self.own = {self.inv_vocab[index]: (index, stands_alone(form)) for form, index in forms.items()}
        self._forget()
        self._separator_id = max(self.vocab.values()) + 1
        self._rust = Tokenizer(models.WordPiece(  # as Google: a word of more than 200 characters is [UNK]
            self.vocab | forms | {SEPARATOR: self._separator_id}, unk_token="[UNK]", max_input_chars_per_word=200))
        self._rust.pre_tokenizer = word_splitter()
        self._rust.add_tokens([AddedToken(form, single_word=stands_alone(form), normalized=False) for form in forms])

    @classmethod
    def fitting(cls, vocab_file, do_lower_case, config=None, asked_by="--do_lower_case", never_split=()):
        """The tokenizer of a model's vocabulary; do_lower_case None: found by `choose_case`. Raises UserError as `check_vocab`
        does where the configuration has fewer embeddings."""
        tokenizer = cls(vocab_file)
        tokenizer.do_lower_case, more = choose_case(do_lower_case, vocab_file, tokenizer.vocab, asked_by)
        if never_split:
            tokenizer.keep_whole(never_split)
        tokenizer.notes += more + (check_vocab(tokenizer.vocab, vocab_file, config) if config else [])
        return tokenizer

    def unknown(self, ids, what):
        """The share of [UNK] among the tokens of an array of ids, [CLS] and [SEP] left out, in words; and a warning about
        `what` has them, or None."""
        parts = [ids[start:start + IDS_COUNTED] for start in range(0, len(ids), IDS_COUNTED)]
        unknown, cls, sep = (sum(np.count_nonzero(part == index) for part in parts)
                             for index in (self.unk_id, self.cls_id, self.sep_id))
        share = unknown / max(1, len(ids) - cls - sep)
        warning = (f"WARNING: {share:.1%} of the tokens of {what} are [UNK], which the model cannot read: is the vocabulary of "
                   "the texts' language, and the case right (--do_lower_case)?")
        return f"{share:.1%} [UNK]", warning if share > MOST_UNKNOWN else None

    def tokenize(self, text):
        """The WordPiece tokens of one text, a list of str, without special tokens."""
        encoding = self._rust.encode(normalize(text, self.do_lower_case), add_special_tokens=False)
        return self.convert_ids_to_tokens(encoding.ids)

    def convert_tokens_to_ids(self, tokens):
        """The ids of a list of tokens. Raises KeyError for a token that is not in the vocabulary."""
        return [self.vocab[token] for token in tokens]

    def convert_ids_to_tokens(self, ids):
        """The tokens of a list or array of ids. Raises KeyError for an id that is not in the vocabulary."""
        return [self.inv_vocab[int(index)] for index in ids]

    def encode_batch(self, texts):
        """Encodes an iterable of texts (read once, never held as a whole) without special tokens.

        Returns (ids, offsets): int32 [tokens of all texts] and int64 [texts + 1]; text i is ids[offsets[i]:offsets[i + 1]].
        """
        ids, offsets = bytearray(), array.array("q", [0])
        for ids_of_slice, lengths in self.encode_slices(texts):
            offsets.frombytes((np.cumsum(lengths) + offsets[-1]).tobytes())
            ids += ids_of_slice.tobytes()
        return np.frombuffer(ids, np.int32), np.asarray(offsets, np.int64)  # views: nothing is copied

    def encode_slices(self, texts):
        """The same, some texts at a time: yields (ids, lengths), int32 [tokens of these texts] and int64 [these texts]."""
        for batch in slices(texts, CHARACTERS_PER_SLICE):
            batch = [text if text.isprintable()  # is several times as fast as the search, and true of most texts
                     else DELETED_BEFORE_SPLIT.sub("", text) for text in batch]
            yield self._ids_of(f" {SEPARATOR} ".join([*batch, ""]).split())

    def _ids_of(self, words):
        """(ids, lengths) of texts given as one list of their words, each text ended by SEPARATOR."""
        if self._characters_known > CHARACTERS_KNOWN:
            self._forget()
        num_known = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))  # numbers the new ones, too
        self._add(list(itertools.islice(reversed(self._numbers), len(self._numbers) - num_known))[::-1])  # the new ones
        known, ends = np.asarray(self._known_ids), np.asarray(self._known_ends)
        lengths = np.diff(ends, prepend=0)[numbers]
        ends_here = np.cumsum(lengths)  # of each word, in the result
        ids = known[np.repeat(ends[numbers] - ends_here, lengths) + np.arange(ends_here[-1])]
        return ids, np.diff(ends_here[numbers == 0], prepend=0)

    def _forget(self):
        """Knows no word but SEPARATOR, which has no ids. Words are numbered as they are met; the ids of word n are
        _known_ids[_known_ends[n - 1]:_known_ends[n]]."""
        self._numbers = collections.defaultdict(itertools.count(1).__next__, {SEPARATOR: 0})
        self._known_ids, self._known_ends, self._characters_known = array.array("i"), array.array("q", [0]), 0

    def _add(self, words):
        """Appends the ids of new words to the known ones."""
        self._characters_known += sum(map(len, words))
        calls = [" ".join(words[start:start + WORDS_PER_CALL]) for start in range(0, len(words), WORDS_PER_CALL)]
        calls = [normalize(text, self.do_lower_case).replace(" ", SEPARATOR) for text in calls]
        ids = array.array("i")
        for encoding in self._rust.encode_batch_fast(calls, add_special_tokens=False):
            ids.extend(encoding.ids)
            ids.append(self._separator_id)
        ids = np.asarray(ids, np.int32)
        is_end = ids == self._separator_id
        start = len(self._known_ids)
        self._known_ids.frombytes(ids[~is_end].tobytes())
        self._known_ends.frombytes((start + np.cumsum(~is_end)[is_end]).tobytes())


def slices(texts, characters):
    """Yields lists of consecutive texts of about `characters` characters together, a longer text alone."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
