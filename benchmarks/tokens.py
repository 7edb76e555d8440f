"""Texts -> WordPiece ids: documents a second of ours and of peers, and the texts whose ids are not Google's.

    python benchmarks/tokens.py --data_dir ../shared/data/ag --vocab_file ../shared/data/vocab/bert-base-uncased.vocab.txt \\
      --texts ../shared/goldens/tokenization/fuzz.json --peer_python peers/bin/python

Each contender encodes, without special tokens, the first 39,000 rows of train.csv and test.csv once, in a new process, after
its imports and one short text; Google's tokenizer, as TensorFlow's models have it, is one of them. --texts names a JSON file
{"texts": [...], "lower": [Google's tokens of each, ...]} of unusual characters, of which the differences count. The peers'
environment:

    python -m venv peers && peers/bin/pip install -r requirements.txt transformers==5.23.0 nanotoken==0.1.0 tokie==0.1.4 \\
      flash-tokenizer==1.2.0 && peers/bin/pip install --no-deps tf-models-official==2.20.0 tf_keras sentencepiece
"""
import csv
import itertools
import json
import os
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks.common import append, benchmark_parser, compare, parse  # noqa: E402
from common.command_line import path, run  # noqa: E402
from common.files import digest, read_json  # noqa: E402
from common.vocabulary import read_vocab  # noqa: E402

ROWS = 39_000


# A contender is a function of the vocabulary's path that returns a function texts -> an iterable of the ids of each.

def rows_of(ids, offsets):
    return (ids[start:end] for start, end in itertools.pairwise(offsets))


def ours(vocab_file):
    from tokenization import FullTokenizer
    tokenizer = FullTokenizer(vocab_file)
    return lambda texts: rows_of(*tokenizer.encode_batch(texts))


def google(vocab_file):
    from official.nlp.tools.tokenization import FullTokenizer
    tokenizer = FullTokenizer(vocab_file, do_lower_case=True)
    return lambda texts: [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in texts]


def tokenizers(vocab_file):
    from tokenizers import BertWordPieceTokenizer
    tokenizer = BertWordPieceTokenizer(vocab_file)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def transformers(vocab_file):
    from transformers import BertTokenizerFast
    with open(vocab_file, encoding="utf-8") as file:
        tokenizer = BertTokenizerFast(vocab={line.rstrip("\n"): index for index, line in enumerate(file)})
    return lambda texts: tokenizer(texts, add_special_tokens=False, return_attention_mask=False,
                                   return_token_type_ids=False)["input_ids"]


def nanotoken(vocab_file):
    import nanotoken as library
    tokenizer = library.Tokenizer.from_vocab(vocab_file)
    return lambda texts: rows_of(*tokenizer.backend.encode_batch(texts, add_special_tokens=False, max_length=None,
                                                                 truncation_side="right", parallel=True))


def tokie(vocab_file):
    import tokie as library
    from tokenizers import BertWordPieceTokenizer
    with tempfile.TemporaryDirectory() as folder:
        BertWordPieceTokenizer(vocab_file).save(os.path.join(folder, "tokenizer.json"))
        tokenizer = library.Tokenizer.from_json(os.path.join(folder, "tokenizer.json"))

    def encode(texts):
        ids, lengths = tokenizer.encode_batch_flat(texts, add_special_tokens=False)
        return rows_of(ids, np.cumsum(np.concatenate([[0], lengths])).astype(int))
    return encode


def flash_tokenizer(vocab_file):
    from flash_tokenizer import BertTokenizerFlash
    tokenizer = BertTokenizerFlash(vocab_file, do_lower_case=True, model_max_length=1 << 20)
    return lambda texts: [ids[1:-1] for ids in tokenizer.tokenizer.batch_encode(texts, "longest", -1, True)]


CONTENDERS = {function.__name__: function for function in (ours, google, tokenizers, transformers, nanotoken, tokie,
                                                           flash_tokenizer)}


def read_texts(args):
    """The rows of AG as one text each; or those of --texts."""
    if args.texts_only:
        return read_json(args.texts, {"texts": [str]})["texts"]
    texts = []
    for split in ("train", "test"):
        with open(os.path.join(args.data_dir, f"{split}.csv"), encoding="utf-8", newline="") as file:
            texts += [f"{title} - {text}" for _, title, text in csv.reader(file)]
    return texts[:ROWS]


def work(args):
    """Encodes the texts with one contender; prints its speed and writes a digest of each text's ids."""
    texts = read_texts(args)
    encode = CONTENDERS[args.contender](args.vocab_file)
    list(encode(["Warm-up, once."]))
    started = time.perf_counter()
    encoded = encode(texts)
    seconds = time.perf_counter() - started
    digests = [digest(np.asarray(list(ids), np.int32)) for ids in encoded]
    with open(args.digests, "w", encoding="utf-8") as file:
        json.dump(digests, file)
    print(json.dumps({"documents_per_second": round(len(texts) / seconds)}))


def recorded(args):
    """The digests of the ids of Google's tokens in the file --texts."""
    vocab, _ = read_vocab(args.vocab_file)
    return [digest(np.array([vocab[token] for token in tokens], np.int32)) for tokens in read_json(args.texts, {})["lower"]]


def add_differences(lines, folder, expected):
    """Adds the number of texts whose ids are not the expected ones, a list of digests, to the figures of each line."""
    for line in lines:
        found = read_json(os.path.join(folder, line["side"]), [str])
        line["figures"]["different_texts"] = sum(one != other for one, other in zip(found, expected, strict=True))
        print(f"{line['case']}, {line['side']}: {line['figures']}")
    return lines


def main():
    parser = benchmark_parser(__doc__, "tokens")
    parser.add_argument("--data_dir", type=path, required=True, help="Folder of AG's train.csv and test.csv.")
    parser.add_argument("--vocab_file", type=path, required=True, help="The vocabulary of bert-base-uncased.")
    parser.add_argument("--texts", type=path, help="JSON file of texts that are compared only; default: none.")
    parser.add_argument("--contenders", default="ours,google,tokenizers,transformers,nanotoken,tokie,flash_tokenizer",
                        help="Names, separated by commas; default: all.")
    for name in ("--contender", "--digests"):
        parser.add_argument(name, help="Used by the script itself.")
    parser.add_argument("--texts_only", action="store_true", help="Used by the script itself.")
    args = parse(parser)
    if args.contender:
        return work(args)
    names = [name for name in args.contenders.split(",") if name == "ours" or args.peer_python]
    with tempfile.TemporaryDirectory() as folder:
        def command(name, *more):
            return [sys.executable if name == "ours" else args.peer_python, os.path.abspath(__file__), "--contender", name,
                    "--digests", os.path.join(folder, name), "--data_dir", os.path.abspath(args.data_dir), "--vocab_file",
                    os.path.abspath(args.vocab_file), *more]

        packages = {"google": ["tf-models-official"], "flash_tokenizer": ["flash-tokenizer"], "ours": ["tokenizers", "numpy"]}
        packages = {name: packages.get(name, [name]) for name in names}
        lines = compare("tokens", "AG, 39,000 rows", {name: command(name) for name in names}, args.rounds, packages)
        if "google" in names:
            add_differences(lines, folder, read_json(os.path.join(folder, "google"), [str]))
        append(args.results, lines)
        if args.texts:
            sides = {name: command(name, "--texts", os.path.abspath(args.texts), "--texts_only") for name in names
                     if name != "google"}
            lines = compare("tokens", "unusual characters", sides, 1, packages)
            append(args.results, add_differences(lines, folder, recorded(args)))


if __name__ == "__main__":
    run(main)
