#!/usr/bin/env bash
# Exp-II, section 5.4.1, Figure 3: how much further pre-training on the task's own texts helps, by its steps. IMDb, BERT-FiT
# after each checkpoint.
# Settings and how to resume: scripts/experiment.sh. One further pre-training of BERT-base (STEPS updates, POINTS
# checkpoints) and 11 fine-tunings for each seed: about 45 minutes, and 35 minutes a seed. 18 GB, 13 of them checkpoints.
# STEP_LIST names some of the checkpoints, which are STEPS/POINTS updates apart (default: all).
# To go beyond the paper's best: STEPS=200000 POINTS=20 WARMUP=10000 OUT=a_folder_of_its_own.
# Ours: ten points; each is of one run of STEPS updates, whose rate has not come down to 0 but at the last.
source "$(dirname "$0")/experiment.sh"

fit none/imdb imdb base
pretrain imdb base imdb
between=$((STEPS / POINTS))
for step in ${STEP_LIST:-$(seq $between $between $((between * (POINTS - 1))))}; do
    [[ "$step" =~ ^[1-9][0-9]*$ ]] && [ "$step" -lt "$STEPS" ] && [ $((step % between)) = 0 ] || {
        echo "$0: STEP_LIST: no checkpoint after $step of $STEPS updates, they are $between apart; set POINTS" >&2; exit 2; }
    convert imdb $step "imdb_$step"
    fit "steps/$step/imdb" imdb "imdb_$step"
done
fit imdb/imdb imdb imdb  # the last point
finish figure3
