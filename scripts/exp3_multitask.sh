#!/usr/bin/env bash
# Exp-III, Table 7: four tasks on one encoder, then each alone at a lower rate, starting from BERT and from BERT after
# cross-domain further pre-training.
# Settings and how to resume: scripts/experiment.sh. Shares runs with exp2_domains.sh. For each seed 2 multi-task and
# 2 x 4 single-task fine-tunings of BERT-base, besides those of BERT-FiT and BERT-CDPT-FiT: about 6 hours a seed.
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-imdb yelp_p ag dbpedia}

start() {  # start NAME MODEL: multi-task fine-tuning of MODEL, then of each task alone, for each seed
    for task in $TASKS; do
        fit "$1/$task" "$task" "$2"
    done
    for seed in $SEEDS; do
        run "multitask/$1/together/seed_$seed" run_classifier_multitask.py --task_name $TASKS --do_train --do_eval \
            --do_lower_case --data_dir "$DATA" --vocab_file "$OUT/models/$2/vocab.txt" \
            --bert_config_file "$OUT/models/$2/config.json" --init_checkpoint "$OUT/models/$2" \
            --max_seq_length "$LENGTH" --trunc_medium "$HEAD" --train_batch_size 24 --learning_rate 2e-5 \
            --num_train_epochs "$EPOCHS" --warmup_proportion 0.1 --task_sampling_alpha 1.0 --seed "$seed" \
            --output_dir "$OUT/multitask/$1/together/seed_$seed" ${FLAGS:-}
        for task in $TASKS; do
            run "multitask/$1/$task/seed_$seed" run_classifier_discriminative.py --task_name "$task" --do_train \
                --do_eval --do_lower_case --data_dir "$DATA/$task" --max_seq_length "$LENGTH" --trunc_medium "$HEAD" \
                --init_checkpoint "$OUT/multitask/$1/together/seed_$seed/$task/last" --train_batch_size 24 \
                --learning_rate 1e-5 --layer_learning_rate 1e-5 --layer_learning_rate_decay 0.95 \
                --num_train_epochs "$EPOCHS" --warmup_proportion 0.1 --seed "$seed" \
                --output_dir "$OUT/multitask/$1/$task/seed_$seed" ${FLAGS:-}
        done
    done
}

cross_domain() {
    pretrain all base all
    start all all
}

spawn start none base
spawn cross_domain
finish table7
