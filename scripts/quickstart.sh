#!/usr/bin/env bash
# The whole pipeline on the sample in data/ with a tiny BERT, and the paper's few-shot question (section 5.6): corpus,
# TFRecord, further pre-training in TensorFlow on all training stories without their labels, conversion, fine-tuning in
# PyTorch on a few labelled stories with and without further pre-training, prediction. At the end a table, and
# results.png in OUT. It takes a minute and a half on 2 cores after the installation. Run it again to resume it, or to see the
# figures again.
#
#     bash scripts/quickstart.sh
#     OUT=another_folder SEEDS="1 2 3 4 5" bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-quickstart}
SEEDS=${SEEDS:-1 2 3}
BERT=data/tiny_bert
FURTHER=$OUT/tiny_bert_AGnews_pretrain
source scripts/setup.sh requirements.txt
mkdir -p "$OUT/logs"
export OMP_NUM_THREADS=1  # two steps run side by side, each on a core

step() {  # step NAME SCRIPT [flags]: one step of the pipeline; logs/NAME.log has its output, NAME.seconds its duration
    local name=$1 start=$SECONDS log=$OUT/logs/$1.log
    shift
    if ! "$PYTHON" "$@" > "$log" 2>&1; then
        echo "$name failed; the end of $log:" >&2
        tail -n 5 "$log" >&2
        return 1
    fi
    printf '%-34s%s s\n' "$name" "$((SECONDS - start))"
    [ -e "${log%.log}.seconds" ] || echo $((SECONDS - start)) > "${log%.log}.seconds"
}

fine_tune() {  # fine_tune NAME FOLDER N SEED...: fine-tunes the BERT in FOLDER on N labelled stories, drawn by each SEED
    step "fine_tune_$1_$3" run_classifier_single_layer.py --task_name ag --do_train --do_eval --do_lower_case \
        --data_dir data/sample --vocab_file "$2/vocab.txt" --bert_config_file "$2/bert_config.json" --init_checkpoint "$2" \
        --num_datas "$3" --max_seq_length 128 --train_batch_size 8 --learning_rate 1e-3 --num_train_epochs 20 \
        --eval_epochs 20 --layers 1 --pooling_type mean --trunc_medium -2 --seed "${@:4}" --output_dir "$OUT/ag_$1_$3"
}

fewer_and_more() {  # fewer_and_more NAME FOLDER: the same on 25 and on 400 stories, with the first seed
    fine_tune "$1" "$2" 25 "${SEEDS%% *}" && fine_tune "$1" "$2" 400 "${SEEDS%% *}"
}

further_pretrain() {
    step generate_corpus generate_corpus_agnews.py --data_dir data/sample --output_dir "$OUT" &&
    step create_pretraining_data create_pretraining_data.py --input_file="$OUT/AGnews_corpus_train.txt" \
        --output_file="$OUT/tf_AGnews.tfrecord" --vocab_file="$BERT/vocab.txt" --do_lower_case=True \
        --max_seq_length=64 --max_predictions_per_seq=10 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10 &&
    step run_pretraining run_pretraining.py --input_file="$OUT/tf_AGnews.tfrecord" --output_dir="$FURTHER" \
        --do_train=True --do_eval=True --bert_config_file="$BERT/bert_config.json" --init_checkpoint="$BERT" \
        --strategy one --train_batch_size=16 --max_seq_length=64 --max_predictions_per_seq=10 --num_train_steps=1600 \
        --num_warmup_steps=300 --save_checkpoints_steps=800 --log_steps=20 --learning_rate=2.5e-3 &&
    step convert convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$FURTHER/model.ckpt-1600" \
        --bert_config_file "$FURTHER/bert_config.json" --pytorch_dump_path "$FURTHER/pytorch_model.bin"
}

{ fine_tune tiny_bert "$BERT" 100 $SEEDS && fewer_and_more tiny_bert "$BERT"; } &
further_pretrain || { wait; exit 1; }
wait $!
fewer_and_more further_pretrained "$FURTHER" &
fine_tune further_pretrained "$FURTHER" 100 $SEEDS || { wait; exit 1; }
wait $!
step predict run_classifier_single_layer.py --do_predict --predict_file data/new_texts.txt \
    --init_checkpoint "$OUT/ag_further_pretrained_400/last" --output_dir "$OUT/predictions"

"$PYTHON" scripts/quickstart_table.py "$OUT"
