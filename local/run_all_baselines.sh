#!/usr/bin/env bash
# Train, decode, score and measure every encoder with every attention, and lay them side by side in comparison/.
# Run it again after a stop or a failure: what is done is kept. One model's failure does not stop the others.
set -euo pipefail

# begin options
encoders="conformer branchformer" # name*: which encoders
attentions="mha gqa mla linear" # name*: which attentions
corpus=librispeech_100         # name: librispeech_100 is the recipe of the repository's root, others are egs2/<corpus>/asr1
conf_dir=                      # path: holds train_asr_<encoder>_<attention>.yaml (default: conf/tuning, or conf without one)
expdir=exp                     # path: models
dumpdir=dump                   # path: formatted data
comparison=comparison          # path: tables, plots and report.html
inference_config=conf/decode_asr.yaml # path: decoding of whole recordings
streaming_config=              # path: decoding of streams (default: greedy CTC search)
profile_config=                # path: what is measured (default: the recipe's conf/profile.yaml, or the repository's)
jobs=1                         # positive_int: models trained and evaluated at once
nj=2                           # positive_int: processes that decode streams, per model
device=cpu                     # device: cpu or cuda, for streams and measurements
run_args=                      # text*: more options of run.sh, e.g. "--ngpu 2 --asr_args '--max_epoch 30'"
# end options

. "$(dirname "${BASH_SOURCE[0]}")/in_recipe.sh"

if [ -z "${conf_dir}" ]; then
    conf_dir=conf/tuning
    [ -d "${conf_dir}" ] || conf_dir=conf
fi
logdir="${expdir}/run_all"
mkdir -p "${logdir}"
rm -f "${logdir}"/*.failed

minutes() { echo "$(((${1} + 30) / 60)) min"; }

run_stages() { # run_stages CONFIG OPTION...
    ./run.sh --asr_config "$1" --expdir "${expdir}" --dumpdir "${dumpdir}" "${@:2}" ${run_args_list[@]+"${run_args_list[@]}"}
}

run_model() { # run_model CONFIG LOG: train and evaluate one model
    [ -f "$1" ] || { echo "no such file: ${recipe}/$1"; return 1; }
    # Models share data, tokens and statistics: one makes them, the others wait and find them there.
    { flock 9 && run_stages "$1" --stop_stage 10 9>&-; } 9> "${logdir}/.preparing" || return 1
    run_stages "$1" --stage 11 --stop_stage 11 || return 1
    local model
    model=$(sed -n 's/.*Stage 11: training of //p' "$2" | tail -n 1)
    [ -n "${model}" ] || { echo "stage 11 did not run"; return 1; }
    "${root}/local/evaluate_all.sh" --corpus "${corpus}" --models "$(shell_word "${model}")" --expdir "${expdir}" \
        --dumpdir "${dumpdir}" --inference_config "${inference_config}" --streaming_config "${streaming_config}" \
        --profile_config "${profile_config}" --nj "${nj}" --device "${device}" --run_args "${run_args}" 2>&1 \
        | while IFS= read -r line; do
            echo "${line}"
            [[ "${line}" != *": WER "* ]] || echo "${line}" >&3 # its row, before it is decoded as a stream
        done
}

report_model() { # report_model ENCODER ATTENTION: run_model, its log, and a line about the outcome
    local name="$1_$2" started=${SECONDS} ended
    local log="${logdir}/${name}.log"
    if ! run_model "${conf_dir}/train_asr_${name}.yaml" "${log}" 3>&1 > "${log}" 2>&1; then
        echo "$1 $2: $(tail -n 1 "${log}") (${recipe}/${log})" > "${logdir}/${name}.failed"
        log "FAILED: $(<"${logdir}/${name}.failed")"
    fi
    # A model that was trained already says nothing about how long the others take.
    if trained_now "${log}"; then echo "$((SECONDS - started))" >> "${logdir}/.seconds"; fi
    echo "${name}" >> "${logdir}/.ended"
    ended=$(wc -l < "${logdir}/.ended")
    log "${ended} of ${total} after $(minutes $((SECONDS - begun)))$(time_left $((total - ended)))"
}

trained_now() { # trained_now LOG: whether the model of a log was trained in this run
    local model
    model=$(sed -n 's/.*Stage 11: training of //p' "$1" | tail -n 1)
    [ -n "${model}" ] && [ -n "$(find "${model}" -maxdepth 1 -name '*.pth' -newer "${logdir}/.begun" -print -quit)" ]
}

time_left() { # time_left MODELS: from the models that were trained in this run; nothing before the first of them
    [ "$1" -gt 0 ] || return 0
    awk -v models="$1" -v jobs="${jobs}" '{ sum += $1 }
        END { if (NR) printf ", about %d min left", models * sum / NR / (jobs < models ? jobs : models) / 60 + 0.5 }' \
        "${logdir}/.seconds"
}

# Every model is a process group of its own, which ends with this script.
set -m
trap 'trap - EXIT; for group in $(jobs -p); do kill -- -"${group}" 2> /dev/null || true; done' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

total=$((${#encoders_list[@]} * ${#attentions_list[@]})) number=0 begun=${SECONDS}
: > "${logdir}/.ended"
: > "${logdir}/.seconds"
touch "${logdir}/.begun"
for encoder in ${encoders_list[@]+"${encoders_list[@]}"}; do
    for attention in ${attentions_list[@]+"${attentions_list[@]}"}; do
        while [ "$(jobs -rp | wc -l)" -ge "${jobs}" ]; do wait -n; done
        number=$((number + 1))
        log "[${number}/${total}] ${encoder} ${attention}, log: ${recipe}/${logdir}/${encoder}_${attention}.log"
        report_model "${encoder}" "${attention}" &
    done
done
wait

status=0
python -m espnet_ext.bin.asr_compare --expdir "${expdir}" --output "${comparison}" --encoders "${encoders}" \
    --attentions "${attentions}" || status=1
for failure in "${logdir}"/*.failed; do
    [ -f "${failure}" ] || continue
    log "FAILED: $(<"${failure}")"
    status=1
done
exit "${status}"
