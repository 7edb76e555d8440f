"""scripts/collect_results.py and scripts/quickstart_table.py: tables and figures of runs that are made here by hand."""
import csv
import json
import os
import shutil
import sys

import matplotlib.image
import numpy as np
import pytest

from common.command_line import UserError
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import collect_results  # noqa: E402
import quickstart_table  # noqa: E402
import read_runs  # noqa: E402

HEAD_ONLY = "long_text/head_only/imdb"  # the first row of Table 2


@pytest.fixture
def collect(tmp_path, monkeypatch, capsys):
    """collect(*names) writes these tables and figures of the runs in tmp_path/runs. Returns what was printed."""
    def call(*names, flags=()):
        only = ["--only", *names] if names else []
        monkeypatch.setattr(sys, "argv", ["collect_results.py", "--runs", str(tmp_path / "runs"),
                                          "--output_dir", str(tmp_path / "out"), *only, *flags])
        collect_results.main()
        return capsys.readouterr().out
    call.runs, call.out = tmp_path / "runs", tmp_path / "out"
    call.runs.mkdir()
    return call


def make_run(folder, accuracies, seed=1, recipe=None, more=None, **metrics):
    """A finished run in folder/seed_N: the test accuracy of each epoch, further metrics, `more` of results.json, and its
    run.json."""
    epochs = [{"epoch": number, "global_step": 8 * number, "loss": 0.5, "eval_accuracy": value, "eval_loss": 1 - value,
               "seconds": 0.1} | metrics for number, value in enumerate(accuracies, 1)]
    folder = folder / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(
        {"seed": seed, "epochs": epochs, "best": max(epochs, key=lambda epoch: epoch["eval_accuracy"]),
         "last": epochs[-1]} | (more or {})))
    if recipe is not None:
        (folder / "run.json").write_text(json.dumps({"kind": "fine-tuning", "flags": {}, "recipe": recipe}))
    return folder


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Tables

def test_tables_are_means_and_deviations_of_best_and_last(collect):
    for seed, accuracies in ((1, [0.95, 0.94]), (2, [0.93, 0.96]), (3, [0.90, 0.92])):
        make_run(collect.runs / HEAD_ONLY, accuracies, seed)
    make_run(collect.runs / "layers" / "layer_13" / "imdb", [0.5])
    printed = collect()
    rows = rows_of(collect.out / "table2.csv")
    assert len(rows) == 12 and rows[0]["row"] == "head-only" and rows[0]["paper"] == "5.6300"
    best, last = [5, 4, 8], [6, 4, 8]
    for name, values in (("best", best), ("last", last)):
        assert float(rows[0][f"{name}_mean"]) == pytest.approx(np.mean(values), abs=1e-4)
        assert float(rows[0][f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert float(rows[0]["difference"]) == pytest.approx(np.mean(best) - 5.63, abs=1e-4)
    assert rows[1]["best_mean"] == "" and rows[1]["seeds"] == "0"
    text = (collect.out / "table2.md").read_text()
    assert "| head-only | imdb | 5.67 (2.08) | 6.00 (2.00) | 3 | 5.63 | +0.04 | loss 0.0567 (0.0208) |" in text
    assert "| head-only | sogou | missing | missing | 0 | 2.58 |  |  |" in text
    deeper = rows_of(collect.out / "table3.csv")[-1]  # a layer that the paper's BERT lacks
    assert deeper["row"] == "layer_13" and deeper["paper"] == "" and deeper["best_mean"] == "50.0000"
    assert "wrote" in printed and "table2.csv and .md: 1 of 12 rows have a run" in printed
    assert "figure3: none of its runs is there" in printed


def test_a_table_without_runs_has_the_paper_s_columns_only(collect):
    collect("table2")
    assert tuple(rows_of(collect.out / "table2.csv")[0]) == collect_results.COLUMNS
    assert (collect.out / "table2.md").read_text().split("\n\n")[-1].startswith(
        "| row | data set | best epoch | last epoch | seeds | paper | difference |\n|---|---|---|---|---|---|---|\n")


def test_only_and_output_dir_say_what_is_written_and_where(collect, tmp_path):
    printed = collect("table2", "table8", flags=["--output_dir", str(tmp_path / "elsewhere")])
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["table2.csv", "table2.md", "table8.csv", "table8.md"]
    assert printed.count("wrote") == 2 and not collect.out.exists()


def test_every_metric_that_runs_hold_is_in_the_tables(collect):
    for seed, value in ((1, 0.5), (2, 0.7)):
        make_run(collect.runs / HEAD_ONLY, [0.9, 0.8], seed, eval_macro_f1=value, eval_of_tomorrow=10 * value)
    make_run(collect.runs / "long_text/tail_only/imdb", [0.9], eval_macro_f1=0.25)
    (collect.runs / "long_text/tail_only/imdb/seed_2").mkdir()
    (collect.runs / "long_text/tail_only/imdb/seed_2/results.json").write_text(
        json.dumps({"seed": 2, "epochs": [{"epoch": 1}]}))  # of a run that was not evaluated
    collect("table2")
    rows = rows_of(collect.out / "table2.csv")
    assert tuple(rows[0]) == (*collect_results.COLUMNS, "loss_mean", "loss_std", "macro_f1_mean", "macro_f1_std",
                              "of_tomorrow_mean", "of_tomorrow_std")
    assert (rows[0]["macro_f1_mean"], rows[0]["macro_f1_std"], rows[0]["of_tomorrow_mean"]) == \
        ("0.6000", "0.1414", "6.0000")
    tail = rows[2]
    assert tail["row"] == "tail-only" and (tail["macro_f1_mean"], tail["of_tomorrow_mean"]) == ("0.2500", "")
    assert tail["seeds"] == "1"  # of the two, that which the mean is of
    lines = (collect.out / "table2.md").read_text().split("\n\n")[-1].splitlines()
    assert lines[2].endswith("| loss 0.1000 (0.0000), macro_f1 0.6000 (0.1414), of_tomorrow 6.0000 (1.4142) |")
    assert {line.count("|") for line in lines} == {9}


def test_a_metric_that_one_seed_lacks_is_no_mean_of_the_others(collect):
    make_run(collect.runs / HEAD_ONLY, [0.9], 1, eval_macro_f1=0.5)
    make_run(collect.runs / HEAD_ONLY, [0.9], 2)
    collect("table2")
    assert "macro_f1_mean" not in rows_of(collect.out / "table2.csv")[0]
    make_run(collect.runs / "long_text/tail_only/imdb", [0.9], eval_macro_f1=0.25)
    collect("table2")
    assert [row["macro_f1_mean"] for row in rows_of(collect.out / "table2.csv")[:3:2]] == ["", "0.2500"]


@pytest.mark.parametrize("loss", [None, float("nan")])
def test_a_loss_that_is_no_number_is_no_mean(collect, loss):
    """As of a run that diverged."""
    make_run(collect.runs / HEAD_ONLY, [0.5], 1, eval_loss=loss)
    make_run(collect.runs / HEAD_ONLY, [0.6], 2)
    collect("table2")
    row = rows_of(collect.out / "table2.csv")[0]
    assert (row["best_mean"], row["seeds"]) == ("45.0000", "2") and "loss_mean" not in row


def test_with_held_out_data_the_test_is_shown(collect):
    path = make_run(collect.runs / HEAD_ONLY, [0.9, 0.8]) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test": {"eval_accuracy": 0.7, "eval_loss": 2.0}}))
    collect("table2")
    row = rows_of(collect.out / "table2.csv")[0]
    assert (row["best_mean"], row["last_mean"], row["loss_mean"]) == ("30.0000", "", "2.0000")


def test_a_table_with_several_data_sets_stands_in_the_paper_s_form_too(collect):
    for seed, accuracy in ((1, 0.95), (2, 0.93)):
        make_run(collect.runs / HEAD_ONLY, [accuracy], seed)
    make_run(collect.runs / "long_text/head_only/subj", [0.75])
    collect("table2", "table3")
    form, long = (collect.out / "table2.md").read_text().split("\n\n")[1:]
    assert form.splitlines()[0] == "|  | imdb | sogou | subj |" and long.startswith("| row | data set |")
    assert form.splitlines()[2] == "| head-only | 6.00 (1.41) / 5.63 | – / 2.58 |  |"
    assert form.splitlines()[-1] == "| head_only |  |  | 25.00 / – |" and len(form.splitlines()) == 2 + 6 + 1
    assert (collect.out / "table3.md").read_text().startswith("| row | data set |")  # one data set: no other form


def test_the_paper_s_figures_are_those_of_the_paper(shared):
    """All of them, in the paper's order within each table and data set; and two tables of ours."""
    def by_place(lines, table, data_set, error):
        found = {}
        for line in lines:
            found.setdefault((line[table].removeprefix("table"), line[data_set]), []).append(float(line[error]))
        return {place: sorted(errors) for place, errors in found.items()}
    ours = by_place(rows_of(collect_results.PAPER), "table", "data_set", "paper_test_error_percent")
    assert ours.pop(("released", "imdb")) == [4.37] and ours.pop(("corpus", "imdb")) == [4.37] * 8
    ours["fig4", "imdb"] = ours.pop(("figure4", "imdb"))
    assert ours == by_place(rows_of(shared / "paper" / "results.csv"), "table", "dataset", "test_error_percent")


def test_error_reduction_against_bert_feat_from_the_paper_s_figures(collect):
    """The paper gives 9.22, 16.07, 18.57 and 14.38."""
    collect("table6")
    form = [line.split(" | ")[-1].strip("| ") for line in (collect.out / "table6.md").read_text().split("\n\n")[1].splitlines()]
    assert form[0] == "mean reduction of the error, %"
    assert form[-5:] == ["", "– / 9.22", "– / 16.08", "– / 18.57", "– / 14.38"]
    assert set(form[2:-5]) == {""}  # the paper gives none of the earlier models


def test_error_reduction_is_over_the_data_sets_of_both_rows(collect):
    for row, task, accuracy in (("feat", "imdb", 0.9), ("feat", "trec", 0.8), ("feat", "ag", 1.0), ("none", "imdb", 0.95),
                                ("none", "trec", 0.82), ("none", "ag", 0.9), ("none", "yahoo", 0.7), ("all", "imdb", 0.88)):
        make_run(collect.runs / row / task, [accuracy])
    collect("table6")
    rows = {(row["row"], row["data_set"]): row for row in rows_of(collect.out / "table6.csv")}
    assert [rows["BERT-FiT", name]["reduction"] for name in ("imdb", "trec", "ag", "yahoo")] == ["50.0000", "10.0000", "", ""]
    assert rows["BERT-CDPT-FiT", "imdb"]["reduction"] == "-20.0000" and rows["ULMFiT", "imdb"]["paper_reduction"] == ""
    text = (collect.out / "table6.md").read_text()
    assert "| 30.00 (of 2) / 9.22 |\n" in text and "| -20.00 (of 1) / 14.38 |\n" in text


def test_earlier_models_are_rows_without_a_run(collect):
    make_run(collect.runs / "imdb/imdb", [0.96])
    printed = collect("table6", "table8")
    assert "table6.csv and .md: 1 of 38 rows have a run" in printed and "table8.csv and .md: 1 of 20 rows" in printed
    rows = rows_of(collect.out / "table6.csv")
    earlier = list(dict.fromkeys(row["row"] for row in rows if not row["row"].startswith("BERT")))
    assert len(earlier) == 10 and earlier[-1] == "ULMFiT"
    assert "|  | imdb | yelp_p | yelp_f | trec | yahoo | ag | dbpedia | sogou | mean" in (collect.out / "table6.md").read_text()
    text = (collect.out / "table8.md").read_text()
    assert "| ULMFiT | – / 4.60 | – / 2.16 | – / 29.98 | – / 5.01 | – / 0.80 |" in text
    assert "| BERT-BASE + ITPT | 4.00 / 4.37 | – / 1.92 |" in text and "| ULMFiT | imdb |  |  | 0 | 4.60 |  |" in text


def test_runs_that_two_tables_share_and_the_tables_of_our_own(collect):
    for folder, accuracy in (("long_text/head+tail/imdb", 0.9), ("none/imdb", 0.8), ("released/imdb", 0.96),
                             ("corpus/train_test_html_model/imdb", 0.7), ("layer_wise_lr/1e-4_0.95/imdb", 0.6)):
        make_run(collect.runs / folder, [accuracy])
    collect("table4", "released", "corpus")
    errors = {name: {row["row"]: row["best_mean"] for row in rows_of(collect.out / f"{name}.csv") if row["best_mean"]}
              for name in ("table4", "released", "corpus")}
    assert errors == {
        "table4": {"rate 2.0e-5, decay 1.00": "10.0000", "rate 2.0e-5, decay 0.95": "20.0000", "1e-4_0.95": "40.0000"},
        "released": {"authors' IMDb checkpoint": "4.0000"},
        "corpus": {"training and test texts, with HTML, sentences by spaCy": "30.0000"}}
    assert len(rows_of(collect.out / "corpus.csv")) == 8


# Whose runs are averaged

WEIGHTS = "weights (--init_checkpoint)"
RECIPE = {"seed": 1, "max_seq_length": 512, WEIGHTS: "0a", "vocabulary": "0b", "training data": "0c"}


def test_runs_that_differ_in_the_seed_are_averaged(collect):
    for seed in (1, 2):
        make_run(collect.runs / HEAD_ONLY, [0.9], seed, RECIPE | {"seed": seed})
        # a fine-tuning after a multi-task one starts from the multi-task run of its own seed
        make_run(collect.runs / "multitask/none/imdb", [0.9], seed, RECIPE | {"seed": seed, WEIGHTS: str(seed)})
    collect("table2", "table7")
    assert rows_of(collect.out / "table2.csv")[0]["seeds"] == "2"
    assert [row["seeds"] for row in rows_of(collect.out / "table7.csv") if row["row"] == "BERT-MFiT-FiT"][0] == "2"


@pytest.mark.parametrize("second, words", [
    ({"max_seq_length": 32}, "max_seq_length is 32, in .*seed_1/run.json it is 512; the runs in one folder may differ"),
    ({WEIGHTS: "1a"}, "weights .--init_checkpoint. is 1a, in .* it is 0a"), ({"vocabulary": "1b"}, "vocabulary is 1b"),
    ({"training data": "1c"}, "training data is 1c"), ({"new flag": True}, "new flag is True, in .* it is None")])
def test_runs_of_two_settings_are_not_averaged(collect, second, words):
    for seed, changed in ((1, {}), (2, second)):
        make_run(collect.runs / HEAD_ONLY, [0.9], seed, RECIPE | {"seed": seed} | changed)
    with pytest.raises(UserError, match=f"seed_2/run.json: {words}"):
        collect("table2")


def test_a_run_is_not_counted_twice(collect):
    make_run(collect.runs / HEAD_ONLY, [0.9], 1)
    path = make_run(collect.runs / HEAD_ONLY, [0.9], 2) / "results.json"
    path.write_text(path.read_text().replace('"seed": 2', '"seed": 1'))
    with pytest.raises(UserError, match="another run beside it has the seed 1 too"):
        collect("table2")


# Damage

@pytest.mark.parametrize("change, words", [
    (None, r"\[\] where dict is needed"), ({"seed": "1"}, "seed: '1' where int"),
    ({"seed": True}, "seed: True where int"),
    ({"epochs": {}}, "epochs: {} where list"), ({"epochs": [1]}, r"epochs, \[0\]: 1 where dict"),
    ({"epochs": [{}]}, r"epochs, \[0\] has no eval_accuracy"), ({"best": None}, "best: None where dict"),
    ({"best": {"eval_accuracy": "0.9"}}, "best, eval_accuracy: '0.9' where float"),
    ({"best": {}}, "best has no eval_accuracy"),
    ({"last": []}, "last: .* where dict"), ({"test": 1}, "test: 1 where dict"),
    ({"best": {"eval_accuracy": 1.5}}, "eval_accuracy is 1.5, a number from 0 to 1"),
    ({"points": 1}, "points: 1 where list"), ({"points": [{"epoch": 0.1}]}, r"points, \[0\] has no eval_accuracy"),
    ({"points": [{"epoch": "x", "train_accuracy": 1, "eval_accuracy": 1}]}, "epoch: 'x' where float"),
    ({"points": [{"epoch": 1, "train_accuracy": -1, "eval_accuracy": 1}]}, "train_accuracy is -1, a number from 0 to 1"),
    ({"points": [{"epoch": 1, "train_accuracy": 1 + 1e-7, "eval_accuracy": 2}]}, "eval_accuracy is 2, a number from 0"),
    ({"best": {"eval_accuracy": float("nan")}}, "eval_accuracy is nan, a number from 0 to 1"),
    ({"best": {"eval_accuracy": 10 ** 400}}, "a number of more than 64 bits"),
    ({"best": {"eval_accuracy": 1, "eval_macro_f1": [1]}}, r"eval_macro_f1: \[1\] where float"),
    ({"best": {"eval_accuracy": 1, "eval_macro_f1": 10 ** 400}}, "a number of more than 64 bits")])
def test_results_of_wrong_types_are_refused_in_one_line_that_names_the_file(collect, change, words):
    path = make_run(collect.runs / HEAD_ONLY, [0.9]) / "results.json"
    path.write_text(json.dumps([] if change is None else json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"seed_1/results.json.*{words}"):
        collect("table2")


@pytest.mark.parametrize("name", ["results.json", "run.json"])
@pytest.mark.parametrize("text, words", [
    (b"", "is not whole JSON"), (b'{"seed": 1, "ep', "is not whole JSON"), (b"\0\0\0\0", "is not whole JSON"),
    (b'{"seed": "\xff"}', "is not whole JSON"), (b"[" * 100_000, "nested too deep"),
    (b"[" * 200 + b"]" * 200, "nested too deep"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "is not whole JSON.*5000 digits"), (b"[]", r"\[\] where dict is needed"),
    (b"{}", "has no (seed|recipe)"), (b'{"recipe": 1, "seed": 1, "epochs": 1}', ": 1 where (dict|list) is needed")])
def test_damaged_files_are_refused_in_one_line_that_names_the_file(collect, name, text, words):
    (make_run(collect.runs / HEAD_ONLY, [0.9], recipe=RECIPE) / name).write_bytes(text)
    with pytest.raises(UserError, match=f"seed_1/{name}.*{words}"):
        collect("table2")


@pytest.mark.parametrize("change", [lambda text: text[:1000], lambda text: text.replace(b"5.63", b"5,6,3"),
                                    lambda text: text.replace(b"paper_test", b"test"), lambda text: text + b"\r1,\r"])
def test_a_damaged_table_of_the_paper_is_one_line(tmp_path, monkeypatch, change):
    with open(collect_results.PAPER, "rb") as file:
        (tmp_path / "paper.csv").write_bytes(change(file.read()))
    monkeypatch.setattr(collect_results, "PAPER", str(tmp_path / "paper.csv"))
    with pytest.raises(UserError, match="paper.csv:[0-9]+: the table of the paper's figures is damaged"):
        collect_results.read_paper()


def test_wrong_folders_and_names_are_refused_in_one_line_without_importing_torch(tmp_path, refused, script):
    refused("scripts/collect_results.py", "--runs", tmp_path / "absent", words="there is no folder")
    refused("scripts/collect_results.py", "--only", "table9", words="invalid choice: 'table9'")
    refused("scripts/collect_results.py", "--runs", tmp_path, "--output_dir", __file__,
            words="is a file, a folder is needed")
    (tmp_path / "torch.py").write_text("raise AssertionError('the tables need no torch')")
    done = script("scripts/collect_results.py", "--runs", tmp_path, "--output_dir", tmp_path / "out",
                  env={"PYTHONPATH": str(tmp_path)}, plain=True)
    assert done.returncode == 0, done.stderr


# Figures

def test_figures_are_drawn_of_what_is_there(collect):
    for folder in ("catastrophic_forgetting/2e-5/imdb", "catastrophic_forgetting/2e-5_old/imdb", "steps/10000/imdb",
                   "catastrophic_forgetting/1e999/imdb", "few_shot/none/0.004/imdb"):
        for seed, accuracies in ((1, [0.8, 0.9]), (2, [0.7, 0.88])):
            make_run(collect.runs / folder, accuracies, seed)
    collect("figure2", "figure3", "figure4")
    assert all((collect.out / f"figure{number}.png").read_bytes().startswith(b"\x89PNG") for number in (2, 3, 4))
    points = {name: [tuple(row.values()) for row in rows_of(collect.out / f"{name}.csv")]
              for name in ("figure2", "figure3", "figure4")}
    assert points["figure2"] == [("rate 2e-5", "1", "25.0000", "7.0711", "2"),
                                 ("rate 2e-5", "2", "11.0000", "1.4142", "2")]
    assert points["figure3"] == [("ours", "10000", "11.0000", "1.4142", "2"),
                                 ("paper (Table 5)", "0", "5.4000", "", ""),
                                 ("paper (Table 5)", "100000", "4.3700", "", "")]
    assert points["figure4"][:2] == [("BERT-FiT, ours", "0.004", "11.0000", "1.4142", "2"),
                                     ("BERT-FiT, paper", "0.004", "17.2600", "", "")]


def test_figure2_has_test_and_training_error_inside_the_epochs(collect):
    """Of a run that diverged too, whose curve ends early, and of the run at 2e-5, which is head+tail's."""
    for folder, last in (("long_text/head+tail/imdb", 4), ("catastrophic_forgetting/4e-4/imdb", 2)):
        for seed in (1, 2):
            points = [{"epoch": number / 2, "global_step": 4 * number, "train_accuracy": 0.1 * number, "train_loss": 1.0,
                       "eval_accuracy": 0.5 + 0.1 * seed, "eval_loss": 1.0} for number in range(1, last + seed - 1)]
            more = {"points": points} | ({"diverged": {"global_step": 9}} if last == 2 else {})
            make_run(collect.runs / folder, [0.8, 0.9], seed, more=more)
    assert "figure2.csv and .png: 12 of our points" in collect("figure2")
    points = [tuple(row.values()) for row in rows_of(collect.out / "figure2.csv")]
    assert list(dict.fromkeys(point[0] for point in points)) == [
        "rate 2e-5", "rate 2e-5, training error", "rate 4e-4", "rate 4e-4, training error"]
    assert points[0] == ("rate 2e-5", "0.5", "35.0000", "7.0711", "2")
    assert points[4:6] == [("rate 2e-5, training error", "0.5", "90.0000", "0.0000", "2"),
                           ("rate 2e-5, training error", "1", "80.0000", "0.0000", "2")]
    assert points[-1] == ("rate 4e-4, training error", "1", "80.0000", "", "1")  # one seed got so far


@pytest.mark.parametrize("settings, last", [({}, "100000"), ({"steps": 16}, "16")])
def test_figure3_ends_with_the_run_after_all_steps(collect, settings, last):
    collect.runs.mkdir(exist_ok=True)
    (collect.runs / "settings.json").write_text(json.dumps(settings))
    for folder, accuracy in (("none/imdb", 0.8), ("steps/4/imdb", 0.85), ("imdb/imdb", 0.9)):
        make_run(collect.runs / folder, [accuracy])
    collect("figure3")
    assert [(row["x"], row["mean"]) for row in rows_of(collect.out / "figure3.csv") if row["curve"] == "ours"] == [
        ("0", "20.0000"), ("4", "15.0000"), (last, "10.0000")]


def test_runs_without_an_evaluation_give_no_points(collect):
    folder = make_run(collect.runs / "catastrophic_forgetting/2e-5/imdb", [0.9])
    (folder / "results.json").write_text(json.dumps({"seed": 1, "epochs": [{"epoch": 1, "loss": 0.5}]}))
    assert "figure2: none of its runs is there" in collect("figure2")


# quickstart_table.py

@pytest.fixture
def quickstart(tmp_path, monkeypatch, capsys):
    """A quickstart's folder, and a function that prints its table."""
    for number in (25, 100):
        for name, gain in (("tiny_bert", 0), ("further_pretrained", 0.0625)):
            for seed in (1, 2):
                last = 0.5 + number / 1000 + gain + seed * (1 + 16 * gain) / 100
                make_run(tmp_path / f"ag_{name}_{number}", [0.9, last], seed)
    (tmp_path / "tiny_bert_AGnews_pretrain").mkdir()
    (tmp_path / "tiny_bert_AGnews_pretrain" / "metrics.jsonl").write_text("".join(
        json.dumps({"kind": "train", "global_step": step, "masked_lm_loss": 1 / step}) + "\n" for step in (10, 20))
        + json.dumps({"kind": "eval", "global_step": 20}) + "\n")
    (tmp_path / "logs").mkdir()
    for number, name in enumerate(("corpus", "vocab")):
        (tmp_path / "logs" / f"{name}.seconds").write_text(f"{number + 3}\n")
        os.utime(tmp_path / "logs" / f"{name}.seconds", (number, number))
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "predictions.tsv").write_text("label\t1\t2\n" + "2\t0.1\t0.9\n" * 4)

    def table():
        monkeypatch.setattr(sys, "argv", ["quickstart_table.py", str(tmp_path)])
        quickstart_table.main()
        return capsys.readouterr().out
    table.folder = tmp_path
    return table


def test_quickstart_table_shows_accuracies_seconds_and_predictions(quickstart):
    lines = [line.split() for line in quickstart().splitlines()]
    assert ["25", "without", "54.00%", "+-", "0.50%", "53.50%", "54.50%"] in lines
    assert ["100", "with", "69.25%", "+-", "1.00%", "68.25%", "70.25%"] in lines
    assert ["100", "difference", "+7.75%", "+-", "0.50%", "+7.25%", "+8.25%"] in lines
    assert [line for line in lines if line[-1:] in (["3"], ["4"])] == [["corpus", "3"], ["vocab", "4"]]
    predicted = [line for line in lines if line[:3] == ["2", "0.1", "0.9"]]
    assert len(predicted) == 4 and all(len(line) > 5 for line in predicted)
    height, width, _ = matplotlib.image.imread(quickstart.folder / "results.png").shape
    assert width > height > 300


def test_quickstart_table_of_one_seed_has_no_standard_error(quickstart):
    for folder in quickstart.folder.glob("ag_*/seed_2"):
        shutil.rmtree(folder)
    assert ["25", "without", "53.50%", "one", "seed", "53.50%"] in [line.split() for line in quickstart().splitlines()]


@pytest.mark.parametrize("name, text, words", [
    ("ag_tiny_bert_25/seed_1/results.json", "[" * 2000, "results.json is not JSON of ours"),
    ("ag_tiny_bert_25/seed_1/results.json", '{"seed": 1}', "results.json has no last"),
    ("ag_tiny_bert_25/seed_1/results.json", '{"seed": 1, "last": {"eval_accuracy": "x"}}', "last, eval_accuracy: 'x'"),
    ("logs/corpus.seconds", "", "corpus.seconds: '' is no number of seconds; remove the file"),
    ("logs/corpus.seconds", "9" * 5000, "is no number of seconds"),
    ("tiny_bert_AGnews_pretrain/metrics.jsonl", "{", "metrics.jsonl:1 is not whole JSON"),
    ("tiny_bert_AGnews_pretrain/metrics.jsonl", '{"kind": "train"}', "metrics.jsonl:1 has no global_step"),
    ("predictions/predictions.tsv", "", "predictions.tsv is empty"),
    ("predictions/predictions.tsv", "\0", "predictions.tsv:1: a zero byte")])
def test_quickstart_table_names_the_file_that_is_damaged(quickstart, name, text, words):
    (quickstart.folder / name).write_text(text)
    with pytest.raises(UserError, match=words):
        quickstart()


def test_quickstart_table_needs_a_seed_of_both_arms(quickstart):
    (quickstart.folder / "ag_further_pretrained_25").rename(quickstart.folder / "away")
    for seed in (1, 2):
        old = quickstart.folder / "away" / f"seed_{seed}" / "results.json"
        new = quickstart.folder / "ag_further_pretrained_25" / f"seed_{seed + 2}" / "results.json"
        new.parent.mkdir(parents=True)
        new.write_text(json.dumps(json.loads(old.read_text()) | {"seed": seed + 2}))
    with pytest.raises(UserError, match="with 25 labelled stories no seed was run both"):
        quickstart()


def test_quickstart_table_of_another_folder_is_refused(tmp_path, refused):
    refused("scripts/quickstart_table.py", tmp_path / "absent", words="there is no folder")
    refused("scripts/quickstart_table.py", tmp_path, words="there is no ag_tiny_bert_N in")


def test_rows_of_other_settings_are_named_by_them(collect):
    (collect.runs / "settings.json").write_text(
        '{"rate": "2e-4", "length": 256, "head": 64, "layers": 4, "train_parts": "imdb=0.08 ag=0.5"}')
    for folder in ("none/imdb", "long_text/head+tail/imdb", "layer_wise_lr/2.5e-4_0.90/imdb", "few_shot/none/0.2/imdb",
                   "layers/layer_0/imdb", "layers/layer_3/imdb", "catastrophic_forgetting/4e-3/imdb"):
        for seed in (1, 2):
            points = [{"epoch": 1, "train_accuracy": 0.5 + seed / 100, "eval_accuracy": 0.5}]
            make_run(collect.runs / folder, [0.8 + seed / 100 + len(folder) * seed / 10000], seed, more={"points": points})
    collect()
    rows = {row["row"]: row for row in rows_of(collect.out / "table4.csv")}
    assert rows["rate 2.5e-4, decay 0.90"]["seeds"] == "2" and rows["rate 2e-4, decay 0.95"]["seeds"] == "2"
    assert not [name for name in rows if "e-5" in name]
    assert "head+tail (64+190)" in {row["row"] for row in rows_of(collect.out / "table2.csv")}
    assert {row["curve"] for row in rows_of(collect.out / "figure2.csv")} >= {"rate 2e-4", "rate 4e-3"}
    ours = {row["x"]: row["curve"] for row in rows_of(collect.out / "figure4.csv") if "paper" not in row["curve"]}
    assert set(ours) == {"0.08", "0.2"}
    text = (collect.out / "findings.md").read_text()
    assert "At 4e-3 the training fails to converge, at 2e-4 it does" in text and "Layer-0 of 4" in text
    assert "Layer-3 of 4" in text and "Layer-11" not in text
    layers = rows_of(collect.out / "table3.csv")  # of another depth than the paper's, so without its figures
    assert [(row["row"], row["seeds"], row["paper"]) for row in layers] == [
        (f"Layer-{layer} of 4", "2" if layer in (0, 3) else "0", "") for layer in range(4)]


@pytest.mark.parametrize("part", ["imdb=0.10", "imdb=2500 ag=500"])
def test_figure4_has_one_run_for_each_share(collect, part):
    """That of all other experiments where a share is theirs, however it is written."""
    (collect.runs / "settings.json").write_text(json.dumps({"train_parts": part}))
    for folder, accuracy in (("none/imdb", 0.9), ("few_shot/none/0.1/imdb", 0.8), ("few_shot/none/1.0/imdb", 0.95)):
        make_run(collect.runs / folder, [accuracy])
    collect("figure4")
    assert [(row["x"], row["mean"], row["seeds"]) for row in rows_of(collect.out / "figure4.csv")
            if row["curve"] == "BERT-FiT, ours"] == [("0.1", "10.0000", "1"), ("1", "5.0000", "1")]


@pytest.mark.parametrize("parts", ["0.1", "imdb", "imdb=", "imdb=half", "imdb=0.1,ag=0.1"])
def test_parts_of_the_data_that_cannot_be_read_are_refused(collect, parts):
    (collect.runs / "settings.json").write_text(json.dumps({"train_parts": parts}))
    with pytest.raises(UserError, match="settings.json: train_parts is"):
        read_runs.read_settings(collect.runs)


def test_settings_that_a_folder_does_not_name_are_the_paper_s(collect):
    (collect.runs / "settings.json").write_text('{"rate": "2e-4"}')
    assert read_runs.read_settings(collect.runs) == read_runs.SETTINGS | {"rate": "2e-4"}
    (collect.runs / "settings.json").write_text('{"layers": "4"}')
    with pytest.raises(UserError, match="settings.json"):
        read_runs.read_settings(collect.runs)
