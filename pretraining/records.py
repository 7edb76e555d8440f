"""Pre-training records: TFRecord files checked once, then read by number, in an order that is a function of the seed.

A record is a padded tf.train.Example of seven features, or for the masked LM alone six, as create_pretraining_data.py describes
it.

    records = Records(["tmp/tf_AGnews.tfrecord"], config, max_seq_length=128, max_predictions_per_seq=20)
    batch_of_step = functools.partial(training_batch, len(records), 32, seed=12345)
    dataset = records.batches(batch_of_step, range(100), 32)

Files are local or mounted. They stay where they are (memory-mapped); 8 bytes a record are kept, and 16 for the order of two
epochs.
"""
import functools
import hashlib
import math
import mmap

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from common.command_line import UserError
from pretraining.packing import FOUND_BY_PLACE, pack

HEADER, FOOTER = 12, 4  # bytes of a TFRecord before (length, its checksum) and after (checksum) the data
EXAMINED_TOGETHER = 1024  # records of one parallel call of the check
AGAIN = "copy the file again or make it again with create_pretraining_data.py"
DENOMINATOR_EPSILON = 1e-5  # google-research/bert's: a batch without masked tokens has loss 0, not NaN


class Records:
    """The records of `files`, all read and checked when made. `len()` is their number; a record's number is from 0. Raises
    UserError with the file and record where one is cut, corrupted, no Example of the seven features, of another length than
    `max_seq_length` and `max_predictions_per_seq`, or with ids that `config` has no rows for. Without `next_sentence` its
    labels are not read, and need not be there."""

    def __init__(self, files, config, max_seq_length, max_predictions_per_seq, next_sentence=True):
        self.features = {  # name -> (number of values, what each is below); the one without a bound is of floats
            "input_ids": (max_seq_length, config.vocab_size), "input_mask": (max_seq_length, 2),
            "segment_ids": (max_seq_length, config.type_vocab_size),
            "masked_lm_positions": (max_predictions_per_seq, max_seq_length),
            "masked_lm_ids": (max_predictions_per_seq, config.vocab_size),
            "masked_lm_weights": (max_predictions_per_seq, math.inf)} | (
                {"next_sentence_labels": (1, 2)} if next_sentence else {})
        self.schema = {name: tf.io.FixedLenFeature([length], tf.float32 if limit == math.inf else tf.int64)
                       for name, (length, limit) in self.features.items()}
        self.maps, starts, checksums = [], [], hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            starts.append(self._check_file(path, self.maps[-1], checksums))
        self.starts = np.concatenate(starts)
        self.first_of_file = np.cumsum([0] + [len(of_file) for of_file in starts[:-1]])
        self.sha256 = checksums.hexdigest()  # of the records' own checksums in order: the same for the same records

    @property
    def identity(self):
        """What tells these records from others: their number and a digest, wherever the files are."""
        return f"{len(self)} records, {self.sha256[:16]}"

    def __len__(self):
        return len(self.starts)

    def _check_file(self, path, content, checksums):
        """Reads every record of a file once. Returns the bytes at which they start, uint64."""
        @tf.autograph.experimental.do_not_convert
        def examine(serialized):
            features = tf.io.parse_example(serialized, self.schema)
            good = [tf.reduce_all((features[name] >= 0) & (features[name] < limit))
                    for name, (_, limit) in self.features.items()]
            return tf.strings.length(serialized), tf.reduce_all(good)

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
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, UnicodeDecodeError):
            # UnicodeDecodeError: TensorFlow quotes a record's bytes in its message and fails to decode them
            raise self._first_wrong(path, num_good) from None
        if end < len(content):
            raise cut_off(path, num_good + 1)  # within the header of a record, which TensorFlow takes for the end
        return np.concatenate(starts)

    def _first_wrong(self, path, num_good):
        """The UserError about the first wrong record of a file after `num_good` good ones, which are not read again."""
        number = num_good
        try:
            for serialized in tf.data.TFRecordDataset(path).skip(num_good).as_numpy_iterator():
                number += 1
                if reason := self._what_is_wrong(serialized):
                    return UserError(f"{path}, record {number}: {reason}")
        except tf.errors.DataLossError as error:
            if "truncated" in str(error):
                return cut_off(path, number + 1)
        return UserError(f"{path}, record {number + 1}: corrupted; {AGAIN}")

    def _what_is_wrong(self, serialized):
        """The words for what is wrong with one record, None for a right one."""
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except DecodeError:
            return "no tf.train.Example; make the file with create_pretraining_data.py"
        for name, (length, limit) in self.features.items():
            kind = "float_list" if limit == math.inf else "int64_list"
            if name == "next_sentence_labels" and name not in features:
                return ("it is of the masked LM alone; pass --next_sentence=False, or make the file again with "
                        "create_pretraining_data.py --next_sentence=True")
            if name not in features or features[name].WhichOneof("kind") != kind:
                return f"it has no feature {name} ({kind}); make the file with create_pretraining_data.py"
            values = getattr(features[name], kind).value
            if len(values) != length:
                flag = "--max_predictions_per_seq" if name.startswith("masked_lm") else "--max_seq_length"
                return (f"{name} has {len(values)} values, not {length}; pass {flag}={len(values)}, or make the file again "
                        f"with create_pretraining_data.py {flag}={length}")
            wrong = next((value for value in values if not 0 <= value < limit), None)
            if wrong is not None and name in ("input_ids", "masked_lm_ids"):
                return (f"{name} holds {wrong}, the model's vocab_size is {limit}; make the file again with the vocabulary "
                        "that came with the checkpoint")
            if wrong is not None:
                return f"{name} holds {wrong}, which is not from 0 to below {limit}"
        return None

    def read(self, numbers):
        """The serialized examples (bytes) of those record numbers, a list."""
        files = np.searchsorted(self.first_of_file, numbers, side="right") - 1
        serialized = []
        for file, start in zip(files.tolist(), self.starts[numbers].tolist()):
            content, begin = self.maps[file], start + HEADER
            serialized.append(content[begin:begin + int.from_bytes(content[start:start + 8], "little")])
        return serialized

    def batches(self, batch_of_step, steps, batch_size, parts=1, accumulation=1, own_parts=slice(None), packed=False):
        """A tf.data.Dataset of the parts of the batches of `steps` (a range), as devices take them.

        batch_of_step: step -> (record numbers [batch_size], example weights float32 [batch_size]).
        parts: devices that share a batch; this process yields the parts `own_parts`, one after the other.
        accumulation: micro-batches of a part. Each element is one of `split`, or of `pack` where it is to be `packed`.
        """
        def read(step):
            numbers, weights = batch_of_step(int(step))
            return np.array(self.read(numbers), object), weights

        @tf.autograph.experimental.do_not_convert
        def parse(step):
            # not Dataset.from_generator: that makes malloc give every large block back to the system at once
            serialized, weights = tf.numpy_function(read, [step], [tf.string, tf.float32])
            serialized, weights = tf.ensure_shape(serialized, [batch_size]), tf.ensure_shape(weights, [batch_size])
            features = {name: tensor if tensor.dtype == tf.float32 else tf.cast(tensor, tf.int32)
                        for name, tensor in tf.io.parse_example(serialized, self.schema).items()}
            return split(features | {"example_weights": weights}, parts, accumulation, own_parts)

        dataset = tf.data.Dataset.range(steps.start, steps.stop).map(parse).unbatch()
        return (dataset.map(pack) if packed else dataset).prefetch(tf.data.AUTOTUNE)


def cut_off(path, number):
    """The UserError about a file that ends within the record of that number, from 1."""
    return UserError(f"{path}, record {number}: cut off, the file ends within it; {AGAIN}"
                     + (", if it is a TFRecord file at all" if number == 1 else ""))


def split(features, parts, accumulation, own_parts=slice(None)):
    """Splits a batch's features [batch, ...] into [parts, accumulation, micro-batch, ...] and takes the parts `own_parts`.

    What is predicted is told by places in a micro-batch's tokens, record after record: masked_lm_positions [..., micro-batch *
    predictions], with masked_lm_ids and masked_lm_weights (0 where there is none, or the example only fills the batch), and
    first_tokens [..., micro-batch], those of [CLS]. masked_lm_denominator and num_examples [parts, accumulation] are those of
    the whole batch, so that the parts' losses add up to its.
    """
    weights = features["example_weights"]
    masked_weights = features["masked_lm_weights"] * weights[:, tf.newaxis]
    totals = {"masked_lm_denominator": tf.reduce_sum(masked_weights) + DENOMINATOR_EPSILON,
              "num_examples": tf.reduce_sum(weights)}
    micro_batch, length = weights.shape[0] // (parts * accumulation), features["input_ids"].shape[1]
    first_tokens = tf.range(weights.shape[0], dtype=tf.int32) % micro_batch * length
    positions = first_tokens[:, tf.newaxis] + features["masked_lm_positions"]
    features = features | {"masked_lm_weights": masked_weights, "masked_lm_positions": positions, "first_tokens": first_tokens}
    pieces = {name: tf.reshape(tensor, [parts, accumulation, micro_batch, *tensor.shape[1:]])
              for name, tensor in features.items()}
    pieces |= {name: tf.reshape(pieces[name], [parts, accumulation, -1]) for name in FOUND_BY_PLACE}
    pieces |= {name: tf.fill([parts, accumulation], total) for name, total in totals.items()}
    return {name: tensor[own_parts] for name, tensor in pieces.items()}


@functools.lru_cache(maxsize=2)
def epoch_order(num_records, seed, epoch):
    """The order in which the records are met in an epoch: a permutation, a function of seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_records)


def training_batch(num_records, batch_size, step, seed):
    """(record numbers, weights 1) of the batch of `step`, from 0. Epoch follows epoch without a gap, each in an order of its
    own over the whole corpus; a batch is a function of the arguments alone, so a run that goes on at a later step meets the
    same records."""
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_records)
    numbers = [epoch_order(num_records, seed, epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return np.concatenate(numbers), np.ones(batch_size, np.float32)


def evaluation_batch(num_records, batch_size, step, padded_size):
    """(record numbers, weights) of the batch of `step`, in the files' order; the last one may have fewer records than
    batch_size. It is filled to `padded_size`, which the devices can share evenly, with records of weight 0."""
    numbers, weights = np.zeros(padded_size, np.int64), np.zeros(padded_size, np.float32)
    real = np.arange(step * batch_size, min((step + 1) * batch_size, num_records))
    numbers[:len(real)], weights[:len(real)] = real, 1.0
    return numbers, weights
