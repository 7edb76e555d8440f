"""How far two corpora of the same documents agree: identical documents, and sentence boundaries that both have.

    python benchmarks/compare_corpus.py AGnews_corpus_test.txt REFERENCE_corpus_test.txt

Documents are compared in the order of the files. A boundary is the number of visible characters before it, so white
space does not matter; the one after a document's first sentence (its title) is given by the data and not counted. A
document whose text differs between the two files is counted apart, and its boundaries are not compared.
"""
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from common.command_line import ArgumentParser, UserError, path, run  # noqa: E402
from common.files import decode_lines, require_file  # noqa: E402


def read_documents(path):
    """Yields each document of a corpus as a list of sentences without the white space around them."""
    sentences = []
    for _, line in decode_lines(require_file(path, "corpus")):
        if line.strip():
            sentences.append(line.strip())
        elif sentences:
            yield sentences
            sentences = []
    if sentences:
        yield sentences


def boundaries(sentences):
    """(visible text, positions of the sentence ends inside it) of a document, the end of the title left out."""
    visible = ["".join(sentence.split()) for sentence in sentences]
    ends = list(itertools.accumulate(map(len, visible)))
    return "".join(visible), set(ends[1:-1])


def compare(path, reference_path):
    """The agreement of two corpora as a dict of counts and shares; precision and recall are those of `path`."""
    documents = identical = other_text = found = expected = common = 0
    for sentences, reference in itertools.zip_longest(read_documents(path), read_documents(reference_path)):
        if sentences is None or reference is None:
            raise UserError(f"{reference_path if reference is None else path}: the other file has more documents than "
                            f"the {documents} of this one")
        documents += 1
        identical += sentences == reference
        (text, ours), (reference_text, theirs) = boundaries(sentences), boundaries(reference)
        if text != reference_text:
            other_text += 1
            continue
        found, expected, common = found + len(ours), expected + len(theirs), common + len(ours & theirs)
    precision, recall = common / max(found, 1), common / max(expected, 1)
    return {"documents": documents, "identical": identical, "identical_share": identical / max(documents, 1),
            "other_text": other_text, "boundaries": found, "reference_boundaries": expected,
            "precision": precision, "recall": recall, "f1": 2 * common / max(found + expected, 1)}


def main():
    parser = ArgumentParser(__doc__)
    parser.add_argument("corpus", type=path, help="The corpus that is judged.")
    parser.add_argument("reference", type=path, help="The corpus that it is compared with.")
    args = parser.parse_args()
    for name, value in compare(args.corpus, args.reference).items():
        print(f"{name:21}{value if isinstance(value, int) else format(value, '.4f')}")


if __name__ == "__main__":
    run(main)
