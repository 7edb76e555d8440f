"""Step 1 for any task, or several: their texts -> the corpus for further pre-training, one sentence a line, an empty line
between documents (paper, section 5.4).

    python generate_corpus.py --task_name imdb --data_dir ./imdb                              # within-task
    python generate_corpus.py --task_name sentiment --data_dir ./data_sets                    # in-domain
    python generate_corpus.py --task_name all --data_dir ./data_sets                          # cross-domain
    python generate_corpus.py --task_name csv --text_columns title body --data_dir ./my_data  # your own

Domains stand for their tasks: sentiment (imdb yelp_p yelp_f), question (trec yahoo), topic (ag dbpedia), all (these seven;
sogou is Chinese and stands alone). --data_dir is one folder for each task, in their order, or one that holds a folder by the
name of each.

A title is a document's first sentence. English sentences end where spaCy's rules for punctuation say, or a trained model
(--spacy_model en_core_web_md, the authors'); Chinese ones at 。 ？ ！. Where several tasks are joined, a training text of one
that is a test text of another is left out and counted: the reviews of Yelp P. and Yelp F. overlap. So it is for the test texts
of tasks that are not in the corpus but will be tested after it: --leave_out_test_of.
"""
import collections
import itertools
import os

import tasks
from common.command_line import ArgumentParser, UserError, add_boolean, path, run
from common.files import atomic_write, check_output_file, decode_lines, require_file
from common.tables import QUOTINGS, described, encoding_name, without_mark
from pretraining import sentences

DOMAINS = {domain: [task.name for task in tasks.TASKS.values() if task.domain == domain and task.language == "en"]
           for domain in ("sentiment", "question", "topic")}
DOMAINS["all"] = sum(DOMAINS.values(), [])


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--task_name", nargs="+", required=True, type=str.lower, choices=[*tasks.TASKS, *DOMAINS, "csv"],
                      help="Tasks or domains whose texts are joined; csv means files of your own.")
    data.add_argument("--data_dir", nargs="+", required=True, type=path, metavar="FOLDER", help="Folder of each task's train "
                      "and test files, in the order of the tasks, or one folder with a subfolder named after each task.")
    data.add_argument("--splits", nargs="+", choices=["train", "test"], default=["train"],
                      help="Splits whose texts are written; default: train.")
    data.add_argument("--text_columns", nargs="+", help="For csv: names of the text columns, or their numbers from 0 if there "
                      "is no header; default: text.")
    data.add_argument("--sep", help="For csv: the column separator, one character or tab; default: a comma, in .tsv a tab.")
    data.add_argument("--encoding", type=encoding_name, help="For csv: the encoding of those text tables that are neither "
                      "UTF-8 nor have a byte order mark; default: none, they are refused.")
    data.add_argument("--quoting", choices=QUOTINGS, help="For csv: whether quotes around a field are its text: none, they "
                      "are; all, they are not; auto, they are in a .tsv that does not show otherwise; default: auto.")
    data.add_argument("--unlabelled_file", type=path, metavar="FILE", help="For csv: more texts for the corpus, one a line, "
                      "each a document; default: none.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    recipe.add_argument("--leave_out_test_of", nargs="+", type=str.lower, choices=tasks.TASKS, default=[],
                        metavar="TASK", help="Further tasks whose test texts are removed from the training texts, "
                        "for instance yelp_f for a corpus of yelp_p; name their folders after those of --task_name; "
                        "default: none.")
    add_boolean(recipe, "--keep_html", False, "For imdb, keep the `<br />` of the published text, which hides the ends of "
                "sentences; default: off, it becomes a space.")
    recipe.add_argument("--language", choices=sentences.SPLITTERS,
                        help="For csv: the language whose rules end a sentence; default: en.")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    sentences.add_flags(recipe, speed, "one for each CPU core")
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", type=path, metavar="FILE", help="Corpus file to write, its folder created if it does "
                        "not exist; default: TASK_corpus.txt in the current folder.")
    args = parser.parse_args()
    args.output_file = args.output_file or "_".join(args.task_name) + "_corpus.txt"
    args.num_processes = args.num_processes or sentences.cores()
    args.splits = list(dict.fromkeys(args.splits))
    return args


def select_tasks(args):
    """The tasks (tasks.Task) that the flags name, each once. Raises UserError where they do not go together."""
    if args.task_name == ["csv"]:
        for flag in ("leave_out_test_of", "keep_html"):
            if getattr(args, flag):
                raise UserError(f"--{flag} belongs to the tasks by name, not to --task_name csv")
        return [tasks.own_task(None, args.text_columns or ["text"], args.sep or ",", args.language or "en",
                               encoding=args.encoding, quoting=args.quoting or "auto")]
    for flag in ("text_columns", "sep", "encoding", "quoting", "language", "unlabelled_file"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} belongs to --task_name csv")
    if "csv" in args.task_name:
        raise UserError("--task_name csv stands alone")
    names = [name for given in args.task_name for name in DOMAINS.get(given, [given])]
    selected = tasks.named_tasks(list(dict.fromkeys(names)), args.keep_html)
    if len({task.language for task in selected}) > 1:
        raise UserError(f"--task_name {' '.join(args.task_name)}: sogou is Chinese, the others are English; make a "
                        "corpus of each")
    for name in args.leave_out_test_of:
        if name in [task.name for task in selected]:
            raise UserError(f"--leave_out_test_of {name}: it is in the corpus, whose training texts are left whole by its own "
                            "test texts; name others")
    return selected


def main():
    args = parse_arguments()
    selected = select_tasks(args)
    if selected[0].language == "zh" and args.spacy_model:
        raise UserError("--spacy_model splits English; Chinese sentences end at 。 ？ ！")
    check_output_file(args.output_file, "--output_file")
    if args.unlabelled_file and os.path.realpath(args.unlabelled_file) == os.path.realpath(args.output_file):
        raise UserError(f"--output_file: {args.output_file} is also the input, --unlabelled_file")
    tested = selected + [tasks.TASKS[name] for name in dict.fromkeys(args.leave_out_test_of)]
    folders = tasks.data_folders([task.name for task in tested], args.data_dir)
    left_out = collections.Counter()
    with atomic_write(args.output_file) as file:
        reserved = sentences.test_texts_of(tested, folders)
        documents = (((task.name, split), *document) for task, folder in zip(selected, folders) for split in args.splits
                     for document in sentences.documents_of(task, folder, split, reserved, left_out))
        if args.unlabelled_file:
            lines = without_mark(decode_lines(require_file(args.unlabelled_file, "--unlabelled_file")))
            documents = itertools.chain(documents, ((("csv", "unlabelled"), "", [line]) for _, line in lines))
        tallies = sentences.write_corpus(documents, collections.defaultdict(lambda: [file]), selected[0].language,
                                         args.spacy_model, args.batch_size, args.num_processes)
        num_documents, num_lines = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("documents", "lines"))
        if not num_documents:
            raise UserError(f"--data_dir: none of the texts in {' '.join(folders[:len(selected)])} has a sentence")
    if args.task_name == ["csv"]:
        for split in args.splits:
            print(f"{split} texts: {described(tasks.find_source(selected[0], folders[0], split)[0], args.encoding)}")
    for task in selected:
        own = [tallies[task.name, split] for split in (*args.splits, "unlabelled")]
        print(f"{task.name}: {sum(tally.documents for tally in own)} documents, {sum(tally.lines for tally in own)} "
              "sentences" + (f"; {left_out[task.name]} training texts left out that are test texts of another task"
                             if len(tested) > 1 else ""))
    print(f"wrote {args.output_file}: {num_documents} documents, {num_lines} sentences")
    sentences.print_next(args.output_file, os.path.splitext(args.output_file)[0] + ".tfrecord", selected[0].language)


if __name__ == "__main__":
    run(main)
