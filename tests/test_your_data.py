"""scripts/your_data.sh: own texts to a report in one command, on a tiny BERT; what its settings reach; what it refuses."""
import csv
import os
import pathlib
import random
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest

import runs
import tasks
from common.command_line import UserError
from common.tables import READERS
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import your_data_report  # noqa: E402

CLASSES = {"sport": "match team goal".split(), "politics": "election vote law".split(), "a | b": "space device science".split()}
SMALL = {"STEPS": "4", "POINTS": "2", "LENGTH": "32", "HEAD": "8", "EPOCHS": "2", "PRETRAINING_LENGTH": "32", "SEEDS": "3 4",
         "SPACY_MODEL": "", "LABEL": "category", "TEXTS": "title body", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, script):
    """A folder with `data`, tables of three classes and unlabelled texts, and `bert`, a tiny one of Google's form."""
    folder, rng = tmp_path_factory.mktemp("your data"), random.Random(0)
    (folder / "data").mkdir()
    for split, count in (("train", 60), ("test", 24)):
        with open(folder / "data" / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["category", "title", "body"])
            for i in range(count):
                name = list(CLASSES)[i % 3]
                words = [rng.choice(CLASSES[name] + ["the", "police"]) for _ in range(12)]
                rows.writerow([name, f"{split} | {i}", f"The {' '.join(words)}.\nThe end."])
    (folder / "data" / "unlabelled.txt").write_text("The unlabelled police. The troops.\n\nThe delay.\n")
    done = script("data/make_tiny_bert.py", "--output_dir", folder / "bert")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def your_data(folders, interpreter):
    """A function that runs the script: your_data(out, **variables)."""
    def call(out, cwd=ROOT, **variables):
        environment = {**os.environ, "VENV": str(interpreter.parent.parent), "DATA": str(folders / "data"), "BERT":
                       str(folders / "bert"), "OUT": str(out), **SMALL, **variables}
        return subprocess.run(["bash", str(ROOT / "scripts/your_data.sh")], capture_output=True, text=True, cwd=cwd,
                              env=environment, timeout=280)
    return call


@pytest.mark.long
def test_one_command_makes_a_report_of_both_models_and_again_only_the_report(folders, your_data, tmp_path):
    out = tmp_path / "out"
    done = your_data(out)
    assert done.returncode == 0, done.stdout + done.stderr
    corpus = (out / "pretrained/own/corpus.txt").read_text()
    assert "The unlabelled police.\nThe troops." in corpus and "train | 59" in corpus and "test |" not in corpus
    report = (out / "report/report.md").read_text(encoding="utf-8")
    for name, words in (("base", "| BERT | "), ("own", "| BERT, further pre-trained on the texts | ")):
        results = [runs.read_json(out / f"fine_tuned/{name}/seed_{seed}/results.json") for seed in (3, 4)]
        figures = [100 * np.array([result[at][f"eval_{metric}"] for result in results])
                   for at, metric in (("best", "accuracy"), ("test", "accuracy"), ("test", "macro_f1"))]
        assert words + " | ".join(f"{of.mean():.2f} ({of.std(ddof=1):.2f})" for of in figures) + " | 2 |" in report
        assert not (out / f"fine_tuned/{name}/seed_3/last").exists() and (out / f"fine_tuned/{name}/seed_3/best").exists()
    chosen = re.search(r"--init_checkpoint \S*/fine_tuned/(\w+)/seed_3/best", report)[1]
    development = {name: np.mean([runs.read_json(out / f"fine_tuned/{name}/seed_{seed}/results.json")["best"]["eval_accuracy"]
                                  for seed in (3, 4)]) for name in ("base", "own")}
    assert development[chosen] == max(development.values())
    for name in ("confusion_matrix.csv", "confusion_matrix.png"):
        assert (out / "report" / name).read_bytes() == (out / f"fine_tuned/{chosen}/seed_3" / name).read_bytes()
    assert (out / "report/learning_curves.png").read_bytes().startswith(b"\x89PNG")
    predicted = pandas.read_csv(out / f"predictions/{chosen}/predictions.tsv", sep="\t")
    test = pandas.read_csv(folders / "data/test.csv")
    wrong = test.assign(p=predicted.drop(columns="label").max(axis=1))[test["category"] != predicted["label"]]
    found = pandas.read_csv(out / "report/mistakes.csv")
    assert found["probability"].tolist() == sorted(wrong["p"], reverse=True) and len(found) > 0
    assert sorted(found["true"]) == sorted(wrong["category"])
    rows = [line for line in report.splitlines() if re.match(r"\| .* \| 0\.\d{3} \| ", line)]
    assert len(rows) == min(10, len(found)) and all(re.search(r"test \\\| \d+ The ", row) for row in rows)
    words = shlex.split(next(line for line in report.splitlines() if line.startswith("python run_classifier")))
    (tmp_path / "texts.txt").write_text("The match.\nThe vote.\n")
    runs.call("run_classifier_discriminative", *(str(tmp_path / "texts.txt") if word == "FILE" else word for word in words[2:]))
    assert len((out / "new_predictions/predictions.tsv").read_text().splitlines()) == 3

    again = your_data(out)
    assert again.returncode == 0 and "fine_tuned" not in again.stdout.split("to predict")[0], again.stdout
    assert (out / "report/report.md").read_text(encoding="utf-8") == report


def commands(done):
    assert done.returncode == 0, done.stderr
    return {pathlib.Path(words[1]).stem + (":" + words[words.index("--output_dir") + 1].rpartition("fine_tuned/")[2]
                                           if "--train_batch_size" in words else ""): words
            for words in map(shlex.split, done.stdout.splitlines()) if words[0] == "python"}


def test_its_settings_reach_the_commands(your_data, folders, tmp_path):
    usual = commands(your_data(tmp_path / "out", DRY_RUN="1"))
    assert usual.keys() == {"convert_tf_checkpoint_to_pytorch", "generate_corpus", "create_pretraining_data", "run_pretraining",
                            "run_classifier_discriminative:base", "run_classifier_discriminative:own",
                            "run_classifier_discriminative", "your_data_report"}
    for name in ("base", "own"):
        words = usual[f"run_classifier_discriminative:{name}"]
        assert shlex.join(words).count("--dev_fraction 0.1") == 1 and "--layer_learning_rate_decay 0.95" in shlex.join(words)
        assert words[words.index("--label_column") + 1] == "category"
    (tmp_path / "cased data").mkdir()
    for name in ("train.csv", "test.csv", "dev.csv"):
        (tmp_path / "cased data" / name).write_text("label,text\na,b\nb,c\n")
    (tmp_path / "cased data" / "never_split.txt").write_text("[URL]\n")
    (tmp_path / "cased").mkdir()
    for name in ("bert_config.json", "bert_model.ckpt.index"):
        (tmp_path / "cased" / name).write_bytes((folders / "bert" / name).read_bytes())
    (tmp_path / "cased" / "vocab.txt").write_text("[UNK]\nThe\nthe\n")
    changed = commands(your_data(tmp_path / "out", cwd=tmp_path, DRY_RUN="1", BERT="cased", DATA="cased data",
                                 TEXT_LANGUAGE="zh", NEXT_SENTENCE="False", LOWER_CASE="False", TABLE_FLAGS="--sep tab",
                                 FLAGS="--learning_rate 3e-5"))
    assert all("--next_sentence=False" in changed[script] for script in ("create_pretraining_data", "run_pretraining"))
    assert "--do_lower_case=False" in changed["create_pretraining_data"] and "--do_lower_case" not in str(usual)
    own = str(tmp_path / "cased data" / "never_split.txt")
    assert f"--never_split={own}" in changed["create_pretraining_data"] and "--never_split" not in str(usual)
    assert changed["generate_corpus"][changed["generate_corpus"].index("--language") + 1] == "zh"
    assert "--unlabelled_file" not in changed["generate_corpus"] and "--unlabelled_file" in usual["generate_corpus"]
    words = changed["run_classifier_discriminative:own"]
    assert words[words.index("--never_split") + 1] == own
    assert "--dev_fraction" not in words and words[-2:] == ["--learning_rate", "3e-5"]
    assert "--do_lower_case=False" in words
    assert words[words.index("--sep") + 1] == "tab" and str(tmp_path / "cased data") in words


def test_only_what_is_read_as_a_table_counts_as_one(your_data, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "test.csv", "test.bak", "dev.md"):
        (tmp_path / "data" / name).write_text("label,text\na,b\nb,c\n")
    (tmp_path / "words.txt").write_text("[URL]\n")
    done = your_data(tmp_path / "out", cwd=tmp_path, DATA="data", NEVER_SPLIT="words.txt", DRY_RUN="1")
    found = commands(done)
    assert "--dev_fraction" in found["run_classifier_discriminative:own"] and "test.bak" not in done.stdout
    assert f"--never_split={tmp_path / 'words.txt'}" in found["create_pretraining_data"]


def test_the_kinds_of_tables_are_those_that_are_read():
    text = (ROOT / "scripts/your_data.sh").read_text(encoding="utf-8")
    kinds = text.partition("for kind in ")[2].partition(";")[0].split()
    assert {f".{kind}" for kind in kinds} == READERS.keys() and len(kinds) == len(READERS)


@pytest.mark.parametrize("texts, columns", [("a  b", ["a", "b"]), ("Review Text,", ["Review Text"]),
                                            ("Review Text, b", ["Review Text", "b"])])
def test_columns_of_texts_may_have_spaces_in_their_names(your_data, tmp_path, texts, columns):
    usual = commands(your_data(tmp_path / "out", DRY_RUN="1", TEXTS=texts, LABEL="The Label"))
    for script, following in (("generate_corpus", "--unlabelled_file"),
                              ("run_classifier_discriminative:own", "--dev_fraction")):
        words = usual[script]
        assert words[words.index("--text_columns") + 1:words.index(following)] == columns
    assert words[words.index("--label_column") + 1] == "The Label"


def test_rows_of_labels_that_are_left_out_are_no_mistakes(tmp_path):
    """--unseen_labels ignore; the predictions have all rows."""
    (tmp_path / "train.csv").write_text("label,text\na,x\nb,y\n")
    (tmp_path / "test.csv").write_text("label,text\na,one\nodd,two\nb,three\n")
    (tmp_path / "predictions.tsv").write_text("label\ta\tb\nb\t0.2\t0.8\na\t0.9\t0.1\nb\t0.1\t0.9\n")
    task = tasks.csv_task(tmp_path, "label", ["text"])
    found = your_data_report.mistakes(task, tmp_path, tmp_path / "predictions.tsv")
    assert found.values.tolist() == [["a", "b", 0.8, "one"]]
    with open(tmp_path / "test.csv", "a") as file:
        file.write("a,four\n")
    with pytest.raises(UserError, match="has 3 rows, .*test.csv has 4"):
        your_data_report.mistakes(task, tmp_path, tmp_path / "predictions.tsv")


def test_changed_tables_make_what_is_made_from_them_due_again(your_data, folders, tmp_path):
    def plan():
        done = your_data(tmp_path / "out", DATA=str(tmp_path / "data"), DECLARE="1")
        assert done.returncode == 0, done.stderr
        return {name: (needs.split(), command) for name, _, needs, _, command in
                (line.split("\t") for line in done.stdout.splitlines())}
    shutil.copytree(folders / "data", tmp_path / "data")
    before = plan()
    assert plan() == before
    for name in ("train.csv", "test.csv", "unlabelled.txt"):
        (tmp_path / "data" / name).write_bytes((tmp_path / "data" / name).read_bytes().replace(b"police", b"troops"))
        after = plan()
        assert {job for job in after if after[job] != before[job]} == {"tables"}, name
        before = after
    assert {job for job, (needs, _) in after.items() if "tables" in needs} == {"pretrained/own/corpus", "fine_tuned/base",
                                                                              "fine_tuned/own"}


def test_the_language_of_the_system_is_not_that_of_the_texts(your_data, tmp_path):
    words = commands(your_data(tmp_path / "out", DRY_RUN="1", LANGUAGE="en_US"))["generate_corpus"]
    assert words[words.index("--language") + 1] == "en"


def test_the_folder_of_tables_may_be_a_link(your_data, folders, tmp_path):
    (tmp_path / "link").symlink_to(folders / "data")
    words = commands(your_data(tmp_path / "out", DRY_RUN="1", DATA=str(tmp_path / "link")))["your_data_report"]
    assert words[words.index("--data_dir") + 1] == str(folders / "data")


def test_the_report_is_of_the_first_seed(your_data, tmp_path):
    words = commands(your_data(tmp_path / "out", DRY_RUN="1", SEEDS="7 3"))["your_data_report"]
    assert words[words.index("--seed") + 1] == "7"


@pytest.mark.parametrize("variables, words", [
    ({"DATA": ""}, "DATA='' is no folder"), ({"DATA": "/nowhere"}, "DATA='/nowhere' is no folder"),
    ({"BERT": "/nowhere"}, "BERT='/nowhere' is no folder"), ({"DATA": str(ROOT / "docs")}, "there is no table test in")])
def test_what_it_cannot_work_with_is_one_line(your_data, tmp_path, variables, words):
    done = your_data(tmp_path / "out", **variables)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "error:" in done.stderr and words in done.stderr


def test_the_report_needs_finished_runs(refused, tmp_path):
    refused("scripts/your_data_report.py", "--runs", tmp_path, "--data_dir", tmp_path, words="run your_data.sh first")
