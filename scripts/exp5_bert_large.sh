#!/usr/bin/env bash
# Exp-V, section 5.7, Table 8: BERT-large and BERT-base, with and without further pre-training on the task's texts.
# Settings and how to resume: scripts/experiment.sh. BERT_LARGE is the folder of BERT-large. 5 further pre-trainings of
# each model and 2 x 2 x 5 fine-tunings for each seed: about 14 hours, and 14 hours a seed. 50 GB, of which 22 are
# exp2_domains.sh's. On a small GPU: FLAGS="--gradient_checkpointing".
# Ours: a decay of 0.95 over BERT-large's 24 layers as over 12, the same rate; its further pre-training reads BERT-base's
# records, and has as many warm-up steps.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb yelp_p yelp_f ag dbpedia}
LARGE_STEPS=${LARGE_STEPS:-$((STEPS + STEPS / 5))}  # 120,000, as in the paper

prepare large "$BERT_LARGE"
for task in $TASKS; do
    fit "none/$task" "$task" base
    pretrain "$task" base "$task"
    fit "$task/$task" "$task" "$task"
    fit "large_none/$task" "$task" large
    read=$task
    if [ -e "$BERT_LARGE/vocab.txt" ] && ! cmp -s "$BERT/vocab.txt" "$BERT_LARGE/vocab.txt"; then
        read=large_$task  # Google's two have one vocabulary, these have not
        records "$read" large "$task"
    fi
    STEPS=$LARGE_STEPS train_on "$read" "large_$task" large --train_batch_size=24
    fit "large_$task/$task" "$task" "large_$task"
done
finish table8
