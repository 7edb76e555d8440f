#!/usr/bin/env bash
# Which corpus gives the paper's 4.37% on IMDb? The paper pre-trains further on training texts; the authors' script writes the
# test texts too; IMDb is published with HTML in it; and their sentences are a spaCy model's. Further pre-training on each
# combination, BERT-FiT after each.
# Settings and how to resume: scripts/experiment.sh. SENTENCES lists how to split them (default: rules, and model where
# en_core_web_md is installed). For each way 4 further pre-trainings of BERT-base and, for each seed, 4 fine-tunings, of
# which one is Table 5's: about 3 hours, and 12 minutes a seed. 7 GB for each way, and 12 more for the checkpoints that the
# shared run keeps.
# Ours: all of it; where the corpus keeps its HTML, so does the fine-tuning.
source "$(dirname "$0")/experiment.sh"
own=$([ -n "$SPACY_MODEL" ] && echo model || echo rules)  # what all other experiments take
SENTENCES=${SENTENCES:-rules ${authors_model:+model}}

variant() {  # variant SPLITS TEXT SENTENCES [flags for the corpus alone]
    local html= name=corpus/${1}_${2}_$3 SPACY_MODEL=$([ "$3" = rules ] || echo "${SPACY_MODEL:-en_core_web_md}")
    [ "$2" = stripped ] || html=--keep_html
    if [ "$1_$2_$3" = "train_stripped_$own" ]; then  # the run is there under another name
        pretrain imdb base imdb
        fit imdb/imdb imdb imdb
        job "$name/imdb" cpu imdb/imdb - ln -sfn ../../imdb/imdb "$OUT/$name/imdb"
        return
    fi
    pretrain "$name" base imdb $html "${@:4}"
    fit "$name/imdb" imdb "$name" $html
}

for sentences in $SENTENCES; do
    for text in stripped html; do
        variant train $text "$sentences"
        variant train_test $text "$sentences" --splits train test
    done
done
finish corpus
