"""Pre-training records equal google-research/bert's with the same seed, and are what the docstring says they are."""
import array
import collections
import dataclasses
import errno
import hashlib
import os
import random
import resource
import shlex
import subprocess
import sys

import numpy as np
import pytest

import create_pretraining_data
from common.command_line import UserError
from common.compiled import cache_folder
from common.configuration import BertConfig
from common.files import whole_file
from conftest import ROOT
from plain_instances import plain_records
from pretraining import instances
from pretraining.examples import write_instances
from pretraining.instances import Recipe, read_corpus, training_instances, truncated
from pretraining.twister import below, shuffle, twister, uniform
from tokenization import FullTokenizer

sys.path.append(str(ROOT / "scripts"))
from flags_table import parser_of  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Pieces p0..p39 begin words, ##q0..##q39 continue them; a word is written p3q7q1.
VOCAB = SPECIAL + [f"p{n}" for n in range(40)] + [f"##q{n}" for n in range(40)] + ["."]


def write_corpus(path, num_documents=40, seed=7):
    """A corpus of random words of one to three pieces; 1 to 9 sentences a document."""
    rng, lines = random.Random(seed), []
    for _ in range(num_documents):
        for _ in range(rng.randint(1, 9)):
            words = ("p%d" % rng.randrange(40) + "".join("q%d" % rng.randrange(40) for _ in range(rng.randint(0, 2)))
                     for _ in range(rng.randint(1, 14)))
            lines.append(" ".join(words) + ".")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(token + "\n" for token in VOCAB), encoding="utf-8")
    return FullTokenizer(str(path))


@pytest.fixture
def corpus(tmp_path, tokenizer):
    return read_corpus([write_corpus(tmp_path / "corpus.txt")], tokenizer)


def digest(records):
    """The digest of ../shared/goldens/tfrecord/digest.py, of dicts of lists; on a little-endian machine."""
    sha = hashlib.sha256()
    for record in records:
        for name, values in sorted(record.items()):
            sha.update(name.encode("ascii") + b"\0")
            sha.update(array.array("f" if name == "masked_lm_weights" else "q", values))
    return sha.hexdigest()


def records(corpus, tokenizer, recipe, dupe_factor, seed=12345):
    parts = training_instances(corpus, tokenizer, recipe, dupe_factor, random.Random(seed))
    return [part.features(index) for part in parts for index in range(len(part))]


@pytest.mark.parametrize("do_lower_case, recipe, dupe_factor, files", (
    (True, Recipe(), 5, [(60042, "e45ba3362db85fcac3aa1181f1acace30e1f0c3116be8079658e5e066adebe98")]),
    (True, Recipe(do_whole_word_mask=True), 5,
     [(59815, "e4dd40463fb30e797b5890313d532e633976ce33e79e91c7d605dbd74fca2acc")]),
    (False, Recipe(), 5, [(59725, "c9d75d980f8de586bce83dbd399b8b3c626ab00b48bcd2aadae643183f541d2c")]),
    (True, Recipe(max_seq_length=512, max_predictions_per_seq=77), 1,
     [(11894, "4dc31dd8ca158f2d4e3eb14d14653e37515e29cca7e4bfbe22b20d47cfaeb007")]),
    (True, Recipe(), 1, [(3998, "170a52af53cdf6d4938b6fb8b1e1b1581c5abdb71a23b3ebf39498c77e50eb64"),
                         (3997, "ecfd2e0980cb58dcfd66c0b9697f19554fcee4cfd038ccafadff91a878accd44"),
                         (3997, "f53887066ce56aa3153763783c8ed34f47c97b05316898d688bb6536606d8fd3")]),
))
def test_records_are_googles(shared, do_lower_case, recipe, dupe_factor, files):
    """Every feature of every record, in order, of the settings in goldens/README.md (random_seed 12345)."""
    tokenizer = FullTokenizer(str(shared / "data" / "vocab" / "bert-base-uncased.vocab.txt"), do_lower_case)
    corpus = read_corpus([str(shared / "goldens" / "agnews_corpus_test.txt")], tokenizer)
    made, = training_instances(corpus, tokenizer, recipe, dupe_factor, random.Random(12345))
    for number, expected in enumerate(files):
        mine = range(number, len(made), len(files))
        assert (len(mine), digest(map(made.features, mine))) == expected


@pytest.mark.parametrize("recipe, expected", (
    (Recipe(32, 5), "8b31a92e69d05b7b"),
    (Recipe(32, 5, do_whole_word_mask=True), "0479c0eb94da6b64"),
    (Recipe(64, 40, masked_lm_prob=0.5, short_seq_prob=0.7), "5b23cfe1887019ec"),
))
def test_records_stay_as_they_were_when_the_goldens_agreed(corpus, tokenizer, recipe, expected):
    assert digest(records(corpus, tokenizer, recipe, dupe_factor=2))[:16] == expected


def unmasked(record):
    """The ids without padding as they were before masking."""
    ids = record["input_ids"][:sum(record["input_mask"])]
    for position, label, weight in zip(*(record[f"masked_lm_{name}"] for name in ("positions", "ids", "weights"))):
        if weight:
            ids[position] = label
    return ids


def occurs(span, ids):
    """Whether the array `span` occurs somewhere in the array `ids`."""
    return (np.lib.stride_tricks.sliding_window_view(ids, len(span)) == span).all(axis=1).any()


@pytest.mark.parametrize("do_whole_word_mask", (False, True))
@pytest.mark.parametrize("max_seq_length", (5, 24, 200))
def test_input_rebuilt_from_output_and_labels_is_two_spans_of_the_corpus(corpus, tokenizer, max_seq_length,
                                                                         do_whole_word_mask):
    recipe = Recipe(max_seq_length, 7, 0.2, 0.3, do_whole_word_mask)
    followers = 0
    for record in records(corpus, tokenizer, recipe, dupe_factor=2):
        ids = unmasked(record)
        first = record["segment_ids"].index(1)
        assert {len(record[name]) for name in ("input_ids", "input_mask", "segment_ids")} == {max_seq_length}
        assert record["segment_ids"] == [0] * first + [1] * (len(ids) - first) + [0] * (max_seq_length - len(ids))
        assert ids[0] == tokenizer.cls_id and ids[first - 1] == ids[-1] == tokenizer.sep_id
        assert record["input_ids"][len(ids):] == [0] * (max_seq_length - len(ids))
        a, b = np.array(ids[1:first - 1], np.int32), np.array(ids[first:-1], np.int32)
        assert len(a) and len(b)
        assert occurs(a, corpus.ids) and occurs(b, corpus.ids)
        weights = record["masked_lm_weights"]
        count = int(sum(weights))
        assert weights == [1.0] * count + [0.0] * (7 - count)
        limit = min(7, max(1, round(len(ids) * 0.2)))
        assert count <= limit and (do_whole_word_mask or count == limit)
        positions = record["masked_lm_positions"]
        assert positions[:count] == sorted(set(positions[:count])) and not any(positions[count:])
        assert not {0, first - 1, len(ids) - 1} & set(positions[:count])
        assert not any(record["masked_lm_ids"][count:])
        if record["next_sentence_labels"] == [0] and max_seq_length == 200:
            assert occurs(np.concatenate((a, b)), corpus.ids)
            followers += 1
    assert followers or max_seq_length < 200


def test_eighty_ten_ten(corpus, tokenizer):
    """Of the predicted tokens 80% are [MASK]; 10% a random word of the vocabulary; 10%, and 1/86 of those, kept."""
    became = collections.Counter()
    words = collections.Counter()
    for record in records(corpus, tokenizer, Recipe(128, 20), dupe_factor=60):
        for position, label, weight in zip(record["masked_lm_positions"], record["masked_lm_ids"],
                                           record["masked_lm_weights"]):
            if weight:
                shown = record["input_ids"][position]
                became["mask" if shown == tokenizer.mask_id else "kept" if shown == label else "random"] += 1
                if shown not in (tokenizer.mask_id, label):
                    words[shown] += 1
    total = became.total()
    assert total > 40000
    by_chance = 0.1 / len(VOCAB)
    for kind, share in (("mask", 0.8 + by_chance), ("kept", 0.1 + by_chance), ("random", 0.1 - 2 * by_chance)):
        assert abs(became[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5, (kind, became)
    assert set(words) == set(range(len(VOCAB))) - {tokenizer.mask_id}
    assert max(words.values()) < 2 * total * 0.1 / len(VOCAB)


def test_whole_word_masks_never_split_a_word(corpus, tokenizer):
    """A word that a truncated segment cuts is one with what stands before it, as in Google's script."""
    pieces = 0
    for record in records(corpus, tokenizer, Recipe(40, 8, do_whole_word_mask=True), dupe_factor=3):
        ids = unmasked(record)
        masked = set(record["masked_lm_positions"][:int(sum(record["masked_lm_weights"]))])
        special = {0, len(ids) - 1, record["segment_ids"].index(1) - 1}
        previous = None
        for position in range(len(ids)):
            if position in special:
                continue
            if previous is not None and tokenizer.inv_vocab[ids[position]].startswith("##"):
                assert (position in masked) == (previous in masked)
                pieces += position in masked
            previous = position
    assert pieces > 100


def test_random_next_sentences_come_from_another_document(tmp_path, tokenizer):
    """Each document has words of its own, so the document of a token shows."""
    path = tmp_path / "own_words.txt"
    path.write_text("\n\n".join("\n".join([f"p{n} p{n} p{n}."] * 3) for n in range(30)))
    corpus = read_corpus([str(path)], tokenizer)
    labels = collections.Counter()
    for record in records(corpus, tokenizer, Recipe(32, 3), dupe_factor=20):
        ids, first = unmasked(record), record["segment_ids"].index(1)
        same_document = ids[1] == ids[first]
        label, = record["next_sentence_labels"]
        assert label == (not same_document)
        labels[label] += 1
    assert labels[0] > 100 and 0.4 < labels[1] / labels.total() < 0.8


def packed_plainly(documents, target):
    """The texts of the masked LM alone, by lists: sentences are gathered while they fit, what is longer than a text is cut."""
    texts = []
    for sentences in documents:
        text, waiting = [], [list(sentence) for sentence in sentences]
        while waiting:
            if len(text) + len(waiting[0]) <= target:
                text += waiting.pop(0)
            elif text:
                texts.append(text)
                text = []
            else:
                texts.append(waiting[0][:target])
                waiting[0] = waiting[0][target:]
        texts.append(text)
    return texts


def documents_of(corpus):
    sentences = [corpus.ids[start:end].tolist() for start, end in zip(corpus.sentence_offsets, corpus.sentence_offsets[1:])]
    return [sentences[start:end] for start, end in zip(corpus.document_offsets, corpus.document_offsets[1:])]


@pytest.mark.parametrize("max_seq_length", (5, 14, 40, 400))
@pytest.mark.parametrize("do_whole_word_mask", (False, True))
def test_without_next_sentences_the_texts_are_those_of_a_plain_reference(corpus, tokenizer, max_seq_length, do_whole_word_mask):
    """Each token of each document once for each dupe_factor, and six features."""
    recipe = Recipe(max_seq_length, 7, 0.2, 0.0, do_whole_word_mask, next_sentence=False)
    texts, masked = [], 0
    for record in records(corpus, tokenizer, recipe, dupe_factor=2):
        ids = unmasked(record)
        assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
        assert "next_sentence_labels" not in record and len(record) == 6 and not any(record["segment_ids"])
        assert record["input_mask"] == [1] * len(ids) + [0] * (max_seq_length - len(ids))
        count = int(sum(record["masked_lm_weights"]))
        limit = min(7, max(1, round(len(ids) * 0.2)))
        assert count <= limit and (do_whole_word_mask or count == limit)
        assert not {0, len(ids) - 1} & set(record["masked_lm_positions"][:count])
        texts.append(ids[1:-1])
        masked += count
    assert sorted(texts) == sorted(2 * packed_plainly(documents_of(corpus), max_seq_length - 2)) and masked


def test_without_next_sentences_some_documents_have_shorter_texts(corpus, tokenizer):
    lengths = {short: [sum(record["input_mask"]) for record in records(
        corpus, tokenizer, Recipe(60, 7, short_seq_prob=short, next_sentence=False), 3)] for short in (0.0, 1.0)}
    assert sum(lengths[0.0]) - 2 * len(lengths[0.0]) == sum(lengths[1.0]) - 2 * len(lengths[1.0]) == 3 * len(corpus.ids)
    assert len(lengths[1.0]) > 1.3 * len(lengths[0.0])


@pytest.mark.parametrize("documents, says", [
    (["p1 p2."] * 9 + ["p1.\np2."], "90.0% of the documents"), (["p1 p2."] * 30, "100.0%"),
    (["p1 p2."] * 8 + ["p1.\np2."] * 2, None)])
def test_documents_of_one_sentence_are_said_to_teach_nothing(tmp_path, tokenizer, monkeypatch, capsys, documents, says):
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    flags = [f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt",
             f"--output_file={tmp_path}/a.tfrecord"]
    call(monkeypatch, *flags)
    printed = capsys.readouterr().out
    assert ("--next_sentence=False" in printed) == bool(says) and (says or "") in printed
    call(monkeypatch, *flags, "--next_sentence=False")
    printed = capsys.readouterr().out
    assert "note:" not in printed and "random next sentence" not in printed
    assert printed.rstrip().endswith("--next_sentence=False")  # in the next command


def test_one_document_is_enough_for_the_masked_lm(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "corpus.txt").write_text("p1 p2\np3\n")
    call(monkeypatch, f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt", "--next_sentence=False",
         f"--output_file={tmp_path}/a.tfrecord", "--dupe_factor=3", "--short_seq_prob=0")
    assert [sum(record["input_mask"]) for record in read_back(tmp_path / "a.tfrecord")] == [5, 5, 5]


def test_the_seed_decides_everything(corpus, tokenizer):
    first, again, other = (records(corpus, tokenizer, Recipe(32, 5), 2, seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert records(corpus, tokenizer, Recipe(32, 5), 1, 1) != first[:len(first) // 2]


def test_truncation_shortens_the_longer_span_until_both_fit():
    rng, starts = random.Random(3), set()
    state = twister(rng)
    for _ in range(300):
        a_limit, b_limit, limit = rng.randint(1, 30), 100 + rng.randint(1, 30), rng.randint(2, 40)
        a, a_end, b, b_end = truncated(0, a_limit, 100, b_limit, limit, state)
        lengths = a_end - a, b_end - b
        assert 0 <= a < a_end <= a_limit and 100 <= b < b_end <= b_limit
        assert sum(lengths) == min(limit, a_limit + b_limit - 100)
        assert abs(lengths[0] - lengths[1]) <= 1 or min(lengths) == min(a_limit, b_limit - 100)
        starts.add(a)
    assert len(starts) > 3, "truncation takes from both ends"


def test_compiled_random_numbers_are_those_of_python():
    """Beyond several renewals of the state, and with all sizes of numbers."""
    rng = random.Random(5)
    state = twister(rng)
    for number in range(2000):
        limit = 1 << number % 32
        assert rng.random() == uniform(state)
        assert [rng.randint(0, n - 1) for n in (limit, limit + 1)] == [below(limit, state), below(limit + 1, state)]
        if number % 50 == 0:
            plain, fast = list(range(number)), np.arange(number)
            rng.shuffle(plain)
            shuffle(fast, state)
            assert plain == fast.tolist()
    assert rng.getstate()[1] == tuple(state.tolist())


def test_a_change_of_any_compiled_function_is_compiled(tmp_path):
    """Also where the file of its callers stays as it was."""
    for name in ("callee", "caller", "other"):
        (tmp_path / f"{name}.py").write_text("@compiled\n" if name != "other" else "x = 1\n")
    before = cache_folder(str(tmp_path), [""])
    (tmp_path / "other.py").write_text("x = 2\n")
    assert cache_folder(str(tmp_path), [""]) == before
    (tmp_path / "callee.py").write_text("@compiled\ndef more(): pass\n")
    assert cache_folder(str(tmp_path), [""]) != before


TWINS = [Recipe(max_seq_length, max_predictions, 0.15, short_seq_prob, do_whole_word_mask, next_sentence)
         for max_seq_length, max_predictions, short_seq_prob in ((5, 1, 0.5), (24, 4, 0), (128, 20, 0.1), (300, 77, 1))
         for do_whole_word_mask in (False, True) for next_sentence in (True, False)]


@pytest.mark.parametrize("recipe", TWINS, ids=str)
def test_compiled_functions_make_what_plain_python_makes(tmp_path, tokenizer, recipe, monkeypatch):
    """With several dupes and own tokens; in one part, and in parts of a few instances each, which are made anew."""
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in [*VOCAB, "[unused0]"]))
    tokenizer = FullTokenizer(str(tmp_path / "vocab.txt"), never_split=["p3q7"])
    corpus = read_corpus([write_corpus(tmp_path / "corpus.txt")], tokenizer)
    assert tokenizer.vocab["p3q7"] in corpus.ids
    expected = plain_records(corpus, tokenizer, recipe, 3, random.Random(9))
    assert records(corpus, tokenizer, recipe, 3, seed=9) == expected
    monkeypatch.setattr(instances, "STORE_BYTES", 8000)
    parts = training_instances(corpus, tokenizer, recipe, 3, random.Random(9))
    made = [[part.features(index) for index in range(len(part))] for part in parts]
    assert len(made) > 1 and sum(made, []) == expected


def test_a_large_corpus_is_not_made_in_ever_more_parts(tmp_path, tokenizer, monkeypatch):
    """As each part makes all instances again: of twice the corpus, as many parts."""
    monkeypatch.setattr(instances, "STORE_BYTES", 1)
    corpora = [read_corpus([write_corpus(tmp_path / "corpus.txt", num_documents=number)], tokenizer) for number in (200, 400)]
    parts = [len(list(training_instances(corpus, tokenizer, Recipe(24, 4), 2, random.Random(0)))) for corpus in corpora]
    assert parts[0] > 1 and abs(parts[1] - parts[0]) <= 1


def test_files_have_their_names_only_when_all_are_on_the_disk(tmp_path, tokenizer, corpus, monkeypatch):
    paths, synced = [tmp_path / "1", tmp_path / "2"], []

    def fsync(descriptor):
        synced.append([path.read_bytes() if path.exists() else None for path in paths])
        if len(synced) == 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    for path in paths:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) as error:
        write_instances(training_instances(corpus, tokenizer, Recipe(), 1, random.Random(2)), Recipe(), list(map(str, paths)))
    assert error.value.filename == str(paths[1]) and [path.read_bytes() for path in paths] == [b"old", b"old"]


def test_a_large_vocabulary_takes_ids_of_32_bits(tmp_path):
    fill = [f"[unused{number}]" for number in range(70_000)]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in SPECIAL + fill + VOCAB[len(SPECIAL):]))
    tokenizer = FullTokenizer(str(tmp_path / "vocab.txt"))
    corpus = read_corpus([write_corpus(tmp_path / "corpus.txt", num_documents=9)], tokenizer)
    assert corpus.ids.dtype == np.int32 and corpus.ids.min() > 70_000
    assert records(corpus, tokenizer, Recipe(), 2) == plain_records(corpus, tokenizer, Recipe(), 2, random.Random(12345))


def serialized(record):
    """A record as the bytes of TensorFlow's tf.train.Example."""
    import tensorflow as tf

    features = {name: tf.train.Feature(float_list=tf.train.FloatList(value=values)) if name == "masked_lm_weights" else
                tf.train.Feature(int64_list=tf.train.Int64List(value=values)) for name, values in record.items()}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


@pytest.mark.parametrize("recipe, store_bytes, num_files", [
    (Recipe(), 1 << 20, 1), (Recipe(300, 77), 1 << 20, 2), (Recipe(24, 4), 8000, 3),
    (Recipe(40, 50, next_sentence=False), 8000, 3)])
def test_files_are_tensorflow_s_byte_by_byte(tmp_path, tokenizer, corpus, monkeypatch, recipe, store_bytes, num_files):
    """With one part and several, and files in turn; positions above 127 take two bytes."""
    import tensorflow as tf

    monkeypatch.setattr(instances, "STORE_BYTES", store_bytes)
    paths = [str(tmp_path / f"{number}.tfrecord") for number in range(num_files)]
    write_instances(training_instances(corpus, tokenizer, recipe, 4, random.Random(2)), recipe, paths)
    expected = plain_records(corpus, tokenizer, recipe, 4, random.Random(2))
    for number, path in enumerate(paths):
        with tf.io.TFRecordWriter(path + ".expected") as writer:
            for record in expected[number::num_files]:
                writer.write(serialized(record))
        assert (tmp_path / path).read_bytes() == (tmp_path / f"{path}.expected").read_bytes()


def test_corpus_is_read_as_google_reads_it(tmp_path, tokenizer):
    """Blank lines end a document, also of white space only; a document may go on in the next file; lines without a
    token are left out; \\r\\n and U+0085 do not end a sentence."""
    (tmp_path / "1.txt").write_bytes("p1 p2\r\n\n\n \u200b \np3\x85p4\n\u3000\n\u200b\n\np5".encode())
    (tmp_path / "2.txt").write_bytes(b"p6\n\n  p7  \n")
    corpus = read_corpus([str(tmp_path / name) for name in ("1.txt", "2.txt")], tokenizer)
    sentences = [tokenizer.convert_ids_to_tokens(corpus.ids[start:end])
                 for start, end in zip(corpus.sentence_offsets, corpus.sentence_offsets[1:])]
    documents = [sentences[start:end] for start, end in zip(corpus.document_offsets, corpus.document_offsets[1:])]
    assert documents == [[["p1", "p2"]], [["[UNK]"]], [["p5"], ["p6"]], [["p7"]]]
    assert (corpus.num_documents, corpus.num_sentences, corpus.ids.dtype) == (4, 5, np.uint16)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["create_pretraining_data.py", *map(str, arguments)])
    create_pretraining_data.main()


def read_back(path):
    """The records of a TFRecord file as dicts of lists."""
    import tensorflow as tf

    examples = map(tf.train.Example.FromString, tf.data.TFRecordDataset([str(path)]).as_numpy_iterator())
    return [{name: list(getattr(feature, "float_list" if name == "masked_lm_weights" else "int64_list").value)
             for name, feature in example.features.feature.items()} for example in examples]


def test_files_hold_the_records_in_turn(tmp_path, tokenizer, corpus, monkeypatch, capsys):
    """The seed's command, with a glob, three files in folders that do not exist, and both spellings of booleans."""
    arguments = [f"--input_file={tmp_path}/corp*.txt", f"--vocab_file={tmp_path}/vocab.txt", "--do_lower_case=True",
                 "--max_seq_length=32", "--max_predictions_per_seq=5", "--masked_lm_prob=0.15", "--random_seed=12345",
                 "--dupe_factor=2"]
    expected = records(corpus, tokenizer, Recipe(32, 5), 2)
    paths = [tmp_path / "new" / "folder" / f"{n}.tfrecord" for n in range(3)]
    call(monkeypatch, *arguments, f"--output_file={','.join(map(str, paths))}")
    printed = capsys.readouterr().out
    for number, path in enumerate(paths):
        read = read_back(path)
        assert read == expected[number::3]
        assert f"wrote {path}: {len(read)} records" in printed
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["0.tfrecord", "1.tfrecord", "2.tfrecord"]
    assert printed.count("*** Example ***") == 3 and "next: python run_pretraining.py" in printed
    assert f"{corpus.num_documents} documents, {corpus.num_sentences} sentences, {len(corpus.ids)} tokens" in printed
    padding = 1 - sum(sum(record["input_mask"]) for record in expected) / (32 * len(expected))
    assert f"{padding:.1%} of the 32 positions are padding" in printed

    call(monkeypatch, *arguments, "--do_whole_word_mask", f"--output_file={tmp_path}/words.tfrecord")
    call(monkeypatch, *arguments, "--do_whole_word_mask=True", f"--output_file={tmp_path}/words2.tfrecord")
    words = (tmp_path / "words.tfrecord").read_bytes()
    assert words == (tmp_path / "words2.tfrecord").read_bytes() != paths[0].read_bytes()


OBSERVED = {  # flag -> the test that fails where it does nothing; tests/mutate_flags.py tries that
    "never_split": "test_own_tokens_are_not_split_in_records",
    **dict.fromkeys(("input_file", "output_file"), "test_files_hold_the_records_in_turn"),
    **dict.fromkeys(("vocab_file", "do_lower_case", "max_seq_length", "max_predictions_per_seq", "masked_lm_prob",
                     "short_seq_prob", "do_whole_word_mask", "dupe_factor", "random_seed", "next_sentence"),
                    "test_each_flag_changes_the_records_as_the_library_s_argument_does")}


@pytest.mark.parametrize("flags, recipe, dupe_factor, seed", [
    ([], {}, 10, 12345), (["--max_seq_length=24"], {"max_seq_length": 24}, 10, 12345),
    (["--max_predictions_per_seq=2"], {"max_predictions_per_seq": 2}, 10, 12345),
    (["--masked_lm_prob=0.4"], {"masked_lm_prob": 0.4}, 10, 12345),
    (["--short_seq_prob=0.9"], {"short_seq_prob": 0.9}, 10, 12345),
    (["--do_whole_word_mask"], {"do_whole_word_mask": True}, 10, 12345), (["--dupe_factor=1"], {}, 1, 12345),
    (["--next_sentence=False"], {"next_sentence": False}, 10, 12345),
    (["--random_seed=6"], {}, 10, 6), (["--do_lower_case=False"], {}, 10, 12345)], ids=str)
def test_each_flag_changes_the_records_as_the_library_s_argument_does(tmp_path, tokenizer, monkeypatch, flags, recipe,
                                                                      dupe_factor, seed):
    path = tmp_path / "corpus.txt"
    write_corpus(path, num_documents=8)
    path.write_text(path.read_text().replace("p3", "P3"))  # what is not lower-cased is [UNK]
    cased = FullTokenizer(str(tmp_path / "vocab.txt"), do_lower_case="--do_lower_case=False" not in flags)
    expected = records(read_corpus([str(path)], cased), cased, Recipe(**recipe), dupe_factor, seed)
    common = [f"--input_file={path}", f"--vocab_file={tmp_path}/vocab.txt"]
    call(monkeypatch, *common, f"--output_file={tmp_path}/plain.tfrecord")
    call(monkeypatch, *common, f"--output_file={tmp_path}/changed.tfrecord", *flags)
    found = read_back(tmp_path / "changed.tfrecord")
    assert found == expected and (found != read_back(tmp_path / "plain.tfrecord")) == bool(flags)


def test_own_tokens_are_not_split_in_records(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in [*VOCAB, "[unused0]"]))
    (tmp_path / "own.txt").write_text("[URL]\n")
    (tmp_path / "corpus.txt").write_text("p1 [url] p2\n\np3[URL]\n")
    flags = [f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt", "--next_sentence=False",
             f"--output_file={tmp_path}/a.tfrecord", "--dupe_factor=1", "--short_seq_prob=0"]
    call(monkeypatch, *flags, f"--never_split={tmp_path}/own.txt")
    pieces = [tokenizer.vocab[token] for token in ("[CLS]", "p1", "p2", "p3", "[SEP]")]
    cls, one, two, three, sep = pieces
    assert sorted(map(unmasked, read_back(tmp_path / "a.tfrecord"))) == [[cls, one, len(VOCAB), two, sep],
                                                                         [cls, three, len(VOCAB), sep]]


def test_every_flag_is_observed():
    parser = parser_of("create_pretraining_data")
    assert {action.dest for action in parser._actions} - {"help"} == OBSERVED.keys()
    assert all(test in globals() for test in OBSERVED.values())


WITHOUT_TENSORFLOW = """
import sys, create_pretraining_data
create_pretraining_data.main()
print("tensorflow" in sys.modules)
"""


def test_tensorflow_is_not_loaded(tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("p1 p2\n\np3\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, f"--input_file={tmp_path}/corpus.txt",
                           f"--vocab_file={tmp_path}/vocab.txt", f"--output_file={tmp_path}/a.tfrecord"],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_the_next_command_is_quoted_and_a_tilde_is_the_home_folder(tmp_path, tokenizer, monkeypatch, capsys):
    home = tmp_path / "My Drive"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_corpus(home / "corpus.txt", num_documents=3)
    (home / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes())
    call(monkeypatch, "--input_file=~/corpus.txt", "--vocab_file=~/vocab.txt",
         "--output_file=~/a.tfrecord,~/b.tfrecord")
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert words[:3] == ["python", "run_pretraining.py", f"--input_file={home}/a.tfrecord,{home}/b.tfrecord"]
    assert sorted(path.name for path in home.iterdir()) == ["a.tfrecord", "b.tfrecord", "corpus.txt", "vocab.txt"]
    assert {f"--bert_config_file={home}/bert_config.json", f"--init_checkpoint={home}/bert_model.ckpt"} <= set(words)
    (home / "config.json").write_text('{"vocab_size": 30522}')  # a folder of transformers
    (home / "model.safetensors").touch()
    call(monkeypatch, "--input_file=~/corpus.txt", "--vocab_file=~/vocab.txt", "--output_file=~/a.tfrecord,~/b.tfrecord")
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert {f"--bert_config_file={home}/config.json", f"--init_checkpoint={home}"} <= set(words)


def test_the_next_command_after_a_run_s_vocabulary_starts_with_its_last_checkpoint(tmp_path, tokenizer, monkeypatch, capsys):
    write_corpus(tmp_path / "corpus.txt", num_documents=3)
    for step in (900, 1000):
        (tmp_path / f"model.ckpt-{step}.index").touch()
    call(monkeypatch, f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt",
         f"--output_file={tmp_path}/a.tfrecord")
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert f"--init_checkpoint={tmp_path}/model.ckpt-1000" in words


def test_the_next_command_after_a_vocabulary_of_this_folder_names_a_folder_in_it(tmp_path, tokenizer, monkeypatch, capsys):
    write_corpus(tmp_path / "corpus.txt", num_documents=3)
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "--input_file=corpus.txt", "--vocab_file=vocab.txt", "--output_file=a.tfrecord")
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert {"--output_dir=./bert_pretrain", "--init_checkpoint=./bert_model.ckpt"} <= set(words)


def test_two_commands_do_not_write_one_file(tmp_path, tokenizer, monkeypatch):
    write_corpus(tmp_path / "corpus.txt", num_documents=3)
    flags = [f"--input_file={tmp_path}/corpus.txt", f"--vocab_file={tmp_path}/vocab.txt",
             f"--output_file={tmp_path}/a.tfrecord,{tmp_path}/b.tfrecord"]
    with whole_file(str(tmp_path / "b.tfrecord")):
        with pytest.raises(UserError, match="b.tfrecord is being written by another command"):
            call(monkeypatch, *flags)
        (tmp_path / ".b.tfrecord.tmp").write_text("half")  # what a kill leaves
    call(monkeypatch, *flags)
    assert sorted(path.name for path in tmp_path.glob("*tfrecord*")) == ["a.tfrecord", "b.tfrecord"]


GOOD = "p1 p2.\np3.\n\np4.\n"


@pytest.mark.parametrize("content, flags, words", (
    (None, (), "there is no file"),
    (b"", (), "is empty"),
    (b"\n\n \n", (), "no text in it"),
    (GOOD.encode() + b"p1 \xe9\n", (), "corpus.txt:5: byte 4 is not UTF-8"),
    (b"p1\n\n\x00\x01\n", (), "corpus.txt:3: a zero byte"),
    (b"p1 p2\np3\n", (), "one document only"),
    (GOOD.encode(), ("--max_seq_length=4",), "4 is not at least 5"),
    (GOOD.encode(), ("--max_predictions_per_seq=0",), "0 is not at least 1"),
    (GOOD.encode(), ("--masked_lm_prob=1.5",), "1.5 is not at most 1"),
    (GOOD.encode(), ("--masked_lm_prob=0",), "0 is not above 0"),
    (GOOD.encode(), ("--short_seq_prob=-0.1",), "-0.1 is not at least 0"),
    (GOOD.encode(), ("--dupe_factor=0",), "0 is not at least 1"),
    (GOOD.encode(), ("--do_lower_case=maybe",), "neither True nor False"),
    (GOOD.encode(), ("--vocab_file=corpus.txt",), "has no line [UNK]"),
    (GOOD.encode(), ("--input_file=corpus.txt,nothing*.txt",), "no file nothing*.txt"),
    (GOOD.encode(), ("--output_file=corpus.txt",), "is also an input file"),
    (GOOD.encode(), ("--output_file=a.tfrecord,a.tfrecord",), "twice"),
    (GOOD.encode(), ("--output_file=folder/",), "is a folder, a file name is needed"),
    (GOOD.encode(), ("--output_file=corpus.txt/a.tfrecord",), "corpus.txt is a file, a folder is needed"),
))
def test_bad_input_is_refused_in_one_line(tmp_path, tokenizer, monkeypatch, capsys, content, flags, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "corpus.txt").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((UserError, SystemExit)) as error:
        call(monkeypatch, "--input_file=corpus.txt", "--vocab_file=vocab.txt", "--output_file=out.tfrecord", *flags)
    message = str(error.value) if error.type is UserError else capsys.readouterr().err
    assert words in message and "\n" not in message.strip()
    assert sorted(tmp_path.iterdir()) == before


def test_records_longer_than_the_model_beside_the_vocabulary_reads_are_refused(tmp_path, tokenizer, monkeypatch):
    write_corpus(tmp_path / "corpus.txt")
    BertConfig(vocab_size=100, max_position_embeddings=64).write(tmp_path / "bert_config.json")
    monkeypatch.chdir(tmp_path)
    flags = ("--input_file=corpus.txt", "--vocab_file=vocab.txt", "--output_file=out.tfrecord", "--dupe_factor=1")
    with pytest.raises(UserError, match="--max_seq_length 65 is over the model's 64 positions"):
        call(monkeypatch, *flags, "--max_seq_length=65")
    call(monkeypatch, *flags, "--max_seq_length=64")


def test_script_refuses_without_traceback(tmp_path, tokenizer, refused):
    (tmp_path / "corpus.txt").write_text("p1\n")
    refused("create_pretraining_data.py", "--input_file", "corpus.txt", "--vocab_file", "vocab.txt", "--output_file",
            "out.tfrecord", words="one document only", cwd=tmp_path)


def test_a_full_disk_leaves_no_file(tmp_path, tokenizer, monkeypatch):
    """A limit on the size of files stands for the disk."""
    write_corpus(tmp_path / "corpus.txt")
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="out/[ab].tfrecord cannot be written: File too large; mend that and run"):
            call(monkeypatch, "--input_file=corpus.txt", "--vocab_file=vocab.txt",
                 "--output_file=out/a.tfrecord,out/b.tfrecord")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []


def test_flags_and_recipe_have_the_same_defaults(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--input_file=a", "--vocab_file=b", "--output_file=c"])
    args = vars(create_pretraining_data.parse_arguments())
    assert {**args, **dataclasses.asdict(Recipe())} == args
    assert (args["random_seed"], args["dupe_factor"], args["do_lower_case"]) == (12345, 10, None)
