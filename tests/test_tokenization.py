"""Tokenization equals google-research/bert's: on recorded texts, on code points, and on random texts against a plain
reimplementation, character by character, of what its BasicTokenizer and WordpieceTokenizer do."""
import hashlib
import itertools
import json
import os
import random
import unicodedata

import numpy as np
import pytest

import tokenization
from common.command_line import UserError
from tokenization import FullTokenizer, read_never_split

WORDS = ("[PAD] [UNK] [CLS] [SEP] [MASK] a b ab ##b ##c abc mask unk ##s σ ς ##ς i ##i e é ! [ ] - ? $ 中 文 \ue000 « "
         "##\u0301").split()


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS), encoding="utf-8")
    return str(path)


def goldens(shared, do_lower_case):
    folder = shared / "goldens" / "tokenization"
    case = "lower" if do_lower_case else "cased"
    fuzz, code_points = (json.loads((folder / f"{name}.json").read_text()) for name in ("fuzz", "code_points"))
    tokenizer = FullTokenizer(str(shared / "data" / "vocab" / "bert-base-uncased.vocab.txt"), do_lower_case)
    return tokenizer, fuzz["texts"], fuzz[case], code_points[case], code_points["unicode"]


def token_lists(tokenizer, texts):
    ids, offsets = tokenizer.encode_batch(texts)
    tokens, offsets = tokenizer.convert_ids_to_tokens(ids), offsets.tolist()
    return [tokens[start:end] for start, end in zip(offsets, offsets[1:])]


@pytest.mark.parametrize("do_lower_case", (True, False))
def test_no_difference_on_googles_texts(shared, do_lower_case):
    tokenizer, texts, expected, _, _ = goldens(shared, do_lower_case)
    results = zip(texts, token_lists(tokenizer, texts), expected)
    different = [text for text, tokens, golden in results if tokens != golden]
    assert different == [] and len(texts) == len(expected) == 10000
    assert [tokenizer.tokenize(text) for text in texts[:1000]] == expected[:1000]


@pytest.mark.parametrize("do_lower_case", (True, False))
def test_no_difference_on_code_points(shared, do_lower_case):
    """Alone, doubled and between letters: every code point below U+20000, one block of 256 in 16 of the others, which
    are ideographs, private or unassigned; all of them (minutes) where the environment variable ALL_CODE_POINTS is set.
    """
    tokenizer, _, _, expected, unicode_version = goldens(shared, do_lower_case)
    if unicodedata.unidata_version != unicode_version:
        pytest.skip(f"the goldens are of Unicode {unicode_version}, this Python has {unicodedata.unidata_version}")
    wrong = []
    for block, digest in enumerate(expected):
        if block >= 0x200 and block % 16 and "ALL_CODE_POINTS" not in os.environ:
            continue
        characters = [chr(c) for c in range(block * 256, block * 256 + 256) if not 0xD800 <= c <= 0xDFFF]
        tokens = token_lists(tokenizer, (text for c in characters for text in ("a" + c + "b", c, c + c)))
        if hashlib.sha256(json.dumps(tokens, separators=(",", ":")).encode()).hexdigest()[:16] != digest:
            wrong.append(block)
    assert wrong == []


def reference_tokens(text, vocab, do_lower_case):
    """What Google's code does, step by step on single characters."""
    def category(c):
        return unicodedata.category(c)

    def is_cjk(c):
        return any(first <= ord(c) <= last for first, last in tokenization.CJK_RANGES)

    def is_punctuation(c):
        return category(c)[0] == "P" or c.isascii() and c.isprintable() and not c.isalnum() and c != " "

    cleaned = ""
    for c in text:
        if c in "\0\ufffd" or category(c) in ("Cc", "Cf") and c not in "\t\n\r":
            continue
        cleaned += " " if c in "\t\n\r" or category(c) == "Zs" else f" {c} " if is_cjk(c) else c
    tokens = []
    for word in cleaned.split():
        if do_lower_case:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if category(c) != "Mn")
        spaced = "".join(f" {c} " if is_punctuation(c) else c for c in word)
        for piece in spaced.split():
            tokens += reference_wordpieces(piece, vocab)
    return tokens


def reference_wordpieces(word, vocab):
    if len(word) > 200:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        candidates = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
        piece = next((candidate for candidate in candidates if candidate in vocab), None)
        if piece is None:
            return ["[UNK]"]
        pieces.append(piece)
        start += len(piece) - (2 if start else 0)
    return pieces


@pytest.mark.parametrize("do_lower_case", (True, False))
def test_random_texts_equal_the_plain_reimplementation(vocab_file, do_lower_case):
    tokenizer, rng = FullTokenizer(vocab_file, do_lower_case), random.Random(1)
    alphabet = list("aAbBcCsSiIeE!?-[]$ \t\n\r") + [
        "é", "É", "\u0301", "\u0323", "\u0345", "Σ", "ς", "İ", "ß", "ẞ", "中", "文", "\uf900", "\U0002f800", "\0", "\x0b",
        "\x1c", "\x85", "\xa0", "\xad", "\u200d", "\u2028", "\u2029", "\u3000", "\ufffd", "\ue000", "\U000f0000",
        "«", "’", "\u0488", "\u0903", "가", "\u1734", "\u166d", "\U0002b820", "\u0378", "[MASK]", "abc", "ΑΣ", "'"]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 12))) for _ in range(4000)]
    expected = [reference_tokens(text, tokenizer.vocab, do_lower_case) for text in texts]
    assert len({tuple(tokens) for tokens in expected}) > 1000
    assert [tokenizer.tokenize(text) for text in texts] == expected
    assert token_lists(tokenizer, texts) == expected


def test_what_is_normalised_as_a_whole_text_may_be():
    """The order of Google's steps does not matter because decomposing a character never makes it Chinese or not, nor
    white space or not, and no character of a class that ends a word takes part in the rule of the final sigma."""
    def is_cjk(c):
        return any(first <= ord(c) <= last for first, last in tokenization.CJK_RANGES)

    spaces = [c for c in map(chr, range(0x110000)) if c.isspace()]
    decomposed = {c: unicodedata.normalize("NFD", c) for c in map(chr, range(0x30000))}
    assert all(is_cjk(c) == any(map(is_cjk, form)) for c, form in decomposed.items())
    assert all(len(form) == 1 for c, form in decomposed.items() if is_cjk(c))
    assert all(c.isspace() == any(map(str.isspace, form)) for c, form in decomposed.items())
    for c in spaces + ["中", "\uf900", "\U00020000"]:
        assert ("Α" + c + "Σ").lower()[-1] == "σ" and ("ΑΣ" + c + "Α").lower()[1] == "ς"


def test_planes_without_classes_are_without_classes():
    planes = {c >> 16 for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")}
    assert planes <= {plane >> 16 for part in tokenization.ASSIGNED_PLANES for plane in part}


def test_single_rules(vocab_file):
    lower, cased = FullTokenizer(vocab_file), FullTokenizer(vocab_file, do_lower_case=False)
    assert lower.tokenize("[MASK] [UNK]") == ["[", "mask", "]", "[", "unk", "]"]
    assert cased.tokenize("[MASK]") == ["[", "[UNK]", "]"]
    assert lower.tokenize("A\x00b\u200dc É!") == ["abc", "e", "!"] and cased.tokenize("é") == ["é"]
    assert lower.tokenize("中文a") == ["中", "文", "a"]
    assert lower.tokenize("\ue000") == ["\ue000"]
    assert lower.tokenize("ΑΣ")[-1] == "[UNK]" and lower.tokenize("Σ Iς") == ["σ", "i", "##ς"]
    assert lower.tokenize("a" + "b" * 199) == ["ab", *["##b"] * 198] and lower.tokenize("a" + "b" * 200) == ["[UNK]"]
    assert lower.tokenize("a \ud800b a") == ["a", "[UNK]", "a"]
    assert lower.tokenize(" \n ") == [] == cased.tokenize("")


def test_ids_and_attributes(vocab_file):
    tokenizer = FullTokenizer(vocab_file)
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert special == [0, 1, 2, 3, 4]
    tokens = tokenizer.tokenize("abc mask")
    assert tokenizer.convert_ids_to_tokens(np.array(tokenizer.convert_tokens_to_ids(tokens))) == tokens
    with pytest.raises(KeyError):
        tokenizer.convert_tokens_to_ids(["absent"])


def test_batches_equal_single_texts_whatever_the_slices(vocab_file, monkeypatch):
    tokenizer = FullTokenizer(vocab_file)
    texts = ["abc", "", "a b " * 50, "!", "   ", "mask[]"] * 5
    expected = [tokenizer.tokenize(text) for text in texts]
    for characters, words, known in itertools.product((1, 7, 1 << 20), (1, 2, 256), (0, 5, 1 << 20)):
        monkeypatch.setattr(tokenization, "CHARACTERS_PER_SLICE", characters)
        monkeypatch.setattr(tokenization, "WORDS_PER_CALL", words)
        monkeypatch.setattr(tokenization, "CHARACTERS_KNOWN", known)
        assert token_lists(tokenizer, iter(texts)) == expected
    ids, offsets = tokenizer.encode_batch(texts)
    assert (ids.dtype, offsets.dtype, len(offsets), offsets[-1]) == (np.int32, np.int64, len(texts) + 1, len(ids))
    ids, offsets = tokenizer.encode_batch([])
    assert len(ids) == 0 and offsets.tolist() == [0]


def test_words_are_forgotten_before_they_take_much_memory(vocab_file, monkeypatch):
    """What is known is at most what is allowed and one slice more, whatever the texts are."""
    monkeypatch.setattr(tokenization, "CHARACTERS_KNOWN", 1000)
    monkeypatch.setattr(tokenization, "CHARACTERS_PER_SLICE", 100)
    tokenizer, most = FullTokenizer(vocab_file), 0
    for _ in tokenizer.encode_slices(f"a{number}b " * 3 for number in range(3000)):
        most = max(most, sum(map(len, tokenizer._numbers)))
    assert 500 < most < 1300
    ids, _ = tokenizer.encode_batch(["a b " * 100])
    assert ids.tolist() == 100 * tokenizer.convert_tokens_to_ids(["a", "b"])


def test_vocabulary_is_read_as_google_reads_it(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("[UNK]\r\n[CLS]\n [SEP] \n[MASK]\n\na\n\xa0a\n\nb".encode())
    tokenizer = FullTokenizer(str(path))
    assert list(tokenizer.vocab.items()) == [
        ("[UNK]", 0), ("[CLS]", 1), ("[SEP]", 2), ("[MASK]", 3), ("", 7), ("a", 6), ("b", 8)]
    assert tokenizer.pad_id == 0
    assert tokenizer.encode_batch(["a b"])[0].tolist() == [6, 8]


@pytest.mark.parametrize("content, words", (
    (None, "there is no file"), (b"", "is empty"), (b"[UNK]\n\x00\x01", ":2: a zero byte"),
    ("[UNK]\né\n".encode("latin-1"), ":2: byte 1 is not UTF-8"),
    (b"[UNK]\n[CLS]\n[SEP]\nword\n", "has no line [MASK]")))
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, words):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        FullTokenizer(str(path))
    assert words in str(error.value) and str(path) in str(error.value)


def own_tokenizer(tmp_path, tokens, do_lower_case=True):
    vocab = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "see", "url", "user", "user1", "a", "##s",
             "[", "]", "@", ",", "apple", "电", "影"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    return FullTokenizer(str(tmp_path / "vocab.txt"), do_lower_case, tokens)


@pytest.mark.parametrize("do_lower_case, text, expected", [
    (True, "see [URL], a", "see [URL] , a"), (True, "see[url]a", "see [URL] a"), (True, "@USER,@User", "@user , @user"),
    (True, "@user1 see@user @users", "@ user1 see @ user @ user ##s"),
    (True, "[unused0] [CLS]", "[ [UNK] ] [ [UNK] ]"), (False, "[url] [URL]", "[ url ] [URL]"), (True, "a", "a")])
def test_own_tokens_stay_whole_and_take_unused_rows(tmp_path, do_lower_case, text, expected):
    tokenizer = own_tokenizer(tmp_path, ["[URL]", "@user"], do_lower_case)
    assert tokenizer.tokenize(text) == expected.split()
    ids, _ = tokenizer.encode_batch([text])
    assert ids.tolist() == tokenizer.convert_tokens_to_ids(expected.split())
    assert (tokenizer.vocab["[URL]"], tokenizer.vocab["@user"], len(tokenizer.vocab)) == (1, 2, 20)


def test_an_own_token_of_the_vocabulary_keeps_its_row(tmp_path):
    tokenizer = own_tokenizer(tmp_path, ["Apple", "电影", "[MASK]"])
    assert tokenizer.tokenize("Apple [mask] a电影a") == ["apple", "[MASK]", "a", "电影", "a"]
    assert tokenizer.vocab["电影"] == 1 and "[unused1]" in tokenizer.vocab


def test_an_own_token_that_is_an_unused_row_shares_it_with_no_other(tmp_path):
    tokenizer = own_tokenizer(tmp_path, ["[URL]", "[unused0]"])
    assert (tokenizer.vocab["[unused0]"], tokenizer.vocab["[URL]"], len(tokenizer.vocab)) == (1, 2, 20)
    assert tokenizer.tokenize("[unused0] [URL]") == ["[unused0]", "[URL]"]


def test_more_own_tokens_than_unused_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \[unusedN\] left for #c and those after it"):
        own_tokenizer(tmp_path, ["#a", "#b", "see", "#c", "#d"])


@pytest.mark.parametrize("content, words", [("[URL]\n\n@user x\n", "own.txt:3: '@user x' is no single token"),
                                            ("a\nb\na\n", "own.txt:3: 'a' is there twice")])
def test_a_wrong_line_of_own_tokens_is_named(tmp_path, content, words):
    (tmp_path / "own.txt").write_text(content)
    with pytest.raises(UserError, match=words):
        read_never_split(str(tmp_path / "own.txt"))
