"""Texts -> WordPiece ids -> truncated, or cut into fractions -> packed batches; and the plan of an epoch.

Text is tokenised once, into one flat array of ids with offsets; truncation is slicing; a batch is the real tokens of its
sequences in one row, without padding. A document is one sequence, or, hierarchically, as many as it has fractions.
"""
import dataclasses
import functools
import math

import numpy as np
import torch

from common.command_line import UserError
from common.files import decode_lines, digest, require_file
from finetuning.attention import groups_of


BALANCED = "balanced"  # of --class_weights


def read_class_weights(path, names):
    """{class: weight} of a file of lines `class TAB weight`. names: the classes. Raises UserError, with the line, for what is
    no class, is there twice or has no number above 0, and where a class is missing."""
    weights = {}
    for number, line in decode_lines(require_file(path, "--class_weights")):
        name, _, text = line.rpartition("\t")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not (name in names and name not in weights and 0 < weight < math.inf):
            raise UserError(f"{path}:{number}: {line[:80]!r} is not `class TAB weight`, each class once, weights above 0; the "
                            f"classes are {', '.join(names)[:200]}")
        weights[name] = weight
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"--class_weights: {path} has no line for {', '.join(missing)[:200]}")
    return weights


def class_weights(wanted, labels, names):
    """The weight of each class in the loss, float64 [classes]; None where all count the same. wanted: None, {class: weight}, or
    BALANCED: N / (number of classes that occur * the class's number of examples), as scikit-learn has it. labels: class indices
    of the training data."""
    if wanted != BALANCED:
        return wanted and np.array([wanted[name] for name in names])
    counts = np.bincount(labels, minlength=len(names))
    return len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))


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


def make_dataset(tokenizer, texts, labels, max_seq_length, trunc_medium=-2, max_fractions=1):
    """Texts (list of N str) and class indices (int [N]) as a Dataset.

    tokenizer: a tokenization.FullTokenizer. max_fractions: the most fractions of a text, of max_seq_length - 2 tokens each,
    the last one what remains, beyond which it is truncated (paper, section 5.3.1); math.inf: as many as it takes.
    """
    room = max_seq_length - 2  # beside [CLS] and [SEP]
    budget = max_fractions * room
    if budget < math.inf:
        head, tail = head_and_tail(budget, trunc_medium)  # also refuses a wrong value where every text fits
    text_ids, text_offsets = tokenizer.encode_batch(texts)
    text_lengths = np.diff(text_offsets)
    kept = np.minimum(text_lengths, budget).astype(np.int64)  # budget may be inf, a float
    fractions = np.maximum(1, -(-kept // room))  # an empty text is one sequence, too
    document_offsets = np.concatenate([[0], np.cumsum(fractions)])
    # Every fraction is full but a document's last one.
    lengths = np.full(document_offsets[-1], max_seq_length)
    lengths[document_offsets[1:] - 1] = kept - (fractions - 1) * room + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.empty(offsets[-1], np.int32)  # int32 halves the memory; a batch is int64, as embeddings want it
    ids[offsets[:-1]] = tokenizer.cls_id
    ids[offsets[1:] - 1] = tokenizer.sep_id
    for index, (start, end) in enumerate(zip(text_offsets, text_offsets[1:])):
        text = text_ids[start:end]
        if len(text) > budget:
            text = np.concatenate([text[:head], text[len(text) - tail:]])
        for position, sequence in zip(range(0, len(text), room), range(*document_offsets[index:index + 2])):
            ids[offsets[sequence] + 1:offsets[sequence + 1] - 1] = text[position:position + room]
    return Dataset(ids, offsets, document_offsets, labels, int((text_lengths > budget).sum()))


def make_pair_dataset(tokenizer, pairs, labels, max_seq_length):
    """Pairs of texts (list of N (str, str)) and class indices as a Dataset: `[CLS] A [SEP] B [SEP]`, B as segment 1.

    Where a pair is too long, its longer text loses its end, the second one where they tie (google-research/bert,
    run_classifier.py). A pair whose second text is empty is a single text, as there.
    """
    (ids_a, offsets_a), (ids_b, offsets_b) = (tokenizer.encode_batch(list(texts)) for texts in zip(*pairs))
    lengths_a, lengths_b = np.diff(offsets_a), np.diff(offsets_b)
    paired = lengths_b > 0
    room = max_seq_length - 2 - paired
    kept_b = np.minimum(lengths_b, np.maximum(room // 2, room - lengths_a))
    kept_a = np.minimum(lengths_a, room - kept_b)
    offsets = np.concatenate([[0], np.cumsum(kept_a + kept_b + 2 + paired)])
    ids = np.full(offsets[-1], tokenizer.sep_id, np.int32)  # what is not written below stays [SEP]
    ids[offsets[:-1]] = tokenizer.cls_id
    for start, a, b, length_a, length_b in zip(offsets, offsets_a, offsets_b, kept_a, kept_b):
        ids[start + 1:][:length_a] = ids_a[a:a + length_a]
        ids[start + length_a + 2:][:length_b] = ids_b[b:b + length_b]
    return Dataset(ids, offsets, np.arange(len(pairs) + 1), labels, int((lengths_a + lengths_b > room).sum()),
                   first_lengths=kept_a + 2)


class Dataset:
    """N documents and their labels, ready to be packed.

    ids int32 [sum of lengths]: `[CLS] text [SEP]` of all sequences, one after another; offsets int64 [sequences + 1] of each
    sequence in them; document_offsets int64 [N + 1] of each document among the sequences; labels int64 [N]; num_cut: how
    many texts were truncated; first_lengths int64 [sequences]: of pairs of texts, the tokens of segment 0, else None;
    lengths int64 [N]: tokens of each document's sequences.
    """

    def __init__(self, ids, offsets, document_offsets, labels, num_cut=0, first_lengths=None):
        self.ids, self.offsets, self.document_offsets, self.num_cut = ids, offsets, document_offsets, num_cut
        self.first_lengths = first_lengths
        self.labels = np.asarray(labels, np.int64)
        self.lengths = np.diff(offsets[document_offsets])

    def __len__(self):
        return len(self.labels)

    def digest(self):
        """What tells this data from any other: its size, and a digest of ids, sequences, documents and labels."""
        parts = (self.offsets, self.document_offsets, self.labels, self.first_lengths)
        content = digest(self.ids, *(np.asarray(part, np.int64) for part in parts if part is not None))
        return f"{len(self)} texts, {len(self.ids)} tokens, sha256 {content}"

    def sequences(self, index):
        """The sequences of a document, a list of arrays of ids."""
        bounds = self.offsets[self.document_offsets[index]:self.document_offsets[index + 1] + 1]
        return [self.ids[start:end] for start, end in zip(bounds, bounds[1:])]

    def segments(self, index):
        """The segment ids of those sequences, a list of arrays; None for single texts."""
        if self.first_lengths is not None:
            return [np.arange(len(sequence)) >= first for sequence, first in zip(
                self.sequences(index), self.first_lengths[self.document_offsets[index]:self.document_offsets[index + 1]])]

    def subset(self, indices):
        """The part of the data with these indices, in their order."""
        documents = [self.sequences(index) for index in indices]
        sequences = [sequence for document in documents for sequence in document]
        return Dataset(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]),
                       np.cumsum([0, *map(len, documents)]), self.labels[indices],
                       first_lengths=None if self.first_lengths is None else self.first_lengths[indices])  # one a document

    def batches_by_length(self, num_sequences):
        """The indices of all documents in batches of like length, the shortest first: a list of arrays, each of as many
        documents as have at most `num_sequences` sequences together, but at least one."""
        order = np.argsort(self.lengths, kind="stable")  # stable: the same batches on every machine
        starts, total = [], 0
        for position, fractions in enumerate(np.diff(self.document_offsets)[order]):
            if total + fractions > num_sequences and total:
                starts.append(position)
                total = 0
            total += fractions
        return np.split(order, starts)

    def batch(self, indices):
        """The packed batch of the documents with these indices, in this order."""
        documents = [self.sequences(index) for index in indices]
        segments = None
        if self.first_lengths is not None:
            segments = [segment for index in indices for segment in self.segments(index)]
        return pack([sequence for document in documents for sequence in document], segments, self.labels[indices],
                    [len(document) for document in documents])


@dataclasses.dataclass
class PackedBatch:
    """Several sequences in one row of T tokens.

    input_ids, position_ids, segment_ids, sequence_ids (which sequence a token is of): int64 [T]; cu_seqlens: int64
    [sequences + 1], where each starts; labels: int64 [documents]. On the host, so that nothing waits for the device:
    lengths, a list of int, tokens of each sequence; fractions, a list of int, sequences of each document; longest, the
    largest of lengths. cu_seqlens_int32: cu_seqlens once more, as flash attention wants it.
    """
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    sequence_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    labels: torch.Tensor
    lengths: list
    fractions: list

    def __post_init__(self):
        self.longest, self.cu_seqlens_int32 = max(self.lengths), self.cu_seqlens.int()

    @functools.cached_property
    def groups(self):
        """The function of a number of heads that gives `groups_of` the batch, made once for all layers."""
        return functools.cache(functools.partial(groups_of, self.lengths))

    def to(self, device):
        """The batch on `device`. To a GPU it goes in one piece, and the copy does not block."""
        if torch.device(device).type == "cpu":
            return self
        fields = {name: value for name, value in vars(self).items() if name in TENSORS}
        whole = torch.cat(list(fields.values()))
        if torch.device(device).type == "cuda":
            whole = whole.pin_memory()  # only pinned memory is copied so
        parts = whole.to(device, non_blocking=True).split([len(value) for value in fields.values()])
        return dataclasses.replace(self, **dict(zip(fields, parts)))

    def tensors(self):
        """All tensors of the batch."""
        return [value for value in vars(self).values() if isinstance(value, torch.Tensor)]

    def parts(self, num_sequences):
        """Yields the sequences in batches of at most `num_sequences`, each a document of its own, without labels."""
        start = 0
        for first in range(0, len(self.lengths), num_sequences):
            lengths = self.lengths[first:first + num_sequences]
            end = start + sum(lengths)
            yield PackedBatch(self.input_ids[start:end], self.position_ids[start:end], self.segment_ids[start:end],
                              self.sequence_ids[start:end] - first, self.cu_seqlens[first:first + len(lengths) + 1] - start,
                              self.labels[:0], lengths, [1] * len(lengths))
            start = end


TENSORS = [field.name for field in dataclasses.fields(PackedBatch) if field.type is torch.Tensor]


def pack(sequences, segments=None, labels=None, fractions=None):
    """Packs sequences (arrays of ids, [CLS] and [SEP] included), their segment ids and labels (zeros by default).
    fractions: how many sequences each document has, one by default."""
    fractions = fractions or [1] * len(sequences)
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
        labels=np.zeros(len(fractions)) if labels is None else labels,
    )
    return PackedBatch(**{name: torch.from_numpy(np.asarray(array, np.int64)) for name, array in arrays.items()},
                       lengths=lengths.tolist(), fractions=fractions)


def plan_epoch(sizes, batch_size, sampling, alpha, seed, epoch):
    """The updates of an epoch: a list of (task's index, indices of its examples), each of one batch of one task.

    sizes: training examples of each task. sampling: of SAMPLINGS. A function of its arguments alone, so a run that goes on
    in the middle meets the same batches.
    """
    return SAMPLINGS[sampling](sizes, batch_size, alpha, seed, epoch)


def draw_by_size(sizes, batch_size, alpha, seed, epoch):
    """As many updates as all tasks have batches. A task is drawn for each by its size to the power `alpha`, and takes the
    next batch of its own passes, each over a fresh permutation of its examples: with one task, an epoch is a pass."""
    batches = [math.ceil(size / batch_size) for size in sizes]
    chances = np.array(sizes, float) ** alpha
    # 1 in the seed keeps the draws of tasks apart from the permutations. Earlier epochs say where each task's pass stands.
    draws = [np.random.default_rng([seed, earlier, 1]).choice(len(sizes), sum(batches), p=chances / chances.sum())
             for earlier in range(epoch + 1)]
    taken = np.bincount(np.concatenate([[], *draws[:-1]]).astype(int), minlength=len(sizes))
    order = functools.cache(lambda task, pass_: np.random.default_rng([seed, pass_]).permutation(sizes[task]))
    updates = []
    for task in draws[-1].tolist():
        pass_, batch = divmod(int(taken[task]), batches[task])
        updates.append((task, order(task, pass_)[batch * batch_size:(batch + 1) * batch_size]))
        taken[task] += 1
    return updates


def shuffle_whole_batches(sizes, batch_size, alpha, seed, epoch):
    """The authors' plan for several tasks (run_classifier_multitask.py): the floor(size / batch_size) whole batches of each
    task, of a fresh permutation of its examples, in a shuffled order. `alpha` has no part in it."""
    updates = []
    for task, size in enumerate(sizes):
        order = np.random.default_rng([seed, epoch]).permutation(size)
        updates += [(task, order[end - batch_size:end]) for end in range(batch_size, size + 1, batch_size)]
    np.random.default_rng([seed, epoch, 1]).shuffle(updates)
    return updates


SAMPLINGS = {"by_size": draw_by_size, "fixed": shuffle_whole_batches}  # --task_sampling
