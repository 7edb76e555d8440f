"""Instances -> TFRecord files, without TensorFlow: byte by byte what tf.io.TFRecordWriter writes of a tf.train.Example that is
serialized with deterministic=True.

A record is its length (8 bytes), a checksum of that (4), the Example and its checksum (4), little-endian. An Example is

    0A n  (0A n  0A n name  12 n  (1A n  0A n varints | 12 n  0A n floats))*     n: the number of bytes that follow, a varint

with its features by name, as the map of features in the protocol buffer is written in order.
"""
import concurrent.futures
import contextlib
import os

import numpy as np
from tqdm import tqdm

from common.compiled import compiled
from common.files import naming, whole_file
from pretraining.devices import cannot_write
from pretraining.instances import put_ids

# in the order of their names; a feature of numbers is an Int64List, the weights are a FloatList
NAMES = ("input_ids", "input_mask", "masked_lm_ids", "masked_lm_positions", "masked_lm_weights", "next_sentence_labels",
         "segment_ids")
IDS, MASK, LABELS, POSITIONS, WEIGHTS, IS_RANDOM_NEXT, SEGMENTS = range(len(NAMES))
RECORDS_PER_CALL = 2048  # of the compiled function, while those before are written
MOST_BYTES_BESIDE_VALUES = 512  # of a record


def checksum_tables():
    """uint32 [8, 256]: what a byte, with 0 to 7 bytes after it, adds to a CRC-32C (Castagnoli)."""
    tables = np.zeros((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ (tables[0] & 1) * np.uint32(0x82F63B78)
    for before, table in zip(tables, tables[1:]):
        table[:] = (before >> 8) ^ tables[0][before & 255]
    return tables


@compiled
def masked_checksum(data, start, end, tables):
    """The checksum of data[start:end] as TFRecords have it: CRC-32C, rotated and moved."""
    crc = np.int64(0xFFFFFFFF)
    while start + 8 <= end:  # eight bytes at a time
        low = crc ^ (data[start] | data[start + 1] << 8 | data[start + 2] << 16 | np.int64(data[start + 3]) << 24)
        crc = np.int64(tables[7, low & 255] ^ tables[6, low >> 8 & 255] ^ tables[5, low >> 16 & 255] ^ tables[4, low >> 24]
                       ^ tables[3, data[start + 4]] ^ tables[2, data[start + 5]] ^ tables[1, data[start + 6]]
                       ^ tables[0, data[start + 7]])
        start += 8
    for at in range(start, end):
        crc = crc >> 8 ^ tables[0, (crc ^ data[at]) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# What follows writes from the end to the beginning: a size comes before what it counts, and is known after it.

@compiled
def put_number(out, at, number, num_bytes):
    """Writes a number in that many bytes, the lowest first, before out[at]. Returns where it begins."""
    for byte in range(num_bytes):
        out[at - num_bytes + byte] = number >> 8 * byte & 255
    return at - num_bytes


@compiled
def put_varint(out, at, number):
    """The same for a varint: seven bits in each byte, the highest one says whether there are more."""
    size, rest = 1, number >> 7
    while rest:
        size, rest = size + 1, rest >> 7
    at -= size
    for byte in range(size - 1):
        out[at + byte] = number & 127 | 128
        number >>= 7
    out[at + size - 1] = number
    return at


@compiled
def put_size(out, at, end, tag):
    """Makes out[at:end] the content of a field. Returns where that begins, with its tag and size."""
    at = put_varint(out, at, end - at) - 1
    out[at] = tag
    return at


@compiled
def put_example(out, at, values, counts, names, name_sizes):
    """Writes the Example of the features `values`, int64 [features, ...], of which feature i has counts[i]; before out[at].
    names: uint8 [features, ...], name_sizes: int64 [features]. Returns where it begins."""
    end_of_all = at
    for feature in range(len(counts) - 1, -1, -1):
        if counts[feature]:
            end = at
            for number in range(counts[feature] - 1, -1, -1):
                value = values[feature, number]
                if feature == WEIGHTS:
                    at = put_number(out, at, 0x3F800000 * value, 4)  # the floats 0 and 1
                elif value < 128:
                    at -= 1
                    out[at] = value
                else:
                    at = put_varint(out, at, value)
            for tag in (0x0A, 0x12 if feature == WEIGHTS else 0x1A, 0x12):
                at = put_size(out, at, end, tag)
            end_of_name = at
            at -= name_sizes[feature]
            for number in range(name_sizes[feature]):
                out[at + number] = names[feature, number]
            at = put_size(out, at, end_of_name, 0x0A)
            at = put_size(out, at, end, 0x0A)
    return put_size(out, at, end_of_all, 0x0A)


@compiled
def put_records(corpus, rules, store, slots, values, counts, names, name_sizes, tables, out):
    """Writes the records of the instances at those slots of the store to the end of `out`, uint8. Returns where they begin."""
    at = np.int64(len(out))
    for slot in slots[::-1]:
        for feature in range(len(counts)):
            for number in range(counts[feature]):
                values[feature, number] = 0
        first, length = put_ids(corpus, np.int64(store.spans[slot, 0]), np.int64(store.spans[slot, 1]),
                                np.int64(store.spans[slot, 2]), np.int64(store.spans[slot, 3]), rules, values[IDS])
        for token in range(length):
            values[MASK, token] = 1
            values[SEGMENTS, token] = token >= first
        values[IS_RANDOM_NEXT, 0] = store.is_random_next[slot]
        start = store.mask_ends[slot]
        for number in range(store.mask_ends[slot + 1] - start):
            position = np.int64(store.mask_positions[start + number])
            values[POSITIONS, number] = position
            values[LABELS, number] = values[IDS, position]
            values[WEIGHTS, number] = 1
            values[IDS, position] = store.mask_ids[start + number]
        end = at - 4
        at = put_example(out, end, values, counts, names, name_sizes)
        put_number(out, end + 4, masked_checksum(out, at, end, tables), 4)
        put_number(out, at - 4, end - at, 8)
        put_number(out, at, masked_checksum(out, at - 12, at - 4, tables), 4)
        at -= 12
    return at


class Encoder:
    """Makes records of instances, for a recipe: `encoder(instances, indices)` is a uint8 array, which the next but one call
    writes over."""

    def __init__(self, recipe):
        length, predictions = recipe.max_seq_length, recipe.max_predictions_per_seq
        self.counts = np.array([length, length, predictions, predictions, predictions, int(recipe.next_sentence), length])
        self.values = np.zeros((len(NAMES), max(length, predictions)), np.int64)
        self.names = np.zeros((len(NAMES), max(map(len, NAMES))), np.uint8)
        for row, name in zip(self.names, NAMES):
            row[:len(name)] = list(name.encode())
        self.name_sizes = np.array([len(name) for name in NAMES])
        self.tables = checksum_tables()
        most_bytes = 10 * self.counts.sum() + MOST_BYTES_BESIDE_VALUES  # a varint of 64 bits has 10
        self.out = [np.empty(RECORDS_PER_CALL * most_bytes, np.uint8) for _ in range(2)]  # one is written, one filled

    def __call__(self, instances, indices):
        self.out.reverse()
        start = put_records(instances.corpus, instances.rules, instances.store, instances.slots[indices], self.values,
                            self.counts, self.names, self.name_sizes, self.tables, self.out[0])
        return self.out[0][start:]


def write(path, file, data):
    """Writes bytes to an unbuffered file. Raises UserError, naming `path`, where that fails."""
    data = memoryview(data)
    try:
        while data:
            data = data[file.write(data):]
    except OSError as error:
        raise cannot_write(f"--output_file: {path}", error) from None


def write_instances(parts, recipe, output_files):
    """Writes the instances of all parts (an iterable of Instances) as TFRecords, to the files in turn. Raises UserError, naming
    the file, where one cannot be written; none has its name then."""
    encoder, num_files, written = Encoder(recipe), len(output_files), 0
    with contextlib.ExitStack() as whole:  # all are renamed after the last record: a killed command leaves none of them
        files = [whole.enter_context(open(whole.enter_context(whole_file(path)), "wb", buffering=0)) for path in output_files]
        pool, writing = whole.enter_context(concurrent.futures.ThreadPoolExecutor(1)), None
        for instances in parts:
            for start in tqdm(range(0, len(instances), num_files * RECORDS_PER_CALL), desc="write", disable=None):
                for number, file in enumerate(files):
                    first = start + (number - written) % num_files
                    data = encoder(instances, slice(first, start + num_files * RECORDS_PER_CALL, num_files))
                    if writing:
                        writing.result()
                    writing = pool.submit(write, output_files[number], file, data)
            written += len(instances)
        writing.result()
        for path, file in zip(output_files, files):  # what goes wrong here is before the first of them has its name
            with naming(path):
                os.fsync(file.fileno())
