"""Metrics, predictions, the best epoch, and means over seeds."""
import csv
import dataclasses
import os
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.files import atomic_write
from common.run_folder import write_key_values
from finetuning.gpu import moved_ahead
from finetuning.packed_weights import packed_weights


@dataclasses.dataclass(frozen=True)
class Metric:
    """compute: (labels int [N], predictions int [N], logits float32 [N, classes]) -> float."""
    compute: Callable
    greater_is_better: bool = True
    in_percent: bool = True


def scikit_learn(name, **options):
    """The metric of that name in sklearn.metrics, of labels and predictions."""
    def compute(labels, predictions, logits):
        import sklearn.metrics  # 0.7 s: at the first evaluation, not at the start
        return float(getattr(sklearn.metrics, name)(labels, predictions, **options))
    return Metric(compute)


def of_classes(name, average):
    """The same, averaged over all classes. One that is neither there nor predicted counts as 0, as in the report: else whether
    it is predicted would change the number of classes from one epoch to the next."""
    def compute(labels, predictions, logits):
        options = dict(labels=range(logits.shape[1]), average=average, zero_division=0)
        return scikit_learn(name, **options).compute(labels, predictions, logits)
    return Metric(compute)


def cross_entropy(labels, predictions, logits):
    """The mean negative log-likelihood, in float64."""
    return F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()


# Each appears as eval_NAME in the log, metrics.jsonl, TensorBoard, eval_results*.txt, results.json, summary.json and the
# experiments' tables, and is a choice of --best_metric.
METRICS = {
    "accuracy": scikit_learn("accuracy_score"),
    "loss": Metric(cross_entropy, greater_is_better=False, in_percent=False),
    "macro_f1": of_classes("f1_score", "macro"),
    "weighted_f1": of_classes("f1_score", "weighted"),
    "macro_precision": of_classes("precision_score", "macro"),
    "macro_recall": of_classes("recall_score", "macro"),
}


def predict(model, dataset, batch_size, world, bf16):
    """A BertForSequenceClassification's logits, float32 [N, classes] in the dataset's order. batch_size: sequences of a
    batch. Each example is computed once, by one of the world's processes, and all of them get all logits."""
    model.eval()
    # the longest first: the memory that a GPU's allocator keeps of them has room for the others
    own = dataset.batches_by_length(batch_size)[::-1][world.rank::world.size]
    batches = moved_ahead(map(dataset.batch, own), world.device)
    bar = tqdm(batches, total=len(own), unit="batch", desc="evaluation", disable=not world.main, mininterval=1, leave=False)
    with (torch.inference_mode(), torch.autocast(world.device.type, torch.bfloat16, enabled=bf16),
          packed_weights(model.bert.encoder, bf16)):
        computed = [model(batch) for batch in bar]
    computed = [rows.cpu().numpy() for rows in computed]  # not before the last batch is on its way: a copy waits for a GPU
    logits = np.full((len(dataset), model.classifier.out_features), np.nan, np.float32)
    for batches, values in world.gather((own, computed)):
        for indices, rows in zip(batches, values):
            logits[indices] = rows
    return logits


def measure(labels, logits):
    """{eval_NAME: value} of every metric, for class indices (int64 [N]) and logits (float32 [N, classes])."""
    predictions = logits.argmax(axis=1)
    return {f"eval_{name}": metric.compute(labels, predictions, logits) for name, metric in METRICS.items()}


def describe(evaluation):
    """The metrics of an evaluation in words."""
    return ", ".join(f"{name} {evaluation[f'eval_{name}']:{'.4%' if metric.in_percent else '.4f'}}"
                     for name, metric in METRICS.items() if f"eval_{name}" in evaluation)


def write_evaluation(folder, suffix, evaluation, labels, logits, names):
    """Writes results{suffix}.txt, a predicted class index a line, and eval_results{suffix}.txt, `key = value` lines of
    `evaluation`: the authors' two files; classification_report{suffix}.txt, each class's figures and the confusion matrix; and
    the matrix alone, confusion_matrix{suffix}.csv and .png. labels: class indices [N]. logits [N, classes]. names: the
    classes."""
    import sklearn.metrics
    predictions = logits.argmax(axis=1)
    with atomic_write(os.path.join(folder, f"results{suffix}.txt")) as file:
        file.writelines(f"{prediction}\n" for prediction in predictions)
    classes = range(len(names))
    with atomic_write(os.path.join(folder, f"classification_report{suffix}.txt")) as file:
        file.write(sklearn.metrics.classification_report(labels, predictions, labels=classes, target_names=names, digits=4,
                                                         zero_division=0))
        file.write("\nconfusion matrix: a row for each true class, in it how often each class was predicted\n")
        matrix = sklearn.metrics.confusion_matrix(labels, predictions, labels=classes)
        file.writelines(f"{name}\t" + "\t".join(map(str, row)) + "\n" for name, row in zip(names, matrix))
    with atomic_write(os.path.join(folder, f"confusion_matrix{suffix}.csv")) as file:
        csv.writer(file, lineterminator="\n").writerows([["true", *names], *([name, *row] for name, row in zip(names, matrix))])
    draw_confusion_matrix(os.path.join(folder, f"confusion_matrix{suffix}.png"), names, matrix)
    write_key_values(os.path.join(folder, f"eval_results{suffix}.txt"), evaluation)


def draw_confusion_matrix(path, names, matrix):
    """Writes a confusion matrix [classes, classes], a row for each true class, as a picture: a cell's shade is its share of the
    row. Of more than 20 classes the counts, of more than 60 the names are left out, which could not be read."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen
    size = len(names)
    figure = Figure(figsize=(3 + min(0.5 * size, 12),) * 2, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if size <= 60:  # parse_math: a $ in a name is no formula
        axes.set_xticks(range(size), names, rotation=90, parse_math=False)
        axes.set_yticks(range(size), names, parse_math=False)
    for (row, column), count in np.ndenumerate(matrix if size <= 20 else matrix[:0]):
        axes.text(column, row, count, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black")
    with warnings.catch_warnings(), atomic_write(path, "wb") as file:
        warnings.simplefilter("ignore")  # of a character that matplotlib's font has not
        figure.savefig(file, format="png", dpi=100)


def best_of(evaluations, best_metric):
    """The best of a list of evaluations by the metric of that name; of equal ones that of the lowest loss, else the first."""
    def key(evaluation):
        sign = 1 if METRICS[best_metric].greater_is_better else -1
        return sign * evaluation[f"eval_{best_metric}"], -evaluation["eval_loss"]
    return max(evaluations, key=key)


def figures_by_task(result):
    """[("", the figures)] of the results.json of one task, [("NAME: ", its figures), ...] of that of several."""
    return [(f"{name}: ", figures) for name, figures in result["tasks"].items()] if "tasks" in result else [("", result)]


def describe_result(result):
    """The figures of a finished run in one line."""
    words = [f"{task}{name} accuracy {figures[name]['eval_accuracy']:.4%} (epoch {figures[name]['epoch']})"
             for task, figures in figures_by_task(result) for name in ("best", "last", "test") if name in figures]
    words += [f"diverged at update {result['diverged']['global_step']}"] if "diverged" in result else []
    return ", ".join(words + [f"{result['train_seconds']:.0f} s of training, {result['peak_memory_mib']:,} MiB"])


def summarize_seeds(seeds, results):
    """(what summary.json holds, the lines to print): mean and standard deviation (n - 1) over the seeds of the accuracy,
    and of every other metric, of the best and the last epoch and of the test."""
    summary, lines = {"seeds": seeds}, []
    by_task = [dict(figures_by_task(result)) for result in results]
    for task, figures in by_task[0].items():
        own = summary.setdefault("tasks", {}).setdefault(task.removesuffix(": "), {}) if task else summary
        for name in ("best", "last", "test"):
            if name not in figures:
                continue
            values = {metric: np.array([of_seed[task][name][f"eval_{metric}"] for of_seed in by_task]) for metric in METRICS}
            statistics = {metric: {"mean": of_seeds.mean(), "std": of_seeds.std(ddof=1), "values": of_seeds.tolist()}
                          for metric, of_seeds in values.items()}
            own[name] = statistics["accuracy"] | {"metrics": statistics}
            lines.append(f"{task}{name} over {len(seeds)} seeds: " + ", ".join(
                f"{metric} {statistics[metric]['mean']:{form}} (std {statistics[metric]['std']:{form}})"
                for metric in METRICS for form in (".4%" if METRICS[metric].in_percent else ".4f",)))
    return summary, lines
