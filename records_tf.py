"""Pre-training records: TFRecord files checked once, then read by number, in an order that is a function of the seed.

A record is a tf.train.Example of seven features, padded (google-research/bert, create_pretraining_data.py):
input_ids, input_mask, segment_ids (int64, max_seq_length each), masked_lm_positions, masked_lm_ids (int64) and
masked_lm_weights (float32; max_predictions_per_seq each), next_sentence_labels (int64, 1).

    records = Records(["tmp/tf_AGnews.tfrecord"], config, max_seq_length=128, max_predictions_per_seq=20)
    dataset = records.batches(training_batches(len(records), 32, seed=12345, steps=range(100)), 32)

Files are local or mounted. They stay where they are (memory-mapped); 8 bytes a record are kept, and 8 for the order.
"""
import functools
import hashlib
import math
import mmap

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from command_line import UserError

HEADER, FOOTER = 12, 4  # bytes of a TFRecord before (length, its checksum) and after (checksum) the data
EXAMINED_TOGETHER = 1024  # records of one parallel call of the check
DENOMINATOR_EPSILON = 1e-5  # google-research/bert's: a batch without masked tokens has loss 0, not NaN


class Records:
    """The records of `files`, all read and checked when made. `len()` is their number; a record's number is from 0.

    Raises UserError with the file and record where one is cut, corrupted, no Example of the seven features, of
    another length than `max_seq_length` and `max_predictions_per_seq`, or with ids that `config` has no rows for.
    """

    def __init__(self, files, config, max_seq_length, max_predictions_per_seq):
        self.lengths = {"input_ids": max_seq_length, "input_mask": max_seq_length, "segment_ids": max_seq_length,
                        "masked_lm_positions": max_predictions_per_seq, "masked_lm_ids": max_predictions_per_seq,
                        "masked_lm_weights": max_predictions_per_seq, "next_sentence_labels": 1}
        self.limits = {"input_ids": config.vocab_size, "input_mask": 2, "segment_ids": config.type_vocab_size,
                       "masked_lm_positions": max_seq_length, "masked_lm_ids": config.vocab_size,
                       "next_sentence_labels": 2}
        self.schema = {name: tf.io.FixedLenFeature([length], tf.int64 if name in self.limits else tf.float32)
                       for name, length in self.lengths.items()}
        self.maps, starts, checksums = [], [], hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            starts.append(self._check_file(path, self.maps[-1], checksums))
        self.starts = np.concatenate(starts)
        self.first_of_file = np.cumsum([0] + [len(of_file) for of_file in starts[:-1]])
        self.sha256 = checksums.hexdigest()  # of the records' own checksums in order: the same for the same records

    def __len__(self):
        return len(self.starts)

    def _check_file(self, path, content, checksums):
        """Reads every record of a file once. Returns the bytes at which they start, uint64."""
        def examine(serialized):
            features = tf.io.parse_example(serialized, self.schema)
            good = [tf.reduce_all((features[name] >= 0) & (features[name] < limit))
                    for name, limit in self.limits.items()]
            weights = features["masked_lm_weights"]
            return tf.strings.length(serialized), tf.reduce_all(good) & tf.reduce_all((weights >= 0) & (weights < np.inf))

        examined = tf.data.TFRecordDataset(path, buffer_size=2 ** 23).batch(EXAMINED_TOGETHER)
        examined = examined.map(examine, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        starts, end, num_good = [np.zeros(0, np.uint64)], 0, 0
        octets = np.frombuffer(content, np.uint8)
        try:
            for sizes, good in examined.as_numpy_iterator():
                if not good:
                    raise self._first_wrong(path, num_good)
                ends = end + np.cumsum(sizes.astype(np.uint64) + np.uint64(HEADER + FOOTER))
                starts.append(np.concatenate([[end], ends[:-1]]).astype(np.uint64))
                checksums.update(octets[ends[:, np.newaxis] - np.arange(FOOTER, 0, -1, dtype=np.uint64)].tobytes())
                end, num_good = int(ends[-1]), num_good + len(sizes)
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
            raise self._first_wrong(path, num_good) from None
        return np.concatenate(starts)

    def _first_wrong(self, path, num_good):
        """The UserError about the first wrong record of a file after `num_good` good ones, which are not read again."""
        number, reason = num_good + 1, None
        serialized = tf.data.TFRecordDataset(path).skip(num_good).as_numpy_iterator()
        try:
            while reason is None:
                reason = self._what_is_wrong(next(serialized))
                number += reason is None
        except tf.errors.DataLossError as error:
            kind = "cut off" if "truncated" in str(error) else "corrupted"
            reason = f"{kind}; copy the file again or make it again with create_pretraining_data.py"
            if number == 1:
                reason += ", if it is a TFRecord file at all"
        return UserError(f"{path}, record {number}: {reason}")

    def _what_is_wrong(self, serialized):
        """The words for what is wrong with one record, None for a right one."""
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except DecodeError:
            return "no tf.train.Example; make the file with create_pretraining_data.py"
        for name, length in self.lengths.items():
            kind = "int64_list" if name in self.limits else "float_list"
            if name not in features or features[name].WhichOneof("kind") != kind:
                return f"it has no feature {name} ({kind}); make the file with create_pretraining_data.py"
            values = getattr(features[name], kind).value
            if len(values) != length:
                flag = "--max_predictions_per_seq" if name.startswith("masked_lm") else "--max_seq_length"
                return (f"{name} has {len(values)} values, not {length}; pass {flag}={len(values)}, or make the file "
                        f"again with create_pretraining_data.py {flag}={length}")
            wrong = [value for value in values if not 0 <= value < self.limits.get(name, math.inf)]
            if wrong and name.endswith("_ids") and name != "segment_ids":
                return (f"{name} holds {wrong[0]}, the model's vocab_size is {self.limits[name]}; make the file again "
                        "with the vocabulary that came with the checkpoint")
            if wrong:
                return f"{name} holds {wrong[0]}, which is not from 0 to below {self.limits.get(name, math.inf)}"
        return None

    def read(self, numbers):
        """The serialized examples (bytes) of those record numbers, a list."""
        files = np.searchsorted(self.first_of_file, numbers, side="right") - 1
        serialized = []
        for file, start in zip(files.tolist(), self.starts[numbers].tolist()):
            content = self.maps[file]
            begin = start + HEADER
            serialized.append(content[begin:begin + int.from_bytes(content[start:start + 8], "little")])
        return serialized

    def batches(self, batches, batch_size, parts=1, accumulation=1, own_parts=slice(None)):
        """A tf.data.Dataset of the parts of batches, as devices take them.

        batches: iterable of (record numbers [batch_size], example weights float32 [batch_size]).
        parts: devices that share a batch; this process yields the parts `own_parts`, one after the other.
        accumulation: micro-batches of a part. Each element has the seven features, ids int32, and example_weights,
        with leading dimensions [accumulation, batch_size / parts / accumulation], and, each [accumulation],
        masked_lm_denominator and num_examples: those of the whole batch, so that the parts' losses add up to its.
        """
        def serialized():
            for numbers, weights in batches:
                yield self.read(numbers), weights

        def parse(serialized, example_weights):
            features = {name: tensor if tensor.dtype == tf.float32 else tf.cast(tensor, tf.int32)
                        for name, tensor in tf.io.parse_example(serialized, self.schema).items()}
            return split(features | {"example_weights": example_weights}, parts, accumulation, own_parts)

        signature = (tf.TensorSpec([batch_size], tf.string), tf.TensorSpec([batch_size], tf.float32))
        dataset = tf.data.Dataset.from_generator(serialized, output_signature=signature)
        return dataset.map(parse).unbatch().prefetch(tf.data.AUTOTUNE)


def split(features, parts, accumulation, own_parts=slice(None)):
    """Splits a batch's features [batch, ...] into [parts, accumulation, micro-batch, ...], adds masked_lm_denominator
    and num_examples [parts, accumulation] of the whole batch, and takes the parts `own_parts` (see Records.batches)."""
    weights = features["example_weights"]
    totals = {"masked_lm_denominator": tf.reduce_sum(features["masked_lm_weights"] * weights[:, tf.newaxis])
              + DENOMINATOR_EPSILON, "num_examples": tf.reduce_sum(weights)}
    micro_batch = weights.shape[0] // (parts * accumulation)
    pieces = {name: tf.reshape(tensor, [parts, accumulation, micro_batch, *tensor.shape[1:]])
              for name, tensor in features.items()}
    pieces |= {name: tf.fill([parts, accumulation], total) for name, total in totals.items()}
    return {name: tensor[own_parts] for name, tensor in pieces.items()}


@functools.lru_cache(maxsize=2)
def epoch_order(num_records, seed, epoch):
    """The order in which the records are met in an epoch: a permutation of all of them, a function of seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_records)


def training_batches(num_records, batch_size, seed, steps):
    """Yields (record numbers, weights) of the batches of `steps` (a range, from 0). Epoch follows epoch without a gap,
    each in an order of its own over the whole corpus; a step's batch is a function of the arguments alone, so a run
    that goes on at a later step meets the same records."""
    weights = np.ones(batch_size, np.float32)
    for step in steps:
        epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_records)
        yield np.concatenate([epoch_order(num_records, seed, epoch)[places[epochs == epoch]]
                              for epoch in np.unique(epochs).tolist()]), weights


def evaluation_batches(num_records, batch_size, max_batches, parts):
    """Yields (record numbers, weights) of at most `max_batches` batches of `batch_size` records in the files' order,
    each record once. Each batch is filled with records of weight 0 to a multiple of `parts`."""
    padded_size = math.ceil(batch_size / parts) * parts
    for first in range(0, min(num_records, max_batches * batch_size), batch_size):
        num_real = min(batch_size, num_records - first)
        numbers, weights = np.zeros(padded_size, np.int64), np.zeros(padded_size, np.float32)
        numbers[:num_real], weights[:num_real] = np.arange(first, first + num_real), 1.0
        yield numbers, weights
