#!/usr/bin/env bash
# The whole pipeline on the sample in data/ with a tiny BERT: corpus, TFRecord, further pre-training in TensorFlow,
# conversion, fine-tuning in PyTorch with and without further pre-training, prediction. It takes about 3 minutes on 2
# cores after the installation. Run it again to resume it, or to see the figures again.
#
#     bash scripts/quickstart.sh
#     OUT=another_folder SEEDS="1 2 3 4 5" bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-quickstart}
SEEDS=${SEEDS:-1 2}
source scripts/setup.sh requirements.txt
mkdir -p "$OUT/logs"

step() {  # step NAME SCRIPT [flags]: one step of the pipeline; logs/NAME.log has its output, NAME.seconds its duration
    local name=$1 start=$SECONDS log=$OUT/logs/$1.log
    shift
    printf '%-30s' "$name"
    if ! "$PYTHON" "$@" > "$log" 2>&1; then
        echo "failed; the end of $log:" >&2
        tail -n 5 "$log" >&2
        exit 1
    fi
    echo "$((SECONDS - start)) s"
    [ -e "${log%.log}.seconds" ] || echo $((SECONDS - start)) > "${log%.log}.seconds"
}

fine_tune() {  # fine_tune NAME FOLDER: fine-tunes the BERT in FOLDER
    step "fine_tune_$1" run_classifier_single_layer.py --task_name ag --do_train --do_eval --do_lower_case \
        --data_dir data/sample --vocab_file "$2/vocab.txt" --bert_config_file "$2/bert_config.json" \
        --init_checkpoint "$2/pytorch_model.bin" --max_seq_length 128 --train_batch_size 24 --learning_rate 5e-4 \
        --num_train_epochs 3.0 --seed $SEEDS --layers -2 --trunc_medium -2 --output_dir "$OUT/ag_$1"
}

convert() {  # convert NAME FOLDER CHECKPOINT: writes the PyTorch weights beside the checkpoint
    step "convert_$1" convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$2/$3" \
        --bert_config_file "$2/bert_config.json" --pytorch_dump_path "$2/pytorch_model.bin"
}

step generate_corpus generate_corpus_agnews.py --data_dir data/sample --output_dir "$OUT"
step make_tiny_bert data/make_tiny_bert.py --output_dir "$OUT/tiny_bert"
step create_pretraining_data create_pretraining_data.py --input_file="$OUT/AGnews_corpus_train.txt" \
    --output_file="$OUT/tf_AGnews.tfrecord" --vocab_file="$OUT/tiny_bert/vocab.txt" --do_lower_case=True \
    --max_seq_length=64 --max_predictions_per_seq=10 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10
step run_pretraining run_pretraining.py --input_file="$OUT/tf_AGnews.tfrecord" \
    --output_dir="$OUT/tiny_bert_AGnews_pretrain" --do_train=True --do_eval=True \
    --bert_config_file="$OUT/tiny_bert/bert_config.json" --init_checkpoint="$OUT/tiny_bert/bert_model.ckpt" \
    --train_batch_size=32 --max_seq_length=64 --max_predictions_per_seq=10 --num_train_steps=500 \
    --num_warmup_steps=50 --save_checkpoints_steps=250 --learning_rate=5e-4
convert tiny_bert "$OUT/tiny_bert" bert_model.ckpt
convert further_pretrained "$OUT/tiny_bert_AGnews_pretrain" model.ckpt-500
fine_tune tiny_bert "$OUT/tiny_bert"
fine_tune further_pretrained "$OUT/tiny_bert_AGnews_pretrain"
step predict run_classifier_single_layer.py --do_predict --predict_file data/new_texts.txt \
    --init_checkpoint "$(ls -d "$OUT"/ag_further_pretrained/{seed_${SEEDS%% *}/,}best 2>/dev/null | head -n 1)" \
    --output_dir "$OUT/predictions"

"$PYTHON" scripts/quickstart_table.py "$OUT"
