"""finetuning/data.py: truncation against its definition in words, and packed batches that hold exactly the right tokens."""
import numpy as np
import pytest
import torch

from common.command_line import UserError
from finetuning import data

CLS, SEP = 101, 102


class Words:
    """A tokenizer of texts that are lists of ids already."""
    cls_id, sep_id = CLS, SEP

    def encode_batch(self, texts):
        return np.array([i for ids in texts for i in ids], np.int32), np.cumsum([0] + [len(ids) for ids in texts])


def dataset_of(texts, *settings, labels=None):
    return data.make_dataset(Words(), texts, [0] * len(texts) if labels is None else labels, *settings)


def truncated_by_definition(ids, budget, trunc_medium):
    """The README's words: head-only, tail-only, half and half (the tail has the odd one), head k + tail the rest."""
    if len(ids) <= budget:
        return ids
    head = {-2: budget, -1: 0, 0: budget // 2}.get(trunc_medium, trunc_medium)
    kept = ids[:head]
    for position in range(len(ids) - (budget - head), len(ids)):
        kept = kept + [ids[position]]
    return kept


@pytest.mark.parametrize("max_seq_length", [5, 12, 13, 30])
@pytest.mark.parametrize("trunc_medium", [-2, -1, 0, 1, 3, "budget"])
def test_truncation_equals_its_definition(max_seq_length, trunc_medium):
    budget = max_seq_length - 2
    trunc_medium = budget if trunc_medium == "budget" else trunc_medium
    texts = [list(range(1, length + 1)) for length in (0, 1, budget - 1, budget, budget + 1, budget + 2, 3 * budget)]
    dataset = dataset_of(texts, max_seq_length, trunc_medium)
    assert dataset.offsets.tolist() == np.cumsum([0] + [min(len(text), budget) + 2 for text in texts]).tolist()
    assert dataset.num_cut == sum(len(text) > budget for text in texts)
    for text, start, end in zip(texts, dataset.offsets, dataset.offsets[1:]):
        assert dataset.ids[start:end].tolist() == [CLS, *truncated_by_definition(text, budget, trunc_medium), SEP]


def test_paper_settings_at_512():
    """Section 5.3.1: head 510; tail 510; 128 + 382; half and half of 510 is 255 + 255."""
    long = list(range(1000))
    for trunc_medium, expected in ((-2, long[:510]), (-1, long[-510:]), (128, long[:128] + long[-382:]),
                                   (0, long[:255] + long[-255:])):
        ids = dataset_of([long], 512, trunc_medium).ids
        assert ids[1:-1].tolist() == expected


@pytest.mark.parametrize("trunc_medium, words", [(11, "--trunc_medium 11 keeps more tokens than the 10 that fit"),
                                                 (-3, "--trunc_medium -3")])
def test_wrong_truncation_is_refused_even_where_every_text_is_short(trunc_medium, words):
    with pytest.raises(UserError, match=words):
        dataset_of([[1]], 12, trunc_medium)


def test_packed_batch_holds_the_sequences_in_the_order_asked_for():
    texts = [[7], [], [1, 2, 3, 4], [5, 6]]
    dataset = dataset_of(texts, 5, -1, labels=[3, 2, 1, 0])
    batch = dataset.batch(np.array([2, 0, 1]))
    assert batch.input_ids.tolist() == [CLS, 2, 3, 4, SEP, CLS, 7, SEP, CLS, SEP]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert batch.sequence_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert batch.segment_ids.tolist() == [0] * 10
    assert batch.cu_seqlens.tolist() == [0, 5, 8, 10]
    assert batch.lengths == [5, 3, 2]
    assert batch.labels.tolist() == [1, 3, 2]
    assert all(getattr(batch, name).dtype == torch.int64 for name in data.TENSORS)
    assert batch.longest == 5 and batch.cu_seqlens_int32.tolist() == [0, 5, 8, 10]


def test_segments_are_packed_too():
    batch = data.pack([np.array([1, 2]), np.array([3])], segments=[np.array([0, 1]), np.array([1])])
    assert batch.segment_ids.tolist() == [0, 1, 1]


@pytest.mark.parametrize("num_sequences", [1, 2, 3, 5, 6])
def test_parts_of_a_batch_are_the_batches_of_their_sequences(num_sequences):
    """Each sequence a document of its own, without labels. sequence_ids is read on a GPU alone."""
    sequences = [np.arange(length) for length in (3, 1, 4, 2, 5)]
    segments = [sequence % 2 for sequence in sequences]
    parts = list(data.pack(sequences, segments, [7, 8], [2, 3]).parts(num_sequences))
    assert len(parts) == -(-5 // num_sequences)
    for start, part in zip(range(0, 5, num_sequences), parts):
        expected = data.pack(sequences[start:start + num_sequences], segments[start:start + num_sequences], [])
        for name, value in vars(expected).items():
            found = getattr(part, name)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_every_token_is_in_exactly_one_batch_of_an_epoch():
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 100, generator.integers(0, 30)).tolist() for _ in range(50)]
    dataset = dataset_of(texts, 20, 5, labels=np.zeros(50))
    order = generator.permutation(50)
    seen = {}
    for start in range(0, 50, 8):
        indices = order[start:start + 8]
        batch = dataset.batch(indices)
        for index, sequence in zip(indices, batch.input_ids.split(batch.lengths)):
            seen[int(index)] = sequence.tolist()
    assert len(seen) == 50
    for index, text in enumerate(texts):
        assert seen[index] == [CLS, *truncated_by_definition(text, 18, 5), SEP]


def test_tokenize_keeps_texts_apart(tmp_path):
    from tokenization import FullTokenizer
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n")
    dataset = data.make_dataset(FullTokenizer(tmp_path / "vocab.txt", True), ["Hello worlds", "", "[SEP] hello"], [0] * 3, 20)
    assert [dataset.sequences(index)[0].tolist() for index in range(3)] == [[2, 5, 6, 7, 3], [2, 3], [2, 1, 1, 1, 5, 3]]


@pytest.mark.parametrize("max_fractions, kept", [(float("inf"), 23), (4, 20), (3, 15)])
@pytest.mark.parametrize("trunc_medium", [-2, -1, 3])
def test_fractions_hold_the_text_in_order(max_fractions, kept, trunc_medium):
    """Of 5 tokens at most; where the text is longer than all that are allowed, it is truncated first."""
    texts = [[], [9] * 5, list(range(1, 24)), [7] * 6]
    dataset = dataset_of(texts, 7, trunc_medium, max_fractions)
    ids, offsets, document_offsets = dataset.ids, dataset.offsets, dataset.document_offsets
    sequences = [ids[start:end].tolist() for start, end in zip(offsets, offsets[1:])]
    assert all(sequence[0] == CLS and sequence[-1] == SEP for sequence in sequences)
    contents = [sum((sequence[1:-1] for sequence in sequences[start:end]), [])
                for start, end in zip(document_offsets, document_offsets[1:])]
    assert contents == [[], [9] * 5, truncated_by_definition(texts[2], kept, trunc_medium) if kept < 23 else texts[2],
                        [7] * 6]
    assert np.diff(document_offsets).tolist() == [1, 1, -(-kept // 5), 2]
    assert all(len(sequence) == 7 for sequence in sequences[2:document_offsets[3] - 1])


def test_a_batch_of_fractions_and_a_subset_keep_documents_together():
    texts = [[1] * 3, [2] * 12, [], [4] * 6]
    dataset = dataset_of(texts, 7, -2, float("inf"), labels=[0, 1, 2, 3])
    assert dataset.lengths.tolist() == [5, 18, 2, 10]
    batch = dataset.batch(np.array([3, 1]))
    assert batch.fractions == [2, 3] and batch.lengths == [7, 3, 7, 7, 4] and batch.labels.tolist() == [3, 1]
    assert batch.input_ids.tolist() == [CLS, *[4] * 5, SEP, CLS, 4, SEP] + 2 * [CLS, *[2] * 5, SEP] + [CLS, 2, 2, SEP]
    assert batch.position_ids.tolist() == [*range(7), *range(3), *range(7), *range(7), *range(4)]
    part = dataset.subset(np.array([1, 3]))
    again = part.batch(np.array([1, 0]))
    assert torch.equal(again.input_ids, batch.input_ids) and again.fractions == batch.fractions


@pytest.mark.parametrize("num_sequences, expected", [(3, [[2, 0], [3], [1]]), (1, [[2], [0], [3], [1]]),
                                                     (100, [[2, 0, 3, 1]])])
def test_batches_by_length_hold_at_most_so_many_sequences_or_one_document(num_sequences, expected):
    texts = [[1] * 3, [2] * 32, [], [4] * 6]
    dataset = dataset_of(texts, 7, -2, float("inf"), labels=[0, 1, 2, 3])
    assert [batch.tolist() for batch in dataset.batches_by_length(num_sequences)] == expected


# Pairs of texts

def pairs_of(pairs, max_seq_length, labels=None):
    return data.make_pair_dataset(Words(), pairs, [0] * len(pairs) if labels is None else labels, max_seq_length)


def truncate_seq_pair(tokens_a, tokens_b, max_length):
    """google-research/bert, run_classifier.py, `_truncate_seq_pair`."""
    while len(tokens_a) + len(tokens_b) > max_length:
        if len(tokens_a) > len(tokens_b):
            tokens_a.pop()
        else:
            tokens_b.pop()


def pair_by_definition(a, b, max_seq_length):
    """Ids and segment ids, as in that file's `convert_single_example`."""
    a, b = list(a), list(b)
    if not b:
        a = a[:max_seq_length - 2]
        return [CLS, *a, SEP], [0] * (len(a) + 2)
    truncate_seq_pair(a, b, max_seq_length - 3)
    return [CLS, *a, SEP, *b, SEP], [0] * (len(a) + 2) + [1] * (len(b) + 1)


def random_pairs(max_seq_length, count):
    """Of every kind of length, none among them; no two tokens of a pair are the same."""
    for lengths in np.random.default_rng(max_seq_length).integers(0, 2 * max_seq_length, (count, 2)):
        yield list(range(1, lengths[0] + 1)), list(range(1001, lengths[1] + 1001))
    lengths = (0, 1, max_seq_length - 4, max_seq_length - 3, max_seq_length - 2, max_seq_length - 1, 3 * max_seq_length)
    yield from ((list(range(1, a + 1)), list(range(1001, b + 1001))) for a in lengths for b in lengths)


@pytest.mark.parametrize("max_seq_length", [5, 6, 12, 13, 30])
def test_pairs_are_cut_as_google_s_loop_cuts_them(max_seq_length):
    pairs = list(random_pairs(max_seq_length, 200))
    dataset = pairs_of(pairs, max_seq_length)
    expected = [pair_by_definition(a, b, max_seq_length) for a, b in pairs]
    assert [dataset.sequences(index)[0].tolist() for index in range(len(pairs))] == [ids for ids, _ in expected]
    assert [dataset.segments(index)[0].tolist() for index in range(len(pairs))] == [segments for _, segments in expected]
    assert dataset.num_cut == sum(len(a) + len(b) > max_seq_length - (3 if b else 2) for a, b in pairs) > 50
    assert dataset.lengths.tolist() == [len(ids) for ids, _ in expected]


def test_a_batch_of_pairs_has_their_segments_in_the_order_asked_for():
    dataset = pairs_of([([7], [8, 9]), ([1, 2], []), ([], [5]), ([3, 3, 3, 3], [4, 4, 4])], 7, labels=[3, 2, 1, 0])
    batch = dataset.batch(np.array([3, 1, 0, 2]))
    assert batch.input_ids.tolist() == [CLS, 3, 3, SEP, 4, 4, SEP, CLS, 1, 2, SEP, CLS, 7, SEP, 8, 9, SEP, CLS, SEP, 5, SEP]
    assert batch.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert batch.lengths == [7, 4, 6, 4] and batch.fractions == [1] * 4 and batch.labels.tolist() == [0, 2, 3, 1]
    assert all(getattr(batch, name).dtype == torch.int64 for name in data.TENSORS)
    assert batch.longest == 7 and batch.cu_seqlens_int32.tolist() == [0, 7, 11, 17, 21]
    again = dataset.subset(np.array([2, 3])).batch(np.array([1, 0]))
    assert again.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1] and again.labels.tolist() == [0, 1]


def test_the_digest_of_pairs_tells_where_the_second_text_begins():
    """[SEP] may be a token of a text, so equal ids can be two pairs; as single texts they are others still."""
    one, other = pairs_of([([1], [SEP, 2])], 12), pairs_of([([1, SEP], [2])], 12)
    single = dataset_of([[1, SEP, SEP, 2]], 12)
    assert one.ids.tolist() == other.ids.tolist() == single.ids.tolist() == [CLS, 1, SEP, SEP, 2, SEP]
    assert len({one.digest(), other.digest(), single.digest()}) == 3
    both = pairs_of([([9], [9]), ([1], [SEP, 2])], 12)
    assert both.subset(np.array([1])).digest() == one.digest() == pairs_of([([1], [SEP, 2])], 12).digest()


def test_single_texts_have_no_segments():
    dataset = dataset_of([[1], [2, 3]], 12)
    assert dataset.segments(0) is None and dataset.subset(np.array([1])).segments(0) is None


PAIRS = [("Who was hurt?", "Nobody, the police said."), ("Shares fell", "again in Tokyo on Friday"), ("Why?", "")]


def test_pairs_equal_transformers_tokenizer():
    transformers = pytest.importorskip("transformers")
    from conftest import ROOT
    from tokenization import FullTokenizer
    vocab = ROOT / "data" / "tiny_bert" / "vocab.txt"
    peer = transformers.BertTokenizer(str(vocab), do_lower_case=True)
    dataset = data.make_pair_dataset(FullTokenizer(vocab, True), PAIRS, [0] * 3, 64)
    for index, (first, second) in enumerate(PAIRS):
        expected = peer(first, second or None)
        assert dataset.sequences(index)[0].tolist() == expected["input_ids"]
        assert dataset.segments(index)[0].astype(int).tolist() == expected["token_type_ids"]
