#!/usr/bin/env bash
# Exp-I, Table 2: how to read a long text: its head, its tail, both, or all of it in fractions. IMDb and Sogou.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets; Sogou needs BERT_CHINESE.
# Fine-tunes BERT-base 6 times on each data set for each seed: about 2 hours a seed.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb sogou}

method() {  # method NAME [flags]
    for task in $TASKS; do
        model=base
        [ "$task" != sogou ] || model=chinese
        spawn fine_tune "long_text/$1/$task" "$task" $model run_classifier_single_layer.py --learning_rate 2e-5 "${@:2}"
    done
}

[[ " $TASKS " != *" sogou "* ]] || prepare chinese "${BERT_CHINESE:-downloads/chinese_L-12_H-768_A-12}"
method head_only --trunc_medium -2
method tail_only --trunc_medium -1
method head+tail --trunc_medium "$HEAD"
method hier_mean --hierarchical mean
method hier_max --hierarchical max
method hier_self_attention --hierarchical self_attention
finish table2
