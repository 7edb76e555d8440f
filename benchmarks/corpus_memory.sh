#!/usr/bin/env bash
# Does memory grow with the corpus? generate_corpus.py reads 5 and then 44 copies of AG's training rows (COPIES), two
# new words in each row, in one process; the wall time and peak memory of each are recorded.
#
#     DATA=folder_of_the_data_sets bash benchmarks/corpus_memory.sh
#
# 11 minutes on 2 cores beside two other busy processes (results/corpus_memory.jsonl).
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-downloads} OUT=${OUT:-corpus_memory} PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-benchmarks/results/corpus_memory.jsonl}

for copies in ${COPIES:-5 44}; do
    mkdir -p "$OUT/$copies"
    "$PYTHON" - "$DATA/ag/train.csv" "$OUT/$copies/train.csv" "$copies" << 'PROGRAM'
import csv
import sys

source, target, copies = sys.argv[1:]
with open(source, encoding="utf-8", newline="") as file:
    rows = list(csv.reader(file))
with open(target, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    for number, (label, title, text) in enumerate(rows * int(copies), 1):
        writer.writerow([label, title, f"{text} Word{number:x}q and name{number:x}z came."])
PROGRAM
    "$PYTHON" benchmarks/measure.py --name "corpus of $copies copies" --results "$RESULTS" -- \
        "$PYTHON" generate_corpus.py --task_name ag --data_dir "$OUT/$copies" --output_file "$OUT/$copies/corpus.txt" \
        --num_processes 1
done
