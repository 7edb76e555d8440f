"""The scripts of the experiments on the sample, and the tables and figures that are made of their runs."""
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tasks
from conftest import ROOT

SCRIPTS = {  # and what each writes
    "exp1_long_text": "table2", "exp1_layers": "table3", "exp1_catastrophic_forgetting": "figure2",
    "exp1_layer_wise_lr": "table4", "exp2_steps": "figure3", "exp2_domains": "table5", "exp2_comparison": "table6",
    "exp3_multitask": "table7", "exp4_few_shot": "figure4", "exp5_bert_large": "table8"}


def experiment(name, out, **variables):
    environment = {**os.environ, "VENV": sys.prefix, "OUT": str(out), **variables}
    return subprocess.run(["bash", str(ROOT / "scripts" / f"{name}.sh")], capture_output=True, text=True, env=environment,
                          timeout=1800)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_experiment_runs_on_the_sample_and_fills_its_table(tmp_path):
    """All ten end to end, in one folder, on a BERT of 2 layers: every cell that it has is a figure."""
    out = tmp_path / "out"
    for name, result in SCRIPTS.items():
        done = experiment(name, out, SMOKE="1")
        assert done.returncode == 0, f"{name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        if result.startswith("figure"):
            assert (out / "results" / f"{result}.png").read_bytes().startswith(b"\x89PNG")
            continue
        rows = rows_of(out / "results" / f"{result}.csv")
        if result == "table3":
            rows = [row for row in rows if row["row"].split(" ")[0] not in {f"Layer-{layer}" for layer in range(2, 12)}]
        assert len(rows) > 3
        for row in rows:
            assert row["seeds"] == "2" and 0 <= float(row["best_mean"]) <= float(row["last_mean"]) <= 100, (name, row)
            assert float(row["difference"]) == pytest.approx(float(row["best_mean"]) - float(row["paper"]), abs=1e-3)
    again = experiment("exp1_layer_wise_lr", out, SMOKE="1")
    assert again.returncode == 0 and "layer_wise_lr/" not in again.stdout  # all of its runs are done
    left = sorted(path.name for path in (out / "layer_wise_lr" / "2.0e-5_0.95" / "imdb").iterdir())
    assert left == ["seed_1", "seed_2", "summary.json"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_runs_print_commands_with_flags_that_exist(name, tmp_path):
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "data")]
    import flags_table
    done = experiment(name, tmp_path / "out", DRY_RUN="1", LAYERS="12")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    commands = [line.split() for line in done.stdout.splitlines()]
    assert commands and all(command[0] == "python" for command in commands)
    known = {}
    for _, script, *words in commands:
        module = script.removesuffix(".py")
        if module not in known:
            known[module] = {flag for action in flags_table.parser_of(module)._actions for flag in action.option_strings}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known[module], (script, used - known[module])


def test_an_interrupted_run_fails_the_script_with_the_end_of_its_log(tmp_path):
    done = experiment("exp1_layer_wise_lr", tmp_path / "out", DATA=str(tmp_path / "absent"), BERT=str(tmp_path / "absent"))
    assert done.returncode != 0
    assert "models/base failed" in done.stderr and "absent" in done.stderr and "Traceback" not in done.stderr


def test_table_3_needs_the_number_of_layers(tmp_path):
    done = experiment("exp1_layers", tmp_path / "out", DRY_RUN="1", BERT=str(tmp_path))
    assert done.returncode != 0 and "has no configuration, give LAYERS" in done.stderr


def test_a_run_in_the_background_that_fails_is_not_passed_over(tmp_path):
    done = experiment("exp1_catastrophic_forgetting", tmp_path / "out", SMOKE="1", FLAGS="--bf16 maybe")
    assert done.returncode == 1 and "'maybe' is neither True nor False" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "results").exists() and not list((tmp_path / "out").glob(".failed*"))


# collect_results.py

def make_run(folder, accuracies, seed=1):
    """A finished run: the test accuracy of each epoch."""
    epochs = [{"epoch": number, "eval_accuracy": value} for number, value in enumerate(accuracies, 1)]
    (folder / f"seed_{seed}").mkdir(parents=True)
    (folder / f"seed_{seed}" / "results.json").write_text(json.dumps(
        {"seed": seed, "epochs": epochs, "best": max(epochs, key=lambda epoch: epoch["eval_accuracy"]), "last": epochs[-1]}))


def test_tables_are_means_and_deviations_of_best_and_last(tmp_path, script):
    runs = tmp_path / "runs"
    for seed, accuracies in ((1, [0.95, 0.94]), (2, [0.93, 0.96]), (3, [0.90, 0.92])):
        make_run(runs / "long_text" / "head_only" / "imdb", accuracies, seed)
    make_run(runs / "layers" / "layer_13" / "imdb", [0.5])
    done = script("scripts/collect_results.py", "--runs", runs, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "table2.csv")
    assert len(rows) == 12 and rows[0]["row"] == "head-only" and rows[0]["paper"] == "5.6300"
    best, last = [5, 4, 8], [6, 4, 8]
    for name, values in (("best", best), ("last", last)):
        assert float(rows[0][f"{name}_mean"]) == pytest.approx(np.mean(values), abs=1e-4)
        assert float(rows[0][f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert float(rows[0]["difference"]) == pytest.approx(np.mean(best) - 5.63, abs=1e-4)
    assert rows[1]["best_mean"] == "" and rows[1]["seeds"] == "0"
    text = (tmp_path / "out" / "table2.md").read_text()
    assert "| head-only | imdb | 5.67 (2.08) | 6.00 (2.00) | 3 | 5.63 | +0.04 |" in text
    assert "| head-only | sogou | missing | missing | 0 | 2.58 |  |" in text
    deeper = rows_of(tmp_path / "out" / "table3.csv")[-1]  # a layer that the paper's BERT has not
    assert deeper["row"] == "layer_13" and deeper["paper"] == "" and deeper["best_mean"] == "50.0000"
    assert "wrote" in done.stdout and "table2.csv and .md: 1 of 12" in done.stdout
    assert "figure3: none of its runs is there" in done.stdout


def test_figures_are_drawn_of_what_is_there(tmp_path, script):
    runs = tmp_path / "runs"
    for folder in ("catastrophic_forgetting/2e-5/imdb", "steps/10000/imdb", "few_shot/none/0.004/imdb"):
        for seed, accuracies in ((1, [0.8, 0.9]), (2, [0.7, 0.88])):
            make_run(runs / folder, accuracies, seed)
    done = script("scripts/collect_results.py", "--runs", runs, "--output_dir", tmp_path / "out", "--only", "figure2",
                  "figure3", "figure4")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["figure2.png", "figure3.png", "figure4.png"]
    points = {name: [tuple(row.values()) for row in rows_of(tmp_path / "out" / f"{name}.csv")]
              for name in ("figure2", "figure3", "figure4")}
    assert points["figure2"] == [("rate 2e-5", "1", "25.0000", "7.0711", "2"), ("rate 2e-5", "2", "11.0000", "1.4142", "2")]
    assert points["figure3"] == [("ours", "10000", "11.0000", "1.4142", "2"), ("paper (Table 5)", "0", "5.4000", "", ""),
                                 ("paper (Table 5)", "100000", "4.3700", "", "")]
    assert points["figure4"][:2] == [("BERT-FiT, ours", "0.004", "11.0000", "1.4142", "2"),
                                     ("BERT-FiT, paper", "0.004", "17.2600", "", "")]


def test_wrong_folders_and_names_are_refused(tmp_path, refused):
    refused("scripts/collect_results.py", "--runs", tmp_path / "absent", words="there is no folder")
    refused("scripts/collect_results.py", "--only", "table9", words="invalid choice: 'table9'")
    refused("data/make_task_samples.py", "--output_dir", tmp_path, "--num_train", 0, words="at least 1")


def test_the_sample_is_there_in_each_task_s_format(tmp_path, script):
    done = script("data/make_task_samples.py", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for task in tasks.TASKS.values():
        for split, count in (("train", 64), ("test", 32)):
            texts, labels = tasks.read_examples(task, tmp_path / task.name, split)
            assert len(texts) == count and len(set(texts)) > count / 2
            assert len(set(labels)) == len(task.labels), task.name
