#!/usr/bin/env bash
# Exp-I, Figure 2: learning curves at four rates. At 4e-4 BERT forgets what it knew and does not converge. IMDb,
# head+tail.
# Settings and how to resume: scripts/experiment.sh.
# Fine-tunes BERT-base 4 times for each seed: about 12 minutes a seed. RATES lists the rates.
source "$(dirname "$0")/experiment.sh"
RATES=${RATES:-2e-5 5e-5 1e-4 4e-4}

for rate in $RATES; do
    spawn fine_tune "catastrophic_forgetting/$rate/imdb" imdb base run_classifier_single_layer.py \
        --learning_rate $rate --trunc_medium "$HEAD"
done
finish figure2
