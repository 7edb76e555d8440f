#!/usr/bin/env bash
# Exp-II, section 5.4.2, Table 5: further pre-training on each data set, each domain, all of them; BERT-FiT on each data set.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets, CORPORA what to pre-train on (CORPORA=
# for nothing). 11 further pre-trainings of BERT-base and, for each seed, 12 x 7 fine-tunings: about 8 hours, and 33
# hours a seed. 38 GB, and up to 73 more of records on the way.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-${DOMAIN_TASKS:-imdb yelp_p yelp_f trec yahoo ag dbpedia}}

for task in $TASKS; do
    fit "none/$task" "$task" base
done
for name in ${CORPORA-$TASKS sentiment question topic all}; do
    pretrain "$name" base "$(texts_of "$name")"
    for task in $TASKS; do
        fit "$name/$task" "$task" "$name"
    done
done
finish table5
