#!/usr/bin/env bash
# The authors' released BERT, further pre-trained on IMDb's texts (test error in the paper: 4.37%), fine-tuned by BERT-FiT. If
# this meets the paper's figure and our own further pre-training (imdb/imdb, Table 5) does not, the pre-training differs; if
# neither does, the fine-tuning.
# Settings and how to resume: scripts/experiment.sh. RELEASED is the authors' pytorch_model_len128_imdb.bin, which lies in the
# same folder as Sogou News and is downloaded by hand (data/README.md); without it nothing is done.
# One fine-tuning of BERT-base for each seed: about 3 minutes a seed. 0.5 GB, BERT-base itself.
source "$(dirname "$0")/experiment.sh"
RELEASED=${RELEASED:-downloads/pytorch_model_len128_imdb.bin}

# Vocabulary and configuration are BERT-base's. Of a flag that is given twice the last counts.
[ -z "$(if_there "the authors' checkpoint" "$RELEASED")" ] || fit released/imdb imdb base --init_checkpoint "$RELEASED"
finish released
