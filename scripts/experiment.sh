# What the experiments share: their settings, and the steps of the pipeline as jobs of a plan, which scripts/run_queue.py runs.
# Sourced by exp*.sh and run_all.sh. Settings are variables:
#
#     DATA      folder of the data sets, one folder each, as data/download.py makes them (default: downloads)
#     BERT      folder of BERT-base, Google's checkpoint or PyTorch weights (default: downloads/uncased_L-12_H-768_A-12)
#     OUT       folder of all runs, shared by the experiments (default: experiments; with SMOKE: smoke)
#     SEEDS     seeds of each fine-tuning (default: 42 43 44)
#     GPUS      GPUs to use, for example 0,1,2,3 (default: all); each gets a run at a time, or two if it is named twice
#     PER_RUN   GPUs of one run (default: 1)
#     JOBS      without a GPU: runs at a time (default: 1)
#     CPU_JOBS  with GPUs: corpora, records and conversions at a time beside the runs (default: 1)
#     FLAGS     more flags for every fine-tuning, for example --compile (default: none)
#     TF_FLAGS  more flags for every further pre-training, for example --xla (default: none)
#     SPACY_MODEL   model that splits English text; empty: rules (default: en_core_web_md, the authors', where it is installed)
#     LAST_LAYER=1  classify by the last layer's [CLS] state, the paper's equation 1, in place of the pooled output, the default
#                   of the authors' code (default OUT: experiments_last_layer)
#     POOLING=mean  or max: classify by the mean or maximum over the tokens of the last layer (default: the authors', as above)
#     LOWER_CASE    whether texts are lower-cased, True or False (default: as the BERT's folder or its vocabulary says)
#     NEXT_SENTENCE=False   further pre-training by the masked LM alone (default: True)
#     KEEP_RECORDS=1  keep the TFRecords of finished further pre-trainings
#     DRY_RUN=1 prints the commands and runs none of them; they run when pasted here after `source .venv/bin/activate`
#     SMOKE=1   runs everything on the sample with a tiny BERT: shows that it works, not what the paper found
#     MODEL=pocket   the paper's questions asked of the small BERT of scripts/pocket.sh, on parts of the data, on a CPU; default
#                    OUT: pocket/experiments. POCKET names its shape, as there (default: L4_H128)
#
# The paper's settings follow below and can be set likewise; an empty one counts as none, but where it is written ${NAME-...}
# it switches something off. `--status` after a script's name prints how far it is. Run a script again to resume it:
# finished runs are skipped, an interrupted run continues. Two scripts may share one OUT at the same time.
#
# The hours at the top of the scripts are those of one GPU that does 100 TFLOP/s, in bfloat16; divide them by the number
# of GPUs. The gigabytes are what is left in OUT; a fine-tuning under way has 1.3 more, one of BERT-large 4. All of this was
# calculated from the sizes of models and data sets, not measured.
set -euo pipefail
unset CDPATH  # with it cd may print, and go elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
    '') STATUS= ;;
    --status) STATUS=--status ;;
    *) echo "$0: there is no $1; --status prints how far it is, settings are variables: scripts/experiment.sh" >&2; exit 2 ;;
esac
suffix=${LAST_LAYER:+_last_layer}
if [ -n "${SMOKE:-}" ]; then
    OUT=${OUT:-smoke$suffix}
    DATA=${DATA:-$OUT/data} BERT=${BERT:-$OUT/tiny_bert}
    BERT_LARGE=${BERT_LARGE:-$BERT} BERT_CHINESE=${BERT_CHINESE:-$BERT} RELEASED=${RELEASED:-$OUT/models/base/pytorch_model.bin}
    SEEDS=${SEEDS:-1 2} LENGTH=${LENGTH:-32} HEAD=${HEAD:-8} EPOCHS=${EPOCHS:-1} ENDS=${ENDS:-2} JOBS=${JOBS:-2}
    PRETRAINING_LENGTH=${PRETRAINING_LENGTH:-32} STEPS=${STEPS:-8} POINTS=${POINTS:-2}
    FRACTIONS=${FRACTIONS:-0.004 0.5 1} LAYERS=${LAYERS:-2} LARGE_LAYERS=${LARGE_LAYERS:-2} SPACY_MODEL=${SPACY_MODEL-}
    MODEL=  # is the tiny one
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TF_CPP_MIN_LOG_LEVEL=2
fi
case ${MODEL:-} in
    '') ;;
    pocket)
        OUT=${OUT:-pocket/experiments$suffix} BERT=${BERT:-pocket/${POCKET:-L4_H128}}
        [ -e "$BERT/config.json" ] || [ -n "${DRY_RUN:-}${DECLARE:-}" ] || {
            echo "$0: there is no BERT in $BERT; make it with scripts/pocket.sh" >&2; exit 2; }
        LENGTH=${LENGTH:-256} EPOCHS=${EPOCHS:-3} RATE=${RATE:-5e-4} ENDS=${ENDS:-2} JOBS=${JOBS:-2} usual_layers=4
        HEAD=${HEAD:-$((LENGTH / 4))}
        # learns from fewer texts than the [CLS] state where the BERT is not finished
        [ -n "${LAST_LAYER:-}" ] || POOLING=${POOLING-mean}
        # as the BERT was pre-trained by scripts/pocket.sh, at half its peak rate: the paper's 5e-5 is half of BERT's
        STEPS=${STEPS:-10000} PRETRAINING_RATE=${PRETRAINING_RATE:-5e-4}
        [ "$STEPS" != 10000 ] || STEP_LIST=${STEP_LIST:-1000 2000 5000}
        MASKED_LM_PROB=${MASKED_LM_PROB:-0.3} PRETRAINING_DROPOUT=${PRETRAINING_DROPOUT-0}
        TRAIN_PARTS=${TRAIN_PARTS-imdb=2000 ag=2000 dbpedia=1000} TEST_PARTS=${TEST_PARTS-imdb=2000 ag=2000 dbpedia=1000}
        FRACTIONS=${FRACTIONS:-0.004 0.01 0.02 0.05 0.08 0.2 1} MIN_UPDATES=${MIN_UPDATES:-100}
        LONG_TASKS=${LONG_TASKS:-imdb} DOMAIN_TASKS=${DOMAIN_TASKS:-imdb ag dbpedia trec} MULTI_TASKS=${MULTI_TASKS:-imdb ag}
        CORPORA=${CORPORA-imdb sentiment ag dbpedia trec all} ALL_TASKS=${ALL_TASKS:-imdb ag dbpedia trec}
        CURVE=${CURVE:---eval_every 0.25 --eval_sample 0.5 --allow_divergence}
        EXPERIMENTS=${EXPERIMENTS:-exp2_steps exp4_few_shot exp2_domains exp1_long_text exp1_layers exp1_layer_wise_lr \
            exp1_catastrophic_forgetting exp3_multitask exp2_corpus}
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-1} ;;
    *) echo "$0: MODEL=$MODEL is unknown; there is pocket" >&2; exit 2 ;;
esac
[ -z "${LAST_LAYER:-}" ] || [ -z "${POOLING:-}" ] || {
    echo "$0: LAST_LAYER=1 classifies by the [CLS] state, POOLING=$POOLING by all tokens; leave one of them out" >&2; exit 2; }
OUT=${OUT:-experiments$suffix}
DATA=${DATA:-downloads} BERT=${BERT:-downloads/uncased_L-12_H-768_A-12} SEEDS=$(echo ${SEEDS:-42 43 44}) JOBS=${JOBS:-1}
BERT_LARGE=${BERT_LARGE:-downloads/uncased_L-24_H-1024_A-16} BERT_CHINESE=${BERT_CHINESE:-downloads/chinese_L-12_H-768_A-12}
LENGTH=${LENGTH:-512} EPOCHS=${EPOCHS:-4} STEPS=${STEPS:-100000}
HEAD=${HEAD:-128}                                  # head+tail: the first 128 tokens and the rest from the tail
RATE=${RATE:-2e-5}                                 # of fine-tuning; experiments with several rates take multiples of it
TRAIN_PARTS=${TRAIN_PARTS:-}                       # share or number of the tasks' training data, "imdb=0.1 ag=500"; others: all
TEST_PARTS=${TEST_PARTS:-}                         # the same of the test data
ALL_TASKS=${ALL_TASKS:-all}                        # the data sets of the corpus "all"
PRETRAINING_RATE=${PRETRAINING_RATE:-5e-5}         # peak rate of further pre-training
PRETRAINING_LENGTH=${PRETRAINING_LENGTH:-128}
MASKED_LM_PROB=${MASKED_LM_PROB:-0.15}             # share of the tokens that it learns to predict
PRETRAINING_DROPOUT=${PRETRAINING_DROPOUT-}        # empty: the configuration's
POINTS=${POINTS:-10}                               # checkpoints in a further pre-training
[[ "$RATE" =~ ^[0-9.]+(e-?[0-9]+)?$ ]] || { echo "$0: RATE=$RATE is no learning rate, such as 2e-5" >&2; exit 2; }
[[ "$STEPS $POINTS" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] && [ "$POINTS" -le "$STEPS" ] || {
    echo "$0: STEPS=$STEPS updates with POINTS=$POINTS checkpoints: whole numbers are needed, no fewer updates" >&2; exit 2; }
WARMUP=${WARMUP:-$((STEPS / 10))}                  # steps; a further pre-training of BERT-large has the same
for word in $TRAIN_PARTS $TEST_PARTS; do
    [[ "$word" =~ ^(imdb|yelp_p|yelp_f|trec|yahoo|ag|dbpedia|sogou)=([2-9]|[1-9][0-9]+|[0-9]*\.[0-9]+)$ ]] || {
        echo "$0: $word of TRAIN_PARTS or TEST_PARTS is no TASK=NUMBER, such as imdb=0.1 or ag=500; 1.0 is all" >&2; exit 2; }
done
lower_case=${LOWER_CASE:+--do_lower_case=$LOWER_CASE}

# DECLARE=1 only prints the plan, for slurm.sh; DECLARE=jobs does so without the tables, for run_all.sh
if [ -z "${DRY_RUN:-}${DECLARE:-}$STATUS" ]; then
    source scripts/setup.sh requirements.txt
else
    PYTHON=${VENV:-.venv}/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
[ -z "${ON_HUB:-}" ] || BERT=$("$PYTHON" -m common.hub "$ON_HUB")  # of your_data.sh

num_layers() {  # num_layers FOLDER DEFAULT: the number of layers of the BERT in FOLDER
    local found
    found=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$1"/*config.json 2> /dev/null | head -n 1 || true)
    echo "${found:-$2}"
}

LAYERS=${LAYERS:-$(num_layers "$BERT" "${usual_layers:-12}")}
LARGE_LAYERS=${LARGE_LAYERS:-$(num_layers "$BERT_LARGE" 24)}
authors_model=en_core_web_md
"$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("en_core_web_md"))' || authors_model=
if [ -z "${SPACY_MODEL+set}" ]; then  # as these runs began, whatever was installed since
    SPACY_MODEL=$(cat "$OUT/spacy_model" 2> /dev/null || echo "$authors_model")
fi
export SPACY_MODEL
declared=  # the plan
runs=      # the names of its jobs of kind gpu
data_job=${SMOKE:+data}

job() {  # job NAME KIND NEEDS PRODUCT COMMAND...: adds a job to the plan; scripts/run_queue.py says what its parts are
    local line=$1$'\t'$2$'\t'$3$'\t'$4$'\t' quote="'\\''" word
    [ "$2" != gpu ] || runs+=" $1"
    for word in "${@:5}"; do
        case $word in
            *[!A-Za-z0-9_./:=,+@%-]* | '') line+="'${word//\'/$quote}' " ;;
            *) line+="$word " ;;
        esac
    done
    declared+=$line$'\n'
}

remember_settings() {  # writes to OUT what collect_results.py names rows by; one OUT is of one set of them
    local settings
    settings="{\"rate\": \"$RATE\", \"length\": $LENGTH, \"head\": $HEAD, \"layers\": $LAYERS,"
    settings+=" \"train_parts\": \"$TRAIN_PARTS\", \"steps\": $STEPS}"
    if [ "$(cat "$OUT/settings.json" 2> /dev/null || echo "$settings")" != "$settings" ]; then
        echo "$0: $OUT was begun with other settings, $(cat "$OUT/settings.json"); name another OUT" >&2
        exit 2
    fi
    mkdir -p "$OUT"
    echo "$settings" > "$OUT/settings.json"
}

finish() {  # finish RESULTS...: does all jobs, then writes these tables and figures (none named: all)
    [ -n "${DRY_RUN:-}${DECLARE:-}$STATUS" ] || remember_settings
    [ "${DECLARE:-}" = jobs ] || job "collect_${1:-all}" last "${1:+$runs}" - python scripts/collect_results.py --runs "$OUT" \
        --output_dir "$OUT/results" ${1:+--only "$@"}
    run_plan
}

run_plan() {  # does all jobs that were declared
    if [ -n "${DECLARE:-}" ]; then
        printf %s "$declared"
        return
    fi
    case $declared in
        *generate_corpus.py*)
            if [ -n "$SPACY_MODEL" ]; then
                echo "sentences of English texts: split by $SPACY_MODEL (en_core_web_md is the authors')" >&2
            else
                echo "sentences of English texts: split by rules, which find 49% of the boundaries that the authors' model" \
                    "finds; to take that: $PYTHON -m spacy download en_core_web_md" >&2
            fi ;;
    esac
    if [ -z "${DRY_RUN:-}$STATUS" ]; then
        mkdir -p "$OUT"
        echo "$SPACY_MODEL" > "$OUT/spacy_model"
    fi
    exec "$PYTHON" scripts/run_queue.py --out "$OUT" --python "$PYTHON" ${GPUS+--gpus "$GPUS"} --jobs "$JOBS" \
        --per_run "${PER_RUN:-1}" --cpu_jobs "${CPU_JOBS:-1}" ${KEEP_RECORDS:+--keep_products} ${DRY_RUN:+--dry_run} $STATUS \
        <<< "$declared"
}

if_there() {  # if_there NAME PATH...: prints NAME if all of PATH exist, or will (SMOKE), or to show all (DRY_RUN); else says so
    local file
    for file in "${@:2}"; do
        [ -e "$file" ] || [ -n "${SMOKE:-}${DRY_RUN:-}" ] || {
            echo "$1 is left out: there is no $file, see data/README.md for its download" >&2
            return 0
        }
    done
    echo "$1"
}

prepare() {  # prepare NAME FOLDER: makes $OUT/models/NAME, the BERT in FOLDER for both frameworks
    local name=models/$1 model=$OUT/models/$1 source=$2 made=${SMOKE:+tiny_bert} files=() file
    [[ "$source" == /* ]] || source=$(pwd -P)/$2  # for links, and to know another BERT by
    for file in config.json model.safetensors pytorch_model.bin; do
        [ ! -e "$2/$file" ] || files+=("$source/$file")
    done
    if [ ${#files[@]} -gt 1 ]; then
        job "$name/links" cpu "$made" - ln -sf "${files[@]}" "$model/"
        job "$name" source "$name/links" - python convert_tf_checkpoint_to_pytorch.py --reverse --pytorch_dump_path "$source" \
            --bert_config_file "$source/config.json" --tf_checkpoint_path "$model/bert_model.ckpt"
    else
        job "$name/links" cpu "$made" - ln -sf "$source"/bert_model.ckpt.{data-00000-of-00001,index} "$model/"
        job "$name" source "$name/links" - python convert_tf_checkpoint_to_pytorch.py \
            --tf_checkpoint_path "$source/bert_model.ckpt" --bert_config_file "$source/bert_config.json" \
            --pytorch_dump_path "$model/pytorch_model.bin"
    fi
}

texts_of() {  # texts_of NAME: the tasks, or domain, whose texts the corpus of that name has
    [ "$1" = all ] && echo "$ALL_TASKS" || echo "$1"
}

predictions() {  # predictions LENGTH: masked tokens of a text at most, the paper's 20 or more
    awk "BEGIN {most = int($1 * $MASKED_LM_PROB) + 1; print (most > 20 ? most : 20)}"
}

records() {  # records NAME MODEL TASKS [flags]: the texts of TASKS as corpus and as TFRecords, in MODEL's vocabulary
    local folder=$OUT/pretrained/$1 model=$SPACY_MODEL left_out=
    case $3 in
        sogou) model= ;;
        # the two overlap, and Table 5 tests each after further pre-training on the other
        yelp_p) left_out=yelp_f ;;
        yelp_f) left_out=yelp_p ;;
    esac
    job "pretrained/$1/corpus" cpu "$data_job" - python generate_corpus.py --task_name $3 --data_dir "$DATA" \
        --output_file "$folder/corpus.txt" ${model:+--spacy_model "$model"} ${left_out:+--leave_out_test_of "$left_out"} \
        "${@:4}"
    job "pretrained/$1/tfrecord" cpu "pretrained/$1/corpus models/$2" "$folder/corpus.tfrecord" \
        python create_pretraining_data.py --input_file="$folder/corpus.txt" --output_file="$folder/corpus.tfrecord" \
        --vocab_file="$OUT/models/$2/vocab.txt" $lower_case \
        --max_seq_length="$PRETRAINING_LENGTH" --max_predictions_per_seq="$(predictions "$PRETRAINING_LENGTH")" \
        --masked_lm_prob="$MASKED_LM_PROB" --random_seed=12345 --dupe_factor=5 \
        ${NEXT_SENTENCE:+--next_sentence="$NEXT_SENTENCE"} ${NEVER_SPLIT:+--never_split="$NEVER_SPLIT"}
}

train_on() {  # train_on RECORDS NAME MODEL [flags]: further pre-trains MODEL on the records of that name (section 5.2)
    local folder=$OUT/pretrained/$2/checkpoints model=$OUT/models/$3 keep=1
    [ "$2" != imdb ] || keep=0  # Figure 3 needs all its checkpoints
    job "pretrained/$2/checkpoints" gpu "pretrained/$1/tfrecord models/$3" - python run_pretraining.py \
        --input_file="$OUT/pretrained/$1/corpus.tfrecord" --output_dir="$folder" --do_train=True --do_eval=True \
        --bert_config_file="$model/config.json" --init_checkpoint="$model/bert_model.ckpt" --train_batch_size=32 \
        --max_seq_length="$PRETRAINING_LENGTH" --max_predictions_per_seq="$(predictions "$PRETRAINING_LENGTH")" \
        --num_train_steps="$STEPS" --num_warmup_steps="$WARMUP" --save_checkpoints_steps=$((STEPS / POINTS)) \
        --keep_checkpoint_max=$keep --learning_rate="$PRETRAINING_RATE" \
        ${PRETRAINING_DROPOUT:+--dropout="$PRETRAINING_DROPOUT"} \
        ${NEXT_SENTENCE:+--next_sentence="$NEXT_SENTENCE"} ${TF_FLAGS:-} "${@:4}"
    convert "$2" "$STEPS" "$2"
}

pretrain() {  # pretrain NAME MODEL TASKS [flags of the corpus]: further pre-trains MODEL on the training texts of TASKS
    records "$@"
    train_on "$1" "$1" "$2"
}

convert() {  # convert NAME STEP AS: makes $OUT/models/AS from the checkpoint of pretrained/NAME after STEP updates
    local checkpoints=$OUT/pretrained/$1/checkpoints
    job "models/$3" cpu "pretrained/$1/checkpoints" - python convert_tf_checkpoint_to_pytorch.py \
        --tf_checkpoint_path "$checkpoints/model.ckpt-$2" --bert_config_file "$checkpoints/bert_config.json" \
        --pytorch_dump_path "$OUT/models/$3/pytorch_model.bin"
}

times() {  # times RATE: the paper's rate as a multiple of RATE, where that is not 2e-5
    [ "$RATE" = 2e-5 ] && echo "$1" || \
        LC_ALL=C awk "BEGIN {printf \"%.5e\", $1 * $RATE / 2e-5}" | sed -E 's/\.?0*e/e/; s/e-0/e-/'
}

part() {  # part TASK LIST [FLAG]: the flag and the part of the data that the list gives the task, if it gives one
    local word
    for word in $2; do
        [ "${word%%=*}" != "$1" ] || echo "${3:+$3 }${word#*=}"
    done
}

parts() {  # parts TASK: the flags of TRAIN_PARTS and TEST_PARTS
    part "$1" "$TRAIN_PARTS" --num_datas
    part "$1" "$TEST_PARTS" --num_test_datas
}

feature() {  # feature MODEL: the flags of LAST_LAYER and POOLING
    [ -z "${LAST_LAYER:-}${POOLING:-}" ] || case $1 in
        large*) echo "--layers $((LARGE_LAYERS - 1)) ${POOLING:+--pooling_type $POOLING}" ;;
        *) echo "--layers $((LAYERS - 1)) ${POOLING:+--pooling_type $POOLING}" ;;
    esac
}

fine_tune() {  # fine_tune RUN TASK MODEL SCRIPT [flags]: fine-tunes into $OUT/RUN, once for each of SEEDS (section 5.2)
    local folder=$OUT/$1 model=$OUT/models/$3
    [[ "$SEEDS" == *" "* ]] || folder=$folder/seed_$SEEDS  # as with several seeds
    job "$1" gpu "models/$3 $data_job" - python "$4" --task_name "$2" --do_train --do_eval $lower_case \
        --data_dir "$DATA/$2" --vocab_file "$model/vocab.txt" --bert_config_file "$model/config.json" \
        --init_checkpoint "$model" --max_seq_length "$LENGTH" --train_batch_size 24 --num_train_epochs "$EPOCHS" \
        --warmup_proportion 0.1 --seed $SEEDS --save_models none --output_dir "$folder" $(feature "$3") \
        $(parts "$2") ${FLAGS:-} "${@:5}"
}

# Where several experiments have a run, it has one name, and is done once.
FIT="--trunc_medium $HEAD --learning_rate $RATE --layer_learning_rate $RATE --layer_learning_rate_decay 0.95"
# Figure 2's points, ten an epoch, each on 2,000 of the 25,000 test examples. They change nothing else of a run.
CURVE=${CURVE:---eval_every 0.1 --eval_sample 0.08 --allow_divergence}

fit() {  # fit RUN TASK MODEL [flags]: BERT-FiT, the best setting of Exp-I: head+tail, a rate for each layer
    fine_tune "$1" "$2" "$3" run_classifier_discriminative.py $FIT "${@:4}"
}

head_tail() {  # head_tail TASK MODEL: head+tail at RATE, of Table 2; on IMDb of Figure 2, and of Table 4 with decay 1.00, too
    local curve=
    [ "$1" != imdb ] || curve=$CURVE
    fine_tune "long_text/head+tail/$1" "$1" "$2" run_classifier_single_layer.py --learning_rate "$RATE" \
        --trunc_medium "$HEAD" $curve
}

[ -z "${SMOKE:-}" ] || job data cpu "" - python data/make_task_samples.py --output_dir "$OUT/data"
if [ -z "${FROM_NOTHING:-}" ]; then  # of pocket.sh
    [ -z "${SMOKE:-}" ] || job tiny_bert cpu "" - python data/make_tiny_bert.py --output_dir "$OUT/tiny_bert"
    prepare base "$BERT"
fi
