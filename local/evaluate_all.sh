#!/usr/bin/env bash
# Decode, score and measure trained models, offline and as streams -> exp/<model>/evaluation_results.json of each.
# What is there and younger than the model is kept. docs/report.md says what is in the files.
set -euo pipefail

# begin options
corpus=librispeech_100         # librispeech_100 is the recipe of the repository's root, others are egs2/<corpus>/asr1
models=                        # model directories, e.g. "exp/asr_a exp/asr_b" (default: all that are trained)
expdir=exp                     # directory of the models
dumpdir=dump                   # formatted data
inference_config=conf/decode_asr.yaml # decoding of whole recordings
inference_asr_model=valid.acc.ave.pth # checkpoint
streaming_config=              # decoding of streams (default: greedy CTC search)
profile_config=                # what is measured (default: the recipe's conf/profile.yaml, or the repository's)
nj=2                           # processes that decode streams
device=cpu                     # cpu or cuda, for streams and measurements
run_args=                      # more options of run.sh, e.g. "--gpu_inference true"
# end options

. "$(dirname "${BASH_SOURCE[0]}")/in_recipe.sh"

if [ -z "${profile_config}" ]; then
    profile_config=conf/profile.yaml
    [ -f "${profile_config}" ] || profile_config="${root}/conf/profile.yaml"
fi
eval "run_words=(${run_args})"
inference_tag="$(basename "${inference_config}" .yaml)_asr_model_${inference_asr_model%.*}"
if [ -z "${models}" ]; then
    for checkpoint in "${expdir}"/asr_*/"${inference_asr_model}"; do
        [ ! -f "${checkpoint}" ] || models+=" $(dirname "${checkpoint}")"
    done
    [ -n "${models}" ] || die "no ${recipe}/${expdir}/asr_*/${inference_asr_model}: train a model first"
fi

trap 'exit 130' INT
failed=()
for model in ${models}; do
    log "Evaluating ${model}"
    ./run.sh --stop_stage 13 --skip_data_prep true --skip_train true --asr_exp "${model}" \
        --expdir "${expdir}" --dumpdir "${dumpdir}" --inference_config "${inference_config}" \
        --inference_tag "${inference_tag}" --inference_asr_model "${inference_asr_model}" ${run_words[@]+"${run_words[@]}"} \
        && python -m espnet_ext.bin.asr_evaluate "${model}" --inference_tag "${inference_tag}" \
            --inference_asr_model "${inference_asr_model}" --inference_config "${inference_config}" \
            --profile_config "${profile_config}" ${streaming_config:+--streaming_config "${streaming_config}"} \
            --dumpdir "${dumpdir}" --nj "${nj}" --device "${device}" \
        || failed+=("${model}")
done
[ ${#failed[@]} -eq 0 ] || die "not evaluated: ${failed[*]}"
