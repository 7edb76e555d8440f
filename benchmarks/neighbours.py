"""Which words of the sample are near each other in a BERT's word embeddings: as often of one topic and one beat as by chance?

    python benchmarks/neighbours.py --init_checkpoint data/tiny_bert quickstart/tiny_bert_AGnews_pretrain --words goalkeeper

The words are the nouns of data/sample_words.json that belong to one beat of one topic and are one token; nouns alone, as a noun
is nearest to nouns whatever it is about. For each BERT, a folder with its configuration and vocabulary: the share of the five
nearest (cosine of the embeddings less their mean) of the same topic and of the same beat, and what chance gives.
"""
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.configuration import BertConfig, find_config  # noqa: E402
from common.vocabulary import find_vocab, read_vocab  # noqa: E402
from data.make_sample import NOUNS, TOPICS, read_words  # noqa: E402
from finetuning.weights import read_weights  # noqa: E402

NEAREST = 5


def nouns_of_beats():
    """{noun: (topic, beat)} of the nouns that one beat of one topic has."""
    places, lists = {}, read_words()
    for topic in TOPICS:
        for beat, slots in lists[topic].items():
            for word in (word for slot in NOUNS for word in slots[slot]):
                places.setdefault(word, set()).add((topic, beat))
    return {word: min(found) for word, found in places.items() if len(found) == 1 and min(found)[1] != "common"}


def read_embeddings(folder):
    """(word embeddings, [vocabulary, hidden]; {token: id}) of the BERT in a folder. Raises UserError without a part of it."""
    config_file, vocab_file = find_config([folder]), find_vocab(None, [folder])
    if not config_file or not vocab_file:
        raise UserError(f"--init_checkpoint: {folder} is no folder with a configuration and a vocabulary")
    state = read_weights(folder, BertConfig.from_json_file(config_file))
    return state["bert.embeddings.word_embeddings.weight"], read_vocab(vocab_file)[0]


def nearest(embeddings):
    """[words, NEAREST] indices of the nearest other rows of `embeddings`, [words, hidden]."""
    unit = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf).topk(NEAREST).indices


def shares(names, near):
    """(share of the nearest with their word's name, that of all other words) of `names`, one a word."""
    same = torch.tensor([[name == other for other in names] for name in names])
    return same.gather(1, near).float().mean().item(), (same.sum().item() / len(names) - 1) / (len(names) - 1)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--init_checkpoint", type=path, nargs="+", required=True, help="Folders of BERTs.")
    parser.add_argument("--words", nargs="+", default=[], help="Nouns whose nearest are shown.")
    args = parser.parse_args()
    places = nouns_of_beats()
    for folder in args.init_checkpoint:
        embeddings, ids = read_embeddings(folder)
        words = [word for word in places if word in ids]
        if unknown := [word for word in args.words if word not in words]:
            raise UserError(f"--words: {unknown[0]} is no noun of one beat that {folder} has as one token")
        if len(words) <= NEAREST:
            raise UserError(f"--init_checkpoint: the vocabulary of {folder} has {len(words)} of the sample's nouns, "
                            f"more than {NEAREST} are needed")
        near = nearest(embeddings[[ids[word] for word in words]])
        print(f"{folder}: {len(words)} nouns")
        for kind, names in (("topic", [places[word][0] for word in words]), ("beat", [places[word] for word in words])):
            share, chance = shares(names, near)
            print(f"  same {kind}: {share:.1%} of the {NEAREST} nearest, {chance:.1%} by chance")
        for word in args.words:
            print(f"  {word}: {', '.join(words[index] for index in near[words.index(word)])}")


if __name__ == "__main__":
    run(main)
