#!/usr/bin/env bash
# Exp-I, section 5.3.4, Table 4: a learning rate for each layer, 1.00, 0.95, 0.90 or 0.85 times that of the layer above. IMDb.
# Settings and how to resume: scripts/experiment.sh.
# Fine-tunes BERT-base 8 times for each seed, 2 of them other tables' runs: about 25 minutes a seed. 0.5 GB, BERT-base itself.
# Ours: the embeddings, the pooler and the classifier have the top layer's rate, as in the authors' code.
source "$(dirname "$0")/experiment.sh"

for rate in 2.5e-5 2.0e-5; do
    for decay in 1.00 0.95 0.90 0.85; do
        case ${rate}_$decay in
            2.0e-5_1.00) head_tail imdb base ;;       # one rate for all layers
            2.0e-5_0.95) fit none/imdb imdb base ;;
            *) fine_tune "layer_wise_lr/$(times $rate)_$decay/imdb" imdb base run_classifier_discriminative.py \
                --trunc_medium "$HEAD" --learning_rate $(times $rate) --layer_learning_rate $(times $rate) \
                --layer_learning_rate_decay $decay ;;
        esac
    done
done
finish table4
