#!/usr/bin/env bash
# Exp-II, Figure 3: how many steps of further pre-training on the task's own texts help. IMDb, BERT-FiT after each.
# Variables and what may be typed again: scripts/experiment.sh.
# One further pre-training of BERT-base (STEPS updates, POINTS checkpoints), 11 x SEEDS fine-tunings: about
# 45 minutes, and 35 minutes a seed.
source "$(dirname "$0")/experiment.sh"

spawn fit none/imdb imdb base
pretrain imdb base imdb
for point in $(seq 1 "$POINTS"); do
    step=$((STEPS / POINTS * point))
    convert imdb $step "imdb_$step"
    spawn fit "steps/$step/imdb" imdb "imdb_$step"
done
finish figure3
