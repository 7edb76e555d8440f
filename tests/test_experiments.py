"""The scripts of the experiments: what they declare, what the queue does with it. (The queue itself: test_run_queue.py; all of
them on the sample, and their tables: test_run_all.py.)"""
import contextlib
import csv
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

import runs
import tasks
from conftest import ROOT
from runs import until

sys.path.insert(0, str(ROOT / "scripts"))
import read_runs  # noqa: E402

SCRIPTS = {  # and what each writes
    "exp1_long_text": "table2", "exp1_layers": "table3", "exp1_catastrophic_forgetting": "figure2",
    "exp1_layer_wise_lr": "table4", "exp2_steps": "figure3", "exp2_domains": "table5", "exp2_comparison": "table6",
    "exp3_multitask": "table7", "exp4_few_shot": "figure4", "exp5_bert_large": "table8", "exp_released": "released",
    "exp2_corpus": "corpus"}
SHELL_COMMANDS = ("set", "mkdir", "ln", "rm")  # beside python, among what DRY_RUN prints


@pytest.fixture
def begin(interpreter):
    """A function that starts a script of an experiment, in a session (of the system) of its own."""
    def call(name, out, **variables):
        environment = {**os.environ, "VENV": str(interpreter.parent.parent), "OUT": str(out), **variables}
        return subprocess.Popen(["bash", str(ROOT / "scripts" / f"{name}.sh")], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    return call


@pytest.fixture
def experiment(begin):
    """A function that runs such a script to its end."""
    def call(name, out, timeout=550, **variables):
        process = begin(name, out, **variables)
        printed = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, *printed)
    return call


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_command_again_skips_the_runs_that_are_done(tmp_path, experiment):
    first, second = (experiment("exp1_catastrophic_forgetting", tmp_path, SMOKE="1", RATES="5e-5") for _ in range(2))
    assert first.returncode == 0 and "catastrophic_forgetting/5e-5/imdb" in first.stdout
    assert second.returncode == 0 and "/imdb" not in second.stdout
    left = sorted(path.name for path in (tmp_path / "catastrophic_forgetting" / "5e-5" / "imdb").iterdir())
    assert left == ["seed_1", "seed_2", "summary.json"]


@pytest.fixture
def commands(experiment, tmp_path):
    """A function that gives what a dry run prints, each command as its words; OUT in it is `out`."""
    def call(name, **variables):
        done = experiment(name, tmp_path / "out", **{"DRY_RUN": "1", "LAYERS": "12"} | variables)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "out").exists()
        return [shlex.split(line) for line in done.stdout.replace(str(tmp_path / "out"), "out").splitlines()]
    return call


def value(words, flag):
    """What a command gives to a flag, None where it has it not; of one that is given twice the last counts."""
    positions = [position for position, word in enumerate(words) if word == flag]
    return words[positions[-1] + 1] if positions else None


def runs_of(commands):
    """{folder of a run, without the seed's: its command} of those that fine-tune."""
    return {re.sub(r"/seed_\d+$", "", value(words, "--output_dir").removeprefix("out/")): words[1:]
            for words in commands if "--do_eval" in words}


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_runs_print_flags_that_exist_and_a_run_for_each_of_the_papers_figures(name, commands):
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "data")]
    import flags_table
    printed, known = commands(name), {}
    for program, script, *words in printed:
        assert program == "python" or program in SHELL_COMMANDS
        if program == "python":
            module = script.removesuffix(".py")
            if module not in known:
                actions = flags_table.parser_of(module)._actions
                known[module] = {flag for action in actions for flag in action.option_strings}
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= known[module], (script, used - known[module])
    there = {*runs_of(printed), *(words[-1].removeprefix("out/") for words in printed if words[0] == "ln")}
    paper = rows_of(ROOT / "scripts" / "paper_results.csv")
    wanted = {row["run"] for row in paper if row["table"] == SCRIPTS[name] and row["run"] and "_model/" not in row["run"]}
    assert wanted <= there and (wanted or SCRIPTS[name] in ("figure2", "figure3")), wanted - there
    assert value(printed[-1], "--only") == SCRIPTS[name]


def test_all_of_them_do_nothing_twice(commands):
    """Under whatever name: with a decay of 1.00 the discriminative script's run is that of the other script, to the bit."""
    printed = [" ".join(words) for words in commands("run_all") if words[0] == "python"]
    alike = {r" --output_(dir|file)[ =]\S+": "", "discriminative": "single_layer", "2.0e-5": "2e-5",
             r"( --layer_learning_rate \S+)? --layer_learning_rate_decay 1.00": "",
             " --eval_every 0.1 --eval_sample 0.08 --allow_divergence": "", r"--pytorch_dump_path \S+": ""}
    for pattern, text in alike.items():
        printed = [re.sub(pattern, text, command) for command in printed]
    # the trailing parts of a command are flags in any order
    printed = [" ".join(sorted(re.split(r" (?=--)", command))) for command in printed]
    twice = [command for command in printed if printed.count(command) > 1 and "models/chinese" not in command]
    assert len(printed) > 250 and not twice, "\n".join(twice)


def test_a_decay_of_1_and_a_curve_change_nothing_to_the_bit(tiny, tmp_path, script):
    """So Table 2's head+tail, Figure 2's 2e-5 and Table 4's (2.0e-5, 1.00) can be one run."""
    vocab = (tiny / "vocab.txt").read_text(encoding="utf-8")
    runs.make_bert(tmp_path, vocab.count("\n"), dropout=0.1)
    start = ["--init_checkpoint", tmp_path / "pytorch_model.bin", "--bert_config_file", tmp_path / "bert_config.json"]
    single, discriminative = tmp_path / "single", tmp_path / "discriminative"
    for folder, flags in ((single, ["--eval_every", 0.1, "--eval_sample", 0.5, "--allow_divergence"]),
                          (discriminative, ["--layer_learning_rate", "1.0e-3", "--layer_learning_rate_decay", "1.00"])):
        name = runs.SINGLE if folder is single else runs.DISCRIMINATIVE
        done = script(f"{name}.py", *runs.train_flags(tiny, folder), *start, *flags)
        assert done.returncode == 0, done.stderr
    assert runs.losses_of(single) == runs.losses_of(discriminative) and len(runs.losses_of(single)) == 24
    runs.assert_equal_weights(single / "last", discriminative / "last")
    for name in ("results_ep3.txt", "eval_results_ep3.txt"):
        assert (single / name).read_bytes() == (discriminative / name).read_bytes()
    assert len(runs.read_json(single / "results.json")["points"]) > 20


def test_all_of_them_are_what_each_of_them_is(commands):
    def texts(name):
        return {shlex.join(words) for words in commands(name) if words[0] == "python" and "collect_results" not in words[1]}
    assert texts("run_all") == set().union(*map(texts, SCRIPTS))
    assert texts("run_all") and {path.stem for path in ROOT.glob("scripts/exp[0-9_]*.sh")} == {*SCRIPTS}


def test_runs_of_figure_2_have_its_points_and_no_experiment_keeps_models_it_does_not_need(commands):
    found = runs_of(commands("run_all"))
    curves = {folder for folder, words in found.items() if "--eval_every" in words and "--allow_divergence" in words}
    others = {f"catastrophic_forgetting/{rate}/imdb" for rate in ("5e-5", "1e-4", "4e-4")}
    assert curves == {"long_text/head+tail/imdb"} | others
    kept = {folder: value(words, "--save_models") for folder, words in found.items()}
    assert {folder for folder, models in kept.items() if models != "none"} == {"multitask/none/together",
                                                                               "multitask/all/together"}
    assert kept["multitask/all/together"] == "last"


def test_last_layer_has_runs_classify_by_its_state(commands):
    found, usual = (runs_of(commands("run_all", **variables)) for variables in ({"LAST_LAYER": "1"}, {}))
    assert found.keys() == usual.keys()
    for folder, words in found.items():
        # the experiment on layers has its own
        assert folder.startswith("layers/") or value(words, "--layers") == ("23" if folder.startswith("large_") else "11")
        assert value(words, "--layers") == value(usual[folder], "--layers") or not folder.startswith("layers/")
    assert all(folder.startswith(("layers/", "feat/")) for folder, words in usual.items() if "--layers" in words)


def test_last_layer_of_a_pocket_bert_is_its_cls_state(commands):
    for variables, expected in (({}, "mean"), ({"LAST_LAYER": "1"}, None), ({"POOLING": "max"}, "max")):
        words = runs_of(commands("exp4_few_shot", MODEL="pocket", LAYERS="", **variables))["few_shot/none/1/imdb"]
        assert (value(words, "--layers"), value(words, "--pooling_type")) == ("3", expected)


def test_bert_feat_takes_the_states_of_all_tokens_whatever_the_others_classify_by(commands):
    found = runs_of(commands("exp2_comparison", POOLING="mean"))
    assert {folder.startswith("feat/"): value(words, "--pooling_type") for folder, words in found.items()} == {
        True: "cls", False: "mean"}


def test_last_layer_has_a_folder_of_its_own(experiment):
    for variables, folder in (({"LAST_LAYER": "1"}, "experiments_last_layer"), ({}, "experiments"),
                              ({"LAST_LAYER": "1", "SMOKE": "1"}, "smoke_last_layer")):
        done = experiment("exp_released", "", DRY_RUN="1", **variables)  # OUT= is no OUT
        assert f" --output_dir {folder}/released/imdb " in done.stdout, done.stderr


def corpora(printed):
    """{corpus: the flags that say how} of generate_corpus.py."""
    return {value(words, "--output_file").split("/", 2)[2].removesuffix("/corpus.txt"):
            " ".join(words[words.index("--output_file") + 2:])
            for words in printed if words[1] == "generate_corpus.py"}


@pytest.mark.parametrize("variables, flags, said", [
    ({}, "--spacy_model en_core_web_md", "split by en_core_web_md"),
    ({"SPACY_MODEL": "xx_sm"}, "--spacy_model xx_sm", "split by xx_sm"),
    ({"SPACY_MODEL": ""}, "", "split by rules, which find 49%")])
def test_sentences_are_the_authors_models_where_it_is_installed(experiment, tmp_path, variables, flags, said):
    (tmp_path / "en_core_web_md.py").touch()
    done = experiment("exp4_few_shot", tmp_path / "out", DRY_RUN="1", PYTHONPATH=str(tmp_path), **variables)
    assert said in done.stderr and done.stderr.count("\n") == 1
    line = next(line for line in done.stdout.splitlines() if "generate_corpus" in line)
    assert line.endswith(f"/corpus.txt {flags}".rstrip())


def test_sentences_are_split_by_rules_where_it_is_not(experiment, tmp_path):
    out = tmp_path / "out"
    done = experiment("exp4_few_shot", out, DRY_RUN="1")
    assert "split by rules, which find 49%" in done.stderr and "-m spacy download en_core_web_md" in done.stderr
    assert "--spacy_model" not in done.stdout
    out.mkdir()
    (out / "spacy_model").write_text("en_core_web_md\n")  # as this folder's runs began
    assert "--spacy_model en_core_web_md" in experiment("exp4_few_shot", out, DRY_RUN="1").stdout
    assert experiment("exp1_layers", out, DRY_RUN="1").stderr == ""  # which has no corpora


def test_the_corpora_that_are_compared_differ_in_what_they_are_named_after(experiment, tmp_path):
    (tmp_path / "en_core_web_md.py").touch()
    for own, model in (("rules", ""), ("model", "en_core_web_md")):
        done = experiment("exp2_corpus", "out", DRY_RUN="1", PYTHONPATH=str(tmp_path), SPACY_MODEL=model)
        printed = list(map(shlex.split, done.stdout.splitlines()))
        found = corpora(printed)
        assert f"split by {model or 'rules'}" in done.stderr
        assert ["ln", "-sfn", "../../imdb/imdb", f"out/corpus/train_stripped_{own}/imdb"] in printed
        found[f"corpus/train_stripped_{own}"] = found.pop("imdb")
        tuned = runs_of(printed)
        for splits, text, sentences in itertools.product(("train", "train_test"), ("stripped", "html"), ("rules", "model")):
            name = f"corpus/{splits}_{text}_{sentences}"
            flags = found.pop(name)
            assert ("--splits train test" in flags, "--keep_html" in flags, "--spacy_model en_core_web_md" in flags) == (
                splits == "train_test", text == "html", sentences == "model"), name
            if f"{splits}_{text}_{sentences}" != f"train_stripped_{own}":
                assert ("--keep_html" in tuned[f"{name}/imdb"]) == (text == "html")
        assert not found


def test_bert_large_reads_the_records_of_bert_base_if_their_vocabularies_are_equal(commands, tmp_path):
    folders = [tmp_path / name for name in ("base", "large")]
    for folder, words in zip(folders, ("a b", "a b")):
        folder.mkdir()
        (folder / "vocab.txt").write_text(words)
    berts = {"BERT": str(folders[0]), "BERT_LARGE": str(folders[1]), "TASKS": "imdb"}

    def read_by_large():
        return [words[2] for words in commands("exp5_bert_large", **berts)
                if words[1] == "run_pretraining.py" and "--train_batch_size=24" in words]
    assert read_by_large() == ["--input_file=out/pretrained/imdb/corpus.tfrecord"]
    (folders[1] / "vocab.txt").write_text("a c")
    assert read_by_large() == ["--input_file=out/pretrained/large_imdb/corpus.tfrecord"]


def test_records_go_after_their_last_use_unless_they_are_to_stay(commands):
    printed = commands("exp5_bert_large", TASKS="imdb")
    place = printed.index(["rm", "-f", "out/pretrained/imdb/corpus.tfrecord"])
    assert printed[place - 1][1] == "run_pretraining.py" and "--train_batch_size=24" in printed[place - 1]
    assert not [words for words in commands("exp5_bert_large", TASKS="imdb", KEEP_RECORDS="1") if words[0] == "rm"]


def test_what_must_be_downloaded_by_hand_is_left_out_where_it_is_not_there(experiment, tmp_path):
    done = experiment("run_all", tmp_path / "out", DECLARE="1", DATA=str(tmp_path), RELEASED=str(tmp_path / "absent.bin"))
    names = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert "imdb/imdb" in names and not [name for name in names if "sogou" in name or "released" in name or "chinese" in name]
    assert f"sogou is left out: there is no {tmp_path}/sogou" in done.stderr and f"no {tmp_path}/absent.bin" in done.stderr
    (tmp_path / "sogou").mkdir()
    (tmp_path / "absent.bin").touch()
    settings = {"DECLARE": "1", "DATA": str(tmp_path), "RELEASED": str(tmp_path / "absent.bin"),
                "BERT_CHINESE": str(tmp_path / "zh")}
    done = experiment("exp1_long_text", tmp_path / "out", **settings)
    assert "sogou" not in done.stdout and f"sogou is left out: there is no {tmp_path}/zh" in done.stderr
    (tmp_path / "zh").mkdir()
    names = {line.split("\t")[0] for line in experiment("run_all", tmp_path / "out", **settings).stdout.splitlines()}
    assert {"sogou/sogou", "long_text/head+tail/sogou", "released/imdb", "models/chinese"} <= names


PAPERS = {  # of the paper's protocol, in every fine-tuning of BERT-base; those of BERT-large are the same
    "--train_batch_size": "24", "--num_train_epochs": "4", "--warmup_proportion": "0.1", "--max_seq_length": "512"}
FIT = {"--trunc_medium": "128", "--learning_rate": "2e-5", "--layer_learning_rate": "2e-5",
       "--layer_learning_rate_decay": "0.95"}
BASE = {"--learning_rate": "2e-5", "--trunc_medium": "128", "--layers": None, "--hierarchical": None}
OWN = {  # run -> what is its own
    "long_text/head_only/imdb": BASE | {"--trunc_medium": "-2"}, "long_text/tail_only/imdb": BASE | {"--trunc_medium": "-1"},
    "long_text/head+tail/imdb": BASE,
    **{f"long_text/hier_{name}/imdb": BASE | {"--trunc_medium": None, "--hierarchical": name}
       for name in ("mean", "max", "self_attention")},
    **{f"layers/layer_{layer}/imdb": BASE | {"--layers": str(layer)} for layer in range(12)},
    **{f"layers/{end}_4_{pooling}/imdb": BASE | {"--layers": first, "--layer_pooling": pooling}
       for end, first in (("first", "0 1 2 3"), ("last", "8 9 10 11")) for pooling in ("concat", "mean", "max")},
    "layers/all_12_concat/imdb": BASE | {"--layers": "-1"},
    **{f"catastrophic_forgetting/{rate}/imdb": BASE | {"--learning_rate": rate} for rate in ("5e-5", "1e-4", "4e-4")},
    **{f"layer_wise_lr/{rate}_{decay}/imdb": FIT | {"--learning_rate": rate, "--layer_learning_rate": rate,
                                                    "--layer_learning_rate_decay": decay}
       for rate in ("2.5e-5", "2.0e-5") for decay in ("1.00", "0.95", "0.90", "0.85")
       if (rate, decay) not in (("2.0e-5", "1.00"), ("2.0e-5", "0.95"))},
    **{name: FIT | {"--num_datas": None} for name in (
        "none/imdb", "imdb/imdb", "steps/10000/imdb", "sentiment/yelp_f", "all/ag", "large_none/dbpedia", "large_imdb/imdb",
        "corpus/train_test_html_rules/imdb")},
    "few_shot/none/0.004/imdb": FIT | {"--num_datas": "0.004"}, "few_shot/imdb/0.5/imdb": FIT | {"--num_datas": "0.5"},
    "feat/trec": {"--learning_rate": "1e-3", "--layers": "11", "--classifier": "bilstm_attention", "--trunc_medium": "128"},
    "multitask/none/together": {"--task_name": "imdb yelp_p ag dbpedia", "--learning_rate": "2e-5", "--trunc_medium": "128"},
    "multitask/all/imdb": FIT | {"--learning_rate": "1e-5", "--layer_learning_rate": "1e-5"}}
TRAINED = {  # of a further pre-training
    "--train_batch_size": "32", "--max_seq_length": "128", "--learning_rate": "5e-5", "--num_train_steps": "100000",
    "--num_warmup_steps": "10000"}


def values(words, flag):
    """All that a command gives to a flag, in a word; None where it has it not."""
    if flag not in words:
        return None
    first, *others = words[len(words) - words[::-1].index(flag):]  # of one that is given twice the last counts
    return " ".join([first, *itertools.takewhile(lambda word: not word.startswith("-"), others)])


def test_spaces_around_seeds_are_no_seeds(commands):
    assert commands("exp_released", SEEDS=" 1 ") == commands("exp_released", SEEDS="1")


def test_runs_have_the_settings_of_the_paper(commands):
    printed = commands("run_all", SEEDS="1")
    found = runs_of(printed)
    for run, own in OWN.items():
        for flag, expected in (PAPERS | own).items():
            assert values(found[run], flag) == expected, (run, flag)
    of_step = {words[1]: [] for words in printed if words[0] == "python"}
    for words in printed:
        if words[0] == "python":
            of_step[words[1]].append(dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word))
    for flags in of_step["run_pretraining.py"]:
        is_large = "/large_" in flags["--output_dir"]
        own = {"--train_batch_size": "24", "--num_train_steps": "120000"} if is_large else {}
        assert (TRAINED | own).items() <= flags.items(), flags["--output_dir"]
    assert {flags["--max_seq_length"] for flags in of_step["create_pretraining_data.py"]} == {"128"}
    assert {(flags["--dupe_factor"], flags["--masked_lm_prob"], flags["--max_predictions_per_seq"])
            for flags in of_step["create_pretraining_data.py"]} == {("5", "0.15", "20")}


def test_numbers_have_a_point_whatever_the_system_s_language(commands, tmp_path, monkeypatch):
    """awk may write the comma of LC_NUMERIC; this one does so wherever it is not told LC_ALL=C."""
    (tmp_path / "awk").write_text(f'#!/bin/sh\nawk={shutil.which("awk")}\n'
                                  'if [ "$LC_ALL" = C ]; then exec $awk "$@"; fi\n$awk "$@" | tr . ,\n')
    (tmp_path / "awk").chmod(0o755)

    def printed():
        return [commands(name, MODEL="pocket", LAYERS="") for name in (
            "exp1_layer_wise_lr", "exp1_catastrophic_forgetting", "pocket")]
    usual = printed()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert printed() == usual


def test_yelp_s_two_corpora_lack_the_test_texts_of_each_other(commands):
    corpora = {value(words, "--task_name"): value(words, "--leave_out_test_of") for words in commands("exp2_domains")
               if "generate_corpus.py" in words}
    assert corpora == dict.fromkeys(("imdb", "trec", "yahoo", "ag", "dbpedia", "sentiment", "question", "topic", "all")) | {
        "yelp_p": "yelp_f", "yelp_f": "yelp_p"}


def test_pytorch_weights_are_taken_too(experiment, tmp_path):
    bert = tmp_path / "it's a & b"
    bert.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (bert / name).touch()
    done = experiment("exp1_layers", tmp_path / "out", DRY_RUN="1", BERT=str(bert))
    _, folder, link, convert, *_ = map(shlex.split, done.stdout.splitlines())
    model = tmp_path / "out/models/base"
    assert folder == ["mkdir", "-p", str(model)]
    assert link == ["ln", "-sf", str(bert / "config.json"), str(bert / "model.safetensors"), f"{model}/"]
    assert "--reverse" in convert and value(convert, "--pytorch_dump_path") == str(bert)


@pytest.mark.long
def test_what_a_dry_run_prints_can_be_pasted(experiment, interpreter, tmp_path):
    """Links, a corpus, records, a further pre-training, conversions, fine-tunings, what goes, a figure."""
    out = tmp_path / "out"
    variables = {"SMOKE": "1", "SEEDS": "1", "FRACTIONS": "0.5 1"}
    text = experiment("exp4_few_shot", out, DRY_RUN="1", **variables).stdout
    environment = {**os.environ, "PATH": f"{interpreter.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["x"] for row in rows_of(out / "results/figure4.csv") if "ours" in row["curve"]] == ["0.5", "1"] * 2
    assert not (out / "pretrained/imdb/corpus.tfrecord").exists() and (out / "models/base/bert_model.ckpt.index").is_symlink()
    broken = subprocess.run(["bash"], input=text.replace("--learning_rate", "--rate"), capture_output=True, text=True,
                            cwd=ROOT, env=environment, timeout=60)
    assert broken.returncode != 0  # it stops at the first that fails


def test_settings_are_no_flags(experiment, tmp_path):
    done = subprocess.run(["bash", ROOT / "scripts/exp1_layers.sh", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "there is no --dry-run" in done.stderr


def test_an_interrupted_run_fails_the_script_with_the_end_of_its_log(tmp_path, experiment):
    absent = str(tmp_path / "absent")
    done = experiment("exp1_layer_wise_lr", tmp_path / "out", DATA=absent, BERT=absent)
    assert done.returncode != 0
    assert "models/base failed" in done.stderr and "absent" in done.stderr and "Traceback" not in done.stderr


def test_another_bert_does_not_get_the_runs_of_the_first(tmp_path, experiment):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.done").write_text(json.dumps({
        "command": "python convert.py --tf_checkpoint_path /some/bert/bert_model.ckpt", "identity": "", "seconds": 1.5}))
    done = experiment("exp1_layer_wise_lr", tmp_path, BERT=str(ROOT / "data"))
    assert done.returncode == 1 and "models/base is of another BERT" in done.stderr and "/some/bert/bert_model" in done.stderr
    assert "name another OUT" in done.stderr and not (tmp_path / "models" / "base").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_ctrl_c_ends_all_of_a_script_and_the_same_command_goes_on(tmp_path, begin, experiment):
    def processes():
        """Those of the script: all their commands name OUT."""
        commands = []
        for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                commands.append(file.read_bytes())
        return [command for command in commands if os.fsencode(tmp_path) in command]
    variables = {"SMOKE": "1", "JOBS": "2", "EPOCHS": "60", "SEEDS": "1", "RATES": "1e-4 5e-5"}
    process = begin("exp1_catastrophic_forgetting", tmp_path, **variables)
    logs = [tmp_path / "catastrophic_forgetting" / rate / "imdb.log" for rate in ("1e-4", "5e-5")]
    until(lambda: all(log.exists() and "epoch 2: accuracy" in log.read_text() for log in logs))
    assert len(processes()) >= 3  # the queue, two trainings
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=120)
    assert process.returncode == 130 and processes() == []
    assert not list(tmp_path.glob("catastrophic_forgetting/*/imdb.[df]*"))  # neither done nor failed
    done = experiment("exp1_catastrophic_forgetting", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert all("going on after update" in log.read_text() for log in logs)
    assert (tmp_path / "results" / "figure2.csv").exists()


def test_two_scripts_do_not_do_the_same_run_at_once(tmp_path, begin):
    variables = {"SMOKE": "1", "JOBS": "1", "SEEDS": "1", "RATES": "5e-5"}
    processes = [begin("exp1_catastrophic_forgetting", tmp_path, **variables) for _ in range(2)]
    printed = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "under way in another script" in printed[0][0] + printed[1][0]
    log = (tmp_path / "catastrophic_forgetting" / "5e-5" / "imdb.log").read_text()
    assert log.count("epoch 1: accuracy") == 1


def test_a_run_that_fails_is_not_passed_over(tmp_path, experiment):
    done = experiment("exp1_catastrophic_forgetting", tmp_path / "out", SMOKE="1", FLAGS="--precision maybe")
    assert done.returncode == 1 and "invalid choice: 'maybe'" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "results").exists()


# Their samples (their tables: test_collect_results.py)

def test_samples_of_no_rows_are_refused(tmp_path, refused):
    refused("data/make_task_samples.py", "--output_dir", tmp_path, "--num_train", 0, words="at least 1")


def test_the_sample_is_there_in_each_task_s_format(tmp_path, script):
    done = script("data/make_task_samples.py", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for task in tasks.TASKS.values():
        for split, count in (("train", 64), ("test", 32)):
            texts, labels = tasks.read_examples(task, tmp_path / task.name, split)
            assert len(texts) == count and len(set(texts)) > count / 2
            assert len(set(labels)) == len(task.labels), task.name


# The pocket BERT

def test_a_pocket_s_plan_is_of_its_own_rates_and_parts_of_the_data(commands):
    printed = commands("run_all", MODEL="pocket", LAYERS="")
    found = runs_of(printed)
    assert {"none/trec", "all/ag", "steps/5000/imdb", "imdb/imdb", "few_shot/none/1/imdb", "layers/layer_3/imdb",
            "layer_wise_lr/6.25e-4_0.95/imdb", "layer_wise_lr/5e-4_0.90/imdb", "catastrophic_forgetting/1e-2/imdb",
            "multitask/all/imdb", "corpus/train_test_html_rules/imdb", "long_text/head+tail/imdb"} <= found.keys()
    assert not [run for run in found if re.search("large|sogou|feat|released|yelp|layer_4|few_shot/none/0.08", run)]
    words = found["none/imdb"]
    assert [value(words, f"--{flag}") for flag in ("learning_rate", "layer_learning_rate", "max_seq_length", "trunc_medium",
            "num_datas", "num_test_datas", "layers", "pooling_type")] == [
                "5e-4", "5e-4", "256", "64", "2000", "2000", "3", "mean"]
    assert [value(found[f"none/{task}"], "--num_datas") for task in ("ag", "dbpedia")] == ["2000", "1000"]
    assert value(found["none/dbpedia"], "--num_test_datas") == "1000"
    assert value(found["few_shot/none/1/imdb"], "--num_datas") == "1.0"
    assert value(found["few_shot/imdb/0.01/imdb"], "--num_datas") == "0.01"
    assert value(found["none/trec"], "--num_datas") is None
    assert [value(found[f"few_shot/none/{share}/imdb"], "--num_train_epochs") for share in ("0.004", "0.05", "1")] == \
        ["24", "3", "3"]
    assert value(found["catastrophic_forgetting/1e-2/imdb"], "--learning_rate") == "1e-2"
    assert value(found["multitask/none/ag"], "--learning_rate") == "2.5e-4"
    trained = next(words for words in printed if "--output_dir=out/pretrained/all/checkpoints" in words)
    assert {"--learning_rate=5e-4", "--num_train_steps=10000", "--dropout=0", "--max_predictions_per_seq=39"} <= set(trained)
    corpus = next(words for words in printed if "out/pretrained/all/corpus.txt" in words and "generate_corpus.py" in words)
    assert corpus[corpus.index("--task_name") + 1:corpus.index("--data_dir")] == ["imdb", "ag", "dbpedia", "trec"]


def test_another_pocket_bert_is_taken_by_its_shape_and_other_steps_have_all_their_points(commands):
    printed = commands("exp2_steps", MODEL="pocket", POCKET="L6_H384", STEPS="2000")
    assert "pocket/L6_H384" in str(printed) and "L4_H128" not in str(printed)
    assert {f"steps/{step}/imdb" for step in range(200, 2000, 200)} == runs_of(printed).keys() - {"none/imdb", "imdb/imdb"}


@pytest.mark.parametrize("settings, words", [
    ({"TRAIN_PARTS": "0.1"}, "0.1 of TRAIN_PARTS or TEST_PARTS is no TASK=NUMBER"),
    ({"TRAIN_PARTS": "imdb=1"}, "imdb=1 of TRAIN_PARTS or TEST_PARTS is no TASK=NUMBER, such as imdb=0.1 or ag=500; 1.0 is"),
    ({"RATE": "2E-5"}, "RATE=2E-5 is no learning rate, such as 2e-5"),
    ({"TEST_PARTS": "ag=5 imbd=0.1"}, "imbd=0.1 of TRAIN_PARTS or TEST_PARTS is no TASK=NUMBER"),
    ({"STEPS": "2000", "STEP_LIST": "1000 5000"}, "STEP_LIST: no checkpoint after 5000 of 2000 updates, they are 200 apart"),
    ({"LAST_LAYER": "1", "POOLING": "mean"}, "LAST_LAYER=1 classifies by the [CLS] state, POOLING=mean by all tokens"),
    ({"STEPS": "8"}, "STEPS=8 updates with POINTS=10 checkpoints"), ({"POINTS": "0"}, "with POINTS=0 checkpoints"),
    ({"STEPS": "many"}, "STEPS=many updates"),
    ({"STEPS": "2000", "STEP_LIST": "300"}, "STEP_LIST: no checkpoint after 300"),
    ({"STEPS": "2000", "STEP_LIST": "many"}, "STEP_LIST: no checkpoint after many")], ids=str)
def test_settings_that_cannot_be_met_are_refused_before_any_job(settings, words, experiment, tmp_path):
    done = experiment("exp2_steps", tmp_path / "out", DRY_RUN="1", **settings)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not done.stdout


def test_parts_can_be_of_every_data_set():
    text = (ROOT / "scripts/experiment.sh").read_text()
    assert f"({'|'.join(tasks.TASKS)})=" in text


@pytest.mark.parametrize("settings, records, training", [
    ({}, ["--max_predictions_per_seq=20", "--masked_lm_prob=0.15"], ["--max_predictions_per_seq=20"]),
    ({"PRETRAINING_LENGTH": "64"}, ["--max_predictions_per_seq=20", "--masked_lm_prob=0.15"], ["--max_predictions_per_seq=20"]),
    ({"PRETRAINING_LENGTH": "256"}, ["--max_predictions_per_seq=39"], ["--max_predictions_per_seq=39"]),
    ({"MASKED_LM_PROB": "0.4", "PRETRAINING_DROPOUT": "0.05"}, ["--max_predictions_per_seq=52", "--masked_lm_prob=0.4"],
     ["--max_predictions_per_seq=52", "--dropout=0.05"])], ids=str)
def test_the_masks_and_the_dropout_of_further_pre_training(settings, records, training, commands):
    printed = commands("exp2_steps", **settings)
    made = next(words for words in printed if "create_pretraining_data.py" in words)
    trained = next(words for words in printed if "run_pretraining.py" in words)
    assert set(records) <= set(made) and set(training) <= set(trained)
    assert any(word.startswith("--dropout") for word in trained) == ("PRETRAINING_DROPOUT" in settings)


@pytest.mark.parametrize("rate, own", [("3e-5", "3.75e-5"), ("2e-4", "2.5e-4"), ("5e-4", "6.25e-4"), ("8e-5", "1e-4")])
def test_a_multiple_of_the_rate_has_all_its_digits(rate, own, commands):
    """The same in the runs' folders, which the scripts name, and in the tables' rows."""
    assert f"layer_wise_lr/{own}_0.95/imdb" in runs_of(commands("exp1_layer_wise_lr", RATE=rate))
    assert read_runs.own_rate("2.5e-5", read_runs.SETTINGS | {"rate": rate}) == own


@pytest.mark.parametrize("model, words", [("huge", "MODEL=huge is unknown"), ("pocket", "make it with scripts/pocket.sh")])
def test_a_model_that_is_not_there_is_refused_in_a_line(model, words, experiment, tmp_path):
    done = experiment("exp2_steps", tmp_path / "out", MODEL=model, BERT=str(tmp_path / "none"))
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_one_folder_is_of_one_set_of_settings(experiment, tmp_path):
    """Else rows of the tables would be named by settings that they were not made with."""
    (tmp_path / "settings.json").write_text('{"rate": "2e-4"}\n')
    done = experiment("exp2_steps", tmp_path, SMOKE="1")
    assert done.returncode == 2 and "was begun with other settings" in done.stderr
    assert experiment("exp2_steps", tmp_path, SMOKE="1", DRY_RUN="1").returncode == 0
