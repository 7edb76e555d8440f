"""scripts/findings.py: verdicts on results that are made here with effects that are known."""
import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from test_collect_results import collect, make_run, rows_of  # noqa: F401: a fixture

sys.path.insert(0, str(ROOT / "scripts"))
import collect_results  # noqa: E402
import findings  # noqa: E402

PAPER = collect_results.read_paper()
SEEDS = (1, 2, 3)
FINDINGS = {finding.claim: finding for finding in findings.FINDINGS}
FIGURES = pd.DataFrame(  # findings without figures of the paper: table, row, data set, run, and the error that we make of it
    [("figure2", findings.CONSTANT, "imdb", "", 25.0), ("figure2", "training at 2e-5", "imdb", "training/2e-5", 2.0),
     ("figure2", "training at 4e-4", "imdb", "training/4e-4", 50.0), ("figure3", "all updates", "imdb", "imdb/imdb", 4.37),
     ("figure3", "50,000 updates", "imdb", "steps/50000/imdb", 4.6)], columns=PAPER.columns)
ROWS = pd.concat([PAPER, FIGURES])


def make_errors(deviation, seeds=SEEDS, shift=None):
    """{run: errors by seed} of all runs: the paper's means, moved by shift(mean), and noise of the deviation given."""
    generator = np.random.default_rng(0)
    means = ROWS[ROWS["run"] != ""].drop_duplicates("run").set_index("run")["paper"]
    return {run: pd.Series((shift or float)(mean) + deviation * generator.normal(size=len(seeds)), seeds)
            for run, mean in means.items()}


def without(errors, *runs):
    return {run: values for run, values in errors.items() if run not in runs}


def verdicts(errors):
    """{claim: verdict} of all findings."""
    return {claim: findings.judge(finding, findings.comparisons(finding, ROWS, errors))[1]
            for claim, finding in FINDINGS.items()}


def one_verdict(words, errors):
    """The verdict on the finding that begins so."""
    return next(verdict for claim, verdict in verdicts(errors).items() if claim.startswith(words))


# Verdicts

def test_what_the_paper_s_figures_say_is_supported_where_noise_is_small():
    found = verdicts(make_errors(0.001))
    assert len(found) == 16
    # by its own figures it ties with CoVe on TREC and loses to Region Emb. on Sogou
    assert [claim for claim, verdict in found.items() if verdict != "supported"] == [
        "BERT-Feat is better than all earlier models but ULMFiT"]
    better = {"feat/trec": series(4.0, 4.01, 4.02), "feat/sogou": series(2.2, 2.3, 2.32)}
    assert one_verdict("BERT-Feat is better", make_errors(0.001) | better) == "supported"


def test_the_opposite_of_the_paper_s_figures_is_contradicted():
    found = verdicts(make_errors(0.001, shift=lambda mean: 60 - mean))
    margin = {claim for claim, finding in FINDINGS.items() if finding.margin}
    assert len(margin) == 2 and {found[claim] for claim in FINDINGS.keys() - margin} == {"contradicted"}


@pytest.mark.parametrize("words, run, factor", [
    ("With a suitable layer-wise", "none/imdb", 1.06),
    ("Cross-domain", "(sentiment|yelp_.|imdb|topic|ag|dbpedia|question|trec|yahoo)/.*", 0.8)])
@pytest.mark.parametrize("holds", [True, False])
def test_not_worse_and_no_benefit_are_judged_by_a_margin(words, run, factor, holds):
    """By less than 5% of the error: of runs that are all the same, but for one side."""
    errors = make_errors(0.01, shift=lambda mean: 10)
    if not holds:
        errors = {name: values * factor if re.fullmatch(run, name) else values for name, values in errors.items()}
    assert one_verdict(words, errors) == ("supported" if holds else "contradicted")


def test_noise_alone_decides_nothing():
    found = verdicts(make_errors(0.5, shift=lambda mean: 40))
    against_figures = ("At 4e-4", "BERT-Feat", "BERT-base", "BERT-large")  # of 40% errors all are worse than these
    assert all(verdict == ("contradicted" if claim.startswith(against_figures) else "undecided here")
               for claim, verdict in found.items() if not FINDINGS[claim].margin), found


def test_one_comparison_that_fails_is_enough_against_each_of_them():
    errors = make_errors(0.001)
    errors["layers/layer_4/imdb"] = errors["layers/layer_11/imdb"] - [0.1, 0.2, 0.3]
    assert one_verdict("The top layer", errors) == "undecided here"  # 1 - p is 0.04, of one comparison in eleven
    errors["layers/layer_4/imdb"] = errors["layers/layer_11/imdb"] - [0.1, 0.101, 0.102]
    assert one_verdict("The top layer", errors) == "contradicted"
    fewer = without(errors, "layers/layer_3/imdb")
    assert one_verdict("The top layer", fewer) == "contradicted (a run is missing in 1 of 11)"


def test_over_data_sets_one_that_goes_the_other_way_is_outweighed_and_most_is_not():
    """ITPT hurts on TREC in the paper too. A single large effect does not speak for the data sets that go the other way."""
    errors = make_errors(0.001)
    assert one_verdict("Within-task further pre-training helps", errors) == "supported"
    for task in ("imdb", "yelp_p", "yelp_f", "trec", "yahoo", "ag"):
        errors[f"{task}/{task}"] = errors[f"none/{task}"] + [0.001, -0.0009, 0.001]
    lines = findings.comparisons(FINDINGS["Within-task further pre-training helps"], ROWS, errors)
    p, verdict = findings.judge(FINDINGS["Within-task further pre-training helps"], lines)
    assert (lines["lower_mean"] < lines["higher_mean"]).sum() == 2  # of eight: DBPedia and Sogou
    assert p < findings.ALPHA and verdict == "undecided here"


# What cannot be tested

def test_without_runs_nothing_is_testable():
    found = verdicts({})
    assert all(verdict.startswith("undecided here (a run is missing in ") for verdict in found.values())


def test_one_seed_is_not_testable():
    found = verdicts(make_errors(0.1, seeds=(1,)))
    assert all(verdict.startswith("undecided here (one seed only in ") for verdict in found.values())


def test_each_of_them_needs_all_and_data_sets_are_judged_by_those_there():
    errors = without(make_errors(0.001), "layers/layer_3/imdb", "imdb/imdb")
    assert one_verdict("The top layer", errors) == "undecided here (a run is missing in 1 of 11)"
    assert one_verdict("BERT-base with within-task", errors) == "undecided here (a run is missing in 1 of 5)"
    assert one_verdict("Within-task further pre-training helps", errors) == \
        "supported (a run is missing in 1 of 8)"


def test_seeds_that_do_not_differ_are_not_testable():
    errors = make_errors(0)
    assert one_verdict("BERT improves tasks with little data", errors) == "undecided here (all seeds are equal in 1 of 1)"


# The tests

def series(*values, first=1):
    return pd.Series(values, range(first, first + len(values)), dtype=float)


def t_below(t):
    """P(T < t) with two degrees of freedom, which has a closed form."""
    return 0.5 + t / (2 * math.sqrt(2 + t * t))


def test_the_same_seeds_are_paired():
    lower, higher = series(4, 5, 6), series(5, 7, 9)  # differences -1, -2, -3
    assert findings.compare(lower, higher) == ("paired t", pytest.approx(t_below(-2 * math.sqrt(3))))
    assert findings.compare(higher, lower) == ("paired t", pytest.approx(t_below(2 * math.sqrt(3))))  # one-sided
    shuffled = higher[[3, 1, 2]]
    assert findings.compare(lower, shuffled) == findings.compare(lower, higher)


def test_other_seeds_are_compared_by_welch_s_test():
    lower, higher = series(4, 5, 6), series(7, 9, 11, first=2)
    name, p = findings.compare(lower, higher)
    t, freedom = -4 / math.sqrt(1 / 3 + 4 / 3), (5 / 3) ** 2 / ((1 / 9 + 16 / 9) / 2)
    assert name == "Welch's t" and p == pytest.approx(float(findings.stats.t.cdf(t, freedom)))
    assert findings.compare(lower, series(7, 9, 11)[:2])[0] == "Welch's t"  # two of the same three


def test_a_seed_that_one_row_lacks_does_not_count_in_their_comparison():
    """The others stay paired. One seed in common is no pair to test: all seeds count, as of two samples."""
    finding = FINDINGS["BERT improves tasks with little data: further pre-training, then 0.4% of IMDb"]
    runs = {row.row: row.run for row in ROWS[ROWS["table"] == "figure4"].itertuples()}
    lower, higher = runs["BERT-ITPT-FiT, 0.4%"], runs["BERT-FiT, 0.4%"]
    line, = findings.comparisons(finding, ROWS, {lower: series(4, 5, 6), higher: series(5, 7, 9, 50)}).to_dict("records")
    assert (line["test"], line["p"]) == findings.compare(series(4, 5, 6), series(5, 7, 9))
    assert (line["effect"], line["lower_seeds"], line["higher_seeds"], line["higher_mean"]) == (-2, 3, 3, 7)
    line, = findings.comparisons(finding, ROWS, {lower: series(4, 5, 6), higher: series(9, 5, first=3)}).to_dict("records")
    assert (line["test"], line["lower_seeds"], line["higher_seeds"]) == ("Welch's t", 3, 2)


def test_a_figure_without_a_run_is_a_constant_and_a_margin_is_a_part_of_the_higher_error():
    assert findings.compare(series(4, 5, 6), 7.0) == ("t against a figure", pytest.approx(t_below(-2 * math.sqrt(3))))
    assert findings.compare(3.0, series(4, 5, 6)) == ("t against a figure", pytest.approx(t_below(-2 * math.sqrt(3))))
    assert findings.compare(series(4, 5, 6), 5.0, margin=0.4)[1] == pytest.approx(t_below(-2 * math.sqrt(3)))


def test_an_effect_and_its_standard_error_are_those_of_the_test():
    lower, higher = series(4, 5, 6), series(5, 7, 9)
    assert findings.effect_of(lower, higher) == pytest.approx((-2, 1 / math.sqrt(3)))  # paired: -1, -2, -3
    assert findings.effect_of(lower, series(7, 9, 11, first=2)) == pytest.approx((-4, math.sqrt(1 / 3 + 4 / 3)))  # Welch's
    assert findings.effect_of(lower, 7.0) == pytest.approx((-2, 1 / math.sqrt(3)))
    assert findings.effect_of(3.0, lower) == pytest.approx((-2, 1 / math.sqrt(3)))
    one = findings.effect_of(series(4), series(5))
    assert one[0] == -1 and math.isnan(one[1]) and math.isnan(findings.effect_of(series(), series(5))[0])
    name, p = findings.compare(lower, higher)
    assert p == pytest.approx(float(findings.stats.t.cdf(-2 / (1 / math.sqrt(3)), 2)))  # effect by error


def test_the_effect_of_several_comparisons():
    lines = pd.DataFrame({"data_set": ["imdb", "imdb", "ag"], "effect": [-1.0, -3.0, -4.0], "error": [0.2, 0.4, 0.4],
                          "p": [0.01, 0.2, 0.04]})
    each, all_of_them = (next(finding for finding in findings.FINDINGS if finding.rule is rule)
                         for rule in (findings.every, findings.together))
    assert findings.mean_effect(each, lines) == (-3.0, 0.4)  # the weakest
    assert findings.mean_effect(all_of_them, lines) == pytest.approx((-3.0, math.hypot(0.3, 0.4) / 2))
    unknown = findings.mean_effect(all_of_them, lines.assign(error=[0.2, float("nan"), 0.4]))  # one seed only
    assert unknown[0] == -3.0 and math.isnan(unknown[1])
    assert findings.signed(-3.0, 0.25) == "-3.00 (0.25)" and findings.signed(0.5, float("nan")) == "+0.50"


def test_what_cannot_be_compared_says_why():
    cases = {"a run is missing": (series(), series(1, 2)), "one seed only": (series(1), series(1, 2)),
             "all seeds are equal": (series(1, 1, 1), series(2, 2, 2))}
    for reason, sides in cases.items():
        test, p = findings.compare(*sides)
        assert test == reason and math.isnan(p)
    # the differences are equal, but the seeds are not
    assert findings.compare(series(1, 2, 3), series(2, 3, 4))[0] == "Welch's t"


def test_without_an_effect_one_in_twenty_is_significant():
    generator = np.random.default_rng(1)
    p = [findings.compare(series(*generator.normal(size=3)), series(*generator.normal(size=3)))[1] for _ in range(1000)]
    assert 0.035 < np.mean(np.array(p) < findings.ALPHA) < 0.065


def test_several_p_become_one():
    lines = pd.DataFrame({"data_set": ["imdb", "trec", "ag"], "p": [0.01, 0.2, 0.04]}, index=[5, 7, 9])
    z = findings.stats.norm.isf(lines["p"])
    assert findings.every(lines) == 0.2
    assert findings.together(lines) == pytest.approx(float(findings.stats.norm.sf(z.sum() / math.sqrt(3))))
    assert findings.together(lines) == pytest.approx(findings.stats.combine_pvalues(lines["p"], "stouffer").pvalue)
    assert findings.together(lines.assign(p=[0.0, 1.0, 0.5])) == pytest.approx(0.5, abs=1e-3)  # not NaN


def test_the_same_comparison_again_is_no_more_evidence():
    lines = pd.DataFrame({"data_set": ["imdb", "trec"], "p": [0.1, 0.3]})
    again = pd.concat([lines, lines[lines["data_set"] == "imdb"]])
    assert findings.together(again) == pytest.approx(findings.together(lines)) and findings.together(lines) > findings.ALPHA


def test_every_row_that_a_finding_names_is_there():
    counts = {claim: len(findings.comparisons(finding, ROWS, make_errors(1))) for claim, finding in FINDINGS.items()}
    assert list(counts.values()) == [11, 1, 2, 8, 7, 1, 4, 4, 1, 5, 5, 7, 46, 37, 5, 20]


def test_our_questions_are_asked_of_the_rows_that_are_there():
    runs = {row.row: row.run for row in ROWS[ROWS["table"] == "corpus"].itertuples()}
    errors = {run: series(5.0, 5.2, 5.1) - ("training and test" in row) * series(0.5, 0.52, 0.51) + ("with HTML" in row)
              * series(0.01, -0.02, 0.0) for row, run in runs.items() if row.endswith("rules")}
    verdicts_of = [findings.judge(question, findings.comparisons(question, ROWS, errors))[1]
                   for question in findings.QUESTIONS]
    assert verdicts_of == ["supported (a run is missing in 2 of 4)", "undecided here (a run is missing in 2 of 4)"]


# The files

def line_of(text, words):
    return next([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if f"| {words}" in line)


def test_findings_of_runs_are_written(collect):
    for folder, accuracy, training in (("long_text/head+tail/imdb", 0.94, 0.98), ("none/imdb", 0.941, 0.98),
                                       ("catastrophic_forgetting/4e-4/imdb", 0.5, 0.52), ("imdb/imdb", 0.96, 0.98),
                                       ("steps/50000/imdb", 0.945, 0.98)):
        for seed in SEEDS:
            noise = 0.0001 * seed ** 2 * len(folder) / 20
            points = [{"epoch": epoch, "train_accuracy": 0.5 + (training - 0.5) * epoch / 4 - noise, "eval_accuracy": 0.5}
                      for epoch in (1, 4)]
            make_run(collect.runs / folder, [accuracy - 0.01, accuracy - noise], seed, more={"points": points})
    printed = collect()
    assert printed.splitlines()[-1] == f"wrote {collect.out}/findings.csv and .md: 4 supported, 1 undecided here"
    text = (collect.out / "findings.md").read_text()
    assert "3 seeds a test has little power" in text
    assert line_of(text, "At 4e-4")[-3:] == ["t against a figure; the largest p of 2", "< 0.001", "supported"]
    assert line_of(text, "With a suitable")[1:-1] == [
        "Conclusion 2; Table 4", "5.92 (0.02, n = 3) against 6.06 (0.05, n = 3)", "-0.14 (0.02)", "5.40 against 5.42",
        "paired t", "< 0.001"]
    assert line_of(text, "Within-task further pre-training is best")[-1] == "supported"
    assert line_of(text, "Within-task further pre-training helps")[-1] == \
        "supported (a run is missing in 7 of 8)"
    details = text.split("## Each comparison")[1]
    assert "half the errors of a guess: 25.00 | training at 4e-4: 48.0" in details and "missing" not in details
    assert "No run here asks these:\n\n- The top layer is more useful" in text
    rows = rows_of(collect.out / "findings.csv")
    assert not [value for row in rows for value in row.values() if re.fullmatch(r"-?[0-9]+\.[0-9]{5,}", value)]
    assert len(rows) == 11 + 1 + 2 + 8 + 7 + 2 + 4 + 4 + 1 + 5 + 5 + 7 + 46 + 37 + 5 + 20 + 4 + 4  # questions of ours
    # Welch's where the seeds' differences are the same
    assert {row["test"] for row in rows} == {"a run is missing", "paired t", "t against a figure", "Welch's t"}


def test_training_error_and_steps_that_runs_do_not_hold_are_not_testable(collect):
    """A test error inside the epochs is no training error, and the two ends do not show which number of steps is best."""
    for folder, accuracy in (("long_text/head+tail/imdb", 0.94), ("catastrophic_forgetting/4e-4/imdb", 0.5),
                             ("none/imdb", 0.94), ("imdb/imdb", 0.96)):
        for seed in SEEDS:
            make_run(collect.runs / folder, [accuracy + seed / len(folder) / 1000], seed)
    collect("findings")
    text = (collect.out / "findings.md").read_text()
    assert "- At 4e-4 the training fails" in text
    assert line_of(text, "Within-task further pre-training is best")[-1] == \
        "undecided here (a run is missing in 1 of 2)"


def test_other_settings_name_the_last_steps_and_leave_earlier_models_out(collect):
    """ULMFiT's error on all of IMDb is no measure of a small BERT on a part of it."""
    collect.runs.mkdir(exist_ok=True)
    (collect.runs / "settings.json").write_text(json.dumps({"layers": 4, "train_parts": "imdb=0.04", "steps": 5000}))
    for folder, accuracy in (("none/imdb", 0.73), ("steps/1000/imdb", 0.74), ("imdb/imdb", 0.76)):
        for seed in SEEDS:
            make_run(collect.runs / folder, [accuracy + seed / len(folder) / 10000], seed)
    collect("findings")
    text = (collect.out / "findings.md").read_text()
    assert line_of(text, "Within-task further pre-training is best at 5,000 steps")[-1] == "supported"
    assert "ULMFiT:" not in text and "- BERT-base with within-task further pre-training is better than ULMFiT" in text


@pytest.mark.parametrize("steps, folders", [
    (200_000, {"none/imdb": 0.90, "steps/50000/imdb": 0.92, "steps/100000/imdb": 0.95, "imdb/imdb": 0.93}),
    (50_000, {"none/imdb": 0.90, "imdb/imdb": 0.93})])
def test_the_last_of_any_number_of_steps_is_compared_with_each_other(collect, steps, folders):
    """Beyond the paper's, too, whose 100,000 are then a point before the last."""
    (collect.runs / "settings.json").write_text(json.dumps({"steps": steps}))
    for folder, accuracy in folders.items():
        for seed in SEEDS:
            make_run(collect.runs / folder, [accuracy + seed / len(folder) / 10000], seed)
    collect("findings")
    text = (collect.out / "findings.md").read_text()
    verdict = line_of(text, f"Within-task further pre-training is best at {steps:,} steps")[-1]
    compared = [row["higher"] for row in rows_of(collect.out / "findings.csv") if row["lower"] == "all updates"]
    if steps == 200_000:
        assert verdict == "contradicted" and compared == ["0 updates", "50,000 updates", "100,000 updates"]
    else:
        assert verdict == "undecided here (a run is missing in 1 of 2)" and compared == ["0 updates", "fewer updates"]


def test_the_top_layer_of_a_bert_of_24_is_not_named_twice(collect):
    (collect.runs / "settings.json").write_text(json.dumps({"layers": 24}))
    for layer in (11, 23):
        for seed in SEEDS:
            make_run(collect.runs / f"layers/layer_{layer}/imdb", [0.9 + seed / (layer + 1) / 100], seed)
    collect("findings")
    text = (collect.out / "findings.md").read_text()
    assert "Layer-23 of 24: " in text and "Layer-11 of 24: " in text and "24 of 24" not in text


def test_that_training_converges_at_one_rate_says_nothing_of_the_other(collect):
    for seed in SEEDS:
        points = [{"epoch": 4, "train_accuracy": 0.98 + seed / 1000, "eval_accuracy": 0.94}]
        make_run(collect.runs / "long_text/head+tail/imdb", [0.94], seed, more={"points": points})
    collect("findings")
    assert line_of((collect.out / "findings.md").read_text(), "At 4e-4")[-1] == "undecided here (a run is missing in 1 of 2)"


@pytest.mark.parametrize("rate, highest", [("2e-4", "4e-3"), ("0.00002", "4e-4")])
@pytest.mark.parametrize("missing", ["the highest", "the usual"])
def test_at_another_rate_too_convergence_needs_the_runs_at_both_rates(collect, rate, highest, missing):
    (collect.runs / "settings.json").write_text(json.dumps({"rate": rate}))
    folder, accuracy = {"the highest": ("long_text/head+tail/imdb", 0.98),
                        "the usual": (f"catastrophic_forgetting/{highest}/imdb", 0.5)}[missing]
    for seed in SEEDS:
        points = [{"epoch": 4, "train_accuracy": accuracy + seed / 1000, "eval_accuracy": accuracy}]
        make_run(collect.runs / folder, [accuracy], seed, more={"points": points})
    collect("findings")
    assert line_of((collect.out / "findings.md").read_text(), f"At {highest} the training fails")[-1] == \
        "undecided here (a run is missing in 1 of 2)"
