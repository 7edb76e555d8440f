"""The code of docs/extending.md, added to the tables and used: each extension is a change in one file."""
import csv
import importlib
import math
import re
import sys

import numpy as np
import pytest
import sklearn.metrics
import torch
from tensorboard.backend.event_processing import event_accumulator

import modeling
import optimization
import runs
from common.command_line import UserError
from common.configuration import BertConfig
from conftest import ROOT
from finetuning import attention, evaluation
from finetuning.data import pack

sys.path.append(str(ROOT / "scripts"))

TABLES = {"tasks": ["TASKS"], "optimization": ["SCHEDULES"], "finetuning.evaluation": ["METRICS"],
          "modeling": ["POOLINGS", "LAYER_POOLINGS", "FRACTION_POOLINGS"],
          "finetuning.attention": ["ATTENTIONS"]}


@pytest.fixture(autouse=True)
def extended():
    """Runs each block of Python on the page as if it stood in the file that its first line names. Flags and other
    modules hold the same tables, so what is added to one is taken out of it afterwards."""
    tables = [getattr(importlib.import_module(module), name) for module, names in TABLES.items() for name in names]
    before = [set(table) for table in tables]
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n# (\S+)\.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == page.count("```python") > 5
    for path, code in blocks:
        exec(code, dict(vars(importlib.import_module(path.replace("/", ".")))))
    assert all(len(table) > len(keys) for table, keys in zip(tables, before))
    yield
    for table, keys in zip(tables, before):
        for key in table.keys() - keys:
            del table[key]


def train(tiny, folder, *flags):
    runs.call(runs.SINGLE, *runs.train_flags(tiny, folder), "--num_train_epochs", 1, *flags)
    return folder


def test_a_ninth_data_set(tiny, tmp_path):
    for split in ("train", "test"):
        rows = (tiny / f"{split}.csv").read_text(encoding="utf-8").splitlines()
        lines = [f"{'subjective' if row[1] in '12' else 'objective'}\t{row[5:]}\n" for row in rows]
        (tmp_path / f"{split}.csv").write_text("".join(lines), encoding="utf-8")
    train(tiny, tmp_path / "run", "--task_name", "subj", "--data_dir", tmp_path)
    written = (tmp_path / "test.csv").read_text(encoding="utf-8")
    matrix = (tmp_path / "run/classification_report_ep1.txt").read_text().splitlines()[-2:]
    assert [line.split("\t")[0] for line in matrix] == ["subjective", "objective"]
    assert [sum(map(int, line.split("\t")[1:])) for line in matrix] == [written.count("subjective\t"),
                                                                       written.count("objective\t")]
    corpus = tmp_path / "corpus.txt"
    runs.call("generate_corpus", "--task_name", "subj", "--data_dir", tmp_path, "--output_file", corpus)
    assert corpus.read_text().count("\n\n") > 50


def test_poolings_of_tokens_layers_and_fractions(tiny, tmp_path):
    states = torch.arange(10.0).view(5, 2)
    batch = pack([[2, 9, 3], [2, 3]], [[0, 0, 0], [0, 0]])
    assert modeling.POOLINGS["last"](states, batch).tolist() == [[4, 5], [8, 9]]
    assert modeling.LAYER_POOLINGS["sum"](torch.stack([states, states], dim=1)).equal(2 * states)
    pooled = train(tiny, tmp_path / "pooled", "--layers", 0, 1, "--layer_pooling", "sum", "--pooling_type", "last")
    cls = train(tiny, tmp_path / "cls", "--layers", 0, 1, "--layer_pooling", "mean")
    assert runs.losses_of(pooled) != runs.losses_of(cls)
    # of a long text the first fraction is its head, and the others change nothing
    first = train(tiny, tmp_path / "first", "--hierarchical", "first")
    head = train(tiny, tmp_path / "head", "--layers", 1)
    assert runs.losses_of(first) == pytest.approx(runs.losses_of(head), rel=1e-5)


def test_a_schedule(tiny, tmp_path):
    folder = train(tiny, tmp_path / "run", "--schedule", "cosine", "--warmup_proportion", 0.25)
    rates = [line["learning_rate"] for line in runs.read_metrics(folder, "train")]
    updates = len(rates)
    assert updates == 8 and rates[:3] == pytest.approx([0, 0.5e-3, 1e-3])
    assert rates[2:] == pytest.approx([5e-4 * (1 + math.cos(math.pi * (step - 2) / 6)) for step in range(2, updates)])


def test_a_metric(tiny, tmp_path, capsys):
    """It decides which epoch is best, and stands wherever a metric stands."""
    folder = train(tiny, tmp_path / "runs/layers/0/imdb", "--best_metric", "kappa", "--seed", 1, 2)
    printed = capsys.readouterr().out
    labels = [int(row[1]) - 1 for row in (tiny / "test.csv").read_text(encoding="utf-8").splitlines()]
    values = []
    for seed in (1, 2):
        run = folder / f"seed_{seed}"
        best = runs.read_json(run / "results.json")["best"]
        kappa = sklearn.metrics.cohen_kappa_score(labels, runs.predictions_of(run / "results_ep1.txt"))
        values.append(best["eval_kappa"])
        assert best["eval_kappa"] == pytest.approx(kappa)
        assert runs.read_evaluation(run / "eval_results_ep1.txt")["eval_kappa"] == best["eval_kappa"]
        assert runs.read_metrics(run, "eval")[0]["eval_kappa"] == best["eval_kappa"]
        assert events_of(run)["eval/eval_kappa"] == pytest.approx(kappa, abs=1e-6)
        assert best["eval_accuracy"] <= best["eval_top_2_accuracy"] < 1
    assert runs.read_json(folder / "summary.json")["best"]["metrics"]["kappa"]["values"] == values
    epochs, means = ([line for line in printed.splitlines() if words in line]
                     for words in ("epoch 1: accuracy", " over 2 seeds: "))
    assert len(epochs) == 2 and all(f"kappa {value:.4%}" in line for value, line in zip(values, epochs))
    assert len(means) == 2 and all(f"kappa {np.mean(values):.4%} (std " in line for line in means)
    runs.call("collect_results", "--runs", tmp_path / "runs", "--output_dir", tmp_path / "tables", "--only", "table3")
    with open(tmp_path / "tables/table3.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["seeds"] == "2")
    assert float(row["kappa_mean"]) == pytest.approx(np.mean(values), abs=1e-4)
    assert f"kappa {np.mean(values):.4f} (" in (tmp_path / "tables/table3.md").read_text()


def events_of(folder):
    """{name: its last value} of what a run wrote for TensorBoard."""
    accumulator = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {name: accumulator.Scalars(name)[-1].value for name in accumulator.Tags()["scalars"]}


def test_an_attention_kernel():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(7, 2, 4, generator=generator) for _ in range(3))
    batch = pack([[2, 9, 9, 3], [2, 9, 3]], [[0] * 4, [0] * 3])
    ours, plain = (attention.attention(query, key, value, batch, 0.0, backend) for backend in ("per_sequence", "plain"))
    torch.testing.assert_close(plain, ours)


# A name that is in no table

@pytest.mark.parametrize("script", [runs.SINGLE, runs.DISCRIMINATIVE, "run_classifier_multitask"])
@pytest.mark.parametrize("flag, known", [
    ("--task_name", ["subj", "ag"]), ("--pooling_type", ["last", "mean"]), ("--layer_pooling", ["sum", "concat"]),
    ("--hierarchical", ["first", "self_attention"]), ("--schedule", ["cosine", "linear"]),
    ("--best_metric", ["kappa", "accuracy"]), ("--clip_grad", ["tensor"]), ("--classifier", ["linear"])])
def test_an_unknown_name_is_refused_as_a_flag_s_value(tiny, tmp_path, refused_here, script, flag, known):
    """In one line that says which there are, those that were added among them."""
    line = refused_here(script, *runs.train_flags(tiny, tmp_path / "run"), flag, "mlp",
                        words="invalid choice: 'mlp'")[-1]
    assert f"argument {flag}" in line  # then maybe another name of it
    assert set(known) <= set(re.findall(r"[^\s',()]+", line.partition("choose from")[2]))  # some Pythons alone quote them
    assert not (tmp_path / "run").exists()


CONFIG = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=2, num_attention_heads=1, intermediate_size=4)


@pytest.mark.parametrize("name, features", [
    ("classifier", {}), ("pooling_type", {"layers": [1]}), ("layer_pooling", {"layers": [0, 1]}), ("hierarchical", {})])
def test_an_unknown_feature_is_an_error_of_the_model(name, features):
    with pytest.raises(UserError, match=f"--{name} mlp: there is "):
        modeling.BertForSequenceClassification(CONFIG, 2, **features, **{name: "mlp"})


def test_unknown_names_are_errors_of_the_libraries(tmp_path):
    with pytest.raises(ValueError, match="clip_grad is one of tensor, global, not 'mlp'"):
        optimization.BertAdam([torch.nn.Parameter(torch.ones(1))], 1e-3, clip_grad="mlp")
    with pytest.raises(KeyError, match="mlp"):
        evaluation.best_of([{"eval_loss": 1.0}, {"eval_loss": 2.0}], "mlp")
    with pytest.raises(KeyError, match="mlp"):
        attention.attention(*[torch.ones(2, 1, 4)] * 3, pack([[2, 3]]), 0.0, "mlp")
    CONFIG.write(tmp_path / "config.json", hidden_act="mlp")
    with pytest.raises(UserError, match="hidden_act is 'mlp'"):
        BertConfig.from_json_file(tmp_path / "config.json")
