#!/usr/bin/env bash
# Exp-II, section 5.4.3, Table 6: BERT as fixed features; fine-tuned; and fine-tuned after further pre-training on the texts of
# the task, of its domain, or of all domains.
# Settings and how to resume: scripts/experiment.sh. TASKS lists the data sets; Sogou needs BERT_CHINESE, and is left out where
# it was not downloaded. Shares runs with exp2_domains.sh. 12 further pre-trainings of BERT-base and, for each seed, 8 trainings
# on frozen BERT-base and 30 fine-tunings: about 9 hours, and 15 hours a seed. 41 GB, 38 of them exp2_domains.sh's.
# Ours: BERT-Feat takes the last layer, and its rate is 1e-3; the paper names neither.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-${DOMAIN_TASKS:-imdb yelp_p yelp_f trec yahoo ag dbpedia $(if_there sogou "$DATA/sogou" "$BERT_CHINESE")}}

further() {  # further NAME MODEL TASK...: BERT-FiT on those of the tasks that are in TASKS, after further pre-training on NAME
    local task is_declared=
    for task in "${@:3}"; do
        if [[ " $TASKS " == *" $task "* ]]; then
            [ -n "$is_declared" ] || pretrain "$1" "$2" "$(texts_of "$1")"
            is_declared=1
            fit "$1/$task" "$task" "$1"
        fi
    done
}

for task in $TASKS; do
    model=base
    if [ "$task" = sogou ]; then
        model=chinese
        prepare chinese "$BERT_CHINESE"
    fi
    fine_tune "feat/$task" "$task" $model run_classifier_single_layer.py --frozen_bert --classifier bilstm_attention \
        --layers $((LAYERS - 1)) --pooling_type cls --learning_rate 1e-3 --trunc_medium "$HEAD"
    fit "none/$task" "$task" $model
    further "$task" $model "$task"
done
further sentiment base imdb yelp_p yelp_f
further question base trec yahoo
further topic base ag dbpedia
further all base imdb yelp_p yelp_f trec yahoo ag dbpedia
finish table6
