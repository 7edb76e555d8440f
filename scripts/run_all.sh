#!/usr/bin/env bash
# All experiments of the paper in one queue, and the two that ask where its best figure comes from: what several of them need is
# done once, one run on each GPU at a time, further pre-trainings first. Writes all tables, figures and findings to OUT/results.
#
#     bash scripts/run_all.sh               # all of it; the same again goes on
#     bash scripts/run_all.sh --status      # how far it is, and the hours that are left
#     DRY_RUN=1 bash scripts/run_all.sh     # the commands
#     SMOKE=1 bash scripts/run_all.sh       # all of it on the sample, about five minutes on 2 cores
#     GPUS=0,1,2,3 bash scripts/run_all.sh  # on these GPUs
#
# Settings: scripts/experiment.sh; those of one experiment, such as TASKS, hold for all that know them. With three seeds about
# 200 hours on one GPU of the kind that is assumed there, 25 on eight. 90 GB, and up to 75 more of records on the way.
source "$(dirname "$0")/experiment.sh"

for name in ${EXPERIMENTS:-exp1_long_text exp1_layers exp1_catastrophic_forgetting exp1_layer_wise_lr exp2_steps exp2_domains \
    exp2_comparison exp3_multitask exp4_few_shot exp5_bert_large exp_released exp2_corpus}; do
    declared+=$(DECLARE=jobs bash "scripts/$name.sh")$'\n'
done
finish
