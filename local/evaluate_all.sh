#!/usr/bin/env bash
# Decode, score and measure trained models, offline and as streams -> exp/<model>/evaluation_results.json of each.
# What is there and younger than the model is kept. docs/report.md says what is in the files.
set -euo pipefail

# begin options
corpus=librispeech_100         # name: librispeech_100 is the recipe of the repository's root, others are egs2/<corpus>/asr1
models=                        # path*: model directories, e.g. "exp/asr_a exp/asr_b" (default: all that are trained)
expdir=exp                     # path: directory of the models
dumpdir=dump                   # path: formatted data
inference_config=conf/decode_asr.yaml # path: decoding of whole recordings
inference_asr_model=valid.acc.ave.pth # name: checkpoint
streaming_config=              # path: decoding of streams (default: greedy CTC search)
profile_config=                # path: what is measured (default: the recipe's conf/profile.yaml, or the repository's)
nj=2                           # positive_int: processes that decode streams
device=cpu                     # device: cpu or cuda, for streams and measurements
run_args=                      # text*: more options of run.sh, e.g. "--gpu_inference true"
# end options

. "$(dirname "${BASH_SOURCE[0]}")/in_recipe.sh"

if [ -z "${profile_config}" ]; then
    profile_config=conf/profile.yaml
    [ -f "${profile_config}" ] || profile_config="${root}/conf/profile.yaml"
fi
inference_tag="$(basename "${inference_config}" .yaml)_asr_model_${inference_asr_model%.*}"
if [ -z "${models}" ]; then
    for checkpoint in "${expdir}"/asr_*/"${inference_asr_model}"; do
        [ ! -f "${checkpoint}" ] || models_list+=("$(dirname "${checkpoint}")")
    done
    [ "${#models_list[@]}" -gt 0 ] || die "no ${recipe}/${expdir}/asr_*/${inference_asr_model}: train a model first"
fi

trap 'exit 130' INT
failed=()
for model in "${models_list[@]}"; do
    log "Evaluating ${model}"
    ./run.sh --stop_stage 13 --skip_data_prep true --skip_train true --asr_exp "${model}" \
        --expdir "${expdir}" --dumpdir "${dumpdir}" --inference_config "${inference_config}" \
        --inference_tag "${inference_tag}" --inference_asr_model "${inference_asr_model}" ${run_args_list[@]+"${run_args_list[@]}"} \
        && python -m espnet_ext.bin.asr_evaluate "${model}" --inference_tag "${inference_tag}" \
            --inference_asr_model "${inference_asr_model}" --inference_config "${inference_config}" \
            --profile_config "${profile_config}" ${streaming_config:+--streaming_config "${streaming_config}"} \
            --dumpdir "${dumpdir}" --nj "${nj}" --device "${device}" \
        || failed+=("${model}")
done
[ ${#failed[@]} -eq 0 ] || die "not evaluated: ${failed[*]}"
