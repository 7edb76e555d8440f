#!/usr/bin/env bash
# A classifier of your own texts in one command, as the paper recommends: BERT further pre-trained on the texts, then BERT-FiT
# (head+tail, a rate for each layer, decay 0.95), beside the same without further pre-training; then a report with a table,
# learning curves, the confusion matrix, the ten worst mistakes and the command to predict.
#
#     DATA=my_data BERT=uncased_L-12_H-768_A-12 bash scripts/your_data.sh     # the same again goes on
#     DATA=my_data BERT=uncased_L-12_H-768_A-12 bash scripts/your_data.sh --status
#
# BERT is a folder, or a name on the Hub of Hugging Face such as google-bert/bert-base-cased. DATA has the tables train and test
# (docs/formats.md), if you like dev, and unlabelled.txt: more texts of the kind, one a line, for further pre-training alone.
# Settings, beside those of scripts/experiment.sh (GPUS, FLAGS, STEPS, LENGTH, EPOCHS, LOWER_CASE, ...):
#
#     OUT           folder of all runs; the report is OUT/report/report.md (default: your_data)
#     LABEL, TEXTS  columns of the label and of the texts (default: label, text); several texts are separated by spaces, or by
#                   commas where there is one: TEXTS="title body", TEXTS="Review Text," for a name with a space in it
#     TABLE_FLAGS   more flags for reading the tables, for example --sep tab (default: none)
#     DEV_FRACTION  held-out part of the training data that chooses the best epoch, where there is no dev table (default: 0.1)
#     SEEDS         seeds of the fine-tunings (default: 42)
#     TEXT_LANGUAGE  en or zh, for the ends of sentences (default: en)
#     NEVER_SPLIT   file of own tokens, such as [URL] or @user, for all steps (default: DATA/never_split.txt, if it is there)
#
# STEPS is the paper's 100000, about an hour on a GPU; take fewer for few texts or a CPU. NEXT_SENTENCE=False for tweets and
# other texts of one sentence.
refuse() {
    echo "your_data.sh: error: $1" >&2
    exit 2
}
unset CDPATH
[ -d "${DATA:-}" ] || refuse "DATA='${DATA:-}' is no folder; name that of your tables train and test"
if [ -d "${BERT:-}" ]; then
    BERT=$(cd "$BERT" && pwd)
elif [[ "${BERT:-}" =~ ^[[:alnum:]][[:alnum:]._-]*(/[[:alnum:]._-]+)?(@.+)?$ ]]; then
    ON_HUB=$BERT
else
    refuse "BERT='${BERT:-}' is no folder; name that of a BERT, such as data/download.py gets"
fi
DATA=$(cd "$DATA" && pwd -P) OUT=${OUT:-your_data} SEEDS=${SEEDS:-42}
[ "${TEXT_LANGUAGE:=en}" = en ] || SPACY_MODEL=
[ ! -e "$DATA/never_split.txt" ] || NEVER_SPLIT=${NEVER_SPLIT:-$DATA/never_split.txt}
[ ! -e "${NEVER_SPLIT:-}" ] || NEVER_SPLIT=$(realpath "$NEVER_SPLIT")  # as DATA, whatever the folder of the command
source "$(dirname "$0")/experiment.sh"
table() {  # table SPLIT: the table of that split in DATA, of any of the kinds that are read (READERS of common/tables.py)
    local kind
    for kind in csv tsv jsonl json csv.gz tsv.gz jsonl.gz json.gz parquet xlsx; do
        if [ -e "$DATA/$1.$kind" ]; then echo "$DATA/$1.$kind"; return; fi
    done
}

test_table=$(table test)
[ -n "$test_table" ] || refuse "there is no table test in $DATA"
between=' '
[[ "${TEXTS:-text}" != *,* ]] || between=,
IFS=$between read -ra texts <<< "${TEXTS:-text}"
read_as=(--text_columns "${texts[@]# }" ${TABLE_FLAGS:-})
develop="--dev_fraction ${DEV_FRACTION:-0.1}"
[ -z "$(table dev)" ] || develop=
unlabelled=$DATA/unlabelled.txt
[ -e "$unlabelled" ] || unlabelled=
data_job=tables  # what they hold is part of what a job is made of: changed tables are seen, and the runs refuse them
job tables cpu "" - true "$(cat "$DATA"/{train,dev,test}.* "$unlabelled" "${NEVER_SPLIT:-}" 2> /dev/null | cksum)"

names=
for model in base own; do  # base first: a wrong setting shows before the long further pre-training
    [ "$model" = base ] || pretrain own base csv --language "$TEXT_LANGUAGE" "${read_as[@]}" \
        ${unlabelled:+--unlabelled_file "$unlabelled"}
    fit "fine_tuned/$model" csv "$model" --data_dir "$DATA" --label_column "${LABEL:-label}" "${read_as[@]}" $develop \
        ${NEVER_SPLIT:+--never_split "$NEVER_SPLIT"} --save_models best ${FLAGS:-}  # last, so that yours count
    job "predictions/$model" gpu "fine_tuned/$model" - python run_classifier_discriminative.py --do_predict \
        --predict_file "$test_table" --init_checkpoint "$OUT/fine_tuned/$model/seed_${SEEDS%% *}/best" \
        --output_dir "$OUT/predictions/$model"
    names+=" fine_tuned/$model predictions/$model"
done
job report last "$names" - python scripts/your_data_report.py --runs "$OUT" --data_dir "$DATA" --seed "${SEEDS%% *}" \
    --output_dir "$OUT/report"
run_plan
