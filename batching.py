"""Texts -> WordPiece ids -> truncated sequences -> packed batches.

Text is tokenised once, into one flat array of ids with offsets; truncation is slicing; a batch is the real tokens of
its sequences in one row, without padding.
"""
import dataclasses

import numpy as np
import torch

from command_line import UserError


@dataclasses.dataclass
class TokenizedTexts:
    """WordPiece ids of N texts, without [CLS] and [SEP]: `ids` int32 [sum of lengths], `offsets` int64 [N + 1]."""
    ids: np.ndarray
    offsets: np.ndarray
    cls_id: int
    sep_id: int

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, index):
        return self.ids[self.offsets[index]:self.offsets[index + 1]]


def tokenize(tokenizer, texts):
    """Runs a tokenization.FullTokenizer over a list of texts, in batches and threads."""
    return TokenizedTexts(*tokenizer.encode_batch(texts), tokenizer.cls_id, tokenizer.sep_id)


def head_and_tail(budget, trunc_medium):
    """How many tokens of a text that is too long are kept from its start and from its end (paper, section 5.3.1).

    budget: tokens of text that fit, max_seq_length - 2. trunc_medium: -2 the head only, -1 the tail only, 0 half and
    half (the tail gets the odd one), k > 0 the first k and the last budget - k.
    """
    if trunc_medium > budget:
        raise UserError(f"--trunc_medium {trunc_medium} keeps more tokens than the {budget} that fit; "
                        f"use at most {budget} or a longer --max_seq_length")
    if trunc_medium < -2:
        raise UserError(f"--trunc_medium {trunc_medium}: use -2 (head), -1 (tail), 0 (half and half) or a number of tokens")
    head = {-2: budget, -1: 0, 0: budget // 2}.get(trunc_medium, trunc_medium)
    return head, budget - head


def truncate(ids, max_seq_length, trunc_medium):
    """The ids of one text as they are, or those of its head and tail where it is over max_seq_length - 2."""
    budget = max_seq_length - 2
    if len(ids) <= budget:
        return ids
    head, tail = head_and_tail(budget, trunc_medium)
    return np.concatenate([ids[:head], ids[len(ids) - tail:]])


def make_sequences(tokenized, max_seq_length, trunc_medium):
    """The model's input of every text, `[CLS] text [SEP]`: (ids int32, offsets int64 [N + 1]) as one flat array."""
    head_and_tail(max_seq_length - 2, trunc_medium)  # a wrong value is refused even where every text fits
    lengths = np.minimum(np.diff(tokenized.offsets), max_seq_length - 2) + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.empty(offsets[-1], np.int32)
    ids[offsets[:-1]] = tokenized.cls_id
    ids[offsets[1:] - 1] = tokenized.sep_id
    for index in range(len(tokenized)):
        ids[offsets[index] + 1:offsets[index + 1] - 1] = truncate(tokenized[index], max_seq_length, trunc_medium)
    return ids, offsets


class Dataset:
    """N sequences and their labels, ready to be packed.

    ids int32 [sum of lengths], offsets int64 [N + 1], labels int64 [N] (zeros where there are none).
    """

    def __init__(self, ids, offsets, labels):
        self.ids, self.offsets, self.labels = ids, offsets, np.asarray(labels, np.int64)
        self.lengths = np.diff(offsets)

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        """The packed batch of the sequences with these indices, in this order."""
        sequences = [self.ids[self.offsets[i]:self.offsets[i + 1]] for i in indices]
        return pack(sequences, labels=self.labels[indices])


@dataclasses.dataclass
class PackedBatch:
    """Several sequences in one row of T tokens.

    input_ids, position_ids, segment_ids, sequence_ids (which sequence a token is of): int64 [T]; cu_seqlens: int64
    [sequences + 1], where each starts; labels: int64 [sequences]; lengths: list of int, on the host, so that nothing
    waits for the device.
    """
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    sequence_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    labels: torch.Tensor
    lengths: list

    def to(self, device):
        """The batch on `device`; the copy to a GPU does not block."""
        if torch.device(device).type == "cpu":
            return self
        moved = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.pin_memory().to(device, non_blocking=True)
        return PackedBatch(**moved)


def pack(sequences, segments=None, labels=None):
    """Packs sequences (arrays of ids, [CLS] and [SEP] included), their segment ids (zeros by default) and labels."""
    lengths = np.array([len(sequence) for sequence in sequences])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    total = int(cu_seqlens[-1])
    sequence_ids = np.repeat(np.arange(len(sequences)), lengths)
    arrays = dict(
        input_ids=np.concatenate(sequences),
        position_ids=np.arange(total) - cu_seqlens[sequence_ids],
        segment_ids=np.zeros(total) if segments is None else np.concatenate(segments),
        sequence_ids=sequence_ids,
        cu_seqlens=cu_seqlens,
        labels=np.zeros(len(sequences)) if labels is None else labels,
    )
    return PackedBatch(**{name: torch.from_numpy(np.asarray(array, np.int64)) for name, array in arrays.items()},
                       lengths=lengths.tolist())
