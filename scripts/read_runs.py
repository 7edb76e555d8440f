"""The runs of the experiments: the results.json of each seed, checked, as one frame."""
import pathlib
import re

import numpy as np
import pandas as pd

from common.command_line import UserError
from common.files import check_schema, read_json

EVALUATION = {"eval_accuracy": float}
POINT = EVALUATION | {"epoch": float, "train_accuracy": float}  # inside an epoch (--eval_every)
# The columns of a frame of runs, before those of further metrics. at: best, last or point.
KEYS = ("run", "seed", "at", "epoch", "test_error", "training_error")
# What the runs in one folder may differ in. A fine-tuning after a multi-task one starts from the multi-task run of its
# own seed, so its weights differ too.
OWN = {"seed"}
OWN_AFTER_MULTI_TASK = OWN | {"weights"}

# What experiment.sh leaves in OUT (settings.json), and without it the paper's. rate: of fine-tuning; length, head: of a text;
# train_parts: parts of the tasks' training data, such as "imdb=0.1"; steps: of further pre-training
SETTINGS = {"rate": "2e-5", "length": 512, "head": 128, "layers": 12, "train_parts": "", "steps": 100_000}


def read_settings(runs):
    """SETTINGS of the experiments in the folder `runs`."""
    file = pathlib.Path(runs, "settings.json")
    found = SETTINGS | (read_json(file, {}) if file.exists() else {})
    check_schema(found, {name: type(value) for name, value in SETTINGS.items()}, file)
    if not re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", found["rate"]):
        raise UserError(f"{file}: {found['rate']} is no learning rate")
    if not all(re.fullmatch(r"[a-z_0-9]+=([0-9]+|[0-9]*\.[0-9]+)", part) for part in found["train_parts"].split()):
        raise UserError(f"{file}: train_parts is {found['train_parts']!r}, where TASK=NUMBER is needed")
    return found


def own_rate(rate, settings):
    """The paper's rate, a str, as the same multiple of these runs' rate, written as scripts/experiment.sh writes it."""
    if settings["rate"] == SETTINGS["rate"]:
        return rate
    own = f"{float(rate) * float(settings['rate']) / float(SETTINGS['rate']):.5e}"
    return re.sub(r"\.?0*e", "e", own).replace("e-0", "e-")


def own_name(text, settings):
    """A name or a claim of the paper with these runs' rates, lengths and steps in place of the paper's."""
    text = text.replace(f"{SETTINGS['steps']:,} steps", f"{settings['steps']:,} steps")
    text = text.replace("(128+382)", f"({settings['head']}+{settings['length'] - 2 - settings['head']})")
    return re.sub(r"\d(\.\d+)?e-\d", lambda found: own_rate(found[0], settings), text)


def read_results(runs, folder):
    """The results.json of each seed's run in `folder` of the folder `runs`, ordered by seed.

    Raises UserError where one is damaged, and where the runs do not differ in the seed alone.
    """
    files = sorted(pathlib.Path(runs, folder).glob("seed_*/results.json")) if folder else []
    results, recipes = [read_result(file) for file in files], {}
    for file, result in zip(files, results):
        if [other["seed"] for other in results].count(result["seed"]) > 1:
            raise UserError(f"{file}: another run beside it has the seed {result['seed']} too; move one of them away")
        if (record := file.with_name("run.json")).exists():
            recipes[record] = read_json(record, {"recipe": dict})["recipe"]
    own = OWN_AFTER_MULTI_TASK if folder.startswith("multitask") else OWN
    for record, recipe in recipes.items():
        first, known = next(iter(recipes.items()))
        for key in sorted(recipe.keys() | known.keys()):
            if recipe.get(key) != known.get(key) and key.partition(" (")[0] not in own:  # weights (--init_checkpoint)
                raise UserError(f"{record}: {key} is {recipe.get(key)}, in {first} it is {known.get(key)}; the runs in "
                                "one folder may differ in the seed alone, move those away that do not belong there")
    return sorted(results, key=lambda result: result["seed"])


def read_result(file):
    """The value of a results.json. Raises UserError where it is not what a fine-tuning run writes."""
    result = read_json(file, {"seed": int, "epochs": [dict]})
    named = [name for name in ("best", "last", "test") if name in result]
    if named:  # else the run was not evaluated
        schema = {"epochs": [EVALUATION | {"epoch": int}], "best": EVALUATION, "last": EVALUATION, "test": EVALUATION,
                  "points": [POINT]}
        check_schema(result, {key: schema[key] for key in schema if key in result or key in ("best", "last")}, file)
    for evaluation in [result[name] for name in named] + result["epochs"] + result.get("points", []) * bool(named):
        metrics = {key: value for key, value in evaluation.items() if key.startswith("eval_")}
        check_schema(metrics, {str: (float, type(None))}, file)  # null: the loss of a run that diverged
        for key in ("eval_accuracy", "train_accuracy"):
            if not 0 <= evaluation.get(key, 0) <= 1 + 1e-6:  # a sum of float32 may be a little over 1
                raise UserError(f"{file}: {key} is {evaluation[key]}, a number from 0 to 1 is needed")
    return result


def evaluations_of(result):
    """(best, last or point; epoch; evaluation) of each evaluation of a run on the test set. Points lie inside the epochs
    (--eval_every) or else at the ends of those that were evaluated."""
    if "test" in result:  # with --dev_fraction the others are of held-out training data
        return [("best", None, result["test"])]
    points = result.get("points") or result["epochs"]
    return [(at, None, result[at]) for at in ("best", "last") if at in result] \
        + [("point", point["epoch"], point) for point in points if "best" in result]


def read_runs(runs, folders):
    """The evaluations of the runs in `folders` as a frame: KEYS (errors in percent), then every further metric."""
    rows = []
    for folder in dict.fromkeys(folders):
        for result in read_results(runs, folder):
            for at, epoch, evaluation in evaluations_of(result):
                accuracies = evaluation["eval_accuracy"], evaluation.get("train_accuracy", np.nan)
                errors = [100 * (1 - accuracy) for accuracy in accuracies]
                rows.append(dict(zip(KEYS, (folder, result["seed"], at, epoch, *errors))) | {
                    key.removeprefix("eval_"): value for key, value in evaluation.items()
                    if key.startswith("eval_") and key not in EVALUATION})
    frame = pd.DataFrame(rows, columns=None if rows else KEYS)
    return frame.astype({name: float for name in frame.columns[KEYS.index("at") + 1:]})
