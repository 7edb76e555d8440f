"""Prints what a quickstart run measured: python scripts/quickstart_table.py FOLDER"""
import glob
import json
import os
import sys


def accuracies(folder):
    """(seeds, best and last test accuracies) of a fine-tuning folder with one seed or several."""
    paths = [path for where in ("", "seed_*") for path in sorted(glob.glob(os.path.join(folder, where, "results.json")))]
    results = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            results.append(json.load(file))
    return [[result[key]["eval_accuracy"] for result in results] for key in ("best", "last")]


def main():
    folder = sys.argv[1]
    print(f"\n{'test accuracy of':<34}{'best epoch':>12}{'last epoch':>12}   each seed, last epoch")
    for name, words in (("tiny_bert", "tiny BERT"), ("further_pretrained", "tiny BERT, further pre-trained")):
        best, last = accuracies(os.path.join(folder, f"ag_{name}"))
        print(f"{words:<34}{sum(best) / len(best):>12.2%}{sum(last) / len(last):>12.2%}   "
              + " ".join(f"{value:.2%}" for value in last))
    print(f"\n{'step':<34}{'seconds':>12}")
    total = 0
    for path in sorted(glob.glob(os.path.join(folder, "logs", "*.seconds")), key=os.path.getmtime):
        with open(path, encoding="utf-8") as file:
            seconds = int(file.read())
        total += seconds
        print(f"{os.path.basename(path).removesuffix('.seconds'):<34}{seconds:>12}")
    print(f"{'all':<34}{total:>12}")
    with open("data/new_texts.txt", encoding="utf-8") as texts, \
            open(os.path.join(folder, "predictions", "predictions.tsv"), encoding="utf-8") as predictions:
        print(f"\n{next(predictions).rstrip()}   text")
        for prediction, text in zip(predictions, texts):
            print(f"{prediction.rstrip()}   {text.rstrip()[:70]}")


if __name__ == "__main__":
    main()
