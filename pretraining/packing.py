"""Records side by side: a batch of padded sequences in few rows of the same length, so that little is computed on padding.

Half of the positions of a usual batch are padding. Here a row holds several sequences, which attention keeps apart by
`sequence_ids`; losses and gradients are those of the padded batch but for rounding.
"""
import bisect

import numpy as np
import tensorflow as tf

ROW_FEATURES = ("input_ids", "input_mask", "segment_ids")
FOUND_BY_PLACE = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")


def best_fit(lengths, row_length):
    """Row and first column of each sequence of `lengths` (int [n]; int [n] each), the longest first, where least is left."""
    rows, columns = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    room, num_rows = [], 0  # (positions left, row), sorted
    for i in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[i])
        if (at := bisect.bisect_left(room, (size, 0))) < len(room):
            left, row = room.pop(at)
        else:
            left, row, num_rows = row_length, num_rows, num_rows + 1
        rows[i], columns[i] = row, row_length - left
        bisect.insort(room, (left - size, row))
    return rows, columns


def pack_micro_batch(features):
    """One micro-batch of `split`, arrays by name, in rows. Each row feature becomes [rows, length], and there are position_ids,
    counted in each sequence, and sequence_ids, from 1 (0: nothing). What is found by place is cut to what has a weight."""
    mask, positions, weights = (features[name] for name in ("input_mask", "masked_lm_positions", "masked_lm_weights"))
    num_sequences, length = mask.shape
    # a sequence reaches as far as anything is read of it; one without a token attends to all its padding, so it keeps a row
    read = mask > 0
    read[:, 0] = True
    read.flat[positions[weights != 0]] = True
    sizes = np.where(mask.any(1), length - np.argmax(read[:, ::-1], 1), length)
    rows, columns = best_fit(sizes, length)
    starts = (rows * length + columns).astype(np.int32)
    steps = np.arange(length, dtype=np.int32)
    taken = steps < sizes[:, np.newaxis]
    places = (starts[:, np.newaxis] + steps)[taken]

    def in_rows(values):
        packed = np.zeros((rows.max() + 1) * length, np.int32)
        packed[places] = np.broadcast_to(values, taken.shape)[taken]
        return packed.reshape(-1, length)

    packed = {name: in_rows(features[name]) for name in ROW_FEATURES} | {
        "position_ids": in_rows(steps), "sequence_ids": in_rows(np.arange(1, num_sequences + 1)[:, np.newaxis])}
    moved = positions - np.repeat(np.arange(num_sequences, dtype=np.int32) * length - starts, len(positions) // num_sequences)
    packed |= {name: values[weights != 0] for name, values in features.items() if name in FOUND_BY_PLACE}
    return packed | {"masked_lm_positions": moved[weights != 0], "first_tokens": starts}


def pack(features):
    """An element of `split` (tensors by name, micro-batches first) in rows; see `pack_micro_batch`. The micro-batches have as
    many rows, and places of masked tokens, as the one that needs most; what is added is empty, and has weight 0."""
    names = sorted({*ROW_FEATURES, *FOUND_BY_PLACE, "first_tokens", "position_ids", "sequence_ids"})
    given = sorted(features.keys() & set(names))

    def pack_arrays(*arrays):
        parts = [pack_micro_batch(dict(zip(given, micro_batch))) for micro_batch in zip(*arrays)]
        sizes = {name: max(len(part[name]) for part in parts) for name in names}
        return [np.stack([np.pad(part[name], [(0, sizes[name] - len(part[name]))] + [(0, 0)] * (part[name].ndim - 1))
                          for part in parts]) for name in names]

    packed = tf.numpy_function(pack_arrays, [features[name] for name in given],
                               [tf.float32 if name == "masked_lm_weights" else tf.int32 for name in names])
    accumulation, _, length = features["input_ids"].shape
    shapes = {name: [accumulation, None, length] for name in (*ROW_FEATURES, "position_ids", "sequence_ids")} | {
        name: [accumulation, None] for name in FOUND_BY_PLACE} | {"first_tokens": features["first_tokens"].shape}
    return features | {name: tf.ensure_shape(tensor, shapes[name]) for name, tensor in zip(names, packed)}
