"""A corpus -> pre-training records: time and memory of ours and of TensorFlow's port of Google's script, against corpus size.

    python benchmarks/records.py --corpus ../shared/goldens/agnews_corpus_test.txt \\
      --vocab_file ../shared/data/vocab/bert-base-uncased.vocab.txt --peer_python peers/bin/python

The corpus, 7,600 documents, is taken once and four times (--copies), with the paper's flags. Ours runs on all processors, and
"ours, one processor" on one of them; with --first_run also where nothing was compiled before. Each run is a whole process,
imports included. The peers' environment:

    python -m venv peers && peers/bin/pip install -r requirements.txt \\
      && peers/bin/pip install --no-deps tf-models-official==2.20.0 tf_keras sentencepiece
"""
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the scripts are no installed package
from benchmarks.common import append, benchmark_parser, compare, measure, parse  # noqa: E402
from common.command_line import path, run  # noqa: E402
from common.files import require_file  # noqa: E402

FLAGS = ("--do_lower_case=True", "--max_seq_length=128", "--max_predictions_per_seq=20", "--masked_lm_prob=0.15",
         "--random_seed=12345", "--dupe_factor=5")
ONE_PROCESSOR = ("taskset", "-c", "0")


def sides_of(args, corpus, folder):
    """{contender: its command}: a process each."""
    files = (f"--input_file={corpus}", f"--vocab_file={os.path.abspath(args.vocab_file)}")
    ours = (sys.executable, "create_pretraining_data.py", *files, f"--output_file={folder}/ours.tfrecord", *FLAGS)
    sides = {"ours": ours}
    if shutil.which(ONE_PROCESSOR[0]):
        sides["ours, one processor"] = (*ONE_PROCESSOR, *ours)
    if args.peer_python:
        sides["TensorFlow's port of Google's script"] = (
            args.peer_python, "-m", "official.nlp.data.create_pretraining_data", *files,
            f"--output_file={folder}/peer.tfrecord", *FLAGS)
    return sides


def main():
    parser = benchmark_parser(__doc__, "records")
    parser.add_argument("--corpus", type=path, required=True, help="A corpus, one sentence a line.")
    parser.add_argument("--vocab_file", type=path, required=True, help="The vocabulary of bert-base-uncased.")
    parser.add_argument("--copies", default="1,4",
                        help="How often the corpus is taken, numbers separated by commas; default: 1,4.")
    parser.add_argument("--first_run", action="store_true", help="Also measure a first run, which compiles; default: not.")
    args = parse(parser)
    with open(require_file(args.corpus, "--corpus"), encoding="utf-8") as file:
        text = file.read().rstrip("\n") + "\n\n"
    with tempfile.TemporaryDirectory() as folder:
        corpus = os.path.join(folder, "corpus.txt")
        packages = {"ours": ["numpy", "numba", "tokenizers"], "TensorFlow's port of Google's script": ["tensorflow",
                                                                                                       "tf-models-official"]}
        for copies in map(int, args.copies.split(",")):
            with open(corpus, "w", encoding="utf-8") as file:
                file.writelines([text] * copies)
            sides = sides_of(args, corpus, folder)
            measure(sides["ours"])  # compiles, and reads what is measured into the system's cache
            lines = compare("records", f"AG test corpus x {copies}", sides, args.rounds, packages)
            if args.first_run:
                lines += compare("records", f"AG test corpus x {copies}", {"ours, first run": sides["ours"]}, 1, {},
                                 {"NUMBA_CACHE_DIR": os.path.join(folder, f"cache{copies}")})
            append(args.results, lines)


if __name__ == "__main__":
    run(main)
