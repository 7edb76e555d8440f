"""Instances -> TFRecord files, without TensorFlow: byte by byte what tf.io.TFRecordWriter writes of a tf.train.Example that is
serialized with deterministic=True.

A record is its length (8 bytes), a checksum of that (4), the Example and its checksum (4), little-endian. An Example is

    0A n  (0A n  0A n name  12 n  (1A n  0A n varints | 12 n  0A n floats))*     n: the number of bytes that follow, a varint

with its features by name, as the map of features in the protocol buffer is written in order.
"""
import concurrent.futures
import contextlib

import numpy as np
from tqdm import tqdm

from common.files import whole_file
from pretraining.compiled import compiled
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
    while start + 8 <= end:
        low = crc ^ (data[start] | data[start + 1] << 8 | data[start + 2] << 16 | np.int64(data[start + 3]) << 24)
        crc = np.int64(tables[7, low & 255] ^ tables[6, low >> 8 & 255] ^ tables[5, low >> 16 & 255] ^ tables[4, low >> 24]
                       ^ tables[3, data[start + 4]] ^ tables[2, data[start + 5]] ^ tables[1, data[start + 6]]
                       ^ tables[0, data[start + 7]])
        start += 8
    for byte in data[start:end]:
        crc = crc >> 8 ^ tables[0, (crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@compiled
def put_number(out, at, number, num_bytes):
    """Writes a number in that many bytes, the lowest first. Returns where it ends."""
    for byte in range(num_bytes):
        out[at + byte] = number >> 8 * byte & 255
    return at + num_bytes


@compiled
def varint_size(number):
    """The bytes of a number as a varint: seven bits in each."""
    size = 1
    while number >= 128:
        number >>= 7
        size += 1
    return size


@compiled
def put_varint(out, at, number):
    """Writes a varint. Returns where it ends."""
    while number >= 128:
        out[at] = number & 127 | 128
        number >>= 7
        at += 1
    out[at] = number
    return at + 1


@compiled
def put_size(out, at, tag, size):
    """Writes the tag of a field and the size of what it holds. Returns where that begins."""
    out[at] = tag
    return put_varint(out, at + 1, size)


@compiled
def with_size(size):
    """The bytes of a field that holds `size` bytes."""
    return 1 + varint_size(size) + size


@compiled
def put_example(out, at, values, counts, names, name_sizes):
    """Writes the Example of the features `values` int32 [features, ...], of which feature i has counts[i]. Returns its end."""
    sizes, size_of_all = np.zeros(len(counts), np.int64), 0  # of the values of each feature, and of all features
    for feature, count in enumerate(counts):
        if feature == WEIGHTS:
            sizes[feature] = 4 * count
        else:
            for value in values[feature, :count]:
                sizes[feature] += varint_size(value)
        if count:
            size_of_all += with_size(with_size(name_sizes[feature]) + with_size(with_size(with_size(sizes[feature]))))
    at = put_size(out, at, 0x0A, size_of_all)
    for feature, count in enumerate(counts):
        if count:
            packed, name_size = with_size(sizes[feature]), name_sizes[feature]
            at = put_size(out, at, 0x0A, with_size(name_size) + with_size(with_size(packed)))
            at = put_size(out, at, 0x0A, name_size)
            out[at:at + name_size] = names[feature, :name_size]
            at = put_size(out, at + name_size, 0x12, with_size(packed))
            at = put_size(out, at, 0x12 if feature == WEIGHTS else 0x1A, packed)
            at = put_size(out, at, 0x0A, sizes[feature])
            for value in values[feature, :count]:
                if feature == WEIGHTS:
                    at = put_number(out, at, 0x3F800000 if value else 0, 4)  # 1.0 and 0.0
                else:
                    at = put_varint(out, at, value)
    return at


@compiled
def put_records(corpus, rules, store, slots, values, counts, names, name_sizes, tables, out):
    """Writes the records of the instances at those slots of the store into `out`, uint8. Returns where they end."""
    at = 0
    for slot in slots:
        values[:] = 0
        a, a_length, b, b_length = store.spans[slot]
        first, length = put_ids(corpus, (a, a_length, b, b_length), rules, values[IDS])
        values[MASK, :length] = 1
        values[SEGMENTS, first:length] = 1
        values[IS_RANDOM_NEXT, 0] = store.is_random_next[slot]
        start, end = store.mask_ends[slot], store.mask_ends[slot + 1]
        for number, (position, shown) in enumerate(zip(store.mask_positions[start:end], store.mask_ids[start:end])):
            values[POSITIONS, number] = position
            values[LABELS, number] = values[IDS, position]
            values[WEIGHTS, number] = 1
            values[IDS, position] = shown
        example = at + 12
        end_of_example = put_example(out, example, values, counts, names, name_sizes)
        put_number(out, at, end_of_example - example, 8)
        put_number(out, at + 8, masked_checksum(out, at, at + 8, tables), 4)
        at = put_number(out, end_of_example, masked_checksum(out, example, end_of_example, tables), 4)
    return at


class Encoder:
    """Makes records of instances, for a recipe: `encoder(instances, indices)` is a uint8 array, which the next but one call
    writes over."""

    def __init__(self, recipe):
        length, predictions = recipe.max_seq_length, recipe.max_predictions_per_seq
        self.counts = np.array([length, length, predictions, predictions, predictions, int(recipe.next_sentence), length])
        self.values = np.zeros((len(NAMES), max(length, predictions)), np.int32)
        self.names = np.zeros((len(NAMES), max(map(len, NAMES))), np.uint8)
        for row, name in zip(self.names, NAMES):
            row[:len(name)] = list(name.encode())
        self.name_sizes, self.tables = np.array([len(name) for name in NAMES]), checksum_tables()
        most_bytes = 5 * self.counts.sum() + MOST_BYTES_BESIDE_VALUES  # a varint of 32 bits has 5
        self.out = [np.empty(RECORDS_PER_CALL * most_bytes, np.uint8) for _ in range(2)]  # one is written, one filled

    def __call__(self, instances, indices):
        self.out.reverse()
        end = put_records(instances.corpus, instances.rules, instances.store, instances.slots[indices], self.values,
                          self.counts, self.names, self.name_sizes, self.tables, self.out[0])
        return self.out[0][:end]


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
