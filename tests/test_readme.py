"""README.md and docs/ say what the code does: flags, commands, links, file names, and figures from elsewhere."""
import contextlib
import csv
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import flags_table  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
             for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "data/README.md"]}
PIPELINE = {path.name for path in ROOT.glob("*.py")} - {"modeling.py", "optimization.py", "tasks.py", "tokenization.py"}
OTHER_COMMANDS = {"export", "source", "pip", "tensorboard", ".venv/bin/pip", "fastnlp/bin/pip"}
OTHER_FLAGS = {"--index-url", "--no-deps", "--nnodes", "--node_rank", "--nproc_per_node", "--master_addr",
               "--master_port", "--flag"}  # of pip and torchrun; how a flag is written


def blocks(text, language=""):
    """The fenced blocks of a document in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands():
    """(document, words) of each command in a fenced block, environment variables among the words."""
    for name, text in DOCUMENTS.items():
        for block in blocks(text):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r'(\w+=("[^"]*"|\S*) +)*(python3?|bash|torchrun|export|source|pip|\.?\w+/bin/\w+) ', line):
                    for part in line.split(" && "):
                        yield name, shlex.split(part, comments=True)


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def parsers():
    return {script: flags_table.parser_of(script) for script in flags_table.SCRIPTS}


def test_flags_are_those_of_the_scripts():
    written = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    assert written == flags_table.document(), "run: python scripts/flags_table.py > docs/flags.md"


def test_help_states_the_defaults_that_there_are(parsers):
    stated = 0
    for script, parser in parsers.items():
        for action in parser._actions[1:]:
            default = action.default[0] if isinstance(action.default, list) and len(action.default) == 1 else action.default
            if (not isinstance(default, (bool, int, float, str)) or action.type is os.path.expanduser
                    or action.dest in ("local_rank", "sep")):  # which are described
                continue
            words = re.search(r"[Dd]efault: (\S+?)[.;,)]*( |$)", re.sub(r"\s+", " ", action.help))[1]
            if isinstance(default, bool):
                assert words in (("off", "False"), ("on", "True"))[default], (script, action.dest)
            else:
                assert type(default)(words) == default, (script, action.dest)
            stated += 1
    assert stated > 150


def test_places_in_the_paper_are_of_flags_that_exist(parsers):
    fine_tuning = {action.dest for script in (flags_table.SINGLE, flags_table.DISCRIMINATIVE)
                   for action in parsers[script]._actions}
    for script, places in flags_table.PAPER.items():
        own = {action.dest for action in parsers[script]._actions}
        if script.startswith("run_classifier"):
            own |= fine_tuning  # they share one table
        assert places.keys() <= own, (script, places.keys() - own)


@pytest.mark.parametrize("document, words", COMMANDS, ids=lambda value: value if isinstance(value, str) else value[-1])
def test_every_command_exists_and_parses(document, words, parsers, monkeypatch):
    variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word) and word is not words[-1]]
    program, *words = words[len(variables):]
    if program == "bash":
        script = ROOT / words[0]
        assert script.is_file()
        read = "".join((ROOT / path).read_text() for path in (script, "scripts/experiment.sh", "scripts/setup.sh"))
        for variable in set(variables) - {"OMP_NUM_THREADS", "FASTNLP_PYTHON"}:  # the libraries', a test's
            assert re.search(rf"\$\{{{variable}:?-", read), variable
    elif program in ("python", "python3", "torchrun"):
        position = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
        if position is None:
            assert words[:2] in (["-m", "venv"], ["-m", "spacy"])
            return
        script, flags = words[position], words[position + 1:]
        assert (ROOT / script).is_file()
        if script in parsers:
            parse(parsers[script], flags, monkeypatch)
    else:
        assert program in OTHER_COMMANDS


def parse(parser, flags, monkeypatch):
    """Parses flags as the script does; where `...` stands for some of them, required ones may be missing."""
    if "..." in flags:
        for action in parser._actions:
            monkeypatch.setattr(action, "required", False)
    parser.parse_args([flag for flag in flags if flag not in ("...", ">", "docs/flags.md")])


def test_every_script_of_the_pipeline_has_a_command():
    named = {word for name, words in COMMANDS if name == "README.md" for word in words if word.endswith(".py")}
    assert PIPELINE <= named, PIPELINE - named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_that_is_mentioned_exists(document, parsers):
    known = {flag for parser in parsers.values() for action in parser._actions for flag in action.option_strings}
    for path in ROOT.glob("benchmarks/*.py"):
        known |= set(re.findall(r'add\w*\([^"]*"(--\w+)"', path.read_text(encoding="utf-8")))
    mentioned = set(re.findall(r"(?<![\w-])--[a-z]\w[\w-]*", DOCUMENTS[document]))
    assert mentioned <= known | OTHER_FLAGS, mentioned - known - OTHER_FLAGS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_file_name_leads_somewhere(document):
    text, folder = DOCUMENTS[document], (ROOT / document).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (folder / path).resolve() if path else ROOT / document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target
    names = {path.name for path in tracked()}
    for name in re.findall(r"`(?:\w+=\S+ )*(?:bash |python )?([\w/.-]+\.(?:py|sh))\b", text):
        assert pathlib.PurePath(name).name in names and ("/" not in name or (ROOT / name).exists()), name


def tracked():
    """The files of the repository, or of its folder where that is no clone or there is no git."""
    with contextlib.suppress(FileNotFoundError):
        found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
        if found:
            return [ROOT / name for name in found]
    made = (ROOT / ".gitignore").read_text().splitlines()
    names = {path: [f"/{path.relative_to(ROOT).parts[0]}/", *(f"{part}/" for part in path.relative_to(ROOT).parts)]
             for path in ROOT.rglob("*") if path.is_file()}
    return [path for path in names if not {*made, ".git/"} & set(names[path])]


def test_files_are_found_without_git_too(monkeypatch):
    with_git = set(tracked())
    monkeypatch.setenv("PATH", "")
    assert with_git <= set(tracked())


def test_readme_is_short():
    assert len(README.encode()) <= 15_000


def test_trees_of_the_readme_list_what_is_there():
    """Each line of a tree begins with names, two spaces before what they are; together they name every Python file and
    every folder of the top level."""
    listed = set()
    for block in blocks(README):
        lines = [re.split(r"  +", line)[0].split() for line in block.splitlines()]
        if all(name.endswith((".py", ".md", ".txt", "/", "LICENSE")) for line in lines for name in line):
            listed |= {name for line in lines for name in line}
    assert all((ROOT / name).exists() for name in listed), listed
    top = {path.relative_to(ROOT).parts for path in tracked()}
    expected = {parts[0] for parts in top if len(parts) == 1 and parts[0].endswith(".py")}
    expected |= {f"{parts[0]}/" for parts in top if len(parts) > 1 and not parts[0].startswith(".")}
    assert expected <= listed, expected - listed


def table_rows(text):
    """The cells of each row of a document's tables, without the bold of a best value."""
    return [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("|")]


def test_what_to_choose_has_the_papers_figures():
    with open(ROOT / "scripts/paper_results.csv", encoding="utf-8", newline="") as file:
        paper = [(line["table"], line["data_set"], line["paper_test_error_percent"]) for line in csv.DictReader(file)]
    section = README.split("## Long texts, layers, rates")[1].split("\n## ")[0]
    cells = [row[-2:] for row in table_rows(section)[2:]]
    for column, data_set in enumerate(("imdb", "sogou")):
        stated = [figure for row in cells for figure in re.findall(r"\d+\.\d+", row[column])]
        assert stated == [error for table, name, error in paper
                          if table in ("table2", "table3", "table4") and name == data_set]


def test_every_experiment_is_listed():
    listed = {row[0].strip("`") for row in table_rows(README.split("## The paper's experiments")[1])}
    assert {path.name for path in ROOT.glob("scripts/exp[0-9]*.sh")} <= listed


def test_measured_figures_are_those_that_are_committed():
    """docs/results.md has the wall times and memory of the benchmarks' lines, the errors of the runs' results.json."""
    results = ROOT / "benchmarks/results"
    rows = table_rows(DOCUMENTS["docs/results.md"])
    for name in ("real_run", "corpus_memory"):
        for line in map(json.loads, (results / f"{name}.jsonl").read_text().splitlines()):
            figures = {f"{line['seconds']:,.0f} s", f"{line['peak_rss_mib']:,} MiB"}
            assert any(figures <= set(row) for row in rows), line["name"]

    def error(run, epoch="best"):
        result = json.loads((results / "small_encoder" / run / "results.json").read_text())
        return f"{100 * (1 - result[epoch]['eval_accuracy']):.2f}"
    methods = ("head_only", "tail_only", "head+tail", "hier_mean", "hier_max", "hier_self_attention")
    stated = [row[1:3] for row in rows if row[0].startswith(("head", "tail", "hierarchical"))]
    assert stated == [[error(f"long_text/{method}/imdb/seed_1", epoch) for epoch in ("best", "last")]
                      for method in methods]
    for fraction, reviews in (("0.004", "100"), ("0.01", "250"), ("0.02", "500")):
        expected = [error(f"few_shot/{model}/{fraction}/imdb/seed_1") for model in ("none", "imdb")]
        assert [row[1:3] for row in rows if row[0].startswith(f"{reviews} (")] == [expected]
    errors = [float(error(f"none/trec/seed_{seed}")) for seed in range(1, 6)]
    assert [row[1] for row in rows if row[0] == "BERT-FiT"] == ["3.24 (0.48)"]
    mean = sum(errors) / 5
    assert (f"{mean:.2f}", f"{(sum((value - mean) ** 2 for value in errors) / 4) ** 0.5:.2f}") == ("3.24", "0.48")


POCKET = sorted(path for path in (ROOT / "benchmarks/results/pocket").rglob("*.csv")
                if path.stem in ("figure3", "figure4", "corpus") or path.stem.startswith("table"))


@pytest.mark.parametrize("path", POCKET, ids=lambda path: f"{path.parent.name}, {path.stem}")
def test_figures_of_the_pocket_bert_stand_in_its_document(path):
    """Mean and deviation of each row that has runs, in that row and the data set's column; of Figures 3 and 4 of each point."""
    under, header = [], [""]  # (row, its table's first)
    for row, line_below in itertools.pairwise([*table_rows(DOCUMENTS["docs/pocket.md"]), [""]]):
        header = row if line_below[0].startswith("--") else header
        under.append((row, header))
    updates = {"pocket": "5,000 updates", "layers": "10,000 updates", "few_shot": "10,000 updates, the Xeon's BERT",
               "updates_20000": "10,000 updates, the BERT of 20,000", "L4_H256_12000": "5,000 updates, the BERT of 4 x 256"}
    heads = {"updates_20000": "of the BERT of 20,000"}  # of tables; where another has the same rows
    for line in csv.DictReader(path.read_text().splitlines()):
        if not (line.get("best_mean") or "ours" in line.get("curve", "")):
            continue
        mean, deviation = (float(line.get(f"best_{name}") or line[name]) for name in ("mean", "std"))
        name, head, column = line.get("row"), heads.get(path.parent.name, ""), line.get("data_set")
        if path.stem == "figure3":
            name, head, column = "test error", f"of {updates[path.parent.name]}, then 2,000 reviews", f"{int(line['x']):,}"
        elif path.stem == "figure4":
            name, head = f"{float(line['x']):.1%}: ".replace(".0%", "%"), f"training reviews, {updates[path.parent.name]}"
            column = "without" if line["curve"] == "BERT-FiT, ours" else "with"
        (row, header), = ((row, header) for row, header in under if header[0] == head and (
            row[0].startswith(name) if path.stem == "figure4" else row[0] == name))
        seeds = "" if line["seeds"] == "5" else f", {line['seeds']} seeds"
        assert row[header.index(column)] == f"{mean:.2f} ({deviation:.2f}){seeds}", line


def test_figure_2_of_the_pocket_bert_is_that_of_its_document():
    lines = csv.DictReader((ROOT / "benchmarks/results/pocket/rates/figure2.csv").read_text().splitlines())
    points = {(line["curve"], line["x"]): f"{float(line['mean']):.2f} ({float(line['std']):.2f})" for line in lines}
    rows = table_rows(DOCUMENTS["docs/pocket.md"])
    start = next(at for at, row in enumerate(rows) if row[:2] == ["rate", "test error after 1 epoch"]) + 2
    rates = [curve.removeprefix("rate ") for curve, _ in points if "training" not in curve]
    assert [row[0] for row in rows[start:start + 4]] == list(dict.fromkeys(rates))
    for rate, *errors in rows[start:start + 4]:
        assert errors == [*(points[f"rate {rate}", epoch] for epoch in "123"), points[f"rate {rate}, training error", "3"]]


@pytest.mark.parametrize("curve, first_cell", [("curve.csv", "update"), ("updates_20000/curve.csv", "update, of 20,000"),
                                               ("L4_H256/curve.csv", "update, of 24,000"),
                                               ("L4_H256_12000/curve.csv", "update, of 12,000")])
def test_the_curves_of_the_pocket_berts_are_those_of_their_document(curve, first_cell):
    lines = csv.DictReader((ROOT / "benchmarks/results/pocket" / curve).read_text().splitlines())
    points = {f"{int(line['step']):,}": line for line in lines}
    rows = table_rows(DOCUMENTS["docs/pocket.md"])
    (updates, losses, accuracies), = ([rows[at], *rows[at + 2:at + 4]] for at, row in enumerate(rows) if row[0] == first_cell)
    assert updates[-1].split()[0] == list(points)[-1]
    for update, loss, accuracy in zip(updates[1:], losses[1:], accuracies[1:]):
        point = points[update.split()[0]]
        assert (loss, accuracy) == (f"{float(point['masked_lm_loss']):.2f}", f"{100 * float(point['masked_lm_accuracy']):.1f}")


def test_answers_of_the_pocket_bert_are_those_of_the_findings_that_they_link():
    section = DOCUMENTS["docs/pocket.md"].split("## The answers")[1].split("\n## ")[0]
    answers = table_rows(section)[2:]
    assert len(answers) > 5
    for finding, asked_in, ours, effect, paper, p, verdict in answers:
        findings = (ROOT / "docs" / re.search(r"\((.+)\)", asked_in)[1]).read_text()
        assert any(row[0] == finding and row[2:5] == [ours, effect, paper] and row[6] == p and row[7].startswith(verdict)
                   for row in table_rows(findings) if len(row) == 8), finding
