"""scripts/pocket.sh on the sample: a BERT from nothing, its curve, and that the experiments take it."""
import csv
import json
import re
import sys

import pytest
import transformers

from common.command_line import UserError
from conftest import ROOT
from test_experiments import begin, experiment  # noqa: F401  (fixtures)
from tokenization import FullTokenizer

sys.path.insert(0, str(ROOT / "scripts"))
import pretraining_curve  # noqa: E402


def test_a_wrong_shape_is_refused_in_a_line(tmp_path, experiment):  # noqa: F811
    done = experiment("pocket", tmp_path / "out", POCKET="L4_H100")
    assert done.returncode == 2 and done.stderr == "pocket.sh: error: POCKET=L4_H100 is no shape such as L4_H128\n"
    assert not (tmp_path / "out").exists()


def test_a_batch_that_cannot_be_halved_is_refused_in_a_line(tmp_path, experiment):  # noqa: F811
    done = experiment("pocket", tmp_path / "out", BATCH="1")
    assert done.returncode == 2 and done.stderr == "pocket.sh: error: BATCH=1 is no number from 2 on\n"


def test_the_plan_learns_from_training_texts_at_a_rate_of_its_own(tmp_path, experiment):  # noqa: F811
    printed = experiment("pocket", tmp_path / "out", DRY_RUN="1", MODEL="pocket", DATA="downloads").stdout.splitlines()
    corpora = [line for line in printed if "generate_corpus.py" in line]
    assert ["--splits train " in corpora[0], "--splits test " in corpora[1]] == [True, True] and len(corpora) == 2
    assert all("--task_name ag dbpedia yelp_f yelp_p --data_dir downloads " in line for line in corpora)
    masks = [re.findall(r"(\w+)/\d+.tfrecord .*_seq=(\d+) --masked_lm_prob=(\S+)", line)[0] for line in printed
             if "create_pretraining_data.py" in line]
    assert masks == [("train", "39", "0.3"), ("train", "77", "0.3"), ("held_out", "39", "0.15"), ("held_out", "77", "0.15")]
    first, second = [line for line in printed if "run_pretraining.py" in line]
    for words in ("--learning_rate=1e-3 ", "--num_train_steps=18000 ", "--train_batch_size=32 ", "held_out/128.tfrecord"):
        assert words in first and "--init_checkpoint" not in first
    for words in ("--learning_rate=0.00025 ", "--num_train_steps=2000 ", "--train_batch_size=16 ", "/128/model.ckpt-18000"):
        assert words in second
    assert " --dropout=0 " in first and " --dropout=0 " in second


@pytest.mark.long
def test_a_bert_is_made_from_nothing_and_the_same_again_does_nothing(tmp_path, experiment):  # noqa: F811
    first = experiment("pocket", tmp_path, SMOKE="1")
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "L1_H64"
    assert json.loads((folder / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    model = transformers.BertForPreTraining.from_pretrained(folder)
    tokenizer = FullTokenizer(folder / "vocab.txt")
    assert model.config.vocab_size == len(tokenizer.vocab) == 400 and (folder / "bert_model.ckpt.index").exists()
    with open(folder / "curve.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [*range(2, 37, 2), *range(37, 41)]
    assert [row["max_seq_length"] for row in rows] == ["128"] * 18 + ["256"] * 4
    assert float(rows[-1]["masked_lm_loss"]) < float(rows[0]["masked_lm_loss"])
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    again = experiment("pocket", tmp_path, SMOKE="1")
    assert again.returncode == 0 and "L1_H64/128\n" not in again.stdout


@pytest.mark.parametrize("line, words", [
    ("[]", r"metrics.jsonl:2: \[\] where dict is needed"), ("{}", "metrics.jsonl:2 has no kind"),
    ('{"kind": "train", "global_step": 2, "loss": 1.0}', "metrics.jsonl:2 has no masked_lm_loss"),
    ('{"kind": "eval", "global_step": 2, "loss": 1.0}', "metrics.jsonl:2 has no masked_lm_loss"),
    ('{"kind": "eval", "glob', "metrics.jsonl:2 is not whole JSON")])
def test_a_damaged_line_of_a_curve_is_named_and_nothing_is_written(tmp_path, monkeypatch, line, words):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"flags": {"max_seq_length": 128, "num_train_steps": 2}}')
    good = {"kind": "eval", "global_step": 1, "masked_lm_loss": 5.0, "masked_lm_accuracy": 0.2}
    (run / "metrics.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    monkeypatch.setattr(sys, "argv", ["pretraining_curve.py", "--runs", str(run), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match=words):
        pretraining_curve.main()
    assert not (tmp_path / "out").exists()
