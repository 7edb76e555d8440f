"""The benchmarks' scripts: what they write, and what they refuse."""
import json
import sys


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
