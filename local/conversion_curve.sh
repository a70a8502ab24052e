#!/usr/bin/env bash
# Convert one trained model to a sweep of ranks and groups, decode each as it is and after fine-tuning, and lay them
# side by side in conversion/. Run it again after a stop: what is done is kept.
set -euo pipefail

# begin options
model=                         # path: directory of the trained model with multi-head attention, e.g. exp/asr_x
corpus=librispeech_100         # name: librispeech_100 is the recipe of the repository's root, others are egs2/<corpus>/asr1
ranks="512 256 128 64 32"      # positive_int*: kv_lora_rank of MLA
groups="4 2 1"                 # positive_int*: n_kv_head of GQA
budgets=                       # positive*: KB of 1000 frames for MLA with ranks per layer
calibration_scp=               # path: recordings of the activation-aware conversions (default: those of the validation set)
num_utts=50                    # positive_int: how many of them
finetune=                      # name*: of those above, which to fine-tune too, e.g. "mla_64_aware gqa_1_similar" or all
finetune_config=               # path: schedule (default: conf/finetune_asr.yaml of the repository)
finetune_args=                 # text*: more options of the training, e.g. "--max_epoch 1"
inference_config=conf/decode_asr.yaml # path: decoding
inference_tag=                 # name: name of the decoding's directory (default: that of inference_config)
expdir=                        # path: where the conversions go (default: <model>_converted)
output=conversion              # path: table, plots and page
run_args=                      # text*: more options of run.sh, e.g. "--use_streaming true"
# end options

. "$(dirname "${BASH_SOURCE[0]}")/in_recipe.sh"

model="${model%/}"
[ -f "${model}/config.yaml" ] || die "--model: no ${recipe}/${model}/config.yaml"
expdir="${expdir:-${model}_converted}"
inference_tag="${inference_tag:-$(basename -- "${inference_config}" .yaml)}"
if [ -z "${calibration_scp}" ]; then
    calibration_scp=$(python -c 'import sys, yaml
paths = [str(entry[0]) for entry in yaml.safe_load(sys.stdin).get("valid_data_path_and_name_and_type") or []]
print(next((path for path in paths if path.endswith("wav.scp")), ""))' < "${model}/config.yaml")
    [ -f "${calibration_scp}" ] || die "--calibration_scp is needed: ${model}/config.yaml does not say it"
fi

recipe_run() { ./run.sh "$@" ${run_args_list[@]+"${run_args_list[@]}"}; }

decode() { # decode MODEL: stages 12 and 13, which keep what is up to date
    recipe_run --stop_stage 13 --skip_data_prep true --skip_train true --asr_exp "$1" \
        --inference_config "${inference_config}" --inference_tag "${inference_tag}" > "$1/decode.log" 2>&1 \
        || die "decoding of $1 failed, see $1/decode.log"
}

converted=()
convert() { # convert NAME OPTION...: one conversion, decoded, and fine-tuned if that is asked for
    local name="$1" dir="${expdir}/asr_$1" tuned changed work
    log "${name}"
    if [ -d "${dir}" ]; then
        changed=$(python -m espnet_ext.bin.marker changed "${dir}/.done")
        [ -z "${changed}" ] || die "${dir} was converted before ${changed} changed: remove it and run again"
    else
        work=$(python -m espnet_ext.bin.marker check "${dir}/.done" "$(printf '%s\n' "${@:2}")" \
            "${model}"/{config.yaml,valid.acc.ave.pth} -- config.yaml conversion.json valid.acc.ave.pth)
        python -m espnet_ext.bin.asr_convert --from "${model}" --output "${dir}" "${@:2}" > /dev/null
        python -m espnet_ext.bin.marker write "${dir}/.done" "${work}"
    fi
    decode "${dir}"
    converted+=("${dir}")
    if [ "${finetune}" = all ] || [[ " ${finetune_list[*]-} " = *" ${name} "* ]]; then
        log "${name}: fine-tuning"
        tuned="${dir}_tuned"
        mkdir -p "${tuned}"
        recipe_run --stage 10 --stop_stage 11 --asr_exp "${tuned}" --init_from "${dir}" --asr_args "${finetune_args}" \
            ${finetune_config:+--finetune_config "${finetune_config}"} > "${tuned}/run.log" 2>&1 \
            || die "fine-tuning of ${name} failed, see ${tuned}/run.log"
        decode "${tuned}"
        converted+=("${tuned}")
    fi
}

trap 'exit 130' INT
decode "${model}"
aware=(--calibration_scp "${calibration_scp}" --num_utts "${num_utts}")
for rank in ${ranks_list[@]+"${ranks_list[@]}"}; do
    convert "mla_${rank}_plain" --attention mla --attention_conf "kv_lora_rank=${rank}"
    convert "mla_${rank}_aware" --attention mla --attention_conf "kv_lora_rank=${rank}" "${aware[@]}"
done
for kb in ${budgets_list[@]+"${budgets_list[@]}"}; do
    convert "mla_${kb}kb_aware" --attention mla --budget_kb "${kb}" "${aware[@]}"
done
for heads in ${groups_list[@]+"${groups_list[@]}"}; do
    convert "gqa_${heads}" --attention gqa --attention_conf "n_kv_head=${heads}"
    convert "gqa_${heads}_similar" --attention gqa --attention_conf "n_kv_head=${heads}" --grouping similar "${aware[@]}"
done

python -m espnet_ext.bin.asr_conversion_curve "${converted[@]}" --source "${model}" \
    --inference_tag "${inference_tag}" --output "${output}"
