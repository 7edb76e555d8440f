#!/usr/bin/env bash
# Exp-II, Table 5: further pre-training on each data set, each domain, and all of them; BERT-FiT on each data set.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets, CORPORA what to pre-train on (CORPORA=
# for nothing). 11 further pre-trainings of BERT-base and, for each seed, 12 x 7 fine-tunings: about 8 hours, and 33
# hours a seed.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb yelp_p yelp_f trec yahoo ag dbpedia}
CORPORA=${CORPORA-$TASKS sentiment question topic all}

corpus() {  # corpus NAME: one row of the table
    pretrain "$1" base "$1"
    for task in $TASKS; do
        fit "$1/$task" "$task" "$1"
    done
}

for task in $TASKS; do
    spawn fit "none/$task" "$task" base
done
for name in $CORPORA; do
    spawn corpus "$name"
done
finish table5
