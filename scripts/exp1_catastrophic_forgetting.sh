#!/usr/bin/env bash
# Exp-I, section 5.3.3, Figure 2: learning curves at four rates. At 4e-4 BERT forgets what it knew, and the training does not
# converge. IMDb, head+tail.
# Settings and how to resume: scripts/experiment.sh. RATES lists the rates (default: RATE and multiples of it).
# Fine-tunes BERT-base 4 times for each seed (2e-5 is Table 2's head+tail): about 15 minutes a seed. 0.5 GB, BERT-base itself.
# Ours: a point every tenth of an epoch, the test error on 2,000 examples; a run that diverges is a curve like any other.
source "$(dirname "$0")/experiment.sh"

for rate in ${RATES:-$RATE $(times 5e-5) $(times 1e-4) $(times 4e-4)}; do
    if [ "$rate" = "$RATE" ]; then
        head_tail imdb base
    else
        fine_tune "catastrophic_forgetting/$rate/imdb" imdb base run_classifier_single_layer.py --learning_rate "$rate" \
            --trunc_medium "$HEAD" $CURVE
    fi
done
finish figure2
