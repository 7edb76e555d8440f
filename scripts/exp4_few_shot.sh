#!/usr/bin/env bash
# Exp-IV, section 5.6, Figure 4: test error against the share of IMDb's training data, with and without further pre-training on
# all of its texts.
# Settings and how to resume: scripts/experiment.sh. FRACTIONS lists the shares; 1 is all of the data. One further
# pre-training of BERT-base and 2 x 8 fine-tunings for each seed: about 45 minutes, and 20 minutes a seed. 14 GB, all of which
# exp2_steps.sh has too.
# Ours: the shares between 0.4% and 100%; all have 4 epochs, so that a small share has few updates. With MIN_UPDATES it has as
# many epochs as these take.
source "$(dirname "$0")/experiment.sh"

examples=25000  # IMDb's, for training
shared=$(part imdb "$TRAIN_PARTS")  # what the other experiments train on

epochs() {  # epochs SHARE: EPOCHS, or more for MIN_UPDATES of 24 reviews
    awk "BEGIN {few = int($MIN_UPDATES * 24 / ($examples * $1) + 0.99); print (few > $EPOCHS ? few : $EPOCHS)}"
}

curve() {  # curve NAME MODEL
    for fraction in ${FRACTIONS:-0.004 0.01 0.02 0.05 0.1 0.2 0.5 1}; do
        if awk "BEGIN {shared = ${shared:-1}; exit $fraction != (shared > 1 ? shared / $examples : shared)}"; then
            fit "$1/imdb" imdb "$2"
        else  # 1.0, as 1 would be one example
            fit "few_shot/$1/$fraction/imdb" imdb "$2" --num_datas "$([ "$fraction" = 1 ] && echo 1.0 || echo "$fraction")" \
                ${MIN_UPDATES:+--num_train_epochs "$(epochs "$fraction")"}
        fi
    done
}

curve none base
pretrain imdb base imdb
curve imdb imdb
finish figure4
