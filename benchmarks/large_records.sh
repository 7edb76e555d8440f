#!/usr/bin/env bash
# Do the records of all seven data sets together fit in memory? A corpus of as many documents as they have (3.3 million) is made
# of the rows at hand, in their shares, two new words in each document; create_pretraining_data.py makes its records.
#
#     DATA=folder_of_the_data_sets VOCAB=vocab.txt bash benchmarks/large_records.sh
#
# Needs 22 GB of disk in OUT, and leaves them there; the result is in results/large_records.jsonl.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-downloads} VOCAB=${VOCAB:?the vocabulary of bert-base-uncased} OUT=${OUT:-large_records}
PYTHON=${PYTHON:-.venv/bin/python} RESULTS=${RESULTS:-benchmarks/results/large_records.jsonl} SHARE=${SHARE:-1} DUPE=${DUPE:-3}

mkdir -p "$OUT"
"$PYTHON" - "$DATA" "$OUT/corpus.txt" "$SHARE" << 'PROGRAM'
import csv
import itertools
import re
import sys

folder, target, share = sys.argv[1:]
# files of rows, documents; Yahoo! Answers' 1.4 million are stood for by Yelp's, which are as long
PARTS = ((("ag/train.csv", "ag/test.csv"), 120_000), (("dbpedia/train.csv", "dbpedia/test.csv"), 560_000),
         (("yelp_f/train.csv", "yelp_f/test.csv", "yelp_p/train.csv", "yelp_p/test.csv"), 650_000 + 560_000 + 1_400_000),
         (("imdb/train.csv", "imdb/test.csv"), 25_000), (("trec/train.csv",), 5_452))
number = itertools.count()
with open(target, "w", encoding="utf-8") as out:
    for files, documents in PARTS:
        rows = []
        for name in files:
            with open(f"{folder}/{name}", encoding="utf-8", newline="") as file:
                tabs = name.startswith(("imdb", "trec"))
                lines = (line.rstrip("\n").split("\t") for line in file) if tabs else csv.reader(file)
                rows += [[part for text in row[1:] for part in re.split(r"(?<=[.!?]) +", text.strip()) if part]
                         for row in lines]
        for sentences in itertools.islice(itertools.cycle(rows), int(documents * float(share))):
            n = next(number)
            out.write("\n".join(sentences) + f"\nWord{n:x}q and name{n:x}z came.\n\n")
PROGRAM
"$PYTHON" benchmarks/measure.py --name "records of 3.3 million documents x $SHARE, dupe factor $DUPE" --results "$RESULTS" -- \
    "$PYTHON" create_pretraining_data.py --input_file "$OUT/corpus.txt" --output_file "$OUT/records.tfrecord" \
    --vocab_file "$VOCAB" --do_lower_case=True --max_seq_length=128 --max_predictions_per_seq=20 --masked_lm_prob=0.15 \
    --random_seed=12345 --dupe_factor="$DUPE"
