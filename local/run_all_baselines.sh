#!/usr/bin/env bash
# Train, decode, score and measure every encoder with every attention, and lay them side by side in comparison/.
# Run it again after a stop or a failure: what is done is kept. One model's failure does not stop the others.
set -euo pipefail

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (run_all_baselines.sh) $*"; }
die() { log "error: $*" >&2; exit 1; }

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# begin options
encoders="conformer branchformer" # which encoders
attentions="mha gqa mla linear" # which attentions
corpus=librispeech_100         # librispeech_100 is the recipe of the repository's root, others are egs2/<corpus>/asr1
conf_dir=                      # holds train_asr_<encoder>_<attention>.yaml (default: conf/tuning, or conf without one)
expdir=exp                     # models
dumpdir=dump                   # formatted data
comparison=comparison          # tables, plots and report.html
inference_config=conf/decode_asr.yaml # decoding of whole recordings
streaming_config=              # decoding of streams (default: greedy CTC search)
profile_config=                # what is measured (default: the recipe's conf/profile.yaml, or the repository's)
nj=2                           # processes that decode streams
device=cpu                     # cpu or cuda, for streams and measurements
run_args=                      # more options of run.sh, e.g. "--ngpu 2 --asr_args '--max_epoch 30'"
# end options

. "${root}/path.sh"
assignments=$(python -m espnet_ext.bin.parse_options "${BASH_SOURCE[0]}" "$@") || exit 1
eval "${assignments}"
[ $# -eq 0 ] || die "'$1' is not an option"

recipe="${root}/egs2/${corpus}/asr1"
[[ "${corpus}" != librispeech* ]] || recipe="${root}"
[ -f "${recipe}/run.sh" ] || die "--corpus ${corpus}: no ${recipe}/run.sh"
cd "${recipe}"
if [ -z "${conf_dir}" ]; then
    conf_dir=conf/tuning
    [ -d "${conf_dir}" ] || conf_dir=conf
fi
eval "run_words=(${run_args})"
logdir="${expdir}/run_all"
mkdir -p "${logdir}"

minutes() { echo "$(((${1} + 30) / 60)) min"; }

run_model() { # run_model CONFIG LOG: train and evaluate one model
    [ -f "$1" ] || { echo "no such file: ${recipe}/$1"; return 1; }
    ./run.sh --stop_stage 11 --asr_config "$1" --expdir "${expdir}" --dumpdir "${dumpdir}" \
        ${run_words[@]+"${run_words[@]}"} || return 1
    local model
    model=$(sed -n 's/.*Stage 11: training of //p' "$2" | tail -n 1)
    [ -n "${model}" ] || { echo "stage 11 did not run"; return 1; }
    "${root}/local/evaluate_all.sh" --corpus "${corpus}" --models "${model}" --expdir "${expdir}" \
        --dumpdir "${dumpdir}" --inference_config "${inference_config}" --streaming_config "${streaming_config}" \
        --profile_config "${profile_config}" --nj "${nj}" --device "${device}" --run_args "${run_args}"
}

trap 'exit 130' INT
# shellcheck disable=SC2206  # the options are words
names=(${encoders}) kinds=(${attentions})
total=$((${#names[@]} * ${#kinds[@]})) done=0 begun=${SECONDS} failed=()
for encoder in "${names[@]}"; do
    for attention in "${kinds[@]}"; do
        model_log="${logdir}/${encoder}_${attention}.log"
        log "[$((done + 1))/${total}] ${encoder} ${attention}, log: ${recipe}/${model_log}"
        if run_model "${conf_dir}/train_asr_${encoder}_${attention}.yaml" "${model_log}" > "${model_log}" 2>&1; then
            tail -n 1 "${model_log}"
        else
            failed+=("${encoder} ${attention}: $(tail -n 1 "${model_log}") (${recipe}/${model_log})")
            log "FAILED: ${failed[-1]}"
        fi
        done=$((done + 1))
        left=$(((SECONDS - begun) * (total - done) / done))
        log "${done} of ${total} after $(minutes $((SECONDS - begun))), about $(minutes "${left}") left"
    done
done

python -m espnet_ext.bin.asr_compare --expdir "${expdir}" --output "${comparison}" --encoders "${encoders}" \
    --attentions "${attentions}" || failed+=("comparison")
for failure in ${failed[@]+"${failed[@]}"}; do log "FAILED: ${failure}"; done
[ ${#failed[@]} -eq 0 ]
