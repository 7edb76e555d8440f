#!/usr/bin/env bash
# Exp-V, Table 8: BERT-large and BERT-base, with and without further pre-training on the task's texts.
# Settings and how to resume: scripts/experiment.sh. BERT_LARGE is the folder of BERT-large. 5 further pre-trainings of
# each model and 2 x 2 x 5 fine-tunings for each seed: about 14 hours, and 14 hours a seed. On a small GPU:
# FLAGS="--bf16 --gradient_checkpointing".
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb yelp_p yelp_f ag dbpedia}
LARGE_STEPS=${LARGE_STEPS:-$((STEPS + STEPS / 5))}  # 120,000, as in the paper

further() {  # further TASK: both models, further pre-trained on the task
    pretrain "$1" base "$1"
    fit "$1/$1" "$1" "$1"
    STEPS=$LARGE_STEPS pretrain "large_$1" large "$1" --train_batch_size=24
    fit "large_$1/$1" "$1" "large_$1"
}

prepare large "${BERT_LARGE:-downloads/uncased_L-24_H-1024_A-16}"
for task in $TASKS; do
    spawn fit "none/$task" "$task" base
    spawn fit "large_none/$task" "$task" large
    spawn further "$task"
done
finish table8
