#!/usr/bin/env bash
# Exp-I, Table 4: a learning rate for each layer, 1.00, 0.95, 0.90 or 0.85 times that of the layer above. IMDb.
# Settings and how to resume: scripts/experiment.sh.
# Fine-tunes BERT-base 8 times for each seed: about 25 minutes a seed.
source "$(dirname "$0")/experiment.sh"

for rate in 2.5e-5 2.0e-5; do
    for decay in 1.00 0.95 0.90 0.85; do
        spawn fine_tune "layer_wise_lr/${rate}_$decay/imdb" imdb base run_classifier_discriminative.py \
            --trunc_medium "$HEAD" --learning_rate $rate --layer_learning_rate $rate --layer_learning_rate_decay $decay
    done
done
finish table4
