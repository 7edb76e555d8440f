#!/usr/bin/env bash
# Exp-II, Table 6: BERT as fixed features; fine-tuned; and fine-tuned after further pre-training on the texts of the
# task, of its domain, or of all domains.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets; Sogou needs BERT_CHINESE. Shares runs
# with exp2_domains.sh. 12 further pre-trainings of BERT-base and, for each seed, 8 trainings on frozen BERT-base and 30
# fine-tunings: about 9 hours, and 15 hours a seed.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb yelp_p yelp_f trec yahoo ag dbpedia sogou}

method() {  # method MODEL TASK: BERT-Feat, and BERT-FiT without further pre-training
    fine_tune "feat/$2" "$2" "$1" run_classifier_single_layer.py --frozen_bert --classifier bilstm_attention \
        --learning_rate 1e-3 --trunc_medium "$HEAD"
    fit "none/$2" "$2" "$1"
}

further() {  # further NAME MODEL TASK...: BERT-FiT on each task after further pre-training on NAME
    [ $# -gt 2 ] || return 0
    pretrain "$1" "$2" "$1"
    for task in "${@:3}"; do
        fit "$1/$task" "$task" "$1"
    done
}

chosen() {  # chosen TASK...: prints those that are in TASKS
    for task in "$@"; do
        [[ " $TASKS " != *" $task "* ]] || echo "$task"
    done
}

[ -z "$(chosen sogou)" ] || prepare chinese "${BERT_CHINESE:-downloads/chinese_L-12_H-768_A-12}"
for task in $TASKS; do
    model=base
    [ "$task" != sogou ] || model=chinese
    spawn method $model "$task"
    spawn further "$task" $model "$task"
done
spawn further sentiment base $(chosen imdb yelp_p yelp_f)
spawn further question base $(chosen trec yahoo)
spawn further topic base $(chosen ag dbpedia)
spawn further all base $(chosen imdb yelp_p yelp_f trec yahoo ag dbpedia)
finish table6
