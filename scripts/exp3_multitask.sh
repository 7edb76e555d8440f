#!/usr/bin/env bash
# Exp-III, section 5.5, Table 7: four tasks on one encoder, then each alone at a lower rate, starting from BERT and from BERT
# after cross-domain further pre-training.
# Settings and how to resume: scripts/experiment.sh. Shares runs with exp2_domains.sh. For each seed 2 multi-task and
# 2 x 4 single-task fine-tunings of BERT-base, besides those of BERT-FiT and BERT-CDPT-FiT: about 6 hours a seed, and 2 for the
# further pre-training. 4 GB, and 4 a seed.
# Ours: tasks are drawn in proportion to their sizes; the second stage goes on from the last epoch of the first, at half its
# rate, 1e-5; with TRAIN_PARTS the first takes the first task's part of each.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-${MULTI_TASKS:-imdb yelp_p ag dbpedia}}

start() {  # start NAME MODEL: multi-task fine-tuning of MODEL, then of each task alone, for each seed
    local together task seed model=$OUT/models/$2
    for task in $TASKS; do
        fit "$1/$task" "$task" "$2"
    done
    for seed in $SEEDS; do
        together=multitask/$1/together/seed_$seed
        job "$together" gpu "models/$2 $data_job" - python run_classifier_multitask.py --task_name $TASKS --do_train --do_eval \
            $lower_case --data_dir "$DATA" --vocab_file "$model/vocab.txt" --bert_config_file "$model/config.json" \
            --init_checkpoint "$model" --max_seq_length "$LENGTH" --trunc_medium "$HEAD" --train_batch_size 24 \
            --learning_rate "$RATE" --num_train_epochs "$EPOCHS" --warmup_proportion 0.1 --task_sampling_alpha 1.0 \
            --seed "$seed" --save_models last --output_dir "$OUT/$together" $(feature "$2") $(parts "${TASKS%% *}") ${FLAGS:-}
        for task in $TASKS; do
            job "multitask/$1/$task/seed_$seed" gpu "$together" - python run_classifier_discriminative.py --task_name "$task" \
                --do_train --do_eval $lower_case --data_dir "$DATA/$task" --max_seq_length "$LENGTH" \
                --trunc_medium "$HEAD" --init_checkpoint "$OUT/$together/$task/last" --train_batch_size 24 \
                --learning_rate "$(times 1e-5)" --layer_learning_rate "$(times 1e-5)" --layer_learning_rate_decay 0.95 \
                --num_train_epochs "$EPOCHS" --warmup_proportion 0.1 --seed "$seed" --save_models none \
                --output_dir "$OUT/multitask/$1/$task/seed_$seed" $(feature "$2") $(parts "$task") ${FLAGS:-}
        done
    done
}

start none base
pretrain all base "$(texts_of all)"
start all all
finish table7
