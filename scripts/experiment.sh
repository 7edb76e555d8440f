# What the experiments share: their settings and the steps of the pipeline. Sourced by exp*.sh. Settings are variables:
#
#     DATA      folder of the data sets, one folder each, as data/download.py makes them (default: downloads)
#     BERT      folder of BERT-base, Google's checkpoint or PyTorch weights (default: downloads/uncased_L-12_H-768_A-12)
#     OUT       folder of all runs, shared by the experiments (default: experiments; with SMOKE: smoke)
#     SEEDS     seeds of each fine-tuning (default: 42 43 44)
#     GPUS      GPUs to use, for example 0,1,2,3 (default: all)
#     FLAGS     more flags for every fine-tuning, for example --bf16 --compile (default: none)
#     TF_FLAGS  more flags for every further pre-training, for example --bf16 --xla (default: none)
#     SPACY_MODEL  model that splits English text, for example en_core_web_md, the authors' (default: none, rules)
#     JOBS      runs at a time, for runs that do not fill the machine (default: 1)
#     DRY_RUN=1 prints the commands and runs none of them
#     SMOKE=1   runs everything on the sample with a tiny BERT: shows that it works, not what the paper found
#
# The paper's settings follow below and can be set likewise. Each run has a folder and, beside it, a log. Run a script
# again to resume it: finished runs are skipped, an interrupted run continues. Two scripts may share one OUT at the same
# time, for example on two GPUs. The hours given at the top of the scripts are for one GPU that does 100 TFLOP/s, with
# FLAGS=--bf16. They were calculated from the models' multiplications and the data sets' tokens, not measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${SMOKE:-}" ]; then
    OUT=${OUT:-smoke}
    DATA=${DATA:-$OUT/data} BERT=${BERT:-$OUT/tiny_bert}
    BERT_LARGE=${BERT_LARGE:-$BERT} BERT_CHINESE=${BERT_CHINESE:-$BERT}
    SEEDS=${SEEDS:-1 2} LENGTH=${LENGTH:-32} HEAD=${HEAD:-8} EPOCHS=${EPOCHS:-1} ENDS=${ENDS:-2} JOBS=${JOBS:-2}
    PRETRAINING_LENGTH=${PRETRAINING_LENGTH:-32} STEPS=${STEPS:-8} POINTS=${POINTS:-2}
    FRACTIONS=${FRACTIONS:-0.004 0.5 1}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TF_CPP_MIN_LOG_LEVEL=2
fi
OUT=${OUT:-experiments}
DATA=${DATA:-downloads} BERT=${BERT:-downloads/uncased_L-12_H-768_A-12} SEEDS=${SEEDS:-42 43 44} JOBS=${JOBS:-1}
LENGTH=${LENGTH:-512} EPOCHS=${EPOCHS:-4} STEPS=${STEPS:-100000}
HEAD=${HEAD:-128}                                  # head+tail: the first 128 tokens and the rest from the tail
PRETRAINING_LENGTH=${PRETRAINING_LENGTH:-128}
WARMUP=${WARMUP:-$((STEPS / 10))}                  # steps; a further pre-training of BERT-large has the same
POINTS=${POINTS:-10}                               # checkpoints in a further pre-training
[ -z "${GPUS:-}" ] || export CUDA_VISIBLE_DEVICES=$GPUS

wait_for() {  # wait_for COMMAND: in the background, because bash acts on a signal at once only while it waits
    "$@" &
    wait $!
}

lock() {  # lock FILE NAME: opens FILE as descriptor 9 and locks it against other scripts, until `exec 9>&-`
    exec 9>> "$1"
    flock -n 9 2> /dev/null || [ $? -ne 1 ] || {  # any other status: this system has no locks
        echo "$2: under way in another script, waiting for it"
        wait_for flock 9
    }
}

run() {  # run NAME SCRIPT [flags]: one command, logged in $OUT/NAME.log; $OUT/NAME.done records it once it is done
    local name=$1
    shift
    if [ -n "${DRY_RUN:-}" ]; then
        echo "python $*"
        return
    fi
    mkdir -p "$(dirname "$OUT/$name")"
    lock "$OUT/$name.log" "$name"
    if [ "$(cat "$OUT/$name.done" 2> /dev/null)" != "$*" ]; then
        echo "$name"
        if ! wait_for "$PYTHON" "$@" >&9 2>&1; then
            echo "$name failed; the end of $OUT/$name.log:" >&2
            tail -n 3 "$OUT/$name.log" >&2
            return 1
        fi
        echo "$*" > "$OUT/$name.done"
    fi
    exec 9>&-
}

stop() {  # ends everything this shell has started; a training run saves first
    local running
    running=$(jobs -pr)
    [ -z "$running" ] || kill $running 2> /dev/null || true
    wait
}

# A spawned run that fails creates this file. `wait` alone forgets how a process ended once its number is reused.
failed=$OUT/.failed.$$
trap 'stop; rm -f "$failed"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

spawn() {  # spawn FUNCTION [arguments]: runs it in the background if JOBS allows several runs at a time
    if [ "$JOBS" -eq 1 ] || [ -n "${DRY_RUN:-}" ]; then
        "$@"
        return
    fi
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 0.1; done
    (
        trap 'status=$?; stop; [ $status -eq 0 ] || touch "$failed"' EXIT
        trap 'exit 143' TERM
        "$@"
    ) &
}

finish() {  # finish RESULTS...: waits for everything spawned, then writes these tables and figures
    wait
    [ ! -e "$failed" ] || exit 1
    [ -z "${DRY_RUN:-}" ] || return 0
    lock "$OUT/.results" "$OUT/results"
    "$PYTHON" scripts/collect_results.py --runs "$OUT" --output_dir "$OUT/results" --only "$@"
}

prepare() {  # prepare NAME FOLDER: makes $OUT/models/NAME, the BERT in FOLDER for both frameworks
    local model=$OUT/models/$1 source
    source=$(cd "$2" 2> /dev/null && pwd -P || echo "$2")
    if [ "$(cat "$model.source" 2> /dev/null || echo "$source")" != "$source" ]; then
        echo "OUT=$OUT holds runs of another BERT, $(cat "$model.source"); name another folder" >&2
        exit 1
    fi
    if [ -e "$2/model.safetensors" ] || [ -e "$2/pytorch_model.bin" ]; then
        run "models/$1" convert_tf_checkpoint_to_pytorch.py --reverse --pytorch_dump_path "$2" \
            --bert_config_file "$2/config.json" --tf_checkpoint_path "$model/bert_model.ckpt"
    else
        run "models/$1" convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$2/bert_model.ckpt" \
            --bert_config_file "$2/bert_config.json" --pytorch_dump_path "$model/pytorch_model.bin"
    fi
    [ -z "${DRY_RUN:-}" ] || return 0
    echo "$source" > "$model.source"
    for file in "$2"/{bert_config.json,config.json,vocab.txt,bert_model.ckpt.*,model.safetensors,pytorch_model.bin}; do
        [ ! -e "$file" ] || [ -e "$model/${file##*/}" ] || ln -sf "$(realpath "$file")" "$model/"
    done
}

pretrain() {  # pretrain NAME MODEL TASKS [flags]: further pre-trains MODEL on the training texts of TASKS (section 5.2)
    local name=pretrained/$1 folder=$OUT/pretrained/$1 model=$OUT/models/$2 tasks=$3 keep=1
    local corpus_flags=${SPACY_MODEL:+--spacy_model $SPACY_MODEL}
    [ "$1" != imdb ] || keep=0  # Figure 3 needs all its checkpoints
    case $tasks in
        sogou) corpus_flags= ;;
        # the two overlap, and Table 5 tests each after further pre-training on the other
        yelp_p) corpus_flags+=" --leave_out_test_of yelp_f" ;;
        yelp_f) corpus_flags+=" --leave_out_test_of yelp_p" ;;
    esac
    shift 3
    run "$name/corpus" generate_corpus.py --task_name $tasks --data_dir "$DATA" --output_file "$folder/corpus.txt" \
        $corpus_flags
    run "$name/tfrecord" create_pretraining_data.py --input_file="$folder/corpus.txt" \
        --output_file="$folder/corpus.tfrecord" --vocab_file="$model/vocab.txt" --do_lower_case=True \
        --max_seq_length="$PRETRAINING_LENGTH" --max_predictions_per_seq=20 --masked_lm_prob=0.15 --random_seed=12345 \
        --dupe_factor=5
    run "$name/checkpoints" run_pretraining.py --input_file="$folder/corpus.tfrecord" \
        --output_dir="$folder/checkpoints" --do_train=True --do_eval=True --bert_config_file="$model/config.json" \
        --init_checkpoint="$model/bert_model.ckpt" --train_batch_size=32 --max_seq_length="$PRETRAINING_LENGTH" \
        --max_predictions_per_seq=20 --num_train_steps="$STEPS" --num_warmup_steps="$WARMUP" \
        --save_checkpoints_steps=$((STEPS / POINTS)) --keep_checkpoint_max=$keep --learning_rate=5e-5 \
        ${TF_FLAGS:-} "$@"
    convert "${name#*/}" "$STEPS" "${name#*/}"
}

convert() {  # convert NAME STEP AS: makes $OUT/models/AS from the checkpoint of pretrained/NAME after STEP updates
    local checkpoints=$OUT/pretrained/$1/checkpoints
    run "models/$3" convert_tf_checkpoint_to_pytorch.py --tf_checkpoint_path "$checkpoints/model.ckpt-$2" \
        --bert_config_file "$checkpoints/bert_config.json" --pytorch_dump_path "$OUT/models/$3/pytorch_model.bin"
}

fine_tune() {  # fine_tune RUN TASK MODEL SCRIPT [flags]: fine-tunes into $OUT/RUN, once for each of SEEDS (section 5.2)
    local name=$1 task=$2 model=$OUT/models/$3 script=$4 folder=$OUT/$1
    [[ "$SEEDS" == *" "* ]] || folder=$folder/seed_$SEEDS  # as with several seeds
    shift 4
    run "$name" "$script" --task_name "$task" --do_train --do_eval --do_lower_case --data_dir "$DATA/$task" \
        --vocab_file "$model/vocab.txt" --bert_config_file "$model/config.json" --init_checkpoint "$model" \
        --max_seq_length "$LENGTH" --train_batch_size 24 --num_train_epochs "$EPOCHS" --warmup_proportion 0.1 \
        --seed $SEEDS --output_dir "$folder" ${FLAGS:-} "$@"
}

FIT="--trunc_medium $HEAD --learning_rate 2e-5 --layer_learning_rate 2e-5 --layer_learning_rate_decay 0.95"

fit() {  # fit RUN TASK MODEL [flags]: BERT-FiT, the best setting of Exp-I: head+tail, a rate for each layer
    fine_tune "$1" "$2" "$3" run_classifier_discriminative.py $FIT "${@:4}"
}

[ -n "${DRY_RUN:-}" ] || source scripts/setup.sh requirements.txt
if [ -n "${SMOKE:-}" ]; then
    run tiny_bert data/make_tiny_bert.py --output_dir "$OUT/tiny_bert"
    run data data/make_task_samples.py --output_dir "$OUT/data"
fi
prepare base "$BERT"
