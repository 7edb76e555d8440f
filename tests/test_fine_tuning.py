"""The fine-tuning scripts end to end on a tiny BERT: what they learn, write, go on with, share, refuse."""
import csv
import errno
import gzip
import importlib
import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
import safetensors.torch
import sklearn.metrics
import torch

import optimization
import tasks
from common import command_line, files
from common.configuration import BertConfig
from finetuning import command, flags, model, training
from finetuning.evaluation import METRICS, measure, summarize_seeds
from finetuning.weights import read_weights, write_torch
from modeling import BertForPreTraining
from runs import (DISCRIMINATIVE, NUM_TEST, NUM_TRAIN, ROOT, SINGLE, assert_equal_weights, call, losses_of, make_bert,
                  predictions_of, read_evaluation, read_json, read_metrics, start_together, train_flags, wait, weights)

def labels_of(folder, split="test"):
    return tasks.read_examples(tasks.TASKS["ag"], folder, split)[1]


# A whole run

@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run of the single-layer script, what others compare with: its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    call(SINGLE, *train_flags(tiny, folder))
    return folder


def test_a_run_writes_what_the_contract_says(tiny, finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted(
        ["best", "last", "metrics.jsonl", "results.json", "run.json", "tensorboard"]
        + [f"{kind}_ep{epoch}.txt" for kind in ("eval_results", "results", "classification_report") for epoch in (1, 2, 3)]
        + [f"confusion_matrix_ep{epoch}.{kind}" for kind in ("csv", "png") for epoch in (1, 2, 3)])
    labels = labels_of(tiny)
    for epoch in (1, 2, 3):
        predictions = predictions_of(finished / f"results_ep{epoch}.txt")
        evaluation = read_evaluation(finished / f"eval_results_ep{epoch}.txt")
        assert len(predictions) == NUM_TEST and set(predictions) <= {0, 1, 2, 3}
        assert evaluation["eval_accuracy"] == pytest.approx(np.mean(np.array(predictions) == labels), abs=1e-12)
        assert evaluation["global_step"] == 8 * epoch
        matrix = pandas.read_csv(finished / f"confusion_matrix_ep{epoch}.csv", index_col="true")
        assert matrix.columns.tolist() == ["1", "2", "3", "4"] and matrix.index.tolist() == [1, 2, 3, 4]
        assert (matrix.to_numpy() == sklearn.metrics.confusion_matrix(labels, predictions, labels=range(4))).all()
        assert (finished / f"confusion_matrix_ep{epoch}.png").read_bytes().startswith(b"\x89PNG")
    train = read_metrics(finished, "train")
    assert [line["global_step"] for line in train] == list(range(1, 25))
    rates = [line["learning_rate"] for line in train]
    assert rates == pytest.approx([1e-3 * optimization.slanted_triangular(step / 24, 0.1) for step in range(24)])
    assert [line["global_step"] for line in read_metrics(finished, "eval")] == [8, 16, 24]
    assert any(path.name.startswith("events") for path in (finished / "tensorboard").iterdir())
    run = read_json(finished / "run.json")
    assert run["flags"]["learning_rate"] == 1e-3 and run["versions"]["torch"] == torch.__version__ and run["device"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert run["commit"].startswith(commit) and commit if commit else run["commit"] is None
    assert "command" in run


def test_best_and_last_are_kept_apart(finished):
    results = read_json(finished / "results.json")
    accuracies = [epoch["eval_accuracy"] for epoch in results["epochs"]]
    equal = [epoch for epoch in results["epochs"] if epoch["eval_accuracy"] == max(accuracies)]
    assert results["best"] == min(equal, key=lambda epoch: epoch["eval_loss"])
    assert results["last"] == results["epochs"][-1]
    for name in ("best", "last"):
        assert (finished / name / "model.safetensors").exists()


def test_a_finished_run_is_not_done_again(tiny, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    call(SINGLE, *train_flags(tiny, finished))
    assert "this run is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_loss_of_the_first_update_is_that_of_chance(finished):
    assert losses_of(finished)[0] == pytest.approx(math.log(4), abs=0.3)


def test_what_was_derived_is_printed(tiny, tmp_path, capsys):
    call(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 1, "--layers", 1, 0)
    out = capsys.readouterr().out
    assert " weights from " in out and "classifier.weight" in out and "cls.predictions.bias" in out
    assert out.count("input_ids:") == 3 and "[CLS]" in out and "[SEP]" in out
    assert "61 training examples" in out
    assert "8 updates of 8 examples, over 1 process(es) x 1 micro-batch(es)" in out
    assert "the test set is evaluated after each epoch" in out
    assert "biases and LayerNorm" in out


def test_a_user_s_run_learns_the_sample_and_never_imports_tensorflow(tmp_path):
    """The script in a process of its own, on 480 rows of the sample: far over chance (25 %)."""
    vocab = ROOT / "data" / "tiny_bert" / "vocab.txt"
    make_bert(tmp_path, vocab.read_text(encoding="utf-8").count("\n"), dropout=0.1)
    flags = ["--task_name", "ag", "--do_train", "--do_eval", "--data_dir", ROOT / "data" / "sample", "--do_lower_case",
             "--vocab_file", vocab, "--bert_config_file", tmp_path / "bert_config.json", "--init_checkpoint",
             tmp_path / "pytorch_model.bin", "--max_seq_length", 64, "--train_batch_size", 16, "--learning_rate", 2e-3,
             "--num_train_epochs", 3, "--num_datas", 480, "--num_test_datas", 200, "--layers", 1, 0,
             "--pooling_type", "mean", "--no_cuda", "--output_dir", tmp_path / "run"]
    code = (f"import runpy, sys; sys.argv = {[str(flag) for flag in [f'{SINGLE}.py', *flags]]!r}; "
            f"runpy.run_path({str(ROOT / f'{SINGLE}.py')!r}, run_name='__main__'); "
            "assert not [name for name in sys.modules if name.split('.')[0] == 'tensorflow']")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert read_evaluation(tmp_path / "run" / "eval_results_ep3.txt")["eval_accuracy"] > 0.5
    assert read_json(tmp_path / "run" / "run.json")["flags"]["num_datas"] == 480
    losses = losses_of(tmp_path / "run")
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3])


# Recipe flags

def test_the_discriminative_script_gives_each_layer_its_rate(tiny, tmp_path, capsys):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 0.25, "--learning_rate", 4e-5]
    call(DISCRIMINATIVE, *flags, "--layer_learning_rate", 1e-4, "--layer_learning_rate_decay", 0.5,
         "--embeddings_learning_rate", "decayed")
    table = {line[:44].strip(): float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()
             if line.startswith(("layer", "embeddings", "pooler"))}
    assert table == {f"{part}{more}": rate for more in ("", ", biases and LayerNorm") for part, rate in (
        ("layer 1", 1e-4), ("layer 0", 5e-5), ("embeddings", 2.5e-5), ("pooler, classifier", 4e-5))}


def test_equal_rates_for_each_layer_are_the_single_layer_script(tiny, finished, tmp_path):
    call(DISCRIMINATIVE, *train_flags(tiny, tmp_path / "one"), "--layer_learning_rate", 1e-3,
         "--layer_learning_rate_decay", 1)
    call(DISCRIMINATIVE, *train_flags(tiny, tmp_path / "off"), "--discr", "False")
    for name in ("one", "off"):
        assert_equal_weights(tmp_path / name / "last", finished / "last", 1e-7)
    call(DISCRIMINATIVE, *train_flags(tiny, tmp_path / "decayed"), "--layer_learning_rate", 1e-3)
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "decayed" / "last", finished / "last", 1e-5)


def test_several_seeds_are_summed_up_and_each_is_the_run_alone(tiny, finished, tmp_path, capsys):
    call(SINGLE, *train_flags(tiny, tmp_path), "--seed", 7, 42, 43)
    summary = read_json(tmp_path / "summary.json")
    for name in ("best", "last"):
        values = [read_json(tmp_path / f"seed_{seed}" / "results.json")[name]["eval_accuracy"] for seed in (7, 42, 43)]
        assert summary[name]["values"] == values
        assert summary[name]["mean"] == pytest.approx(np.mean(values))
        assert summary[name]["std"] == pytest.approx(np.std(values, ddof=1))
    assert "std" in capsys.readouterr().out
    assert_equal_weights(tmp_path / "seed_42" / "last", finished / "last")
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "seed_7" / "last", finished / "last")


def test_means_over_classes_are_over_all_of_them():
    """A class that nothing is of counts whether it is predicted or not, as in scikit-learn's report."""
    labels = np.array([0, 0, 1, 1])
    for predictions in ([0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 2]):
        evaluation = measure(labels, np.eye(3, dtype=np.float32)[predictions])
        report = sklearn.metrics.classification_report(labels, predictions, labels=range(3), zero_division=0, output_dict=True)
        for name, row, column in (("macro_f1", "macro avg", "f1-score"), ("macro_precision", "macro avg", "precision"),
                                  ("macro_recall", "macro avg", "recall"), ("weighted_f1", "weighted avg", "f1-score")):
            assert evaluation[f"eval_{name}"] == pytest.approx(report[row][column], abs=1e-12)


def test_seeds_are_summed_up_by_the_names_of_their_tasks_in_whatever_order():
    def figures(value):
        return {"best": {f"eval_{metric}": value for metric in METRICS}}
    results = [{"tasks": {"ag": figures(0.2), "trec": figures(0.6)}}, {"tasks": {"trec": figures(0.8), "ag": figures(0.4)}}]
    summary, lines = summarize_seeds([1, 2], results)
    assert {task: of_task["best"]["values"] for task, of_task in summary["tasks"].items()} == {
        "ag": [0.2, 0.4], "trec": [0.6, 0.8]}
    assert [line.split(" (")[0] for line in lines] == ["ag: best over 2 seeds: accuracy 30.0000%",
                                                       "trec: best over 2 seeds: accuracy 70.0000%"]


def test_held_out_data_choose_the_best_and_the_test_set_is_evaluated_once(tiny, tmp_path, monkeypatch):
    evaluated = []
    predict = training.predict
    monkeypatch.setattr(training, "predict",
                        lambda model, dataset, *rest: evaluated.append(len(dataset)) or predict(model, dataset, *rest))
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--dev_fraction", 0.2)
    held_out = round(0.2 * NUM_TRAIN)
    assert evaluated == [held_out] * 3 + [NUM_TEST]
    assert len(predictions_of(tmp_path / "run" / "results_ep2.txt")) == held_out
    predictions = predictions_of(tmp_path / "run" / "results.txt")
    accuracy = read_evaluation(tmp_path / "run" / "eval_results.txt")["eval_accuracy"]
    assert accuracy == pytest.approx(np.mean(np.array(predictions) == labels_of(tiny)))
    results = read_json(tmp_path / "run" / "results.json")
    assert results["test"]["eval_accuracy"] == pytest.approx(accuracy)
    assert results["test"]["epoch"] == results["best"]["epoch"]
    # 61 - 12 examples in batches of 8
    assert results["last"]["global_step"] == 3 * 7
    call(SINGLE, "--do_eval", "--data_dir", tiny, "--init_checkpoint", tmp_path / "run" / "best", "--no_cuda",
         "--output_dir", tmp_path / "again")
    assert read_evaluation(tmp_path / "again" / "eval_results.txt")["eval_accuracy"] == pytest.approx(accuracy)


def test_patience_stops_when_nothing_gets_better(tiny, tmp_path):
    """With a rate of 0 the first epoch stays the best: patience 2 ends after epoch 3 of 9."""
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--learning_rate", 0, "--num_train_epochs", 9,
         "--dev_fraction", 0.2, "--patience", 2)
    results = read_json(tmp_path / "run" / "results.json")
    assert [epoch["epoch"] for epoch in results["epochs"]] == [1, 2, 3] and results["best"]["epoch"] == 1
    assert "test" in results


def test_eval_epochs_evaluates_some_epochs_and_trains_as_ever(tiny, tmp_path):
    """Of 4.5 epochs the second, the fourth and, as the last one, the part of a fifth; best and last are of these."""
    flags = [*train_flags(tiny, tmp_path / "each"), "--num_train_epochs", 4.5]
    call(SINGLE, *flags)
    call(SINGLE, *flags, "--eval_epochs", 2, "--output_dir", tmp_path / "some")
    each, some = ([{key: value for key, value in epoch.items() if key != "seconds"}
                   for epoch in read_json(tmp_path / name / "results.json")["epochs"]] for name in ("each", "some"))
    assert [epoch["epoch"] for epoch in each] == [1, 2, 3, 4, 5] and some == [each[1], each[3], each[4]]
    results = read_json(tmp_path / "some" / "results.json")
    assert results["best"] in results["epochs"] and results["last"] == results["epochs"][-1]
    assert sorted(path.name for path in (tmp_path / "some").glob("*_ep*.txt")) == sorted(
        f"{name}_ep{epoch}.txt" for name in ("classification_report", "eval_results", "results") for epoch in (2, 4, 5))
    assert losses_of(tmp_path / "some") == losses_of(tmp_path / "each")
    assert_equal_weights(tmp_path / "some" / "last", tmp_path / "each" / "last")


def test_a_run_that_evaluates_at_its_end_goes_on_where_it_was_stopped(tiny, tmp_path, start):
    """Stopped in the second of three epochs, after one that was not evaluated."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 3, "--eval_epochs", 3]
    log = tmp_path / "log.txt"
    assert wait(start(SINGLE, flags, log, ("update", 12, "after", signal.SIGTERM))) == [128 + signal.SIGTERM], log.read_text()
    assert not list((tmp_path / "run").glob("*_ep*")) and (tmp_path / "run" / "checkpoint.pt").exists()
    for folder in ("run", "whole"):
        assert wait(start(SINGLE, [*flags, "--output_dir", tmp_path / folder], log)) == [0], log.read_text()
    assert [epoch["epoch"] for epoch in read_json(tmp_path / "run" / "results.json")["epochs"]] == [3]
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert_equal_weights(tmp_path / "run" / "best", tmp_path / "whole" / "last")


def test_a_run_that_diverges_between_its_evaluations_is_evaluated(tiny, tmp_path):
    call(SINGLE, *train_flags(tiny, tmp_path), "--learning_rate", 1e30, "--warmup_proportion", 0, "--allow_divergence",
         "--num_train_epochs", 3, "--eval_epochs", 3)
    results = read_json(tmp_path / "results.json")
    assert results["diverged"] == {"global_step": 2} and [epoch["epoch"] for epoch in results["epochs"]] == [1]


@pytest.mark.parametrize("num, updates", [(9, 2), (0.4, 3), ("1.0", 8), ("1", 1)])
def test_num_datas_takes_exactly_so_many(tiny, tmp_path, num, updates):
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--num_datas", num, "--num_train_epochs", 1)
    assert len(read_metrics(tmp_path / "run", "train")) == updates


def test_frozen_bert_trains_the_classifier_alone(tiny, tmp_path):
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--frozen_bert", "--num_train_epochs", 1)
    before = torch.load(tiny / "pytorch_model.bin", weights_only=True)
    for name, value in weights(tmp_path / "run" / "last").items():
        assert name.startswith("classifier.") or torch.equal(value, before[name]), name


def test_a_run_without_evaluation_keeps_the_last_model(tiny, tmp_path):
    flags = [flag for flag in train_flags(tiny, tmp_path / "run") if flag != "--do_eval"]
    call(SINGLE, *flags, "--num_train_epochs", 1)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "last" in names and "best" not in names and not [name for name in names if "_ep" in name]


def test_all_of_the_authors_flags_are_known():
    old = ("--task_name imdb --do_train --do_eval --do_lower_case --data_dir D --vocab_file V --bert_config_file B "
           "--init_checkpoint I --max_seq_length 512 --train_batch_size 24 --eval_batch_size 8 --learning_rate 2e-5 "
           "--num_train_epochs 3.0 --warmup_proportion 0.1 --save_checkpoints_steps 1000 --output_dir O --seed 42 "
           "--layers 11 10 --trunc_medium -1 --pooling_type mean --num_datas 10 --no_cuda --accumulate_gradients 2 "
           "--gradient_accumulation_steps 2 --local_rank -1").split()
    discriminative = importlib.import_module(DISCRIMINATIVE)
    parser = flags.make_parser("")
    args, _ = flags.parse(parser, old)
    assert args.layers == [11, 10] and args.trunc_medium == -1 and args.num_train_epochs == 3.0
    discriminative.add_flags(parser.recipe, discr=True)
    old += "--discr --layer_learning_rate 2e-5 --layer_learning_rate_decay 0.95".split()
    args, _ = flags.parse(parser, old)
    assert (args.discr, args.layer_learning_rate, args.layer_learning_rate_decay) == (True, [2e-5], 0.95)


# Speed flags change nothing but time

@pytest.mark.parametrize("flags, tolerance", [
    (["--gradient_accumulation_steps", 3], 1e-5), (["--gradient_checkpointing"], 1e-7), (["--eval_batch_size", 5], 0),
    (["--log_steps", 7, "--save_checkpoints_steps", 100], 0)], ids=lambda value: str(value))
def test_speed_and_output_flags_leave_the_result(tiny, finished, tmp_path, flags, tolerance):
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), *flags)
    assert_equal_weights(tmp_path / "run" / "last", finished / "last", tolerance)
    for epoch in (1, 2, 3):
        name = f"results_ep{epoch}.txt"
        assert predictions_of(tmp_path / "run" / name) == predictions_of(finished / name)


def test_bf16_stays_near(tiny, finished, tmp_path):
    """Losses to 2 %, and the saved weights are float32."""
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--precision", "bf16")
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(finished), rtol=0.02)
    assert {value.dtype for value in weights(tmp_path / "run" / "last").values()} == {torch.float32}


def test_compile_compiles_each_layer_and_keeps_the_names(tiny, finished, tmp_path, monkeypatch):
    """That a compiled layer's numbers are equal is a test of the model; here: which parts, and what is saved."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--compile")
    assert compiled == ["BertLayer"] * 2
    assert_equal_weights(tmp_path / "run" / "last", finished / "last")


# Saved models

def test_a_saved_model_is_evaluated_without_its_flags(tiny, finished, tmp_path):
    for name in ("best", "last"):
        call(SINGLE, "--do_eval", "--data_dir", tiny, "--init_checkpoint", finished / name, "--no_cuda",
             "--output_dir", tmp_path / name)
        wanted = read_json(finished / "results.json")[name]
        assert read_evaluation(tmp_path / name / "eval_results.txt")["eval_accuracy"] == wanted["eval_accuracy"]
        assert predictions_of(tmp_path / name / "results.txt") == predictions_of(
            finished / f"results_ep{wanted['epoch']}.txt")


def read_predictions(path):
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return header, rows


def test_predictions_from_a_saved_model_without_its_flags(tiny, finished, tmp_path):
    """Of the test file's rows, labels and all: the labels are those of the evaluation, the probabilities sum to 1."""
    call(SINGLE, "--do_predict", "--predict_file", tiny / "test.csv", "--init_checkpoint", finished / "last",
         "--no_cuda", "--output_dir", tmp_path)
    header, rows = read_predictions(tmp_path / "predictions.tsv")
    assert header == ["label", "1", "2", "3", "4"] and len(rows) == NUM_TEST
    classes = [header[1:].index(row[0]) for row in rows]
    assert classes == predictions_of(finished / "results_ep3.txt")
    probabilities = np.array([row[1:] for row in rows], float)
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5 and (probabilities.argmax(1) == classes).all()


def test_predictions_of_lines_of_text(tiny, finished, tmp_path):
    (tmp_path / "new.txt").write_text("The match ended in a draw .\n\nShares fell .\n")
    call(SINGLE, "--do_predict", "--predict_file", tmp_path / "new.txt", "--init_checkpoint", finished / "best",
         "--no_cuda", "--output_dir", tmp_path)
    assert len(read_predictions(tmp_path / "predictions.tsv")[1]) == 3


def test_training_and_prediction_in_one_command(tiny, tmp_path):
    call(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 1, "--do_predict",
         "--predict_file", tiny / "test.csv")
    header, rows = read_predictions(tmp_path / "predictions.tsv")
    assert [header[1:].index(row[0]) for row in rows] == predictions_of(tmp_path / "results_ep1.txt")


@pytest.fixture(scope="module")
def own_file(tiny, tmp_path_factory):
    """A run on a file with a header and labels in words: (data folder, run)."""
    folder = tmp_path_factory.mktemp("own")
    for split in ("train", "test"):
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(["id", "topic", "body", "head"])
            for line, label, (title, description) in tasks.read_documents(tasks.TASKS["ag"], tiny, split):
                writer.writerow([line, ["world", "sport", "money", "science"][label], description, title])
    call(SINGLE, *train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder, "--label_column",
         "topic", "--text_columns", "head", "body", "--sep", ";", "--trunc_medium", 4, "--layers", 1, 0,
         "--layer_pooling", "max", "--pooling_type", "mean")
    return folder, folder / "run"


def test_a_file_of_ones_own_is_learnt_and_its_labels_are_stored(own_file, tmp_path):
    """Labels, columns, separator, truncation, layers and pooling all come from the saved model."""
    folder, run = own_file
    with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["head", "body"])
        task = tasks.csv_task(folder, "topic", ["head", "body"], ";")
        writer.writerows(fields for _, _, fields in tasks.read_documents(task, folder, "test"))
    call(SINGLE, "--do_predict", "--do_eval", "--data_dir", folder, "--predict_file", tmp_path / "new.csv",
         "--init_checkpoint", run / "last", "--no_cuda", "--output_dir", tmp_path / "out")
    header, rows = read_predictions(tmp_path / "out" / "predictions.tsv")
    assert header == ["label", "money", "science", "sport", "world"]
    classes = [header[1:].index(row[0]) for row in rows]
    assert classes == predictions_of(run / "results_ep3.txt") == predictions_of(tmp_path / "out" / "results.txt")


def transformers_batch(folder, tiny, transformers):
    """The test rows as transformers' own tokenizer, loaded from the folder, makes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts, _ = tasks.read_examples(tasks.TASKS["ag"], tiny, "test")
    return tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")


def test_the_folder_loads_in_transformers_as_a_classifier(tiny, finished):
    """AutoModelForSequenceClassification and AutoTokenizer of the folder give our predictions and label names."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "last").eval()
    with torch.no_grad():
        logits = model(**transformers_batch(finished / "last", tiny, transformers)).logits
    assert logits.argmax(1).tolist() == predictions_of(finished / "results_ep3.txt")
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels_of(tiny))).item()
    assert loss == pytest.approx(read_evaluation(finished / "eval_results_ep3.txt")["eval_loss"], abs=1e-5)
    assert model.config.id2label == {0: "1", 1: "2", 2: "3", 3: "4"}


def test_the_folder_loads_in_transformers_as_an_encoder(tiny, own_file):
    """AutoModel of a folder whose head is not transformers': every encoder weight is taken."""
    transformers = pytest.importorskip("transformers")
    folder = own_file[1] / "last"
    model, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "BertModel" and not loading["missing_keys"]
    stored = weights(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[f"bert.{name}"]), name


def test_fine_tuning_goes_on_from_a_saved_folder(finished, tiny, tmp_path):
    """A folder is all that --init_checkpoint needs: its configuration, vocabulary and weights, the classifier's too."""
    call(SINGLE, "--task_name", "ag", "--do_train", "--do_eval", "--data_dir", tiny, "--do_lower_case", "--no_cuda",
         "--init_checkpoint", finished / "last", "--max_seq_length", 32, "--num_train_epochs", 1, "--learning_rate", 0,
         "--output_dir", tmp_path / "run")
    assert predictions_of(tmp_path / "run" / "results_ep1.txt") == predictions_of(finished / "results_ep3.txt")


@pytest.mark.parametrize("kept", ["none", "last", "best", "both"])
def test_the_models_asked_for_are_kept_and_the_next_command_names_one(tiny, finished, tmp_path, capsys, kept):
    """And nothing else of the run is another."""
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--save_models", kept)
    folders = {"none": [], "both": ["best", "last"]}.get(kept, [kept])
    assert [name for name in ("best", "last") if (tmp_path / "run" / name).exists()] == folders
    for name in folders:
        assert_equal_weights(tmp_path / "run" / name, finished / name)
    assert record(tmp_path / "run")[:4] == record(finished)[:4]
    out = capsys.readouterr().out
    assert ("next, predict with it" in out) == bool(folders)
    assert all(f"--init_checkpoint {tmp_path / 'run' / folders[0]}" in line for line in out.splitlines() if "FILE" in line)


@pytest.mark.parametrize("flags, kept", [(["--save_models", "last"], "last"), (["--save_models", "best"], "best")])
def test_prediction_after_training_takes_the_model_that_is_kept(tiny, finished, tmp_path, flags, kept):
    call(SINGLE, *train_flags(tiny, tmp_path), *flags, "--do_predict", "--predict_file", tiny / "test.csv")
    epoch = read_json(finished / "results.json")[kept]["epoch"]
    header, rows = read_predictions(tmp_path / "predictions.tsv")
    assert [header[1:].index(row[0]) for row in rows] == predictions_of(finished / f"results_ep{epoch}.txt")


def test_prediction_by_a_model_that_was_not_kept_is_refused(tiny, tmp_path, refused_here):
    call(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 0.125, "--save_models", "last")
    refused_here(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 0.125, "--do_predict", "--predict_file",
                 tiny / "test.csv", words=f"--do_predict: {tmp_path}/best is not there, as the run diverged, or had another")


# Pairs of texts, and IMDb's HTML

@pytest.fixture(scope="module")
def own_pairs(tiny, tmp_path_factory):
    """A run on a file of one's own with pairs that fit, some of which have no second text: (data folder, run)."""
    folder = tmp_path_factory.mktemp("pairs")
    for split in ("train", "test"):
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["answer", "topic", "question", "more"])
            for line, label, (title, description) in tasks.read_documents(tasks.TASKS["ag"], tiny, split):
                words = description.split() if line % 7 else []
                writer.writerow([" ".join(words[:6]), "abcd"[label], title, " ".join(words[6:9])])
    call(SINGLE, *train_flags(tiny, folder / "run"), "--task_name", "csv", "--data_dir", folder, "--label_column", "topic",
         "--text_columns", "question", "--text_pair_columns", "answer", "more", "--max_seq_length", 64,
         "--num_train_epochs", 1)
    return folder, folder / "run"


def read_pairs(folder, split="test"):
    with open(folder / f"{split}.csv", encoding="utf-8", newline="") as file:
        return [(row["question"], f"{row['answer']} {row['more']}") for row in csv.DictReader(file)]


def test_pairs_are_learnt_evaluated_and_predicted_without_their_labels(own_pairs, tmp_path, spy):
    """The saved model knows the columns. Of the rows for prediction, which lack the label, only they are read."""
    folder, run = own_pairs
    made = spy(command, "make_pair_dataset", lambda dataset, _, pairs, *rest: (dataset, pairs))
    pairs = read_pairs(folder)
    with open(tmp_path / "new.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["more", "question", "answer"])
        with open(folder / "test.csv", encoding="utf-8", newline="") as rows:
            writer.writerows([row["more"], row["question"], row["answer"]] for row in csv.DictReader(rows))
    call(SINGLE, "--do_eval", "--do_predict", "--data_dir", folder, "--predict_file", tmp_path / "new.csv",
         "--init_checkpoint", run / "last", "--no_cuda", "--output_dir", tmp_path)
    header, rows = read_predictions(tmp_path / "predictions.tsv")
    classes = [header[1:].index(row[0]) for row in rows]
    assert classes == predictions_of(run / "results_ep1.txt") == predictions_of(tmp_path / "results.txt")
    assert [given for _, given in made] == [pairs, pairs]
    call(SINGLE, "--do_eval", "--data_dir", folder, "--init_checkpoint", run / "last", "--no_cuda", "--output_dir", tmp_path,
         "--label_column", "topic", "--text_columns", "question", "--text_pair_columns", "answer", "more")  # may be repeated
    for dataset, _ in made:
        assert dataset.num_cut == 0
        assert [dataset.segments(index)[0].any() for index in range(len(pairs))] == [bool(b.strip()) for _, b in pairs]


def test_logits_of_pairs_equal_transformers_to_1e_5(own_pairs, tmp_path, spy):
    """The saved folder's tokenizer and classifier, given the two texts; without segments they are others."""
    transformers = pytest.importorskip("transformers")
    folder, run = own_pairs
    logits = spy(command, "predict", lambda logits, *_: torch.from_numpy(logits))
    call(SINGLE, "--do_eval", "--data_dir", folder, "--init_checkpoint", run / "last", "--no_cuda", "--output_dir", tmp_path)
    pairs = [(index, a, b) for index, (a, b) in enumerate(read_pairs(folder)) if b.strip()]
    indices, first, second = map(list, zip(*pairs))
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "last")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "last").eval()
    batch = tokenizer(first, second, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs, unsegmented = (model(**batch | other).logits for other in (
            {}, {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}))
    torch.testing.assert_close(logits[0][indices], theirs, rtol=0, atol=1e-5)
    assert (unsegmented - theirs).abs().max() > 1e-2


def test_a_plain_text_file_holds_no_pairs(own_pairs, tmp_path, refused_here):
    (tmp_path / "new.txt").write_text("Why?\n")
    refused_here(SINGLE, "--do_predict", "--predict_file", tmp_path / "new.txt", "--init_checkpoint", own_pairs[1] / "best",
                 "--no_cuda", "--output_dir", tmp_path / "out", words="new.txt holds one a line; give a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", (["--text_pair_columns", "more", "answer"], ["--text_columns", "answer"]))
def test_pairs_of_another_form_than_the_model_s_are_refused(own_pairs, tmp_path, refused_here, flags):
    folder, run = own_pairs
    refused_here(SINGLE, "--do_predict", "--predict_file", folder / "test.csv", "--init_checkpoint", run / "best",
                 "--no_cuda", "--output_dir", tmp_path / "out", *flags,
                 words=f"{flags[0]}: the model in {run / 'best'} was trained on texts that are read in another way")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ([], ["--text_columns", "question"], ["--text_pair_columns", "answer", "more"]))
def test_columns_that_are_not_named_again_are_the_model_s(own_pairs, tmp_path, flags):
    folder, run = own_pairs
    call(SINGLE, "--do_eval", "--data_dir", folder, "--init_checkpoint", run / "last", "--no_cuda", "--output_dir", tmp_path,
         *flags)
    assert predictions_of(tmp_path / "results.txt") == predictions_of(run / "results_ep1.txt")


def test_a_bert_of_one_segment_takes_no_pairs(own_pairs, tiny, tmp_path, refused_here):
    config = read_json(tiny / "bert_config.json") | {"type_vocab_size": 1}
    (tmp_path / "bert_config.json").write_text(json.dumps(config))
    flags = [*train_flags(tiny, tmp_path / "run"), "--task_name", "csv", "--data_dir", own_pairs[0], "--label_column", "topic",
             "--bert_config_file", tmp_path / "bert_config.json", "--init_checkpoint", "", "--text_columns", "question"]
    refused_here(SINGLE, *flags, "--text_pair_columns", "answer", words="type_vocab_size is 1, and pairs of texts need 2")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def two_forms(tiny, tmp_path_factory):
    """A folder of data in the formats of yahoo (without a question's text) and imdb (with HTML), 20 rows each."""
    folder = tmp_path_factory.mktemp("formats")
    for name in ("yahoo", "imdb"):
        (folder / name).mkdir()
    for split in ("train", "test"):
        rows = [row for _, row in zip(range(20), tasks.read_documents(tasks.TASKS["ag"], tiny, split))]
        with open(folder / "yahoo" / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                [line % 10 + 1, title, "", text] for line, _, (title, text) in rows)
        (folder / "imdb" / f"{split}.csv").write_text(
            "".join(f"{label % 2}\t{title}<br /><br />{text}\n" for _, label, (title, text) in rows), encoding="utf-8")
    return folder


def test_yahoo_s_title_and_question_are_a_pair_with_the_answer(tiny, two_forms, tmp_path, spy):
    """Else one text; the saved model reads what it was trained on, and what is cut is the longer text's end."""
    pairs, singles = (spy(command, name, lambda dataset, *_: dataset) for name in ("make_pair_dataset", "make_dataset"))
    flags = [*train_flags(tiny, tmp_path / "pair"), "--task_name", "yahoo", "--data_dir", two_forms / "yahoo",
             "--num_train_epochs", 1]
    call(SINGLE, *flags, "--output_dir", tmp_path / "single")
    assert len(singles) == 2 and not pairs
    call(SINGLE, *flags, "--text_pair")
    train = pairs[0]
    tokens = (tiny / "vocab.txt").read_text(encoding="utf-8").split("\n")
    separators = [np.flatnonzero(train.sequences(index)[0] == tokens.index("[SEP]")) for index in range(20)]
    assert all(len(each) == 2 for each in separators) and train.num_cut > 10
    assert [train.segments(index)[0].tolist() for index in range(20)] == [
        [position > first for position in range(last + 1)] for first, last in separators]
    call(SINGLE, "--do_predict", "--predict_file", two_forms / "yahoo" / "test.csv", "--init_checkpoint",
         tmp_path / "pair" / "last", "--no_cuda", "--output_dir", tmp_path / "out")
    assert (pairs[-1].ids == pairs[1].ids).all() and (pairs[-1].first_lengths == pairs[1].first_lengths).all()
    header, rows = read_predictions(tmp_path / "out" / "predictions.tsv")
    assert [header[1:].index(row[0]) for row in rows] == predictions_of(tmp_path / "pair" / "results_ep1.txt")


def test_imdb_s_html_is_kept_on_demand_and_the_model_knows(tiny, two_forms, tmp_path, spy, refused_here):
    made = spy(command, "make_dataset", lambda dataset, *_: dataset)
    flags = [*train_flags(tiny, tmp_path / "without"), "--task_name", "imdb", "--data_dir", two_forms / "imdb",
             "--num_train_epochs", 1]
    call(SINGLE, *flags)
    refused_here(SINGLE, *flags, "--keep_html", words="holds another run: keep_html was False, now it is True")
    call(SINGLE, *flags, "--keep_html", "--output_dir", tmp_path / "kept")
    tokens = np.array((tiny / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    without, kept = (tokens[dataset.ids].tolist() for dataset in (made[0], made[-2]))
    assert "br" not in without and kept.count("br") == 2 * 20
    (tmp_path / "new.txt").write_text("Good<br />film\n")
    for name, strip_html in (("without", True), ("kept", False)):
        assert read_json(tmp_path / name / "last" / "classifier.json")["task"]["strip_html"] is strip_html
        predict = ["--do_predict", "--predict_file", tmp_path / "new.txt", "--init_checkpoint", tmp_path / name / "last",
                   "--no_cuda", "--output_dir", tmp_path / "out"]
        call(SINGLE, *predict)
        assert ("br" in tokens[made[-1].ids]) != strip_html
        call(SINGLE, *predict, "--keep_html", not strip_html)
        refused_here(SINGLE, *predict, "--keep_html", strip_html, words="--keep_html: the model in")


# Runs that are stopped: real processes, forked from one that has imported the scripts

def record(folder):
    """All that a run leaves, without times and memory: what two equal runs have equal, to the bit."""
    content = {path.name: path.read_text() for path in folder.glob("*results_ep*.txt")}
    timeless = [{key: value for key, value in line.items() if key != "seconds"}
                for kind in ("train", "eval") for line in read_metrics(folder, kind)]
    results = read_json(folder / "results.json")
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in results["epochs"]]
    left = sorted(path.name for path in folder.rglob("*") if not path.name.startswith("events"))
    return content, timeless, epochs, results["best"]["epoch"], left


@pytest.fixture(scope="module")
def with_dropout(tiny, tmp_path_factory, start):
    """(flags of a run with dropout, the folder of that run undisturbed)."""
    folder = tmp_path_factory.mktemp("dropout")
    make_bert(folder, len((tiny / "vocab.txt").read_text().splitlines()), dropout=0.2)
    flags = [*train_flags(tiny, folder / "undisturbed"), "--bert_config_file", folder / "bert_config.json"]
    assert wait(start(SINGLE, flags, folder / "log.txt")) == [0], (folder / "log.txt").read_text()
    return flags, folder / "undisturbed"


KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize("signal_number, whats", [(KILL, ["rename", "update", "rename"]), (TERM, ["update", "rename"])],
                         ids=["SIGKILL", "SIGTERM"])
def test_a_run_that_is_stopped_again_and_again_ends_as_if_it_had_not_been(with_dropout, tmp_path, start, signal_number,
                                                                          whats):
    """Typed again each time, stopped before or after its first, second, third... update or renamed file, until it gets
    to its end: all files and weights equal the undisturbed run's to the bit."""
    flags, undisturbed = with_dropout
    flags = [*flags, "--output_dir", tmp_path / "run"]
    log = tmp_path / "log.txt"
    for number in range(1, 20):
        event = (whats[number % len(whats)], number, "before" if number % 4 < 2 else "after", signal_number)
        code, = wait(start(SINGLE, flags, log, event))
        if code == 0:
            break
        assert code in (-signal_number, 128 + signal_number), (event, log.read_text())
    assert code == 0 and number > 4, (number, log.read_text())
    assert "going on after update" in log.read_text()
    for name in ("best", "last"):
        assert_equal_weights(tmp_path / "run" / name, undisturbed / name)
    assert record(tmp_path / "run") == record(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_the_update_under_way_first(with_dropout, tmp_path, start, number):
    flags = [*with_dropout[0], "--output_dir", tmp_path / "run", "--save_checkpoints_steps", 1000]
    assert wait(start(SINGLE, flags, tmp_path / "log.txt", ("update", 5, "before", number))) == [128 + number]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["global_step"] == 5
    assert f"stopped by {number.name} after update 5" in (tmp_path / "log.txt").read_text()


def test_sigterm_in_an_evaluation_ends_it_at_once_and_loses_no_update(with_dropout, tmp_path, start):
    """The third file, after run.json and checkpoint.pt, is the first of the evaluation."""
    flags, undisturbed = with_dropout
    flags = [*flags, "--output_dir", tmp_path / "run", "--save_checkpoints_steps", 1000]
    assert wait(start(SINGLE, flags, tmp_path / "log.txt", ("rename", 3, "before", TERM))) == [-TERM]
    assert not (tmp_path / "run" / "results_ep1.txt").exists()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["global_step"] == 8 and not state["progress"]["evaluations"]
    assert wait(start(SINGLE, flags, tmp_path / "log.txt")) == [0]
    assert "going on after update 8" in (tmp_path / "log.txt").read_text()
    assert_equal_weights(tmp_path / "run" / "last", undisturbed / "last")
    assert record(tmp_path / "run") == record(undisturbed)


def test_no_space_left_keeps_the_last_checkpoint_and_says_so(with_dropout, tmp_path, start):
    """A limit on the size of files stands for a full disk: one line, and afterwards the run goes on to the same end."""
    flags, undisturbed = with_dropout
    flags = [*flags, "--output_dir", tmp_path / "run"]
    wait(start(SINGLE, flags, tmp_path / "log.txt", ("update", 5, "after", KILL)))
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    log = tmp_path / "full.txt"
    assert wait(start(SINGLE, flags, log, ("file size", len(kept) // 2))) == [1], log.read_text()
    assert "Traceback" not in log.read_text() and "error: " in log.read_text().splitlines()[-1]
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept
    assert not [path for path in (tmp_path / "run").rglob("*.tmp")]
    assert wait(start(SINGLE, flags, log)) == [0], log.read_text()
    assert_equal_weights(tmp_path / "run" / "last", undisturbed / "last")


@pytest.mark.parametrize("room", [0, 1000, 39_000, 40_500])  # at torch's first byte, its second record, in numbers, at the end
def test_a_full_disk_is_the_system_s_words_and_not_torch_s(tmp_path, monkeypatch, capsys, room):
    class Disk(io.FileIO):
        def write(self, content):
            if self.tell() + len(memoryview(content).cast("B")) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)
    path = tmp_path / "checkpoint.pt"
    path.write_text("what was there")
    monkeypatch.setattr(files, "open", lambda name, mode: Disk(name, mode), raising=False)
    with pytest.raises(SystemExit):
        command_line.run(lambda: write_torch({"a": torch.zeros(10_000)}, str(path)))
    line, = capsys.readouterr().err.splitlines()
    for words in ("error: No space left on device", str(path), "free some space and run the same command again"):
        assert words in line
    assert "enforce fail" not in line
    assert path.read_text() == "what was there" and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_another_reason_why_torch_cannot_write_keeps_its_words(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such storage\nat line 7")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(command_line.UserError, match=r"x.pt cannot be written \(no such storage\), what was there"):
        write_torch({}, str(tmp_path / "x.pt"))


# Several processes

@pytest.fixture(scope="module")
def two_processes(tiny, tmp_path_factory, start):
    """The run `finished` on two gloo processes: (its folder, the output of each process)."""
    folder = tmp_path_factory.mktemp("two")
    flags = [*train_flags(tiny, folder / "run"), "--gradient_accumulation_steps", 2]
    codes = wait(*start_together(start, 2, SINGLE, flags, folder / "log"))
    logs = [(folder / f"log.{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], logs
    return folder / "run", logs


def test_two_processes_give_the_losses_and_weights_of_one(finished, two_processes):
    """Without dropout: losses to 1e-5 relative at every update, weights to 1e-5. 61 examples in batches of 8, of which
    each process has 4 in 2 parts, at the end of an epoch 3 and 2."""
    folder, _ = two_processes
    np.testing.assert_allclose(losses_of(folder), losses_of(finished), rtol=1e-5)
    assert_equal_weights(folder / "last", finished / "last", 1e-5)


def test_two_processes_evaluate_every_example_once_and_one_writes(finished, two_processes):
    folder, logs = two_processes
    for epoch in (1, 2, 3):
        for kind in ("results", "eval_results"):
            name = f"{kind}_ep{epoch}.txt"
            if kind == "results":
                assert predictions_of(folder / name) == predictions_of(finished / name)
            else:
                assert read_evaluation(folder / name) == pytest.approx(read_evaluation(finished / name), rel=1e-5)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert "epoch 3: accuracy" in logs[0] and "accuracy" not in logs[1]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in finished.iterdir())


def test_fewer_examples_than_processes(tiny, tmp_path, start):
    """An update of one example over two processes is the update of one process."""
    flags = [*train_flags(tiny, tmp_path / "one"), "--num_datas", 5, "--train_batch_size", 2, "--num_test_datas", 3]
    call(SINGLE, *flags)
    codes = wait(*start_together(start, 2, SINGLE, [*flags, "--output_dir", tmp_path / "two"], tmp_path / "log"))
    assert codes == [0, 0], (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    assert_equal_weights(tmp_path / "two" / "last", tmp_path / "one" / "last", 1e-5)
    assert predictions_of(tmp_path / "two" / "results_ep3.txt") == predictions_of(tmp_path / "one" / "results_ep3.txt")


def test_two_processes_resume_and_agree_to_stop(with_dropout, tmp_path, start):
    """SIGTERM at one process stops both after the same update; then one is killed; the end is the undisturbed one."""
    flags = [*with_dropout[0], "--output_dir", tmp_path / "whole"]
    assert wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log")) == [0, 0]
    flags = [*with_dropout[0], "--output_dir", tmp_path / "run"]
    codes = wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log", {1: ("update", 4, "before", TERM)}))
    assert codes == [128 + TERM] * 2, (tmp_path / "log.0").read_text() + (tmp_path / "log.1").read_text()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]["global_step"] == 4
    codes = wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log", {0: ("update", 9, "after", KILL)}))
    assert codes == [-KILL, 1]
    log = (tmp_path / "log.1").read_text()
    assert "Traceback" not in log and "lost another one" in log.splitlines()[-1]
    assert wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log")) == [0, 0]
    assert_equal_weights(tmp_path / "run" / "last", tmp_path / "whole" / "last")


def test_num_processes_starts_them(tiny, tmp_path, script):
    """As a user starts several processes on one machine; for a quarter of an epoch. (torchrun sets what
    start_together sets.)"""
    flags = [*train_flags(tiny, tmp_path / "two"), "--num_train_epochs", 0.25]
    done = script(f"{SINGLE}.py", *flags, "--num_processes", 2)
    assert done.returncode == 0, done.stderr
    assert "over 2 process(es)" in done.stdout
    call(SINGLE, *flags, "--output_dir", tmp_path / "one")
    np.testing.assert_allclose(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_processes_end_with_the_one_that_started_them(tiny, tmp_path):
    """SIGKILL of the command leaves no process that writes on."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 10_000, "--num_processes", 2]
    command = subprocess.Popen([sys.executable, ROOT / f"{SINGLE}.py", *map(str, flags)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        waited_for(lambda: metrics.exists() and metrics.stat().st_size)
        started = pathlib.Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    finally:
        command.kill()
        command.wait()
    assert len(started) == 2
    waited_for(lambda: not any(os.path.exists(f"/proc/{pid}") and "Z" not in state_of(pid) for pid in started))


def state_of(pid):
    """A process's state, a letter: Z for one that has ended."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def waited_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What is refused, in one line and with nothing half-written

@pytest.mark.parametrize("flags, words", [
    (["--do_train", "False", "--do_eval", "False"], "nothing to do"),
    (["--do_predict"], "--do_predict needs --predict_file"),
    (["--predict_file", "x.txt"], "--predict_file is read only with --do_predict"),
    (["--patience", 2], "--patience needs data to watch"),
    (["--eval_epochs", 2, "--do_eval", "False"], "--eval_epochs needs --do_train and data to evaluate"),
    (["--eval_epochs", 2, "--patience", 2, "--dev_fraction", 0.2], "--patience looks at each epoch: leave --eval_epochs out"),
    (["--eval_epochs", 0], "0 is not at least 1"),
    (["--label_column", "topic"], "--label_column belongs to --task_name csv"),
    (["--task_name", "agnews"], "--task_name: invalid choice: 'agnews'"),
    (["--task", "ag"], "unrecognized arguments: --task"),
    (["--seed", 1, 1], "--seed names a seed twice"),
    (["--seed", -1], "-1 is not at least 0"),
    (["--max_seq_length", 65], "--max_seq_length 65 is over the model's 64 positions"),
    (["--max_seq_length", 4], "use at least 5"),
    (["--trunc_medium", 31], "--trunc_medium 31 keeps more tokens than the 30 that fit"),
    (["--trunc_medium", -3], "--trunc_medium -3"),
    (["--layers", 2], "this model has the layers 0 to 1"),
    (["--layers", -1, 0], "stand alone"),
    (["--layer_pooling", "mean"], "--layer_pooling mean joins several layers"),
    (["--pooling_type", "max"], "--pooling_type max pools the tokens of chosen layers"),
    (["--train_batch_size", 0], "0 is not at least 1"),
    (["--learning_rate", "nan"], "'nan' is not a finite number"),
    (["--learning_rate", "inf"], "'inf' is not a finite number"),
    (["--learning_rate", "fast"], "'fast' is not a number"),
    (["--num_train_epochs", 0], "0 is not above 0"),
    (["--dev_fraction", 1], "1 is not below 1"),
    (["--warmup_proportion", 1.5], "1.5 is not below 1"),
    (["--num_datas", 62], "62 examples are asked for (--num_datas, --num_test_datas, --eval_sample), the data has 61"),
    (["--num_datas", 2.5], "2.5 examples cannot be drawn"),
    (["--precision", "maybe"], "invalid choice: 'maybe'"),
    (["--keep_html"], "--keep_html is for --task_name imdb"), (["--text_pair"], "--text_pair is for --task_name yahoo"),
    (["--task_name", "csv", "--text_pair"], "--text_pair is not for --task_name csv"),
    (["--task_name", "csv", "--keep_html"], "--keep_html is not for --task_name csv"),
    (["--text_pair_columns", "a"], "--text_pair_columns belongs to --task_name csv"),
    (["--task_name", "csv", "--text_pair_columns", "text"], "name the same column twice"),
    (["--task_name", "csv", "--text_pair_columns", "b", "--trunc_medium", -1], "--trunc_medium is for single texts"),
    (["--task_name", "yahoo", "--text_pair", "--hierarchical", "mean"], "--hierarchical is for single texts"),
    (["--task_name", "yahoo", "--text_pair", "--trunc_medium", 4], "--trunc_medium is for single texts"),
    (["--save_models", "none", "--dev_fraction", 0.1], "--dev_fraction tests the best model"),
    (["--save_models", "last", "--dev_fraction", 0.1], "--dev_fraction tests the best model"),
    (["--save_models", "none", "--do_predict", "--predict_file", "x.txt"], "--do_predict needs a model"),
    (["--save_models", "best", "--do_eval", "False"], "--save_models best: what is best is found by --do_eval"),
    (["--save_models", "all"], "invalid choice: 'all'"),
    (["--fractions_at_once", 8], "--fractions_at_once needs --hierarchical"),
    (["--data_dir", "absent"], "no folder absent"),
    (["--task_name", "yahoo"], "train.csv:1: 3 columns, the task yahoo has 4"),
    (["--task_name", "csv", "--label_column", 0, "--text_columns", 5], "there is no column 5"),
    (["--task_name", "csv", "--label_column", "topic"], "no column is named 'topic'"),
    (["--vocab_file", "absent.txt"], "--vocab_file: there is no file absent.txt"),
    (["--bert_config_file", "absent.json"], "--bert_config_file: there is no file absent.json"),
    (["--init_checkpoint", "absent.bin"], "--init_checkpoint: there is no file absent.bin"),
    (["--init_checkpoint", ROOT / "tests"], "tests has neither model.safetensors nor pytorch_model.bin"),
    (["--data_dir", __file__], "test_fine_tuning.py is a file, a folder is needed"),
])
def test_wrong_flags_are_refused_before_anything_is_written(tiny, tmp_path, refused_here, flags, words):
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), *flags, words=words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, words", [
    (["--layer_learning_rate", 1e-5, 1e-5, 1e-5], "--layer_learning_rate has 3 rates, the model has 2 layers"),
    (["--layer_learning_rate_decay", 0], "0 is not above 0"),
    (["--layer_learning_rate_decay", 1.1], "1.1 is not at most 1"),
    (["--embeddings_learning_rate", "half"], "'half' is not a number; give full, decayed or a rate"),
    (["--discr", False, "--layer_learning_rate", 1e-5], "--layer_learning_rate needs --discr, which is off"),
    (["--frozen_bert", "--layer_learning_rate", 1e-5], "--layer_learning_rate has no layer to act on with --frozen_bert"),
    (["--frozen_layers", 1, "--embeddings_learning_rate", 1e-5], "--embeddings_learning_rate has nothing to act on"),
])
def test_wrong_layer_wise_rates_are_refused(tiny, tmp_path, refused_here, flags, words):
    refused_here(DISCRIMINATIVE, *train_flags(tiny, tmp_path / "run"), *flags, words=words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--task_name", "--data_dir", "--output_dir", "--vocab_file", "--bert_config_file"])
def test_a_flag_that_is_left_out_is_named(tiny, tmp_path, refused_here, flag):
    flags = train_flags(tiny, tmp_path / "run")
    place = flags.index(flag)
    refused_here(SINGLE, *flags[:place], *flags[place + 2:], words=flag)


@pytest.mark.parametrize("flag, content, words", [
    ("--bert_config_file", "no json", "is not whole JSON"),
    ("--bert_config_file", '{"hidden_size": 32}', "it has no vocab_size"),
    ("--bert_config_file", '{"vocab_size": 3000, "hidden_size": 33, "num_attention_heads": 2}', "no multiple"),
    ("--bert_config_file", '{"vocab_size": 3000, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 64}',
     "is --bert_config_file the one that came with it?"),
    ("--vocab_file", "", "is empty"), ("--vocab_file", "a\nb\n", "it is no BERT vocabulary"),
    ("--vocab_file", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "a\n" * 2996, "has 3001 tokens, the model's vocab_size is 3000"),
    ("--init_checkpoint", "no weights", "no whole PyTorch checkpoint"),
])
def test_files_of_a_model_that_do_not_fit_are_refused(tiny, tmp_path, refused_here, flag, content, words):
    (tmp_path / "file").write_text(content)
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), flag, tmp_path / "file", words=words)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_work(monkeypatch):
    """Data are not read, and a model is not made."""
    monkeypatch.setattr(command, "read_dataset", lambda *_: pytest.fail("data were read"))
    monkeypatch.setattr(model, "BertForSequenceClassification", lambda *_, **__: pytest.fail("a model was made"))


def write_tensorflow(tiny, folder):
    call("convert_tf_checkpoint_to_pytorch", "--reverse", "--pytorch_dump_path", tiny / "pytorch_model.bin",
         "--bert_config_file", tiny / "bert_config.json", "--tf_checkpoint_path", folder / "tf.ckpt")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors", "tf.ckpt"])
def test_a_configuration_of_other_sizes_is_refused_before_any_work(tiny, tmp_path, refused_here, no_work, file):
    """Any of those that memory grows with: a slip of theirs would take gigabytes."""
    if file == "tf.ckpt":
        write_tensorflow(tiny, tmp_path)
    elif file == "model.safetensors":
        safetensors.torch.save_model(BertForPreTraining(BertConfig.from_json_file(tiny / "bert_config.json")), tmp_path / file)
    else:
        (tmp_path / file).write_bytes((tiny / file).read_bytes())
    values = read_json(tiny / "bert_config.json")
    for key, size, words in (("intermediate_size", 10 ** 6, "1000000"), ("num_hidden_layers", 900, "layer"),
                             ("hidden_size", 2000, "2000"), ("max_position_embeddings", 10 ** 6, "1000000"),
                             ("type_vocab_size", 10 ** 6, "1000000")):
        (tmp_path / "config.json").write_text(json.dumps(values | {key: size}))
        errors = refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--init_checkpoint", tmp_path / file,
                              "--bert_config_file", tmp_path / "config.json", words="--bert_config_file")
        assert str(tmp_path / file) in errors[-1] and words in errors[-1]
    assert not (tmp_path / "run").exists()


def test_sizes_are_compared_without_the_values(tiny, tmp_path):
    config = BertConfig.from_json_file(tiny / "bert_config.json")
    state = read_weights(str(tiny / "pytorch_model.bin"), config, device="meta")
    assert len(state) > 40 and all(value.is_meta for value in state.values())
    write_tensorflow(tiny, tmp_path)
    (tmp_path / "tf.ckpt.data-00000-of-00001").unlink()
    zeros = read_weights(str(tmp_path / "tf.ckpt"), config, device="meta")
    assert {name: value.shape for name, value in zeros.items()} == {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("job", [["--do_train", "--do_eval"], ["--do_train"], ["--do_eval"], []], ids=str)
@pytest.mark.parametrize("name, content, words", [
    ("absent.txt", None, "there is no file"), ("empty.csv", b"", "is empty"),
    ("empty.txt.gz", gzip.compress(b""), "empty.txt.gz holds no text"), ("mark.txt", b"\xff\xfe", "mark.txt holds no text"),
    ("cut.csv", b'"1","a","b"\n"2","c"\n', "cut.csv:2: 2 columns"), ("binary.txt", b"a\n\0", "binary.txt:2: a zero byte")])
def test_a_wrong_file_to_predict_is_refused_before_any_work(tiny, finished, tmp_path, refused_here, no_work, job, name,
                                                            content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    flags = [flag for flag in train_flags(tiny, tmp_path / "run") if flag not in ("--do_train", "--do_eval")]
    start = finished / "best"
    if "--do_train" not in job:  # what a saved model knows
        flags = ["--data_dir", tiny, "--no_cuda", "--output_dir", tmp_path / "run"]
    refused_here(SINGLE, *flags, *job, "--init_checkpoint", start, "--do_predict", "--predict_file", tmp_path / name,
                 words=words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split, content, words", [
    ("train", b"", "train.csv is empty"), ("train", b'"1","a","b"\n"9","c","d"\n', "train.csv:2: label '9'"),
    ("train", b'"1","a","b"\n"2","c","\xff"\n', "train.csv:2: byte 10 is not UTF-8"),
    ("test", b"\x00\x01\x02", "test.csv:1: a zero byte"), ("test", b'"1","a","b', "test.csv:1: unexpected end of data"),
    ("test", None, "has no test.csv"),
])
def test_bad_data_are_refused(tiny, tmp_path, refused_here, split, content, words):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes((tiny / f"{name}.csv").read_bytes())
    if content is None:
        (tmp_path / f"{split}.csv").unlink()
    else:
        (tmp_path / f"{split}.csv").write_bytes(content)
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--data_dir", tmp_path, words=words)
    assert not (tmp_path / "run").exists()


def test_a_mended_command_may_use_the_folder_of_the_refused_one(tiny, tmp_path, refused_here):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 0.25]
    (tmp_path / "cut.bin").write_bytes((tiny / "pytorch_model.bin").read_bytes()[:5000])
    refused_here(SINGLE, *flags, "--init_checkpoint", tmp_path / "cut.bin", words="no whole PyTorch checkpoint")
    call(SINGLE, *flags)
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


def test_another_run_s_folder_is_refused_unless_it_may_be_overwritten(tiny, finished, tmp_path, refused_here):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 0.25]
    call(SINGLE, *flags)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = weights(tmp_path / "run" / "last")
    for changed, words in ((["--learning_rate", 2e-3], "holds another run: learning_rate was 0.001, now it is 0.002"),
                           (["--seed", 1], "seed"), (["--num_datas", 30], "num_datas"), (["--layers", 1], "layers")):
        refused_here(SINGLE, *flags, *changed, words=words)
    for name, value in weights(tmp_path / "run" / "last").items():
        assert torch.equal(value, before[name])
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), "--overwrite_output_dir")
    assert_equal_weights(tmp_path / "run" / "last", finished / "last")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_refused_command_overwrites_nothing(tiny, tmp_path, refused_here):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_train_epochs", 0.25]
    call(SINGLE, *flags)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    refused_here(SINGLE, *flags, "--overwrite_output_dir", "--init_checkpoint", "absent.bin", words="absent.bin")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("first, second", [([1], [2, 3]), ([1, 2], [3])])
def test_runs_of_one_seed_and_of_several_do_not_share_a_folder(tiny, tmp_path, refused_here, first, second):
    flags = [*train_flags(tiny, tmp_path / "run"), "--num_datas", 8, "--num_train_epochs", 1, "--seed"]
    call(SINGLE, *flags, *first)
    refused_here(SINGLE, *flags, *second, words="holds a run of")
    call(SINGLE, *flags, *second, "--overwrite_output_dir")
    folder = tmp_path / "run" / (f"seed_{second[0]}" if len(second) > 1 else "")
    assert read_json(folder / "results.json")["seed"] == second[0]


def test_a_record_of_something_else_is_refused(tiny, finished, tmp_path, refused_here):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"a": 1}')
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), words="run.json has no kind")
    (tmp_path / "classifier.json").write_text("{}")
    refused_here(SINGLE, "--do_eval", "--data_dir", tiny, "--init_checkpoint", tmp_path, "--output_dir", tmp_path / "out",
                 words="classifier.json has no task")


def test_the_folders_of_all_seeds_are_looked_at_first(tiny, tmp_path, refused_here):
    flags = [*train_flags(tiny, tmp_path), "--num_train_epochs", 0.25]
    call(SINGLE, *flags, "--output_dir", tmp_path / "seed_2", "--seed", 2)
    refused_here(SINGLE, *flags, "--seed", 1, 2, "--learning_rate", 1e-4, words="seed_2 holds another run: learning_")
    assert not (tmp_path / "seed_1").exists()


def test_one_file_of_a_tensorflow_checkpoint_is_no_start(tiny, tmp_path, refused_here):
    for name in ("x.ckpt.index", "x.ckpt.data-00000-of-00001"):
        (tmp_path / name).write_text("")
    for name in ("x.ckpt.index", "x.ckpt.data-00000-of-00001"):
        refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--init_checkpoint", tmp_path / name,
                     words=f"give the prefix they share, {tmp_path / 'x.ckpt'}")
    (tmp_path / "x.ckpt.data-00000-of-00001").unlink()
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--init_checkpoint", tmp_path / "x.ckpt",
                 words="--init_checkpoint: ")


def test_memory_that_is_used_up_is_one_line(capsys):
    def fail():
        with command.out_of_memory_in_one_line():
            torch.empty(2**50)
    with pytest.raises(SystemExit):
        command_line.run(fail)
    assert "error: out of memory (" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="another"), command.out_of_memory_in_one_line():
        raise RuntimeError("another")


def test_held_out_examples_are_counted(tiny, tmp_path, capsys):
    call(SINGLE, *train_flags(tiny, tmp_path), "--num_train_epochs", 0.25, "--dev_fraction", 0.1)
    assert "55 training examples, 6 held out" in capsys.readouterr().out


def test_a_run_of_another_script_is_not_overwritten(tiny, tmp_path, refused_here):
    (tmp_path / "run.json").write_text('{"kind": "further pre-training", "recipe": {}}')
    refused_here(SINGLE, *train_flags(tiny, tmp_path), "--overwrite_output_dir", words="holds a run of another script")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_an_output_folder_that_is_a_file_is_refused(tiny, tmp_path, refused_here):
    (tmp_path / "run").write_text("mine")
    refused_here(SINGLE, *train_flags(tiny, tmp_path / "run"), "--data_dir", "absent",  # looked at before the data
                 words=f"--output_dir: {tmp_path / 'run'} is a file, a folder is needed")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("log_steps", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, refused_here, log_steps):
    """At a rate of 1e30 the second update's loss overflows: the step is named, nothing is kept."""
    flags = [*train_flags(tiny, tmp_path), "--learning_rate", 1e30, "--warmup_proportion", 0, "--log_steps", log_steps,
             "--save_checkpoints_steps", 2]
    refused_here(SINGLE, *flags, words="update 2: the loss is")
    assert not [name for name in ("checkpoint.pt", "results.json", "last", "best") if (tmp_path / name).exists()]


def test_a_model_that_has_diverged_is_not_saved(tiny, tmp_path, refused_here):
    """The first update of a warm-up has rate 0, the second destroys the model, its own loss being good still: the
    checkpoint of the first is kept. And so at the end of an epoch, whose model is neither the best nor the last."""
    flags = [*train_flags(tiny, tmp_path / "run"), "--learning_rate", 1e30, "--warmup_proportion", 0.5]
    refused_here(SINGLE, *flags, "--save_checkpoints_steps", 1, words="update 2 left a model whose output is not finite")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["global_step"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    refused_here(SINGLE, *flags, "--output_dir", tmp_path / "end", "--num_datas", 16, "--num_train_epochs", 1,
                 words="update 2 left a model")
    assert sorted(path.name for path in (tmp_path / "end").iterdir()) == ["metrics.jsonl", "run.json", "tensorboard"]


def test_a_run_does_not_write_over_the_weights_it_starts_from(finished, tiny, tmp_path, refused_here):
    kept = weights(finished / "best")
    for output_dir in (finished, finished / "best"):
        refused_here(SINGLE, *train_flags(tiny, output_dir), "--init_checkpoint", finished / "best",
                     "--overwrite_output_dir", words="holds --init_checkpoint")
    assert all(torch.equal(value, kept[name]) for name, value in weights(finished / "best").items())


def test_a_damaged_checkpoint_is_named(with_dropout, tmp_path, start):
    flags = [*with_dropout[0], "--output_dir", tmp_path]
    wait(start(SINGLE, flags, tmp_path / "log.txt", ("update", 5, "after", KILL)))
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    assert wait(start(SINGLE, flags, tmp_path / "log2.txt")) == [1]
    assert "checkpoint.pt is no whole PyTorch checkpoint" in (tmp_path / "log2.txt").read_text().splitlines()[-1]
    assert "Traceback" not in (tmp_path / "log2.txt").read_text()


@pytest.mark.parametrize("flags, words", [
    (["--task_name", "imdb"], "was trained for ag"), (["--max_seq_length", 16], "was trained with 32"),
    (["--layers", 1], "was trained with [-2]"), (["--predict_file", "absent.txt"], "there is no file absent.txt"),
    (["--init_checkpoint", "absent"], "is no folder of a fine-tuned model"),
    (["--keep_html"], "--keep_html is for --task_name imdb"), (["--text_pair"], "--text_pair is for --task_name yahoo"),
    (["--save_models", "last"], "--save_models needs --do_train"),
    (["--seed", 1, 2], "several --seed need --do_train"), (["--do_eval"], "--data_dir is needed with --do_eval"),
])
def test_wrong_predictions_are_refused(tiny, finished, tmp_path, refused_here, flags, words):
    refused_here(SINGLE, "--do_predict", "--predict_file", tiny / "test.csv", "--init_checkpoint", finished / "best",
                 "--no_cuda", "--output_dir", tmp_path / "out", *flags, words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.json", "config.json"])
def test_a_damaged_model_folder_is_refused(tiny, finished, tmp_path, refused_here, name):
    for path in (finished / "best").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    refused_here(SINGLE, "--do_predict", "--predict_file", tiny / "test.csv", "--init_checkpoint", tmp_path,
                 "--no_cuda", "--output_dir", tmp_path / "out", words=name)


@pytest.mark.parametrize("change, words", [
    ({"layer_pooling": "consat"}, "classifier.json: layer_pooling consat: there is concat, mean, max"),
    ({"max_seq_length": 65}, "classifier.json: --max_seq_length 65 is over the model's 64 positions"),
    ({"layers": [2]}, "classifier.json: --layers 2: this model has"),
    ({"hierarchical": "median"}, "classifier.json: hierarchical median"), ({"layers": []}, "classifier.json: 0 layers"),
    ({"task": {"labels": ["1"]}}, "classifier.json: 1 labels")])
def test_a_wrong_value_in_a_saved_model_s_record_names_the_file(tiny, finished, tmp_path, refused_here, change, words):
    for path in (finished / "best").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stored = read_json(tmp_path / "classifier.json")
    for key, value in change.items():
        stored[key] = stored[key] | value if isinstance(value, dict) else value
    (tmp_path / "classifier.json").write_text(json.dumps(stored))
    refused_here(SINGLE, "--do_predict", "--predict_file", tiny / "test.csv", "--init_checkpoint", tmp_path,
                 "--no_cuda", "--output_dir", tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


def test_an_error_in_several_processes_ends_them_all(tiny, tmp_path, start):
    flags = [*train_flags(tiny, tmp_path / "run"), "--learning_rate", 1e30, "--warmup_proportion", 0]
    assert wait(*start_together(start, 2, SINGLE, flags, tmp_path / "log")) == [1, 1]
    logs = [(tmp_path / f"log.{rank}").read_text() for rank in (0, 1)]
    assert "Traceback" not in logs[0] + logs[1] and "error: update 2" in logs[0].splitlines()[-1] and "error" not in logs[1]
