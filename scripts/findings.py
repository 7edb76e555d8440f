"""What the paper concludes, tested on the runs: which of its findings they support. `collect_results.py` calls it.

A finding is a list of comparisons "the test error of this row is lower than that of that one". A comparison of two rows is a
paired t test over the seeds that both have, Welch's t test where these are fewer than two, and with a figure that has no run
here (of an earlier model) a t test against that figure; all are one-sided. Over several comparisons a finding follows one of
two RULES. The effect is the difference of the two errors, in points of a percent, with its standard error over the seeds.
"""
import dataclasses
import math
import os

import pandas as pd
from scipy import stats

from common.files import atomic_write
from tables import figure, markdown, write_csv
from tasks import TASKS

ALPHA = 0.05
MARGIN = 0.05  # "not worse", "no benefit": by less than this part of the error. Ours: the paper tests nothing
SAME = 1e-9  # percent: a deviation below is rounding, and t would be infinite
TRAINING = "training error of "  # before a run's folder: its training error instead of the test error
CONSTANT = "half the errors of a guess"  # between two classes
DETAILS = ("data_set", *(f"{side}{kind}" for side in ("lower", "higher") for kind in ("", "_mean", "_std", "_seeds", "_paper")),
           "effect", "error", "test", "p")


def every(lines):
    """The p of "each comparison holds": the largest (intersection-union test)."""
    return lines["p"].max()


def together(lines):
    """The p of all comparisons in one: Stouffer's over the data sets. Of comparisons on one data set, which share runs, it is
    the mean z: its variance is at most that of one, however they depend on each other."""
    z = stats.norm.isf(lines["p"].clip(1e-12, 1 - 1e-12))
    z = pd.Series(z).groupby(lines["data_set"].values).mean()
    return stats.norm.sf(z.sum() / math.sqrt(len(z)))


RULES = {every: "the largest p", together: "Stouffer's p"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """claim, place: what the paper says, and where. pairs: (table, its row with the lower error, regular expression of the
    rows with higher ones), compared on each data set that both have, if where(the higher row, data set). rule: of RULES.
    margin: the lower error may be higher by this part."""
    claim: str
    place: str
    pairs: tuple
    rule: object = every
    margin: float = 0.0
    where: object = lambda row, data_set: True


def is_other_domain(corpus, data_set):
    """Whether a row of Table 5 is further pre-training on texts of other domains than that of the data set."""
    domain = TASKS[corpus].domain if corpus in TASKS else corpus.removeprefix("all ")
    return corpus not in ("all", "w/o pretrain") and domain != TASKS[data_set].domain


FINDINGS = (
    Finding("The top layer is more useful than any lower one", "Conclusion 1; Table 3",
            (("table3", "Layer-11", "Layer-.*"),)),
    Finding("With a suitable layer-wise decreasing rate BERT does not forget: 2.0e-5 with decay 0.95 is not worse than 1.00",
            "Conclusion 2; Table 4", (("table4", "rate 2.0e-5, decay 0.95", "rate 2.0e-5, decay 1.00"),), margin=MARGIN),
    Finding("At 4e-4 the training fails to converge, at 2e-5 it does", "Conclusion 2; Figure 2",
            (("figure2", CONSTANT, "training at 4e-4"), ("figure2", "training at 2e-5", CONSTANT))),
    Finding("Within-task further pre-training helps", "Conclusion 3; Tables 5, 6",
            (("table6", "BERT-ITPT-FiT", "BERT-FiT"),), together),
    Finding("In-domain further pre-training helps", "Conclusion 3; Tables 5, 6",
            (("table6", "BERT-IDPT-FiT", "BERT-FiT"),), together),
    Finding("Within-task further pre-training is best at 100,000 steps", "Figure 3", (("figure3", "all updates", ".*"),)),
    Finding("Multi-task fine-tuning helps the single tasks", "Conclusion 4; Table 7",
            (("table7", "BERT-MFiT-FiT", "BERT-FiT"),), together),
    Finding("Multi-task fine-tuning helps less than further pre-training", "Conclusion 4; Table 7",
            (("table7", "BERT-CDPT-FiT", "BERT-MFiT-FiT"),), together),
    Finding("BERT improves tasks with little data: further pre-training, then 0.4% of IMDb", "Conclusion 5; Figure 4",
            (("figure4", "BERT-ITPT-FiT, 0.4%", "BERT-FiT, 0.4%"),)),
    Finding("On IMDb head+tail is better than the other truncations and the hierarchical methods", "Table 2",
            (("table2", "head+tail (128+382)", ".*"),), where=lambda row, data_set: data_set == "imdb"),
    Finding("On Sogou head+tail is better than the other truncations and the hierarchical methods", "Table 2",
            (("table2", "head+tail (128+382)", ".*"),), where=lambda row, data_set: data_set == "sogou"),
    Finding("In-domain further pre-training is better than within-task", "Tables 5, 6",
            (("table6", "BERT-IDPT-FiT", "BERT-ITPT-FiT"),), together),
    Finding("Cross-domain further pre-training has no obvious benefit", "Table 5", (("table5", "w/o pretrain", ".*"),),
            together, MARGIN, is_other_domain),
    Finding("BERT-Feat is better than all earlier models but ULMFiT", "Table 6",
            (("table6", "BERT-Feat", "(?!BERT|ULMFiT).*"),)),
    Finding("BERT-base with within-task further pre-training is better than ULMFiT on every data set", "Table 8",
            (("table8", "BERT-BASE + ITPT", "ULMFiT"),)),
    Finding("BERT-large with within-task further pre-training is the best of all", "Table 8",
            (("table8", "BERT-LARGE + ITPT", ".*"),)),
)
CORPUS = "{} texts, {} HTML, sentences by {}"  # rows of the table corpus
QUESTIONS = (  # of ours, about what the paper leaves open
    Finding("Without the test texts in the corpus of further pre-training the error is higher", "ours; table corpus",
            tuple(("corpus", CORPUS.format("training and test", html, by), CORPUS.format("training", html, by))
                  for html in ("without", "with") for by in ("rules", "spaCy")), together),
    Finding("With IMDb's HTML in all texts the error is higher", "ours; table corpus",
            tuple(("corpus", CORPUS.format(texts, "without", by), CORPUS.format(texts, "with", by))
                  for texts in ("training", "training and test") for by in ("rules", "spaCy")), together),
)


def at_common_seeds(lower, higher):
    """Both as they are, or, where they are errors by seed and share two seeds or more, those of these seeds."""
    if isinstance(lower, pd.Series) and isinstance(higher, pd.Series):
        common = lower.index.intersection(higher.index)
        if len(common) > 1:
            return lower[common], higher[common]
    return lower, higher


def compare(lower, higher, margin=0.0):
    """(test, p) of "the mean of `lower` is below that of `higher` plus the part `margin`", one-sided. Both are errors by
    seed (Series) or a figure (float). Where there is nothing to test, the reason and NaN."""
    runs, threshold = [errors for errors in (lower, higher) if isinstance(errors, pd.Series)], higher * (1 + margin)
    if (fewest := min(map(len, runs))) < 2:
        return "one seed only" if fewest else "a run is missing", float("nan")
    if len(runs) == 1 or set(lower.index) == set(higher.index):
        differences = lower - threshold
        if differences.std() > SAME:
            name = "paired t" if len(runs) == 2 else "t against a figure"
            return name, stats.ttest_1samp(differences, 0, alternative="less").pvalue
    if len(runs) == 2 and lower.std() + higher.std() > SAME:
        return "Welch's t", stats.ttest_ind(lower, threshold, equal_var=False, alternative="less").pvalue
    return "all seeds are equal", float("nan")


def effect_of(lower, higher):
    """(mean, standard error over the seeds) of `lower` - `higher`, which are as in `compare`; NaN where that is not known."""
    runs = [errors for errors in (lower, higher) if isinstance(errors, pd.Series)]
    if not min(map(len, runs)):
        return float("nan"), float("nan")
    if len(runs) == 1 or set(lower.index) == set(higher.index):
        differences = lower - higher
        if len(runs) == 1 or differences.std() > SAME:
            return differences.mean(), differences.std() / math.sqrt(len(differences))
    return lower.mean() - higher.mean(), math.sqrt(lower.var() / len(lower) + higher.var() / len(higher))


def mean_effect(finding, lines):
    """(effect, its standard error) of a finding: of its weakest comparison, or the mean over the data sets. Comparisons on one
    data set share runs; their mean has at most the mean of their standard errors."""
    lines = lines.dropna(subset="effect")
    if lines.empty:
        return float("nan"), float("nan")
    if finding.rule is every:
        return tuple(lines.assign(p=lines["p"].fillna(1)).sort_values(["p", "effect"])[["effect", "error"]].iloc[-1])
    by_data_set = lines.groupby("data_set")[["effect", "error"]].agg(lambda values: values.mean(skipna=False))
    return by_data_set["effect"].mean(), math.sqrt((by_data_set["error"] ** 2).sum(skipna=False)) / len(by_data_set)


def comparisons(finding, rows, errors):
    """The comparisons of a finding as a frame of DETAILS: of `lower` and `higher` their row, mean, std, seeds and paper;
    effect and error (see `effect_of`); test (or why there is none), p. errors: {run: Series by seed}."""
    found = []
    for table, better, worse in finding.pairs:
        rows_there = rows[rows["table"] == table]
        pairs = rows_there[rows_there["row"] == better].merge(
            rows_there[rows_there["row"].str.fullmatch(worse) & (rows_there["row"] != better)],
            on="data_set", suffixes=("_lower", "_higher"))
        for pair in pairs.to_dict("records"):
            if not finding.where(pair["row_higher"], pair["data_set"]):
                continue
            line, values = {"data_set": pair["data_set"]}, []
            for side in ("lower", "higher"):
                run, paper = pair[f"run_{side}"], pair[f"paper_{side}"]
                values.append(errors.get(run, pd.Series(dtype=float)) if run else paper)
                line |= {side: pair[f"row_{side}"], f"{side}_paper": paper}
            values = at_common_seeds(*values)
            for side, value in zip(("lower", "higher"), values):
                own = value if isinstance(value, pd.Series) else pd.Series([value])
                line |= {f"{side}_mean": own.mean(), f"{side}_std": own.std(), f"{side}_seeds": len(own) if own is value else 0}
            found.append(line | dict(zip(DETAILS[-4:], (*effect_of(*values), *compare(*values, finding.margin)))))
    return pd.DataFrame(found, columns=DETAILS)


def judge(finding, lines):
    """(p, verdict) of a finding from its comparisons. That the opposite holds has 1 - p; against "each of them" one comparison
    is enough, so that this is multiplied by their number (Bonferroni)."""
    tested, untested = lines.dropna(subset="p"), lines[lines["p"].isna()]
    why = "; ".join(f"{reason} in {count} of {len(lines)}" for reason, count in untested["test"].value_counts().items())
    if tested.empty:
        return float("nan"), f"undecided here ({why or 'no run of it is there'})"
    p, number, true = finding.rule(tested), len(tested), holds(tested, "mean", finding.margin).sum()
    if finding.rule is every:
        supported, opposite = p < ALPHA and untested.empty, number * (1 - p) < ALPHA
    else:
        supported, opposite = p < ALPHA and 2 * true > number, 1 - p < ALPHA and 2 * true < number
    verdict = "supported" if supported else "contradicted" if opposite else "undecided here"
    return p, verdict + (f" ({why})" if why else "")


def holds(lines, kind, margin):
    """Of each comparison, whether its figures (`kind`: mean or paper) are as the finding says."""
    return lines[f"lower_{kind}"] < lines[f"higher_{kind}"] * (1 + margin)


def in_words(finding, lines, kind):
    """The figures of a finding: of its comparison, or of how many of them are as it says. kind: mean or paper."""
    there = lines.dropna(subset=[f"lower_{kind}", f"higher_{kind}"])
    if there.empty:
        return "missing" if kind == "mean" else "none given"
    if len(lines) == 1:
        return f"{own_figure(lines.iloc[0], 'lower', kind)} against {own_figure(lines.iloc[0], 'higher', kind)}"
    difference = 100 * (1 - (there[f"lower_{kind}"] / there[f"higher_{kind}"])).mean()
    return (f"so in {holds(there, kind, finding.margin).sum()} of {len(there)}; on average {abs(difference):.1f}% "
            f"{'lower' if difference >= 0 else 'higher'}")


def own_figure(line, side, kind="mean"):
    """`5.42 (0.07, n = 3)`, or the paper's figure alone."""
    if kind == "paper" or not line[f"{side}_seeds"]:
        return figure(line[f"{side}_{kind}"])
    deviation = "" if pd.isna(line[f"{side}_std"]) else f"{line[f'{side}_std']:.2f}, "
    return f"{figure(line[f'{side}_mean'])} ({deviation}n = {line[f'{side}_seeds']})"


HEAD = f"""# Findings

The paper's findings, tested on these runs with alpha = {ALPHA}, one-sided, by the best epochs' test errors; no correction for
the number of findings. Two rows are compared by a paired t test over the seeds that both have, by Welch's t test where these
are fewer than two or do not differ, and with a figure that has no run here (an earlier model's) by a t test against it. A
finding over several comparisons needs each of them (the largest p), or, over data sets, more than half of those that could be
tested and all together (Stouffer's p, which takes the data sets as independent). "Not worse" and "no benefit" mean: by less
than {MARGIN:.0%} of the error, a margin of ours.

The effect is the lower error less the higher one, as the finding has them, in points of a percent: negative is as it says. In
brackets is its standard error over the seeds, which does not know that another test set would differ too. Of several
comparisons it is that of the weakest, or, over data sets, the mean. "Contradicted" means that the opposite is significant; of a
finding that needs each of several comparisons, for one of them, at alpha divided by their number. What is neither is undecided
here.

With 3 seeds a test has little power: it finds a difference of 2.3 standard deviations (of the differences between paired
runs) four times in five, one of 1.5 every second time. With 5 seeds these are 1.4 and 1.0.

"""


def write_findings(rows, errors, output_dir, own_name=str):
    """Writes findings.md and, with every comparison, findings.csv. Returns the verdicts (list of str) of the findings that have
    runs here; findings.md only names the others.

    rows: frame of table, row, data_set, run (empty: no run of ours) and paper. errors: Series of test errors in percent, by
    run and seed. own_name: a function from a text with the paper's settings to one with these runs'.
    """
    errors = {run: values.droplevel("run") for run, values in errors.groupby("run")}
    table, details, not_asked = [], [], []
    for finding in FINDINGS + QUESTIONS:
        lines = comparisons(finding, rows if finding in FINDINGS else rows.assign(paper=float("nan")), errors)
        claim = own_name(finding.claim)
        details.append(lines.assign(finding=claim)[["finding", *DETAILS]])
        if lines[["lower_mean", "higher_mean"]].dropna().empty:
            not_asked.append(claim)
            continue
        tested = lines.dropna(subset="p")
        p, verdict = judge(finding, lines)
        tests = ", ".join(tested["test"].unique())
        if len(tested) > 1:
            tests += f"; {RULES[finding.rule]} of {len(tested)}"
        table.append({"finding": claim, "in the paper": finding.place, "ours": in_words(finding, lines, "mean"),
                      "effect (standard error)": signed(*mean_effect(finding, lines)),
                      "the paper's figures": in_words(finding, lines, "paper"), "test": tests, "p": p_value(p),
                      "verdict": verdict})
    details = pd.concat(details).infer_objects()  # of the empty ones, columns of objects
    for side in ("lower", "higher"):
        details[side] = details[side].map(own_name)
    write_csv(details, os.path.join(output_dir, "findings.csv"))
    there = details.dropna(subset=["lower_mean", "higher_mean"])
    each = there[["finding", "data_set"]].assign(
        lower=[f"{line['lower']}: {own_figure(line, 'lower')}" for _, line in there.iterrows()],
        higher=[f"{line['higher']}: {own_figure(line, 'higher')}" for _, line in there.iterrows()],
        effect=list(map(signed, there["effect"], there["error"])), test=there["test"],
        p=there["p"].map(p_value)).rename(columns={"data_set": "data set", "effect": "effect (standard error)"})
    with atomic_write(os.path.join(output_dir, "findings.md")) as file:
        file.write(HEAD + markdown(pd.DataFrame(table)))
        if not_asked:
            file.write("\nNo run here asks these:\n\n" + "".join(f"- {claim}\n" for claim in not_asked))
        file.write("\n## Each comparison\n\n" + markdown(each))
    return [line["verdict"] for line in table]


def signed(effect, error):
    """`-1.20 (0.35)`; without a standard error `-1.20`."""
    return "" if pd.isna(effect) else f"{effect:+z.2f}" + ("" if pd.isna(error) else f" ({error:.2f})")


def p_value(p):
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
