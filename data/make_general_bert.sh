#!/usr/bin/env bash
# Makes data/tiny_bert/model.safetensors: the tiny BERT pre-trained from random weights on general stories, which are about
# other things than the sample's four topics, as float16. 12 minutes on one core beside other trainings.
#
#     OUT=tmp/general bash data/make_general_bert.sh
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-tmp/general}
STEPS=${STEPS:-10000}
source scripts/setup.sh requirements.txt
"$PYTHON" data/make_sample.py --output_dir "$OUT/sample" --general_file "$OUT/general.txt"
"$PYTHON" create_pretraining_data.py --input_file="$OUT/general.txt" --output_file="$OUT/general.tfrecord" \
    --vocab_file=data/tiny_bert/vocab.txt --do_lower_case=True --max_seq_length=64 --max_predictions_per_seq=20 \
    --masked_lm_prob=0.3 --dupe_factor=20
# Without dropout, which a model of this size learns much faster; and a long warm-up: Google's AdamWeightDecay has no bias
# correction, so that its first hundreds of updates are up to six times as large as the rate says. Until it tells the next
# sentence of its own stories (89% of the time), and so reads what a story is about.
"$PYTHON" run_pretraining.py --input_file="$OUT/general.tfrecord" --output_dir="$OUT/pretrained" --do_train=True \
    --do_eval=True --bert_config_file=data/tiny_bert/bert_config.json --dropout=0 --vocab_file=data/tiny_bert/vocab.txt \
    --train_batch_size=32 --max_seq_length=64 --max_predictions_per_seq=20 --num_train_steps="$STEPS" \
    --num_warmup_steps=$((STEPS / 10)) --learning_rate=2.5e-3
"$PYTHON" convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$OUT/pretrained/model.ckpt-$STEPS" \
    --bert_config_file data/tiny_bert/bert_config.json --pytorch_dump_path "$OUT/converted/pytorch_model.bin" --safetensors
"$PYTHON" - "$OUT/converted/model.safetensors" "${TO:-data/tiny_bert/model.safetensors}" <<'EOF'
import sys
from safetensors.torch import load_file, save_file
save_file({name: tensor.half() for name, tensor in load_file(sys.argv[1]).items()}, sys.argv[2], {"format": "pt"})
print("wrote", sys.argv[2])
EOF
