#!/usr/bin/env bash
# The experiments on a cluster: what run_all.sh does, or the experiments that are named, as job arrays of Slurm, a task for each
# run. What a run needs is in an earlier array.
#
#     SBATCH_FLAGS="--gres=gpu:1 --time=24:00:00" bash scripts/slurm.sh
#     SBATCH_FLAGS="--gres=gpu:1 --time=24:00:00" SEEDS=42 bash scripts/slurm.sh exp1_layers exp2_steps
#
# SBATCH_FLAGS are for the runs on a GPU, CPU_SBATCH_FLAGS for corpora, records, conversions and tables; other settings:
# scripts/experiment.sh. Two minutes before its time is over a run saves and stops. When all has ended, the same command submits
# what is left: what was stopped, what failed, and what needs it. `bash scripts/run_all.sh --status` says how far it is.
experiments=${*:-run_all}
for name in $experiments; do
    [[ "$name" == @(run_all|exp[0-9_]*) && -e "$(dirname "$0")/$name.sh" ]] && continue
    echo "$0: there is no experiment $name; they are scripts/exp*.sh and run_all" >&2
    exit 2
done
set --
source "$(dirname "$0")/experiment.sh"
folder=$OUT/slurm/$(date +%Y%m%d-%H%M%S)  # of this submission: the tasks of an earlier one may still read theirs
mkdir -p "$folder"
remember_settings
echo "$SPACY_MODEL" > "$OUT/spacy_model"
for name in $experiments; do
    DECLARE=1 bash "scripts/$name.sh"
done > "$folder/plan"

queue=("$PYTHON" scripts/run_queue.py --out "$OUT" --python "$PYTHON" ${KEEP_RECORDS:+--keep_products})
level= before= now=
files=$("${queue[@]}" --levels "$folder" < "$folder/plan")  # a line each
while IFS= read -r file; do
    [ -n "$file" ] || continue  # nothing is left to do
    this=${file##*/}
    if [ "${this%_*}" != "$level" ]; then
        level=${this%_*} before=$now now=
    fi
    flags=${SBATCH_FLAGS:-}
    [ "${this#*_}" = gpu ] || flags=${CPU_SBATCH_FLAGS:-}
    # afterany, not afterok: a run that failed keeps its array from being ok, but not those that do not need it from running;
    # the others refuse by themselves
    id=$(sbatch --parsable --job-name "$this" --array "1-$(wc -l < "$file" | tr -d ' ')" --output "$folder/%x_%a.log" \
        --signal B:TERM@120 ${before:+--dependency "afterany$before"} $flags \
        --wrap "exec $(printf '%q ' "${queue[@]}") --only \"\$(sed -n \"\${SLURM_ARRAY_TASK_ID}p\" $(printf %q "$file"))\" \
            < $(printf %q "$folder/plan")" < /dev/null)  # the loop's own input is the list of files
    now+=:${id%%;*}  # ID;CLUSTER where there are several clusters
    echo "submitted $file as job ${id%%;*}"
done <<< "$files"
