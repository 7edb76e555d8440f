"""Step 2: a corpus -> TFRecords of masked language modelling and next sentence prediction.

The corpus is UTF-8 text, one sentence a line, an empty line between documents (generate_corpus_agnews.py writes it).

    python create_pretraining_data.py \\
      --input_file=./AGnews_corpus.txt \\
      --output_file=tmp/tf_AGnews.tfrecord \\
      --vocab_file=./uncased_L-12_H-768_A-12/vocab.txt \\
      --do_lower_case=True --max_seq_length=128 --max_predictions_per_seq=20 \\
      --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5

Several corpora and several files of records:

    python create_pretraining_data.py --input_file='corpora/*_train.txt,extra.txt' \\
      --output_file=tmp/part0.tfrecord,tmp/part1.tfrecord --vocab_file=./uncased_L-12_H-768_A-12/vocab.txt

With the same flags and the same seed the records are those of google-research/bert's create_pretraining_data.py, in
the same order and equal in every feature, because one random generator is asked for the same numbers in the same
order. A record is a tf.train.Example with, L being max_seq_length and P max_predictions_per_seq,

    input_ids, input_mask, segment_ids      int64 [L]   [CLS] A [SEP] B [SEP], padded with 0
    masked_lm_positions, masked_lm_ids      int64 [P]   where tokens were masked and what they were, padded with 0
    masked_lm_weights                       float [P]   1 for a masked token, 0 for padding
    next_sentence_labels                    int64 [1]   0: B follows A in the corpus; 1: B is from another place

The corpus and the instances are flat arrays of integers: about 4 bytes a token.
"""
import array
import bisect
import contextlib
import dataclasses
import glob
import os
import random
import shlex

import numpy as np
from tqdm import tqdm

from command_line import (ArgumentParser, UserError, add_boolean, check_output_file, decode_lines, number, require_file,
                          run, tensorflow_start_up)
from configuration import BertConfig
from tokenization import FullTokenizer

SPECIAL_TOKENS = 3  # [CLS], [SEP], [SEP]
EXAMPLES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an instance is made of; the fields are the flags of the same names."""
    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    do_whole_word_mask: bool = False


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents of sentences of ids, none of them empty.

    ids                  int32 [tokens]
    sentence_offsets     memoryview of int64 [sentences + 1]: sentence s is ids[offsets[s]:offsets[s + 1]]
    document_offsets     memoryview of int64 [documents + 1]: d has the sentences offsets[d] to offsets[d + 1] - 1

    Offsets are memoryviews because their single elements are read one by one, and are Python integers then.
    """
    ids: np.ndarray
    sentence_offsets: memoryview
    document_offsets: memoryview

    @property
    def num_sentences(self):
        return len(self.sentence_offsets) - 1

    @property
    def num_documents(self):
        return len(self.document_offsets) - 1


class Instances:
    """Instances one after another in flat arrays; `add` appends one, `features` gives one back as padded arrays."""

    def __init__(self):
        self.ids = array.array("i")  # [CLS] A [SEP] B [SEP], masked
        self.offsets = array.array("q", [0])
        self.first_segment_lengths = array.array("i")  # of [CLS] A [SEP]
        self.masked_positions = array.array("i")
        self.masked_ids = array.array("i")
        self.masked_offsets = array.array("q", [0])
        self.is_random_next = array.array("b")

    def __len__(self):
        return len(self.is_random_next)

    def add(self, ids, first_segment_length, masked_positions, masked_ids, is_random_next):
        """Appends an instance: lists of the ids, and of the positions that were masked and the ids they had."""
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))
        self.first_segment_lengths.append(first_segment_length)
        self.masked_positions.extend(masked_positions)
        self.masked_ids.extend(masked_ids)
        self.masked_offsets.append(len(self.masked_ids))
        self.is_random_next.append(is_random_next)

    def features(self, index, recipe):
        """The seven features of instance `index`: a dict of lists, padded with 0; floats for the weights only."""
        ids = self.ids[self.offsets[index]:self.offsets[index + 1]].tolist()
        masked = slice(self.masked_offsets[index], self.masked_offsets[index + 1])
        positions, labels = self.masked_positions[masked].tolist(), self.masked_ids[masked].tolist()
        first = self.first_segment_lengths[index]
        padding = [0] * (recipe.max_seq_length - len(ids))
        no_prediction = [0] * (recipe.max_predictions_per_seq - len(labels))
        return {
            "input_ids": ids + padding,
            "input_mask": [1] * len(ids) + padding,
            "segment_ids": [0] * first + [1] * (len(ids) - first) + padding,
            "masked_lm_positions": positions + no_prediction,
            "masked_lm_ids": labels + no_prediction,
            "masked_lm_weights": [1.0] * len(labels) + [0.0] * len(no_prediction),
            "next_sentence_labels": [self.is_random_next[index]],
        }


def read_corpus(input_files, tokenizer):
    """Reads and tokenises text files into a Corpus; lines without tokens are left out, as are empty documents.

    A document goes on from one file to the next where no empty line stands between, as in Google's script.
    Raises UserError, with file and line, for what is not UTF-8 text, and for a corpus of fewer than two documents.
    """
    document_of_line = array.array("q")

    def lines():
        document = 0
        with tqdm(desc="tokenize", unit=" lines", disable=None) as bar:
            for path in input_files:
                for _, line in decode_lines(path):
                    bar.update()
                    line = line.strip()
                    if line:
                        document_of_line.append(document)
                        yield line
                    else:
                        document += 1

    ids, offsets = tokenizer.encode_batch(lines())
    has_tokens = np.diff(offsets) > 0
    documents = np.frombuffer(document_of_line, np.int64)[has_tokens] if document_of_line else np.zeros(0, np.int64)
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    if len(starts) < 2:
        raise UserError(f"--input_file: {', '.join(input_files)}: "
                        + ("one document only, so no next sentence can be drawn from another one; "
                           "put an empty line between documents" if len(starts) else "no text in it"))
    return Corpus(ids, np.append(offsets[:-1][has_tokens], offsets[-1]).data, np.append(starts, len(documents)).data)


def truncate_seq_pair(a, b, max_num_tokens, rng):
    """Shortens the longer of two spans (start, end), at a random end each time, until both fit in max_num_tokens."""
    (a_start, a_end), (b_start, b_end) = a, b
    while (a_end - a_start) + (b_end - b_start) > max_num_tokens:
        at_front = rng.random() < 0.5
        if a_end - a_start > b_end - b_start:
            a_start, a_end = (a_start + 1, a_end) if at_front else (a_start, a_end - 1)
        else:
            b_start, b_end = (b_start + 1, b_end) if at_front else (b_start, b_end - 1)
    return (a_start, a_end), (b_start, b_end)


class Masking:
    """The masking of the tokens of an instance (Devlin et al. 2019, section 3.1)."""

    def __init__(self, tokenizer, recipe):
        self.recipe = recipe
        self.mask_id = tokenizer.mask_id
        self.vocab_ids = list(tokenizer.vocab.values())  # in the order of the file: what a random word is drawn from
        self.is_continuation = bytearray(max(self.vocab_ids) + 1)
        for token, index in tokenizer.vocab.items():
            self.is_continuation[index] = token.startswith("##")

    def candidates(self, ids, first_segment_length):
        """Lists of positions that are masked together: one token each, or with whole word masking one word each."""
        positions = [*range(1, first_segment_length - 1), *range(first_segment_length, len(ids) - 1)]
        if not self.recipe.do_whole_word_mask:
            return [(position,) for position in positions]
        words = []
        for position in positions:
            # A truncated segment may begin inside a word; that piece joins the word before it, as in Google's script.
            if words and self.is_continuation[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        return words

    def __call__(self, ids, first_segment_length, rng):
        """Masks the list `ids` in place: 80% [MASK], 10% kept, 10% a random word of the vocabulary.

        Returns (positions, labels): where predictions are made, ascending, and the ids that stood there.
        """
        words = self.candidates(ids, first_segment_length)
        rng.shuffle(words)
        num_to_predict = min(self.recipe.max_predictions_per_seq,
                             max(1, int(round(len(ids) * self.recipe.masked_lm_prob))))
        labels = {}
        for word in words:
            if len(labels) >= num_to_predict:
                break
            if len(labels) + len(word) > num_to_predict:
                continue  # a shorter word may still fit
            for position in word:
                labels[position] = ids[position]
                if rng.random() < 0.8:
                    ids[position] = self.mask_id
                elif rng.random() >= 0.5:
                    ids[position] = self.vocab_ids[rng.randint(0, len(self.vocab_ids) - 1)]
        positions = sorted(labels)
        return positions, [labels[position] for position in positions]


def random_next(corpus, order, document_index, target_length, rng):
    """A span (start, end) of ids from a random sentence of another document on, sentences until target_length."""
    for _ in range(10):  # with two documents or more ten failures in a row are rare, and Google's script accepts them
        random_index = rng.randint(0, corpus.num_documents - 1)
        if random_index != document_index:
            break
    first, last = corpus.document_offsets[order[random_index]], corpus.document_offsets[order[random_index] + 1]
    sentence = first + rng.randint(0, last - first - 1)
    start = corpus.sentence_offsets[sentence]
    return start, corpus.sentence_offsets[
        bisect.bisect_left(corpus.sentence_offsets, start + target_length, sentence + 1, last)]


def add_document(instances, corpus, order, document_index, tokenizer, masking, rng):
    """Appends the instances of document order[document_index] of the corpus to `instances`.

    Sentences are gathered until they fill an instance; A is a random number of the first ones. In half of the
    instances B is the rest of them; otherwise it comes from another document, and the rest is used again.
    """
    recipe, offsets, ids = masking.recipe, corpus.sentence_offsets, corpus.ids
    max_num_tokens = recipe.max_seq_length - SPECIAL_TOKENS
    target_length = max_num_tokens
    if rng.random() < recipe.short_seq_prob:
        target_length = rng.randint(2, max_num_tokens)
    first, last = corpus.document_offsets[order[document_index]], corpus.document_offsets[order[document_index] + 1]
    chunk, sentence = first, first
    while sentence < last:
        if sentence == last - 1 or offsets[sentence + 1] - offsets[chunk] >= target_length:
            chunk_length = sentence + 1 - chunk
            middle = chunk + (rng.randint(1, chunk_length - 1) if chunk_length >= 2 else 1)
            a = offsets[chunk], offsets[middle]
            is_random_next = chunk_length == 1 or rng.random() < 0.5
            if is_random_next:
                b = random_next(corpus, order, document_index, target_length - (a[1] - a[0]), rng)
                sentence = middle - 1
            else:
                b = offsets[middle], offsets[sentence + 1]
            (a_start, a_end), (b_start, b_end) = truncate_seq_pair(a, b, max_num_tokens, rng)
            instance = [tokenizer.cls_id, *ids[a_start:a_end].tolist(), tokenizer.sep_id,
                        *ids[b_start:b_end].tolist(), tokenizer.sep_id]
            first_segment_length = a_end - a_start + 2
            positions, labels = masking(instance, first_segment_length, rng)
            instances.add(instance, first_segment_length, positions, labels, is_random_next)
            chunk = sentence + 1
        sentence += 1


def create_training_instances(corpus, tokenizer, recipe, dupe_factor, rng):
    """All instances of a corpus, each document used dupe_factor times with other masks.

    Returns (Instances, order): the instances as they were made, and the shuffled order in which they are written.
    """
    order = array.array("q", range(corpus.num_documents))
    rng.shuffle(order)
    instances, masking = Instances(), Masking(tokenizer, recipe)
    with tqdm(total=dupe_factor * corpus.num_documents, desc="instances", unit=" documents", disable=None) as bar:
        for _ in range(dupe_factor):
            for document_index in range(corpus.num_documents):
                add_document(instances, corpus, order, document_index, tokenizer, masking, rng)
                bar.update()
    written = array.array("q", range(len(instances)))
    rng.shuffle(written)
    return instances, written


@contextlib.contextmanager
def whole_files(paths):
    """Yields a temporary path beside each path; they are renamed when the block ends without an exception."""
    for path in paths:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporaries = [os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.tmp")
                   for path in paths]
    try:
        yield temporaries
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_instances(instances, order, recipe, output_files):
    """Writes the instances in the given order as tf.train.Examples, to the files in turn."""
    with tensorflow_start_up():
        import tensorflow as tf  # seconds and hundreds of MiB, so only when there is something to write

    def feature(name, values):
        if name == "masked_lm_weights":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with whole_files(output_files) as temporaries:
        try:
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in temporaries]
                for number_written, index in enumerate(tqdm(order, desc="write", unit=" records", disable=None)):
                    features = {name: feature(name, values)
                                for name, values in instances.features(index, recipe).items()}
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    # Deterministic: the same flags give the same bytes, not only the same records.
                    writers[number_written % len(writers)].write(example.SerializeToString(deterministic=True))
        except tf.errors.OpError as error:
            raise UserError(f"--output_file: cannot write {', '.join(output_files)}: {error.message}") from None


def expand_input_files(patterns):
    """The files of `--input_file`: names and globs separated by commas, the matches of a glob in sorted order."""
    files = []
    for pattern in patterns.split(","):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f"--input_file: there is no file {pattern}; give names or globs separated by commas")
        files += [require_file(path, "--input_file") for path in matches]
    return files


def expand_output_files(names, input_files):
    """The files of `--output_file`, separated by commas.

    Raises UserError for a name that cannot be written to, is given twice, or is an input file.
    """
    files = names.split(",")
    inputs = {os.path.realpath(path) for path in input_files}
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise UserError(f"--output_file: {names} names a file twice")
    for path in files:
        check_output_file(path, "--output_file")
        if os.path.realpath(path) in inputs:
            raise UserError(f"--output_file: {path} is also an input file")
    return files


def show_examples(instances, order, recipe, tokenizer):
    """Prints the first records in full, tokens first."""
    for index in order[:EXAMPLES_SHOWN]:
        features = instances.features(index, recipe)
        num_tokens = sum(features["input_mask"])
        print("*** Example ***")
        print("tokens:", " ".join(tokenizer.convert_ids_to_tokens(features["input_ids"][:num_tokens])))
        for name, values in features.items():
            print(f"{name}:", " ".join(map(str, values)))


def report(args, corpus, instances, recipe, output_files):
    """Prints what was made, how full it is, and the next command of the pipeline."""
    records, tokens, predictions = len(instances), len(instances.ids), len(instances.masked_ids)
    print(f"corpus: {corpus.num_documents} documents, {corpus.num_sentences} sentences, {len(corpus.ids)} tokens")
    print(f"instances: {records}, {sum(instances.is_random_next) / records:.1%} with a random next sentence, "
          f"{predictions / records:.1f} masked tokens each, "
          f"{1 - tokens / (records * recipe.max_seq_length):.1%} of the {recipe.max_seq_length} positions are padding")
    for number_of_file, path in enumerate(output_files):
        print(f"wrote {path}: {len(range(number_of_file, records, len(output_files)))} records")
    model_dir = os.path.dirname(args.vocab_file) or "."
    print("next:", shlex.join((
        "python", "run_pretraining.py", f"--input_file={args.output_file}", f"--output_dir={model_dir}_pretrain",
        "--do_train=True", "--do_eval=True", f"--bert_config_file={os.path.join(model_dir, 'bert_config.json')}",
        f"--init_checkpoint={os.path.join(model_dir, 'bert_model.ckpt')}", "--train_batch_size=32",
        f"--max_seq_length={recipe.max_seq_length}", f"--max_predictions_per_seq={recipe.max_predictions_per_seq}",
        "--num_train_steps=100000", "--num_warmup_steps=10000", "--save_checkpoints_steps=10000",
        "--learning_rate=5e-5")))


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--input_file", required=True, help="The corpus: names and globs of text files, separated by "
                      "commas; one sentence a line, an empty line between documents.")
    data.add_argument("--vocab_file", required=True, help="The WordPiece vocabulary of the BERT model, a token a line.")
    add_boolean(data, "--do_lower_case", True, "Whether text is lower-cased and loses its accents: True (default) for "
                "uncased models, False for cased ones.")
    recipe = parser.add_argument_group("recipe (changes the records; the defaults are Google's)")
    recipe.add_argument("--max_seq_length", type=number(int, minimum=5), default=128, metavar="TOKENS",
                        help="The length of a record in tokens, with [CLS] and two [SEP]; default 128, at least 5. It "
                        "must be that of run_pretraining.py.")
    recipe.add_argument("--max_predictions_per_seq", type=number(int, minimum=1), default=20, metavar="TOKENS",
                        help="The most masked tokens a record; default 20, about max_seq_length * masked_lm_prob. It "
                        "must be that of run_pretraining.py.")
    recipe.add_argument("--masked_lm_prob", type=number(float, above=0, maximum=1), default=0.15, metavar="SHARE",
                        help="The share of the tokens of a record that is masked; default 0.15.")
    recipe.add_argument("--short_seq_prob", type=number(float, minimum=0, maximum=1), default=0.1, metavar="SHARE",
                        help="The probability that the records of a document are shorter than max_seq_length, by a "
                        "random number; default 0.1, and 0 switches it off.")
    add_boolean(recipe, "--do_whole_word_mask", False, "Whether all WordPieces of a word are masked together; default "
                "False: each WordPiece on its own.")
    recipe.add_argument("--dupe_factor", type=number(int, minimum=1), default=10, metavar="TIMES",
                        help="How many times each document is used, each time with other masks; default 10 (the "
                        "paper's command says 5).")
    recipe.add_argument("--random_seed", type=int, default=12345, metavar="SEED",
                        help="The seed of everything random; default 12345. The same seed gives the same records.")
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", required=True, help="The TFRecord file to write; several, separated by "
                        "commas, get the records in turn. Folders are made.")
    return parser.parse_args()


def check_positions(args):
    """Raises UserError where the model whose configuration lies beside the vocabulary has fewer positions than a record."""
    path = os.path.join(os.path.dirname(args.vocab_file), "bert_config.json")
    if os.path.exists(path):
        BertConfig.from_json_file(path, "beside --vocab_file").check_max_seq_length(args.max_seq_length)


def main():
    args = parse_arguments()
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})
    input_files = expand_input_files(args.input_file)
    output_files = expand_output_files(args.output_file, input_files)
    check_positions(args)
    tokenizer = FullTokenizer(args.vocab_file, args.do_lower_case)
    print("reading", *input_files, sep="\n  ")
    corpus = read_corpus(input_files, tokenizer)
    rng = random.Random(args.random_seed)
    instances, order = create_training_instances(corpus, tokenizer, recipe, args.dupe_factor, rng)
    write_instances(instances, order, recipe, output_files)
    show_examples(instances, order, recipe, tokenizer)
    report(args, corpus, instances, recipe, output_files)


if __name__ == "__main__":
    run(main)
