#!/usr/bin/env bash
# Exp-I, section 5.3.2, Table 3: which layers feed the classifier: each alone, the first 4, the last 4, or all. IMDb, head+tail.
# Settings and how to resume: scripts/experiment.sh. ENDS=2 takes the first and last 2 layers, for a smaller BERT.
# LAYERS is the number of layers of the BERT (default: what its configuration says).
# Fine-tunes BERT-base 19 times for each seed: about 1 hour a seed. 0.5 GB, BERT-base itself.
source "$(dirname "$0")/experiment.sh"
ENDS=${ENDS:-4}
top=$((LAYERS - 1))

layers() {  # layers NAME [flags]
    fine_tune "layers/$1/imdb" imdb base run_classifier_single_layer.py --learning_rate "$RATE" --trunc_medium "$HEAD" "${@:2}"
}

for layer in $(seq 0 $top); do
    layers "layer_$layer" --layers "$layer"
done
for pooling in concat mean max; do
    layers "first_${ENDS}_$pooling" --layers $(seq 0 $((ENDS - 1))) --layer_pooling $pooling
    layers "last_${ENDS}_$pooling" --layers $(seq $((top - ENDS + 1)) $top) --layer_pooling $pooling
done
layers "all_${LAYERS}_concat" --layers -1
finish table3
