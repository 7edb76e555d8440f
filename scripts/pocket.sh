#!/usr/bin/env bash
# A small BERT trained from nothing on the training texts of TASKS: the corpus, a vocabulary of its own, masked LM and next
# sentence on texts of 128 tokens and at last of 256, as a folder that scripts and transformers take as any other BERT. Then
# `MODEL=pocket bash scripts/run_all.sh` asks the paper's questions of it, on a CPU.
#
#     bash scripts/pocket.sh                              # 52 minutes on 2 cores with bfloat16; again: goes on
#     bash scripts/pocket.sh --status
#     POCKET=L6_H384 STEPS=100000 bash scripts/pocket.sh  # on a GPU
#
# Settings, beside those of scripts/experiment.sh (DATA, GPUS, TF_FLAGS, NEXT_SENTENCE, ...):
#
#     OUT         folder of everything (default: pocket); the BERT is OUT/POCKET
#     POCKET      its shape, layers and hidden size, a multiple of 64 (default: L4_H128)
#     TASKS       data sets whose training texts it learns from (default: ag dbpedia yelp_f yelp_p)
#     VOCAB_SIZE  tokens of the vocabulary (default: 8000)
#     STEPS       updates, the last tenth of them on 256 tokens (default: 20000)
#     BATCH       texts of 128 tokens an update (default: 32)
#     PRETRAINING_RATE   peak learning rate (default: 1e-3; 256 wide was trained at 6e-4)
#     MASKED_LM_PROB     share of the tokens it learns to predict (default: 0.3; 0.15 in the texts it is evaluated on)
#
# The loss and the accuracy of the masked LM on texts it does not learn from, the test texts of TASKS, are in curve.csv and
# curve.png beside the BERT.
[ -z "${SMOKE:-}" ] || OUT=${OUT:-smoke/pocket} STEPS=${STEPS:-40} VOCAB_SIZE=${VOCAB_SIZE:-400} POCKET=${POCKET:-L1_H64} \
    BATCH=${BATCH:-8}
OUT=${OUT:-pocket} STEPS=${STEPS:-20000} VOCAB_SIZE=${VOCAB_SIZE:-8000} POCKET=${POCKET:-L4_H128} FROM_NOTHING=1 MODEL=
PRETRAINING_RATE=${PRETRAINING_RATE:-1e-3} MASKED_LM_PROB=${MASKED_LM_PROB:-0.3}
[[ "$POCKET" =~ ^L([1-9][0-9]*)_H([1-9][0-9]*)$ ]] && layers=${BASH_REMATCH[1]} hidden=${BASH_REMATCH[2]} \
    && [ $((hidden % 64)) = 0 ] || { echo "pocket.sh: error: POCKET=$POCKET is no shape such as L4_H128" >&2; exit 2; }
source "$(dirname "$0")/experiment.sh"
TASKS=${TASKS:-ag dbpedia yelp_f yelp_p} BATCH=${BATCH:-32}
[[ "$BATCH" =~ ^([2-9]|[1-9][0-9]+)$ ]] || { echo "pocket.sh: error: BATCH=$BATCH is no number from 2 on" >&2; exit 2; }
folder=$OUT/$POCKET last=$((STEPS / 10))

texts() {  # texts NAME SPLIT DUPE_FACTOR MASKED_LM_PROB: the texts of a split as corpus, and as records of 128 and 256 tokens
    local length
    job "$1/corpus" cpu "$data_job" - python generate_corpus.py --task_name $TASKS --data_dir "$DATA" --splits "$2" \
        --output_file "$OUT/$1/corpus.txt" ${SPACY_MODEL:+--spacy_model "$SPACY_MODEL"}
    [ "$1" = held_out ] || job vocab cpu "$1/corpus" - python data/make_vocab.py --input_file "$OUT/$1/corpus.txt" \
        --vocab_size "$VOCAB_SIZE" --min_frequency 5 $lower_case --output_file "$OUT/vocab.txt"
    for length in 128 256; do
        job "$1/$length" cpu "$1/corpus vocab" "$OUT/$1/$length.tfrecord" python create_pretraining_data.py \
            --input_file="$OUT/$1/corpus.txt" --output_file="$OUT/$1/$length.tfrecord" --vocab_file="$OUT/vocab.txt" \
            --max_seq_length=$length --max_predictions_per_seq="$(predictions $length)" --masked_lm_prob="$4" \
            --random_seed=12345 --dupe_factor="$3" ${NEXT_SENTENCE:+--next_sentence="$NEXT_SENTENCE"}
    done
}

train() {  # train LENGTH STEPS BATCH RATE NEEDS [flags]: a part of the pre-training, evaluated 20 times
    job "$POCKET/$1" gpu "train/$1 held_out/$1 $5" - python run_pretraining.py --input_file="$OUT/train/$1.tfrecord" \
        --eval_file="$OUT/held_out/$1.tfrecord" --output_dir="$folder/$1" --do_train=True --do_eval=True \
        --bert_config_file="$folder/shape.json" --dropout=0 --vocab_file="$OUT/vocab.txt" --train_batch_size="$3" \
        --eval_batch_size=64 --max_eval_steps=10 --max_seq_length="$1" --max_predictions_per_seq="$(predictions "$1")" \
        --num_train_steps="$2" --num_warmup_steps=$(($2 / 10)) --learning_rate="$4" \
        --save_checkpoints_steps=$((($2 + 19) / 20)) --keep_checkpoint_max=1 --eval_checkpoints=True \
        ${NEXT_SENTENCE:+--next_sentence="$NEXT_SENTENCE"} ${TF_FLAGS:-} "${@:6}"
}

texts train train 5 "$MASKED_LM_PROB"
texts held_out test 1 0.15
# initializer_range: Google's 0.02 is of layers six times as wide as the default's. Without dropout, which slows a BERT that
# meets each text a few times; fine-tuning has Google's.
config='"hidden_act": "gelu", "initializer_range": 0.04'
config+=", \"hidden_size\": $hidden, \"num_hidden_layers\": $layers, \"num_attention_heads\": $((hidden / 64))"
config+=", \"intermediate_size\": $((4 * hidden)), \"max_position_embeddings\": 512, \"type_vocab_size\": 2"
config+=", \"vocab_size\": $VOCAB_SIZE"
job "$POCKET/shape" cpu "" - bash -c "echo '{$config}' > '$folder/shape.json'"
train 128 $((STEPS - last)) "$BATCH" "$PRETRAINING_RATE" "$POCKET/shape"
# as the first part was at rate 0 when it ended, this one starts anew, at a lower peak
train 256 "$last" $((BATCH / 2)) "$(LC_ALL=C awk "BEGIN {print $PRETRAINING_RATE / 4}")" "$POCKET/128" \
    --init_checkpoint="$folder/128/model.ckpt-$((STEPS - last))"
job "$POCKET/weights" cpu "$POCKET/256" - python convert_tf_checkpoint_to_pytorch.py \
    --tf_checkpoint_path "$folder/256/model.ckpt-$last" --bert_config_file "$folder/shape.json" \
    --pytorch_dump_path "$folder/pytorch_model.bin"
job "$POCKET/bert_model" cpu "$POCKET/weights" - python convert_tf_checkpoint_to_pytorch.py --reverse \
    --pytorch_dump_path "$folder" --bert_config_file "$folder/config.json" --tf_checkpoint_path "$folder/bert_model.ckpt"
job "$POCKET/curve" last "" - python scripts/pretraining_curve.py --runs "$folder/128" "$folder/256" --output_dir "$folder"
run_plan
