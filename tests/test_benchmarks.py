"""The benchmarks' scripts: what they write, and what they refuse."""
import json
import shutil
import sys

import pytest
import torch

from common.command_line import UserError
from conftest import ROOT


def test_measure_appends_a_line_and_passes_failures_on(script, tmp_path):
    results = tmp_path / "new" / "results.jsonl"
    hog = "import sys, time; block = bytearray(300 << 20); time.sleep(0.2); sys.exit(len(sys.argv) - 2)"
    for name in ("one", "two"):
        done = script("benchmarks/measure.py", "--name", name, "--results", results, "--", sys.executable, "-c", hog,
                      "two words")
        assert done.returncode == 0 and done.stdout.startswith(f"{name}: "), done.stderr
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["name"] for record in records] == ["one", "two"]
    assert all(300 < record["peak_rss_mib"] < 600 and 0.2 <= record["seconds"] < 30 for record in records)
    assert records[0]["command"].endswith("'two words'") and "cores" in records[0]["machine"]
    done = script("benchmarks/measure.py", "--name", "x", "--results", results, "--", sys.executable, "-c", hog)
    assert done.returncode == 1 and "ended with status 255; nothing was measured" in done.stderr
    assert len(results.read_text().splitlines()) == 2


def test_measure_refuses_before_the_command_is_run(refused, tmp_path):
    refused("benchmarks/measure.py", "--name", "x", "--results", tmp_path, "--", "touch", tmp_path / "ran",
            words="--results: ")
    refused("benchmarks/measure.py", "--name", "x", "--results", tmp_path / "r", "--", tmp_path / "absent",
            words="absent")
    assert list(tmp_path.iterdir()) == []


def test_compare_corpus_prints_the_agreement(script, refused, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("T\na b.\nc d.\ne\n")
    theirs.write_text("T\na b.\nc d. e\n")
    done = script("benchmarks/compare_corpus.py", ours, theirs)
    figures = dict(line.split() for line in done.stdout.splitlines())
    assert (figures["precision"], figures["recall"], figures["identical"]) == ("0.5000", "1.0000", "0")
    figures = dict(line.split() for line in script("benchmarks/compare_corpus.py", theirs, ours).stdout.splitlines())
    assert (figures["precision"], figures["recall"]) == ("1.0000", "0.5000")
    theirs.write_bytes(b"T\n\xff\n")
    refused("benchmarks/compare_corpus.py", ours, theirs, words="theirs:2: byte 1 is not UTF-8")
    refused("benchmarks/compare_corpus.py", ours, tmp_path / "absent", words="there is no file")


def test_neighbours_are_the_nearest_and_their_shares_are_counted(script, refused, tmp_path):
    from benchmarks.neighbours import NEAREST, nearest, nouns_of_beats, shares
    around = torch.linspace(0, 0.1, NEAREST + 1)  # two bundles of directions, each as many rows as have the other as nearest
    bundles = torch.stack([torch.cos(around), torch.sin(around)], dim=1)
    near = nearest(torch.cat([bundles, -bundles]))
    first, second = set(range(NEAREST + 1)), set(range(NEAREST + 1, 2 * NEAREST + 2))
    assert [set(row) | {index} for index, row in enumerate(near.tolist())] == [first] * len(first) + [second] * len(second)
    half = NEAREST / (2 * NEAREST + 1)
    assert shares(["a"] * len(first) + ["b"] * len(second), near) == pytest.approx((1, half))
    assert shares(["a"] * 2 * len(first), near) == (1, 1)
    assert shares(list(map(str, range(2 * len(first)))), near) == (0, 0)
    places = nouns_of_beats()
    assert places["telescope"] == ("science", "space") and "company" not in places  # common to its topic's beats
    done = script("benchmarks/neighbours.py", "--init_checkpoint", "data/tiny_bert", "--words", "telescope")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split(":")[0].strip() for line in lines] == [
        "data/tiny_bert", "same topic", "same beat", "telescope"]
    assert set(lines[-1].split(": ")[1].split(", ")) <= places.keys() - {"telescope"}
    refused("benchmarks/neighbours.py", "--init_checkpoint", "data/tiny_bert", "--words", "the", words="the is no noun")
    refused("benchmarks/neighbours.py", "--init_checkpoint", tmp_path, words="no folder with a configuration")


TWO_PROCESSES = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "block = bytearray(200 << 20); import time; time.sleep(0.5)"])
block = bytearray(100 << 20)
child.wait()
print("not JSON")
print(json.dumps({"rows_per_second": float(sys.argv[1])}))
"""


def test_contenders_run_in_turn_and_make_a_table(tmp_path, script, refused, monkeypatch):
    """A row a peer: the medians, the memory of parent and child together, the ratio by the figure that the command took."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import common

    speeds = iter(range(1, 7))
    measured = common.measure
    monkeypatch.setattr(common, "measure", lambda command, environment: measured([*command, str(next(speeds))], environment))
    command = [sys.executable, "-c", TWO_PROCESSES]
    lines = common.compare("stage", "case", {"ours": command, "peer": command}, 3, {"peer": ["numpy", "no_such_package"]})
    ours, peer = (line["figures"] for line in lines)
    assert (ours["rows_per_second"], peer["rows_per_second"]) == (3, 4)
    assert all(300 < line["figures"]["peak_rss_mib"] < 450 and 0.5 <= line["figures"]["seconds"] < 30 for line in lines)
    assert lines[1]["versions"]["numpy"] and lines[1]["versions"]["no_such_package"] is None
    results = tmp_path / "results.jsonl"
    common.append(results, [{**line, "figures": {**line["figures"], "rows_per_second": 1}} for line in lines])
    common.append(results, lines)
    row = script("benchmarks/table.py", results).stdout.splitlines()[2].split(" | ")
    assert row[:5] == ["| stage", "case", "3 rows/s", "peer: 4 rows/s", "0.75"]
    for line in lines:
        line["figures"].pop("rows_per_second")
    common.append(results, lines)
    row = script("benchmarks/table.py", results).stdout.splitlines()[2].split(" | ")
    assert float(row[4]) == pytest.approx(lines[1]["figures"]["seconds"] / lines[0]["figures"]["seconds"], abs=0.005)
    refused("benchmarks/table.py", tmp_path / "absent", words="there is no file")
    results.write_text("{}\n{\n")
    refused("benchmarks/table.py", results, words="results.jsonl:2 is not whole JSON")


def test_records_and_tokens_are_measured(tmp_path, script, tiny):
    """On a corpus of two sizes, with a figure; on rows like AG's, with the texts that differ from recorded tokens."""
    vocab = shutil.copy(tiny / "vocab.txt", tmp_path)
    (tmp_path / "corpus.txt").write_text("a b c.\nd e.\n\nf g.\n" * 20)
    results = tmp_path / "results.jsonl"
    done = script("benchmarks/records.py", "--corpus", tmp_path / "corpus.txt", "--vocab_file", vocab, "--rounds", 1,
                  "--copies", "1,3", "--results", results)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["case"] for line in lines} == {"AG test corpus x 1", "AG test corpus x 3"}
    assert all(line["figures"]["peak_rss_mib"] > 30 and line["versions"]["python"] for line in lines)
    done = script("benchmarks/figures.py", results, tmp_path / "records.png")
    assert done.returncode == 0 and (tmp_path / "records.png").read_bytes()[1:4] == b"PNG", done.stderr

    texts = {"texts": ["a b.", "a"], "lower": [["a", "b", "."], ["b"]]}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = script("benchmarks/tokens.py", "--data_dir", tiny, "--vocab_file", vocab, "--texts", tmp_path / "texts.json",
                  "--rounds", 1, "--results", results)
    assert done.returncode == 0, done.stderr
    rows, unusual = [json.loads(line)["figures"] for line in results.read_text().splitlines()[-2:]]
    assert rows["documents_per_second"] > 100 and unusual["different_texts"] == 1


def test_results_tell_no_folders_of_the_machine(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.common import without_folders
    command = ["/home/me/peers/bin/python", f"{ROOT}/benchmarks/tokens.py", "--a=/tmp/x/y.txt,/tmp/z", "../b", "--c", "d/e"]
    assert without_folders(command) == "python benchmarks/tokens.py --a=y.txt,z ../b --c d/e"


def test_a_contender_that_fails_is_said(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.common import measure
    with pytest.raises(UserError, match="ended with status 3; nothing was measured: .*gone wrong"):
        measure([sys.executable, "-c", "print('it has gone wrong'); raise SystemExit(3)"])


def test_a_figure_of_lengths_wants_two_of_them(tmp_path, script):
    lines = [{"stage": "prediction", "case": f"IMDb at {length}", "side": side,
              "figures": {"documents_per_second": 9.0, "peak_rss_mib": 3.0}}
             for length in (32, 64) for side in ("ours", "loop")]
    lines.append(lines[0] | {"stage": "tokens"})
    for chosen, message in ((slice(4, 5), "no line of the stages records, fine-tuning, prediction"),
                            (slice(2), "no two cases"), (slice(5), None)):
        (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[chosen]))
        done = script("benchmarks/figures.py", tmp_path / "lines.jsonl", tmp_path / "out.png")
        if message:
            assert done.returncode and message in done.stderr and done.stderr.count("\n") == 1
        else:
            assert done.returncode == 0 and (tmp_path / "out.png").read_bytes()[1:4] == b"PNG", done.stderr
