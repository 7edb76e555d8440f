"""Vocabularies: found, read (vocab.txt or tokenizer.json), held against the model, their case, and written.

Every script asks here, so that all take and refuse the same files, with the same words.
"""
import os

from common.command_line import UserError
from common.files import atomic_write, check_schema, copy_file, decode_lines, read_json, require_file, write_json

VOCAB_NAMES = ("vocab.txt", "tokenizer.json")  # in a folder, the first that is there
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Cased vocabularies have capital letters in a third of their tokens. bert-base-chinese, which is uncased, has <S> and <T> in
# 21,128, and own words are put into uncased ones by hand.
CASED_SHARE = 0.001


# Found and read

def find_vocab(vocab_file, folders):
    """The vocabulary that goes with weights: --vocab_file (a file, or a folder that has one), else that of the first of the
    folders with one, else None."""
    if vocab_file and not os.path.isdir(vocab_file):
        return require_file(vocab_file, "--vocab_file")
    beside = (os.path.join(folder, name) for folder in ([vocab_file] if vocab_file else folders) for name in VOCAB_NAMES)
    found = next(filter(os.path.isfile, beside), None)
    if vocab_file and not found:
        raise UserError(f"--vocab_file: the folder {vocab_file} has neither {' nor '.join(VOCAB_NAMES)}")
    return found


def read_vocab(path):
    """({token: id}, lines to print) of a vocab.txt, one token a line, or a tokenizer.json.

    An id is the line's index from 0: an empty line takes one too, but not at the end of the file, and a token that is there
    twice has its last, as in Google's code. Raises UserError where the file is missing, empty, no text, or of another model.
    """
    require_file(path, "--vocab_file")
    if str(path).endswith(".json"):
        return read_tokenizer_json(path), []
    lines = [line.strip() for _, line in decode_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    vocab, repeated = {}, []
    for index, token in enumerate(lines):
        if token and token in vocab:
            repeated.append(f"{token} (lines {vocab[token] + 1} and {index + 1})")
        vocab[token] = index
    more = f" and {len(repeated) - 3} more" if repeated[3:] else ""
    return vocab, [f"note: {path} has {', '.join(repeated[:3])}{more} twice; the last line counts, as in Google's code"
                   ] if repeated else []


def read_tokenizer_json(path):
    """{token: id} of the tokenizer.json of a BERT model, added tokens included."""
    where = f"--vocab_file: {path}"
    values = read_json(path, {"model": dict}, where)
    model = values["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
        raise UserError(f"{where} is a tokenizer of the kind {kind}, BERT's is WordPiece with ## before the later pieces of a "
                        "word; take the vocabulary that came with the checkpoint")
    check_schema(model, {"vocab": {str: int}}, where)
    added = values.get("added_tokens") or []
    check_schema(added, [{"content": str, "id": int}], f"{where}, added_tokens")
    return model["vocab"] | {token["content"]: token["id"] for token in added}


def check_vocab(vocab, path, config):
    """Lines to print about a vocabulary {token: id} beside a model: fewer tokens than embeddings do no harm. Raises UserError
    where it has more."""
    size = max(vocab.values(), default=-1) + 1
    if size > config.vocab_size or min(vocab.values(), default=0) < 0:
        raise UserError(f"--vocab_file: {path} has {size} tokens, the model's vocab_size is {config.vocab_size}; take the "
                        "vocabulary that came with the checkpoint")
    if size == config.vocab_size:
        return []
    words = f"{path} has {size:,} tokens, the model {config.vocab_size:,} embeddings: the last {config.vocab_size - size:,} "
    if size < 0.9 * config.vocab_size:  # a few are padding to a multiple of 8, or left for words of one's own
        return [f"WARNING: {words}stay unused; is it the vocabulary that came with the checkpoint?"]
    return [f"note: {words}stay unused"]


def read_fitting_vocab(path, config):
    """What is said about the vocabulary at `path` (None: nothing) beside a model, a list of lines; raises UserError as
    `read_vocab` and `check_vocab` do."""
    if not path:
        return []
    vocab, notes = read_vocab(path)
    return notes + check_vocab(vocab, path, config)


# Case

def stated_case(path):
    """(whether the files beside the vocabulary at `path` say that text is lower-cased, or None; which file; lines to print)."""
    config = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    tokenizer = os.path.join(os.path.dirname(path), "tokenizer.json")
    values, lower, source = {}, None, None
    if os.path.isfile(tokenizer):
        values = read_json(tokenizer, {}).get("normalizer") or {}
        check_schema(values, {}, f"{tokenizer}, normalizer")
        lower, source = values.get("lowercase"), tokenizer
        values = {"tokenize_chinese_chars": values.get("handle_chinese_chars")} | values
    if os.path.isfile(config):
        values |= {key: value for key, value in read_json(config, {}).items() if value is not None}
        lower, source = (values["do_lower_case"], config) if isinstance(values.get("do_lower_case"), bool) else (lower, source)
    other = [f"{key} {values[key]}" for key, ours in (("strip_accents", lower), ("tokenize_chinese_chars", True))
             if values.get(key) not in (None, ours)]
    return (lower if isinstance(lower, bool) else None), source, [
        f"WARNING: beside {path} stands {' and '.join(other)}, which is not implemented: tokens differ from those that the "
        "model was trained on where it matters"] if other else []


def choose_case(asked, path, vocab, asked_by="--do_lower_case"):
    """(whether text is lower-cased, lines to print): as `asked`, else (None) as the files beside the vocabulary at `path` say,
    else lower where next to no token {token: id} has a capital letter."""
    words = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
    capitals = sum(token != token.lower() for token in words)
    uncased = capitals < CASED_SHARE * len(words)
    shown = f"{capitals or 'none'} of the {len(words):,} tokens in {path} {'have' if capitals > 1 else 'has'} a capital letter"
    stated, source, notes = stated_case(path)
    chosen = asked if asked is not None else uncased if stated is None else stated
    reason = f"as {asked_by} says" if asked is not None else f"as {source} says" if stated is not None else shown
    notes.insert(0, f"text is {'lower-cased' if chosen else 'left as it is, not lower-cased'}: {reason}")
    if chosen != uncased:
        notes.append(f"WARNING: {shown}: it is {'an uncased' if uncased else 'a cased'} vocabulary, and "
                     + ("words with a capital letter become [UNK]; --do_lower_case lower-cases them" if uncased else
                        "lower-cased text finds few of its words; --do_lower_case=False leaves the text as it is"))
    return chosen, notes


# Written

def copy_vocab(path, folder, renamed=None):
    """Writes FOLDER/vocab.txt from the vocabulary at `path`: a vocab.txt as it is, a tokenizer.json as its tokens, by id.
    renamed: {id: token} of those that are another one there."""
    target = os.path.join(folder, "vocab.txt")
    if not str(path).endswith(".json") and not renamed:
        copy_file(path, target)
        return target
    tokens = {index: token for token, index in read_vocab(path)[0].items()} | (renamed or {})
    with atomic_write(target) as file:
        file.writelines(f"{tokens.get(index, f'[unused id {index}]')}\n" for index in range(max(tokens) + 1))
    return target


def carry_vocab(path, folder):
    """Writes the vocabulary at `path` into a folder of pre-trained weights, and what says its case where that is known from
    files beside it, or is not lower, as `transformers` takes it to be otherwise. Returns what `choose_case` does."""
    lower, notes = choose_case(None, path, read_vocab(path)[0])
    if lower and stated_case(path)[0] is None:
        copy_vocab(path, folder)
    else:
        write_tokenizer(path, folder, lower)
    return lower, notes


def write_tokenizer(path, folder, do_lower_case, max_length=None, own=None):
    """Writes a folder's vocab.txt, from the vocabulary at `path`, and tokenizer.json and tokenizer_config.json, by which
    `transformers` gives the tokens that tokenization.py gives (but for words of over 100 characters, [UNK] there).
    own: FullTokenizer.own."""
    own = own or {}
    vocab = read_vocab(copy_vocab(path, folder, {index: token for token, (index, _) in own.items()}))[0]
    special = {token: vocab[token] for token in SPECIAL_TOKENS if token in vocab}

    def template(*parts):
        return [{"Sequence" if part in "AB" else "SpecialToken": {"id": part, "type_id": segment}} for part, segment in parts]

    first = (("[CLS]", 0), ("A", 0), ("[SEP]", 0))
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for token, index in special.items()] + [
                         {"id": index, "content": token, "single_word": alone, "lstrip": False, "rstrip": False,
                          "normalized": True, "special": False}
                         for token, (index, alone) in own.items() if token not in special],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": do_lower_case},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": template(*first),
                           "pair": template(*first, ("B", 1), ("[SEP]", 1)),
                           "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
                                              for token in ("[CLS]", "[SEP]") if token in vocab}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 200, "vocab": vocab}})
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "BertTokenizer", "do_lower_case": do_lower_case}
        | ({"model_max_length": max_length} if max_length else {}))
