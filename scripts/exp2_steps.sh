#!/usr/bin/env bash
# Exp-II, Figure 3: how much further pre-training on the task's own texts helps, by its steps. IMDb, BERT-FiT after each
# checkpoint.
# Settings and how to resume: scripts/experiment.sh. One further pre-training of BERT-base (STEPS updates, POINTS
# checkpoints) and 11 fine-tunings for each seed: about 45 minutes, and 35 minutes a seed.
# To go beyond the paper's best: STEPS=200000 POINTS=20 WARMUP=10000 OUT=a_folder_of_its_own.
source "$(dirname "$0")/experiment.sh"

spawn fit none/imdb imdb base
pretrain imdb base imdb
for point in $(seq 1 "$POINTS"); do
    step=$((STEPS / POINTS * point))
    convert imdb $step "imdb_$step"
    spawn fit "steps/$step/imdb" imdb "imdb_$step"
done
finish figure3
