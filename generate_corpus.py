"""Step 1 for any task, or several: their texts -> the corpus for further pre-training, one sentence a line, an empty
line between documents (paper, section 5.4).

    python generate_corpus.py --task_name imdb --data_dir ./imdb                              # within-task
    python generate_corpus.py --task_name sentiment --data_dir ./data_sets                    # in-domain
    python generate_corpus.py --task_name all --data_dir ./data_sets                          # cross-domain
    python generate_corpus.py --task_name csv --text_columns title body --data_dir ./my_data  # your own

Domains stand for their tasks: sentiment (imdb yelp_p yelp_f), question (trec yahoo), topic (ag dbpedia), all (these
seven; sogou is Chinese and stands alone). --data_dir is one folder for each task, in their order, or one that holds a
folder by the name of each.

A title is a document's first sentence. English sentences end where spaCy's rules for punctuation say, or a trained model
(--spacy_model en_core_web_md, the authors'); Chinese ones at 。 ？ ！. Where several tasks are joined, a training text
of one that is a test text of another is left out and counted: the reviews of Yelp P. and Yelp F. overlap. So it is for
the test texts of tasks that are not in the corpus but will be tested after it: --leave_out_test_of.
"""
import collections
import functools
import hashlib
import itertools
import os

from tqdm import tqdm

import sentences
import tasks
from command_line import ArgumentParser, UserError, atomic_write, check_output_file, run

DOMAINS = {domain: [task.name for task in tasks.TASKS.values() if task.domain == domain and task.language == "en"]
           for domain in ("sentiment", "question", "topic")}
DOMAINS["all"] = sum(DOMAINS.values(), [])


def parse_arguments():
    parser = ArgumentParser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--task_name", nargs="+", required=True, type=str.lower, choices=[*tasks.TASKS, *DOMAINS, "csv"],
                      help="The tasks, or domains, whose texts are joined; csv is a file of your own.")
    data.add_argument("--data_dir", nargs="+", required=True, metavar="FOLDER",
                      help="The folder of each task's train and test files, in their order; or one folder that has a "
                      "folder by the name of each task.")
    data.add_argument("--splits", nargs="+", choices=["train", "test"], default=["train"],
                      help="Which texts the corpus is made of; default: train.")
    data.add_argument("--text_columns", nargs="+",
                      help="For csv: names of the columns of text, or their numbers from 0 where there is no header; "
                      "default: text.")
    data.add_argument("--sep", help="For csv: the character between columns, or tab; default: a comma.")
    recipe = parser.add_argument_group("recipe (changes the corpus)")
    recipe.add_argument("--leave_out_test_of", nargs="+", type=str.lower, choices=tasks.TASKS, default=[], metavar="TASK",
                        help="Further tasks whose test texts are left out of the training texts, as yelp_f for a corpus of "
                        "yelp_p; their folders are named after those of --task_name. Default: none.")
    recipe.add_argument("--language", choices=["en", "zh"],
                        help="For csv: where sentences end, as in English or in Chinese; default: en.")
    speed = parser.add_argument_group("speed (does not change the corpus)")
    sentences.add_flags(recipe, speed, "one a CPU core")
    output = parser.add_argument_group("output")
    output.add_argument("--output_file", metavar="FILE",
                        help="The corpus; its folder is made where it does not exist; default: TASK_corpus.txt in the "
                        "current folder.")
    args = parser.parse_args()
    args.output_file = args.output_file or "_".join(args.task_name) + "_corpus.txt"
    args.num_processes = args.num_processes or sentences.cores()
    return args


def select_tasks(args):
    """The tasks that the flags name, each once: a list of tasks.Task. Raises UserError where they do not go together."""
    if args.task_name == ["csv"]:
        if args.leave_out_test_of:
            raise UserError("--leave_out_test_of belongs to the tasks by name, not to --task_name csv")
        return [tasks.own_task(None, args.text_columns or ["text"], args.sep or ",", args.language or "en")]
    for flag in ("text_columns", "sep", "language"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} belongs to --task_name csv")
    if "csv" in args.task_name:
        raise UserError("--task_name csv stands alone")
    names = [name for given in args.task_name for name in DOMAINS.get(given, [given])]
    selected = [tasks.TASKS[name] for name in dict.fromkeys(names)]
    if len({task.language for task in selected}) > 1:
        raise UserError(f"--task_name {' '.join(args.task_name)}: sogou is Chinese, the others are English; make a corpus "
                        "of each")
    if selected[0].language == "zh" and args.spacy_model:
        raise UserError("--spacy_model splits English; Chinese sentences end at 。 ？ ！")
    return selected


def digest(fields):
    """16 bytes that stand for a text, for finding it again."""
    return hashlib.blake2b(" ".join(fields).strip().encode(), digest_size=16).digest()


def test_texts(tested, folders):
    """{digest: set of the names of the tasks that have the text in their test set}, of several tasks."""
    found = collections.defaultdict(set)
    if len(tested) > 1:
        for task, folder in zip(tested, folders):
            for fields in tasks.read_fields(task, folder, "test"):
                found[digest(fields)].add(task.name)
    return found


def read_batches(selected, folders, splits, reserved, batch_size, left_out):
    """Yields (task's name, list of (title, texts)), at most batch_size of them, of each split of each task.

    reserved: what `test_texts` gives. left_out: a Counter that gets, for each task's name, how many training texts were
    test texts of another task.
    """
    for task, folder in zip(selected, folders):
        for split in splits:
            documents = tasks.read_fields(task, folder, split)
            if split == "train":
                documents = keep_unreserved(documents, task, reserved, left_out)
            titled = ((fields[0], fields[1:]) if task.titled else ("", fields) for fields in documents)
            for batch in iter(lambda: list(itertools.islice(titled, batch_size)), []):
                yield task.name, batch


def keep_unreserved(documents, task, reserved, left_out):
    for fields in documents:
        if reserved and reserved.get(digest(fields), set()) - {task.name}:
            left_out[task.name] += 1
        else:
            yield fields


def main():
    args = parse_arguments()
    selected = select_tasks(args)
    check_output_file(args.output_file, "--output_file")
    tested = selected + [tasks.TASKS[name] for name in args.leave_out_test_of if tasks.TASKS[name] not in selected]
    folders = tasks.data_folders([task.name for task in tested], args.data_dir)
    split = (sentences.split_chinese if selected[0].language == "zh" else
             functools.partial(sentences.split_english, args.spacy_model))
    documents, lines, left_out = collections.Counter(), collections.Counter(), collections.Counter()
    with atomic_write(args.output_file) as file, tqdm(desc="split", unit=" documents", disable=None) as bar:
        batches = read_batches(selected, folders, args.splits, test_texts(tested, folders), args.batch_size, left_out)
        for name, batch in sentences.split_documents(batches, split, args.num_processes):
            for title, texts in batch:
                documents[name] += sentences.write_document(file, title, texts)
                lines[name] += len(texts) + bool(title.strip())
            bar.update(len(batch))
        if not documents.total():
            raise UserError(f"--data_dir: none of the texts in {' '.join(folders[:len(selected)])} has a sentence")
    for task in selected:
        print(f"{task.name}: {documents[task.name]} documents, {lines[task.name]} sentences"
              + (f"; {left_out[task.name]} training texts left out that are test texts of another task"
                 if len(tested) > 1 else ""))
    print(f"wrote {args.output_file}: {documents.total()} documents, {lines.total()} sentences")
    record = os.path.splitext(args.output_file)[0] + ".tfrecord"
    print(f"next: python create_pretraining_data.py --input_file={args.output_file} --output_file={record} "
          "--vocab_file=./uncased_L-12_H-768_A-12/vocab.txt --do_lower_case=True --max_seq_length=128 "
          "--max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5")


if __name__ == "__main__":
    run(main)
