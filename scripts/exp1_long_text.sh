#!/usr/bin/env bash
# Exp-I, section 5.3.1, Table 2: how to read a long text: its head, its tail, both, or all of it in fractions. IMDb and Sogou.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets; Sogou needs BERT_CHINESE, and is left out where
# it was not downloaded.
# Fine-tunes BERT-base 6 times on each data set for each seed: about 2 hours a seed. 1 GB.
# Ours: the feature of the head, tail and head+tail rows, the pooled output as in the authors' code (LAST_LAYER=1: the state).
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-${LONG_TASKS:-imdb $(if_there sogou "$DATA/sogou" "$BERT_CHINESE")}}

for task in $TASKS; do
    model=base
    if [ "$task" = sogou ]; then
        model=chinese
        prepare chinese "$BERT_CHINESE"
    fi
    method() {  # method NAME [flags]
        fine_tune "long_text/$1/$task" "$task" $model run_classifier_single_layer.py --learning_rate "$RATE" "${@:2}"
    }
    method head_only --trunc_medium -2
    method tail_only --trunc_medium -1
    head_tail "$task" $model
    method hier_mean --hierarchical mean
    method hier_max --hierarchical max
    method hier_self_attention --hierarchical self_attention
done
finish table2
