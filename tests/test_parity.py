"""Parity with Google's and the authors' code on goldens that lie in this repository: tests/goldens, tests/parity.py.

Tokens, records, ids, labels and groups are equal; what is computed is within parity.BOUNDS, 1e-5 relative, and 1e-4 where
there is little but rounding. Larger goldens, in ../shared, have tests beside what they test.
"""
import functools
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from conftest import ROOT

import optimization
import parity
from common.configuration import BertConfig


def assert_within_bounds(differences, of=parity.BOUNDS):
    assert differences
    assert all(difference <= of[what] for what, difference in differences.items()), differences


@pytest.mark.parametrize("name", parity.TOKENIZERS)
def test_tokens_of_every_text_are_googles(name):
    different, texts = parity.different_texts(name)
    assert different == 0
    assert texts == 3000 if unicodedata.unidata_version == "14.0.0" else texts > 2700


@pytest.mark.parametrize("name", parity.TOKENIZERS)
def test_tokens_of_code_points_are_googles(name):
    """All below U+20000, and one block of 256 in 16 of the others; scripts/parity.sh looks at every one."""
    golden = parity.read_json(parity.GOLDENS / "code_points.json.gz")
    if unicodedata.unidata_version != golden["unicode"]:
        pytest.skip(f"the goldens are of Unicode {golden['unicode']}, this Python has {unicodedata.unidata_version}")
    assert parity.different_blocks(parity.small_tokenizer(name), golden[name], parity.some_blocks()) == 0


@pytest.mark.parametrize("name", parity.SETTINGS)
def test_records_are_googles(name):
    made, files = parity.small_records(name)
    different, records = parity.different_files(made, files)
    assert different == 0 and records == sum(file["records"] for file in files) > 0


@pytest.mark.parametrize("name", ("few_predictions", "three_files"))
def test_records_that_the_command_writes_are_googles(name, script, tmp_path):
    """Its flags as Google's script has them: cased, whole words, probabilities, seed; several files."""
    golden = next(setting for setting in parity.read_json(parity.GOLDENS / "records.json")["settings"]
                  if setting["name"] == name)
    paths = [tmp_path / f"{number}.tfrecord" for number in range(len(golden["files"]))]
    done = script("create_pretraining_data.py", f"--vocab_file={parity.GOLDENS / 'inputs' / 'vocab.txt'}",
                  f"--input_file={','.join(str(parity.small_corpora()[corpus]) for corpus in golden['corpora'])}",
                  f"--output_file={','.join(map(str, paths))}",
                  *(f"--{flag}={value}" for flag, value in golden["flags"].items()))
    assert done.returncode == 0, done.stderr
    for path, file in zip(paths, golden["files"]):
        examples = (tf.train.Example.FromString(record).features.feature
                    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        records = [{name: getattr(values, values.WhichOneof("kind")).value for name, values in example.items()}
                   for example in examples]
        assert (len(records), parity.digest_of_records(records)) == (file["records"], file["sha256"])


@pytest.mark.parametrize("gelu", parity.ACTIVATIONS)
def test_20_updates_of_pre_training_are_googles_to_1e_5_relative(gelu):
    differences = parity.pretraining_differences(gelu)
    assert differences.keys() == parity.BOUNDS.keys() - {"input ids", "labels", "groups"}
    assert_within_bounds(differences)


@pytest.mark.parametrize("name", parity.FINE_TUNINGS)
def test_20_updates_of_fine_tuning_are_the_authors_to_1e_5_relative(name):
    differences = parity.fine_tuning_differences(name)
    assert differences.keys() == parity.BOUNDS.keys() - {"rates", "Adam slots"}
    assert_within_bounds(differences)


def test_the_goldens_tell_the_two_gelus_apart(monkeypatch):
    monkeypatch.setitem(parity.ACTIVATIONS, "erf", "gelu_new")
    differences = parity.pretraining_differences("erf")
    assert differences["losses"] > parity.BOUNDS["losses"]


def test_the_goldens_see_that_weight_decay_is_off(monkeypatch):
    """The faintest fault: the losses of 20 updates hardly move."""
    monkeypatch.setattr(optimization, "parameter_groups",
                        functools.partial(optimization.parameter_groups, weight_decay=0.0))
    differences = parity.fine_tuning_differences("pooled")
    assert differences["groups"] > 0 and differences["final weights"] > parity.BOUNDS["final weights"]


@pytest.mark.parametrize("peer", ("pytorch", "transformers"))
def test_a_converted_checkpoint_gives_tensorflows_outputs_to_1e_5(peer):
    config = BertConfig.from_json_file(str(parity.GOLDENS / "bert_config.json"))
    differences = parity.conversion_differences(peer, dict(np.load(parity.GOLDENS / "init.npz")), config)
    assert_within_bounds(differences, dict.fromkeys(differences, parity.CONVERSION_BOUND))


def test_what_is_absent_is_said(monkeypatch, tmp_path):
    import parity_table
    monkeypatch.setattr(parity_table, "SHARED", tmp_path)
    monkeypatch.setattr(parity_table.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(parity_table, "conversion_differences", lambda *arguments: {"masked LM": 0.0})
    assert list(parity_table.shared_rows()) == ["the rows on larger data: the folder ../shared/goldens is absent"]
    assert str(list(parity_table.conversion_rows())[1]).startswith("conversion, `transformers`: it is not installed")


def test_the_table_marks_a_row_beyond_its_bound_and_fails(monkeypatch, capsys):
    import parity_table
    rows = [parity_table.Row("a", "b", "c", {"x": 2e-5}, {"x": 1e-5}), parity_table.Row("d", "b", "c", {"y": 0}),
            parity_table.Row("e", "b", "c", {"z": float("nan")}, 1e-5), "something absent"]
    for name in ("token_rows", "record_rows", "training_rows", "conversion_rows"):
        monkeypatch.setattr(parity_table, name, lambda: [])
    monkeypatch.setattr(parity_table, "shared_rows", lambda: rows)
    with pytest.raises(SystemExit, match="2 rows differ"):
        parity_table.main()
    printed = capsys.readouterr().out
    assert "| a | b | c | x 2e-05 **TOO MUCH** |" in printed and "| d | b | c | y 0 |" in printed
    assert "z nan **TOO MUCH**" in printed and "Skipped: something absent." in printed
