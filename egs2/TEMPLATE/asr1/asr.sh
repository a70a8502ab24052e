#!/usr/bin/env bash
# The staged ASR recipe. A recipe's run.sh calls it from the recipe's own directory, which holds path.sh, conf/ and
# local/data.sh. Stage numbers, options and their defaults are ESPnet's; docs/recipe.md says what each stage writes.
set -euo pipefail

# The mark of all that this run starts, its subshells too, by which espnet_ext/processes.py ends them with it.
[[ " ${ESPNET_EXT_RUN:-} " = *" $$ "* ]] || ESPNET_EXT_RUN="${ESPNET_EXT_RUN:-} $$" exec "${BASH}" "$0" "$@"

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (asr.sh) $*"; }
die() { log "error: $*" >&2; exit 1; }

command_line=("$0" "$@")
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# begin options
stage=1                        # count: first stage to run
stop_stage=10000               # count: last stage to run
skip_stages=                   # count*: stages left out, e.g. "2 10"
skip_data_prep=false           # boolean: leave out stages 1 to 5
skip_train=false               # boolean: leave out stages 2 and 4 to 11
skip_eval=false                # boolean: leave out stages 12, 13 and 16
skip_packing=true              # boolean: leave out stage 14
skip_upload_hf=true            # boolean: leave out stage 15
skip_export=true               # boolean: leave out stage 17
eval_valid_set=false           # boolean: decode the validation set too
ngpu=1                         # count: GPUs per node in training; 0 is the CPU
num_nodes=1                    # positive_int: nodes in training
nj=32                          # positive_int: parallel jobs in data preparation and statistics
inference_nj=32                # positive_int: parallel jobs in decoding
gpu_inference=false            # boolean: decode on GPUs, one per job
dumpdir=dump                   # path: formatted data
expdir=exp                     # path: models and results
python=python3                 # path: interpreter of the jobs
train_set=                     # name: name of the training set, as local/data.sh calls it
valid_set=                     # name: name of the validation set
test_sets=                     # name*: names of the test sets
local_data_opts=               # text*: options of local/data.sh
speed_perturb_factors=         # positive*: e.g. "0.9 1.0 1.1"
feats_type=raw                 # raw: features are computed from the waveform, in training
audio_format=flac              # flac|wav|flac.ark|wav.ark: format of audio that has to be converted; .ark is dropped
fs=16k                         # rate: sampling rate
min_wav_duration=0.1           # non_negative: seconds; shorter training utterances are left out
max_wav_duration=20            # positive: seconds; longer training utterances are left out
lang=noinfo                    # name: language, part of directory names
token_type=bpe                 # bpe|char|word: bpe, char or word
nbpe=30                        # positive_int: number of BPE tokens
bpemode=unigram                # unigram|bpe: unigram or bpe
bpe_train_text=                # path*: text of the tokens (default: that of the training set)
bpe_input_sentence_size=100000000 # positive_int: sentences used to train BPE
bpe_nlsyms=                    # text: symbols that BPE never splits, commas between
bpe_char_cover=1.0             # probability: share of the characters that BPE covers
use_lm=true                    # boolean: train a language model and decode with it
lm_tag=                        # name: name of the language model's directory
lm_exp=                        # path: directory of the language model
lm_stats_dir=                  # path: directory of its statistics
lm_config=                     # path: its YAML
lm_args=                       # text*: more options of its training, e.g. "--max_epoch 10"
lm_train_text=                 # path*: its training text (default: that of the training set)
lm_dev_text=                   # path: its validation text (default: that of the validation set)
lm_test_text=                  # path: text of the perplexity (default: that of the first test set)
lm_fold_length=150             # positive_int: tokens per folded sequence
use_ngram=false                # false: n-grams need KenLM, which is not used; take --use_lm true
asr_tag=                       # name: name of the model's directory
asr_exp=                       # path: directory of the model
print_asr_exp=false            # boolean: only print which directory that is
asr_stats_dir=                 # path: directory of the statistics
asr_config=                    # path: YAML of the model and its training
asr_args=                      # text*: more options of the training, e.g. "--max_epoch 10"
pretrained_model=              # path: checkpoint to start from: file[:source[:target[:excluded]]]
init_from=                     # path: directory of a trained or converted model to fine-tune, in place of --asr_config
finetune_config=               # path: YAML of its schedule (default: conf/finetune_asr.yaml of the repository)
feats_normalize=global_mvn     # global_mvn|utterance_mvn|none: global_mvn, utterance_mvn or none
asr_speech_fold_length=80000   # positive_int: samples per folded sequence
asr_text_fold_length=150       # positive_int: tokens per folded sequence
batch_size=1                   # positive_int: utterances decoded at once
use_streaming=false            # boolean: decode as streams, with the options of asr_inference_streaming
inference_tag=                 # name: name of the decoding's directory
inference_config=              # path: YAML of the decoding
inference_args=                # text*: more options of the decoding, e.g. "--beam_size 5"
inference_lm=valid.loss.ave.pth # name: language model checkpoint used in decoding
inference_asr_model=valid.acc.ave.pth # name: checkpoint used in decoding
local_score_opts=              # text*: options of local/score.sh
hf_repo=                       # repository: OWNER/NAME on the hub, for stage 15
export_args=                   # text*: more options of the export, e.g. "--chunk_size 16 --left_context 64"
profile_config=                # path: what stage 16 measures (default: the recipe's conf/profile.yaml, or the repository's)
# Options of ESPnet's own asr.sh that a run.sh written for it may give: each has the one value that asks for nothing.
cleaner=none                   # none: text is trained on as it is written; clean it in local/data.sh
g2p=none                       # none: there are no phones; --token_type is bpe, char or word
nlsyms_txt=none                # none: no symbols are left out of characters and scores; remove them in local/data.sh
oov="<unk>"                    # <unk>: the names of the special tokens are fixed
blank="<blank>"                # <blank>: the names of the special tokens are fixed
sos_eos="<sos/eos>"            # <sos/eos>: the names of the special tokens are fixed
hugging_face_model_name_or_path= # empty: tokens are made from the corpus
asr_task=asr                   # asr: only single-speaker recognition is trained
num_ref=1                      # 1: only single-speaker recognition is trained
num_inf=                       # 1: only single-speaker recognition is trained
sot_asr=false                  # false: only single-speaker recognition is trained
ref_text_files_str=text        # text: an utterance has one transcript
ref_text_names_str=text        # text: an utterance has one transcript
multi_columns_input_wav_scp=false # false: audio has one channel; join the channels in local/data.sh
multi_columns_output_wav_scp=false # false: audio has one channel; join the channels in local/data.sh
post_process_local_data_opts=  # empty: local/data.sh runs once, with --local_data_opts
auxiliary_data_tags=           # empty: only speech and text are read
num_splits_asr=1               # 1: training data is not split
num_splits_lm=1                # 1: training data is not split
ignore_init_mismatch=false     # false: a checkpoint that does not fit is refused; name its parts in --pretrained_model
use_word_lm=false              # false: the language model has the tokens of the recogniser
word_vocab_size=10000          # 10000: the language model has the tokens of the recogniser
ngram_exp=                     # empty: n-grams need KenLM, which is not used
ngram_num=3                    # 3: n-grams need KenLM, which is not used
inference_ngram=3gram.bin      # 3gram.bin: n-grams need KenLM, which is not used
use_maskctc=false              # false: decoding is a beam search
use_k2=false                   # false: k2 is not used
k2_ctc_decoding=true           # true: k2 is not used
k2_config=./conf/decode_asr_transformer_with_k2.yaml # ./conf/decode_asr_transformer_with_k2.yaml: k2 is not used
use_nbest_rescoring=true       # true: k2 is not used
num_paths=1000                 # 1000: k2 is not used
nll_batch_size=100             # 100: k2 is not used
download_model=                # empty: unpack a packed model with asr_unpack, and decode with --asr_exp
skip_upload=true               # true: uploads go to the hub, with --skip_upload_hf false
score_opts=                    # empty: sclite is not used
debug=false                    # false: run a command of a log by itself
# end options

[ -f path.sh ] || die "no path.sh in ${PWD}: that of a recipe in egs2 is the line '. ../../../path.sh'"
. ./path.sh
if [ -f cmd.sh ]; then . ./cmd.sh; else . "${root}/cmd.sh"; fi
assignments=$(python -m espnet_ext.bin.parse_options "${BASH_SOURCE[0]}" "$@") || exit 1
[ "${assignments}" != exit ] || exit 0 # after the help
while IFS= read -r line; do # NAME=VALUE, or the name of an array to be emptied
    case "${line}" in *=*) printf -v "${line%%=*}" '%s' "${line#*=}" ;; *) unset "${line}" ;; esac
done <<< "${assignments}"
! "${print_asr_exp}" || exec 8>&1 >&2

[ -n "${train_set}" ] && [ -n "${valid_set}" ] && [ -n "${test_sets}" ] \
    || die "--train_set, --valid_set and --test_sets are needed"
[ "${num_nodes}" -eq 1 ] || [ "${cmd_backend}" != local ] || die "--num_nodes ${num_nodes} needs a cluster, see cmd.sh"
[ -z "${init_from}" ] || asr_config="${finetune_config:=${root}/conf/finetune_asr.yaml}"
for file in "${asr_config}" "${lm_config}" "${inference_config}"; do
    [ -z "${file}" ] || [ -f "${file}" ] || die "no such file: ${file}"
done
[[ "${init_from}" != *:* ]] || die "--init_from ${init_from}: ESPnet ends a checkpoint's path at a colon; make a link without"

python -m espnet_ext.processes $$ < /dev/null > /dev/null 2>&1 & # ends what this run leaves behind, should it be killed

# Which stages to run.
skip_stages="${skip_stages_list[*]-}"
! "${skip_data_prep}" || skip_stages+=" 1 2 3 4 5"
! "${skip_train}" || skip_stages+=" 2 4 5 6 7 8 9 10 11"
! "${skip_eval}" || skip_stages+=" 12 13 16"
! "${skip_packing}" || skip_stages+=" 14"
! "${skip_upload_hf}" || skip_stages+=" 15"
! "${skip_export}" || skip_stages+=" 17"
"${use_lm}" || skip_stages+=" 6 7 8"
[ -n "${speed_perturb_factors}" ] || skip_stages+=" 2"
skip_stages+=" 9"

wanted() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] && [[ " ${skip_stages} " != *" $1 "* ]]; }

# A finished part of a stage leaves a marker: its options, the fingerprints of what it read, taken before it began, and
# of what it wrote. While all of that stays as it was, the part is not done again.
again=                         # --again: done all the same
# finished MARKER OPTIONS INPUT... -- OUTPUT...: outputs are relative to the marker's directory. If it is not, that
# directory is this run's until it finishes another part, and finish takes what ${work} says.
finished() {
    # shellcheck disable=SC2086  # a word or none
    work=$(tool marker check ${again} "$@") || exit 1
    if [ -z "${work}" ]; then
        log "up to date: $(dirname "$1")"
        return 0
    fi
    claim "$(dirname "$1")"
    return 1
}
finish() { tool marker write "$1" "${work}"; } # finish MARKER

# refuse_old STAGE MARKER [INPUT...]: end if a result that is about to be read was made before its inputs changed, or
# those that are named; where none is, also if it was changed itself
refuse_old() {
    local path
    ! wanted "$1" || return 0
    path=$(tool marker changed "${@:2}") || exit 1
    [ -z "${path}" ] || die "$(dirname "$2") was made before ${path} changed: run from stage $1"
}

# A new result is made in $(beside DIR) while the old one stays; then replace DIR, at once and with its marker.
beside() { printf '%s' "$(dirname "$1")/.new/$(basename "$1")"; }
begin_beside() { # begin_beside DIR: the lock of DIR, which this run has, goes with it
    local new
    new=$(beside "$1")
    rm -rf "${new}"
    mkdir -p "${new}"
    ln "$1/.lock" "${new}/.lock" 2> /dev/null || true
}
replace() { tool marker replace "$1"; } # replace DIR

# The lock is the kernel's and goes with the processes that hold it. In a condition no failure ends the script by itself.
claim() { # claim DIR
    { mkdir -p "$1" && exec 9<> "$1/.lock"; } 2> /dev/null \
        || die "$1/.lock cannot be opened, and without it two runs might write there: see its rights, or remove it"
    tool marker claim "$1" $$ || exit 1
}

tool() { "${python}" -m "espnet_ext.bin.$1" "${@:2}"; }
lines() { wc -l < "$1"; }
by_line() { printf '%s\n' "$@"; }
among() { # among WORD WORD...: whether the first is one of the others
    local word
    for word in "${@:2}"; do [ "${word}" != "$1" ] || return 0; done
    return 1
}
least() { printf '%s\n' "$@" | sort -n | head -n 1; }
as_name() { # the part of a directory's name that stands for extra options
    local name="${1//--/_}"
    printf '%s' "${name//[ |=\/]/}"
}
quote="'"
shell_word() { printf "'%s'" "${1//${quote}/${quote}\\${quote}${quote}}"; } # a word of a line that is split as a shell's
yaml_text() { printf "'%s'" "${1//${quote}/${quote}${quote}}"; } # the value of KEY=YAML

# What stands for the number of a job in logs and commands: a word that no path and no option of this run has in it.
job=JOB
while [[ "${root} ${command_line[*]}" = *"${job}"* ]]; do job+=_; done

script() { # script FILE: stops unless a script of the recipe can run
    [ -f "$1" ] || die "no $1 in ${PWD}"
    [ -x "$1" ] || die "$1 has no run bit: chmod +x '${PWD}/$1'"
    [ -f db.sh ] || ! grep -q '^\(\.\|source\) \(\./\)\?db\.sh' "$1" || die "no db.sh in ${PWD}: it says where the corpus is"
}

trained() { # trained DIR CHECKPOINT OPTION STAGE: stops unless it is there, naming those that are
    local file there=
    [ ! -f "$1/$2" ] || return 0
    for file in "$1"/*.{ave,best}.pth; do [ ! -f "${file}" ] || there+=", ${file##*/}"; done
    [ -z "${there}" ] || die "no $1/$2; there is ${there#, }: name one with $3"
    die "no $1/$2: run stage $4 first"
}

# Names of data, tokens and models.
original_train_set="${train_set}"
[ -z "${speed_perturb_factors}" ] || train_set+=_sp
data_feats="${dumpdir}/${feats_type}"
train_dir="${data_feats}/${train_set}"
valid_dir="${data_feats}/${valid_set}"

# Test sets are never filtered: one that is the training or validation set too is the formatted set, org/NAME.
formatted=("org/${train_set}")
[ "${valid_set}" = "${train_set}" ] || formatted+=("org/${valid_set}")
trained_on=("${formatted[@]#org/}")
eval_sets=()
! "${eval_valid_set}" || eval_sets+=("org/${valid_set}")
for dset in "${test_sets_list[@]}"; do
    if [ "${dset}" = "${train_set}" ] || [ "${dset}" = "${valid_set}" ]; then
        log "The test set ${dset} is trained or validated on too: it is decoded unfiltered, as org/${dset}"
        dset="org/${dset}"
    fi
    among "${dset}" "${formatted[@]}" || formatted+=("${dset}")
    among "${dset}" ${eval_sets[@]+"${eval_sets[@]}"} || eval_sets+=("${dset}")
    [ -n "${first_test_dir:-}" ] || first_test_dir="${data_feats}/${dset}"
done

token_name="${token_type}"
lang_name=
bpemodel=none
token_dir="data/token_list"
if [ "${lang}" != noinfo ]; then
    lang_name="_${lang}"
    token_dir="data/${lang}_token_list"
fi
case "${token_type}" in
bpe)
    token_name="bpe${nbpe}"
    token_dir+="/bpe_${bpemode}${nbpe}"
    bpemodel="${token_dir}/bpe.model"
    ;;
char | word) token_dir+="/${token_type}" ;;
esac
token_list="${token_dir}/tokens.txt"
[ -n "${bpe_train_text}" ] || bpe_train_text_list=("${train_dir}/text")
[ -n "${lm_train_text}" ] || lm_train_text_list=("${train_dir}/text")
lm_dev_text="${lm_dev_text:-${valid_dir}/text}"
lm_test_text="${lm_test_text:-${first_test_dir}/text}"

lm_name="${lang_name}_${token_name}"
lm_tag="${lm_tag:-$(basename "${lm_config:-train}" .yaml)${lm_name}$(as_name "${lm_args}")}"
lm_exp="${lm_exp:-${expdir}/lm_${lm_tag}}"
lm_stats_dir="${lm_stats_dir:-${expdir}/lm_stats${lm_name}}"

sp_name="${speed_perturb_factors:+_sp}"
if [ -n "${init_from}" ]; then
    init_from="${init_from%/}"
    pretrained_model="${init_from}/${inference_asr_model}"
    init_name="${init_from##*/}"
    asr_tag="${asr_tag:-${init_name#asr_}_$(basename "${finetune_config}" .yaml)$(as_name "${asr_args}")}"
    asr_exp="${asr_exp:-${expdir}/asr_${asr_tag}}"
    asr_config="${asr_exp}/finetune.yaml"
fi
asr_name="_${feats_type}${lang_name}_${token_name}"
asr_tag="${asr_tag:-$(basename "${asr_config:-train}" .yaml)${asr_name}$(as_name "${asr_args}")${sp_name}}"
asr_exp="${asr_exp:-${expdir}/asr_${asr_tag}}"
if "${print_asr_exp}"; then printf '%s\n' "${asr_exp}" >&8 && exit; fi
# Models share statistics, but not those of another front end: unless it is ESPnet's default, its name is in theirs.
model_config="${init_from:+${init_from}/config.yaml}"
front_end="$({
    sed -nE "s/^frontend: *[\"']?([[:alnum:]_]+).*/--frontend=\1/p" "${model_config:-${asr_config:-/dev/null}}" 2> /dev/null || true
    printf '%s\n' ${asr_args_list[@]+"${asr_args_list[@]}"}
} | awk 'last == "--frontend" {name = $0} /^--frontend=/ {name = substr($0, 12)} {last = $0} END {print name}')"
[ "${front_end}" != default ] || front_end=
asr_stats_dir="${asr_stats_dir:-${expdir}/asr_stats${asr_name}${front_end:+_$(as_name "${front_end}")}${sp_name}}"

if [ -z "${inference_tag}" ]; then
    inference_tag="$(basename "${inference_config:-inference}" .yaml)$(as_name "${inference_args}")"
    ! "${use_lm}" || inference_tag+="_lm_$(basename "${lm_exp}")_${inference_lm%.*}"
    inference_tag+="_asr_model_${inference_asr_model%.*}"
fi
inference_dir="${asr_exp}/${inference_tag}"

if wanted 1; then
    log "Stage 1: data"
    script local/data.sh
    sources=(local/data.sh)
    [ ! -f db.sh ] || sources+=(db.sh)
    prepared=("${original_train_set}")
    for dset in "${valid_set}" "${test_sets_list[@]}"; do
        [ "${dset}" = "${train_set}" ] || prepared+=("${dset}") # stage 2 makes that one
    done
    if ! finished data/.done "${local_data_opts}" "${sources[@]}" -- "${prepared[@]}"; then
        local/data.sh ${local_data_opts_list[@]+"${local_data_opts_list[@]}"}
        finish data/.done
    fi
fi

if wanted 2; then
    log "Stage 2: speed perturbation by ${speed_perturb_factors}"
    source_dir="data/${original_train_set}" to="data/${train_set}"
    if ! finished "${to}/.done" "${speed_perturb_factors}" "${source_dir}" -- .; then
        parts=()
        for factor in "${speed_perturb_factors_list[@]}"; do
            if [ "${factor}" = 1 ] || [ "${factor}" = 1.0 ]; then
                parts+=("${source_dir}")
            else
                tool data_perturb_speed --factor "${factor}" "${source_dir}" "${source_dir}_sp${factor}"
                parts+=("${source_dir}_sp${factor}")
            fi
        done
        tool data_combine "${to}" "${parts[@]}"
        finish "${to}/.done"
    fi
fi

if wanted 3; then
    log "Stage 3: audio at ${fs}"
    for dset in "${formatted[@]}"; do
        from="data/${dset#org/}" to="${data_feats}/${dset}"
        refuse_old 2 "${from}/.done" "data/${original_train_set}"
        if ! finished "${to}/.done" "${fs} ${audio_format}" "${from}" -- .; then
            tool data_format --fs "${fs}" --audio_format "${audio_format%.ark}" --nj "${nj}" "${from}" "${to}"
            finish "${to}/.done"
        fi
    done
fi

if wanted 4; then
    log "Stage 4: utterances of ${min_wav_duration} to ${max_wav_duration} s"
    for dset in "${trained_on[@]}"; do
        from="${data_feats}/org/${dset}" to="${data_feats}/${dset}"
        refuse_old 3 "${from}/.done" "data/${dset}"
        if ! finished "${to}/.done" "${fs} ${min_wav_duration} ${max_wav_duration}" "${from}" -- .; then
            tool data_filter --fs "${fs}" --min_wav_duration "${min_wav_duration}" \
                --max_wav_duration "${max_wav_duration}" "${from}" "${to}"
            finish "${to}/.done"
        fi
    done
fi

token_files=("${token_list}")
[ "${bpemodel}" = none ] || token_files+=("${bpemodel}")
if wanted 5; then
    log "Stage 5: ${token_name} tokens"
    token_opts=(--token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}")
    token_opts+=(--bpe_input_sentence_size "${bpe_input_sentence_size}" --bpe_char_cover "${bpe_char_cover}")
    [ -z "${bpe_nlsyms}" ] || token_opts+=(--bpe_nlsyms "${bpe_nlsyms}")
    transcripts=("${train_dir}/text" "${valid_dir}/text")
    state=("${token_dir}/.done" "$(by_line "${token_opts[@]}")" "${bpe_train_text_list[@]}" "${transcripts[@]}")
    if ! finished "${state[@]}" -- "${token_files[@]##*/}"; then
        tool data_tokens "${token_opts[@]}" --text "${bpe_train_text_list[@]}" \
            --transcripts "${transcripts[@]}" --output "${token_dir}"
        finish "${token_dir}/.done"
    fi
fi

text_opts=(--use_preprocessor true --token_type "${token_type}" --token_list "${token_list}" --bpemodel "${bpemodel}")
text_opts+=(--non_linguistic_symbols none --cleaner none --g2p none)
lm_train_file="${lm_stats_dir}/train.txt"
lm_opts=("${text_opts[@]}" ${lm_config:+--config "${lm_config}"})
lm_opts+=(--train_data_path_and_name_and_type "${lm_train_file},text,text")
lm_opts+=(--valid_data_path_and_name_and_type "${lm_dev_text},text,text")

# collect_stats DIR PROGRAM KEYS_TRAIN KEYS_VALID OPTION...: statistics in parallel jobs, summed into DIR
collect_stats() {
    local dir="$1" program="$2" train_keys="$3" valid_keys="$4" n part inputs=()
    n=$(least "${nj}" "$(lines "${train_keys}")" "$(lines "${valid_keys}")")
    rm -rf "${dir}/logdir"
    tool data_split --num "${n}" "${train_keys}" "${dir}/logdir/train" scp > /dev/null
    tool data_split --num "${n}" "${valid_keys}" "${dir}/logdir/valid" scp > /dev/null
    ${train_cmd} --max-jobs-run "${nj}" "${job}=1:${n}" "${dir}/logdir/stats.${job}.log" \
        "${python}" -m "espnet_ext.bin.${program}" --collect_stats true "${@:5}" --ngpu 0 \
        --train_shape_file "${dir}/logdir/train.${job}.scp" --valid_shape_file "${dir}/logdir/valid.${job}.scp" \
        --output_dir "${dir}/logdir/stats.${job}"
    for part in $(seq "${n}"); do inputs+=(--input_dir "${dir}/logdir/stats.${part}"); done
    [ "${program}" != lm_train ] || inputs+=(--skip_sum_stats)
    rm -rf "${dir}/.new"
    tool aggregate_stats_dirs "${inputs[@]}" --output_dir "${dir}/.new" \
        --token_list "${token_list}" --token_type "${token_type}"
    for part in train valid; do replace "${dir}/${part}"; done
}

# train DIR PROGRAM OPTION...: training that goes on from DIR/checkpoint.pth where there is one
train() {
    local dir="$1" program="$2"
    mkdir -p "${dir}"
    { printf '%q ' "${command_line[@]}" && echo; } > "${dir}/run.sh"
    [ -f "${dir}/checkpoint.pth" ] || printf '%s\n' "${work}" > "${dir}/.begun" # what the first epoch is made from
    tool launch --cmd "${cuda_cmd} --name $(shell_word "$(basename "${dir}")")" --log "${dir}/train.log" --ngpu "${ngpu}" \
        --num_nodes "${num_nodes}" --init_file_prefix "${dir}/.dist_init_" --multiprocessing_distributed true -- \
        "${python}" -m "espnet_ext.bin.${program}" "${@:3}" --resume true --output_dir "${dir}"
    sed -n 's/.*WARNING: \(averages .* of the .* best epochs\)/\1/p' "${dir}/train.log" | sort -u \
        | while IFS= read -r line; do log "${dir} ${line}" >&2; done
}

lm_shapes=({train,valid}/"text_shape.${token_type}")
if wanted 6; then
    log "Stage 6: statistics of the language model's text"
    state=("${lm_stats_dir}/.done" "$(by_line "${text_opts[@]}")")
    state+=("${lm_train_text_list[@]}" "${lm_dev_text}" "${token_files[@]}")
    if ! finished "${state[@]}" -- train.txt "${lm_shapes[@]}"; then
        mkdir -p "${lm_stats_dir}"
        cat -- "${lm_train_text_list[@]}" | awk 'NF > 1' > "${lm_train_file}"
        collect_stats "${lm_stats_dir}" lm_train "${lm_train_file}" "${lm_dev_text}" "${lm_opts[@]}"
        finish "${lm_stats_dir}/.done"
    fi
fi

if wanted 7; then
    log "Stage 7: language model"
    [ -f "${lm_stats_dir}/${lm_shapes[0]}" ] || die "no ${lm_stats_dir}/${lm_shapes[0]}: run from stage 6"
    refuse_old 6 "${lm_stats_dir}/.done"
    train_opts=(--fold_length "${lm_fold_length}")
    for part in train valid; do
        train_opts+=("--${part}_shape_file" "${lm_stats_dir}/${part}/text_shape.${token_type}")
    done
    train_opts=("${lm_opts[@]}" "${train_opts[@]}" ${lm_args_list[@]+"${lm_args_list[@]}"})
    state=("${lm_exp}/.done" "$(by_line "${train_opts[@]}")" ${lm_config:+"@${lm_config}"})
    state+=("${lm_train_file}" "${lm_dev_text}" "${token_files[@]}" "${lm_shapes[@]/#/"${lm_stats_dir}/"}")
    [ -f "${lm_exp}/${inference_lm}" ] || again=--again # averaged anew
    if ! finished "${state[@]}" -- config.yaml checkpoint.pth; then
        train "${lm_exp}" lm_train "${train_opts[@]}"
        finish "${lm_exp}/.done"
    fi
    again=
fi

if wanted 8; then
    log "Stage 8: perplexity"
    dir="${lm_exp}/perplexity_test"
    trained "${lm_exp}" "${inference_lm}" --inference_lm 7
    refuse_old 7 "${lm_exp}/.done" "${token_files[@]}"
    if ! finished "${dir}/.done" "" "${lm_exp}"/{config.yaml,"${inference_lm}"} "${lm_test_text}" "${token_files[@]}" \
        -- ppl; then
        begin_beside "${dir}"
        new=$(beside "${dir}")
        ${cuda_cmd} --gpu "${ngpu}" "${new}/lm_calc_perplexity.log" \
            "${python}" -m espnet_ext.bin.lm_calc_perplexity --ngpu "${ngpu}" \
            --data_path_and_name_and_type "${lm_test_text},text,text" --train_config "${lm_exp}/config.yaml" \
            --model_file "${lm_exp}/${inference_lm}" --output_dir "${new}"
        finish "${new}/.done"
        replace "${dir}"
    fi
    log "Perplexity of ${lm_test_text}: $(<"${dir}/ppl")"
fi

asr_opts=("${text_opts[@]}" ${asr_config:+--config "${asr_config}"} --frontend_conf "fs=${fs}")
for part in train valid; do
    dir="${part}_dir"
    asr_opts+=("--${part}_data_path_and_name_and_type" "${!dir}/wav.scp,speech,sound")
    asr_opts+=("--${part}_data_path_and_name_and_type" "${!dir}/text,text,text")
done
asr_data=("${train_dir}" "${valid_dir}")
asr_stats=({train,valid}/{speech_shape,"text_shape.${token_type}"} train/feats_stats.npz)

if [ -n "${init_from}" ] && { wanted 10 || wanted 11; }; then
    tool asr_init_from --init_from "${init_from}" --inference_asr_model "${inference_asr_model}" \
        --config "${finetune_config}" --output "${asr_config}"
    # only their shapes are needed: the mean and variance of the features come with the weights
    if [ -f "${asr_stats_dir}/.done" ]; then
        changed=$(tool marker changed "${asr_stats_dir}/.done")
        [ -n "${changed}" ] || skip_stages+=" 10"
    fi
fi

if wanted 10; then
    log "Stage 10: statistics of the training data"
    for dset in "${trained_on[@]}"; do refuse_old 4 "${data_feats}/${dset}/.done" "${data_feats}/org/${dset}"; done
    # Models share the statistics: only the part of a config that computes features counts.
    keys="(frontend|preprocessor|speech_volume_normalize)"
    frontend="$(awk -v keys="^${keys}" '/^[^ #-]/ {keep = $0 ~ keys} keep' < "${asr_config:-/dev/null}")"
    frontend+="$(by_line ${asr_args_list[@]+"${asr_args_list[@]}"} \
        | awk -v keys="^--${keys}" 'value || $0 ~ keys {print; value = !value && $0 !~ /=/}')"
    state=("${asr_stats_dir}/.done" "${fs} ${frontend}" "${asr_data[@]}" "${token_files[@]}")
    if ! finished "${state[@]}" -- "${asr_stats[@]}"; then
        collect_stats "${asr_stats_dir}" asr_train "${train_dir}/wav.scp" "${valid_dir}/wav.scp" \
            "${asr_opts[@]}" ${asr_args_list[@]+"${asr_args_list[@]}"}
        finish "${asr_stats_dir}/.done"
    fi
fi

if wanted 11; then
    log "Stage 11: training of ${asr_exp}"
    for file in "${asr_stats[@]}"; do
        [ -f "${asr_stats_dir}/${file}" ] ||
            die "no ${asr_stats_dir}/${file}: run from stage 10; each front end has statistics of its own"
    done
    refuse_old 10 "${asr_stats_dir}/.done"
    train_opts=(--fold_length "${asr_speech_fold_length}" --fold_length "${asr_text_fold_length}")
    for part in train valid; do
        train_opts+=("--${part}_shape_file" "${asr_stats_dir}/${part}/speech_shape")
        train_opts+=("--${part}_shape_file" "${asr_stats_dir}/${part}/text_shape.${token_type}")
    done
    train_opts+=(--normalize "${feats_normalize}")
    if [ "${feats_normalize}" = global_mvn ]; then
        train_opts+=(--normalize_conf "stats_file=$(yaml_text "${asr_stats_dir}/train/feats_stats.npz")")
    fi
    [ -z "${pretrained_model}" ] || train_opts+=(--init_param "${pretrained_model}")
    train_opts=("${asr_opts[@]}" "${train_opts[@]}" ${asr_args_list[@]+"${asr_args_list[@]}"})
    state=("${asr_exp}/.done" "$(by_line "${train_opts[@]}")" ${asr_config:+"@${asr_config}"})
    state+=("${asr_data[@]}" "${token_files[@]}" "${asr_stats[@]/#/"${asr_stats_dir}/"}")
    state+=(${pretrained_model:+"${pretrained_model%%:*}"})
    [ -f "${asr_exp}/${inference_asr_model}" ] || again=--again # averaged anew
    if ! finished "${state[@]}" -- config.yaml checkpoint.pth; then
        train "${asr_exp}" asr_train "${train_opts[@]}"
        finish "${asr_exp}/.done"
    fi
    again=
fi

if wanted 12; then
    log "Stage 12: decoding with ${asr_exp}/${inference_asr_model}"
    trained "${asr_exp}" "${inference_asr_model}" --inference_asr_model 11
    infer_opts=(--asr_train_config "${asr_exp}/config.yaml" --asr_model_file "${asr_exp}/${inference_asr_model}")
    infer_opts+=(${inference_config:+--config "${inference_config}"})
    decoder=asr_inference
    if "${use_streaming}"; then decoder+=_streaming; else infer_opts+=(--batch_size "${batch_size}"); fi
    models=("${asr_exp}"/{config.yaml,"${inference_asr_model}"} "${token_files[@]}")
    models+=(${inference_config:+"@${inference_config}"})
    refuse_old 11 "${asr_exp}/.done" "${token_files[@]}" # the tokens of the model
    if "${use_lm}"; then
        trained "${lm_exp}" "${inference_lm}" --inference_lm 7
        refuse_old 7 "${lm_exp}/.done" "${token_files[@]}"
        infer_opts+=(--lm_train_config "${lm_exp}/config.yaml" --lm_file "${lm_exp}/${inference_lm}")
        models+=("${lm_exp}"/{config.yaml,"${inference_lm}"})
    fi
    runner="${decode_cmd}" infer_ngpu=0
    ! "${gpu_inference}" || runner="${cuda_cmd}" infer_ngpu=1
    [ "${stage}" -lt 12 ] || again=--again
    decode_opts=("${decoder}" "${batch_size}" ${inference_args_list[@]+"${inference_args_list[@]}"})
    for dset in "${eval_sets[@]}"; do
        wavs="${data_feats}/${dset}/wav.scp" dir="${inference_dir}/${dset}"
        state=("${dir}/.done" "$(by_line "${decode_opts[@]}")" "${models[@]}" "${wavs}")
        if finished "${state[@]}" -- text token token_int score; then continue; fi
        begin_beside "${dir}"
        new=$(beside "${dir}")
        n=$(tool data_split --num "${inference_nj}" "${wavs}" "${new}/logdir/keys" scp)
        # shellcheck disable=SC2086  # the runner is words
        ${runner} --max-jobs-run "${inference_nj}" --gpu "${infer_ngpu}" \
            "${job}=1:${n}" "${new}/logdir/asr_inference.${job}.log" \
            "${python}" -m "espnet_ext.bin.${decoder}" "${infer_opts[@]}" --ngpu "${infer_ngpu}" \
            --data_path_and_name_and_type "${wavs},speech,sound" --key_file "${new}/logdir/keys.${job}.scp" \
            --output_dir "${new}/logdir/output.${job}" ${inference_args_list[@]+"${inference_args_list[@]}"}
        for file in token token_int score text; do
            for part in $(seq "${n}"); do cat "${new}/logdir/output.${part}/1best_recog/${file}"; done \
                | sort > "${new}/${file}"
        done
        finish "${new}/.done"
        replace "${dir}"
    done
    again=
fi

if wanted 13; then
    log "Stage 13: scoring"
    [ "${stage}" -lt 12 ] || again=--again
    scores=(score_{cer,wer}/{ref.trn,hyp.trn,utt2spk,result.txt,score.json})
    [ "${token_type}" != bpe ] || scores+=(score_ter/{ref.trn,hyp.trn,utt2spk,result.txt,score.json})
    for dset in "${eval_sets[@]}"; do
        ref="${data_feats}/${dset}" dir="${inference_dir}/${dset}"
        refuse_old 12 "${dir}/.done"
        state=("${dir}/.scored" "${token_type}" "${ref}"/{text,utt2spk} "${dir}/text" "${token_files[@]}")
        state+=("${root}"/espnet_ext/scoring/*.py)
        if finished "${state[@]}" -- "${scores[@]}"; then continue; fi
        [ -f "${dir}/text" ] || die "no ${dir}/text: run stage 12 first"
        tool score --ref "${ref}/text" --utt2spk "${ref}/utt2spk" --hyp "${dir}/text" --output "${dir}" \
            --token_type "${token_type}" --bpemodel "${bpemodel}"
        finish "${dir}/.scored"
    done
    again=
    if [ -f local/score.sh ]; then
        script local/score.sh
        local/score.sh ${local_score_opts_list[@]+"${local_score_opts_list[@]}"} "${asr_exp}"
    fi
    tool score_results "${asr_exp}"
    log "All tables: ${asr_exp}/RESULTS.md"
fi

packed="${asr_exp}/$(basename "${asr_exp}")_${inference_asr_model%.*}.zip"
if wanted 14; then
    log "Stage 14: packing ${packed}"
    trained "${asr_exp}" "${inference_asr_model}" --inference_asr_model 11
    pack_opts=(--asr_train_config "${asr_exp}/config.yaml" --asr_model_file "${asr_exp}/${inference_asr_model}")
    refuse_old 11 "${asr_exp}/.done" "${token_files[@]}"
    packed_files=("${token_files[@]}" ${inference_config:+"${inference_config}"} "${asr_exp}/RESULTS.md")
    for file in "${packed_files[@]}"; do pack_opts+=(--option "${file}"); done
    packed_files+=("${asr_exp}"/{config.yaml,"${inference_asr_model}"})
    if "${use_lm}"; then
        pack_opts+=(--lm_train_config "${lm_exp}/config.yaml" --lm_file "${lm_exp}/${inference_lm}")
        packed_files+=("${lm_exp}"/{config.yaml,"${inference_lm}"})
    fi
    if ! finished "${asr_exp}/.packed" "" "${packed_files[@]}" -- "${packed##*/}"; then
        tool asr_pack "${pack_opts[@]}" --outpath "${packed}"
        finish "${asr_exp}/.packed"
    fi
fi

if wanted 15; then
    log "Stage 15: uploading ${packed}"
    [ -n "${hf_repo}" ] || die "--skip_upload_hf false needs --hf_repo OWNER/NAME"
    [ -f "${packed}" ] || die "no ${packed}: run stage 14 with --skip_packing false first"
    tool asr_upload --repo "${hf_repo}" "${packed}"
fi

if wanted 16; then
    log "Stage 16: what ${asr_exp} keeps in memory while it streams, and what it costs"
    trained "${asr_exp}" "${inference_asr_model}" --inference_asr_model 11
    if [ -z "${profile_config}" ]; then
        profile_config=conf/profile.yaml
        [ -f "${profile_config}" ] || profile_config="${root}/conf/profile.yaml"
    fi
    wavs="${first_test_dir}/wav.scp"
    state=("${asr_exp}/.profiled" "" "${asr_exp}"/{config.yaml,"${inference_asr_model}"} "@${profile_config}")
    state+=(${inference_config:+"@${inference_config}"} "${wavs}")
    if ! grep -q '^encoder: kv_' "${asr_exp}/config.yaml"; then
        log "nothing to measure: the encoder of ${asr_exp}/config.yaml is not of this package"
    elif ! finished "${state[@]}" -- profile.json; then
        tool asr_profile --measure all --config "${asr_exp}/config.yaml" --wav_scp "${wavs}" \
            --asr_model_file "${asr_exp}/${inference_asr_model}" --profile_config "${profile_config}" \
            ${inference_config:+--inference_config "${inference_config}"} --output "${asr_exp}/profile.json"
        finish "${asr_exp}/.profiled"
    fi
fi

if wanted 17; then
    dir="${asr_exp}/onnx"
    log "Stage 17: exporting ${asr_exp}/${inference_asr_model} to ${dir}"
    trained "${asr_exp}" "${inference_asr_model}" --inference_asr_model 11
    refuse_old 11 "${asr_exp}/.done" "${token_files[@]}"
    state=("${dir}/.done" "$(by_line ${export_args_list[@]+"${export_args_list[@]}"})")
    state+=("${asr_exp}"/{config.yaml,"${inference_asr_model}"} "${first_test_dir}/wav.scp")
    if ! finished "${state[@]}" -- model.onnx tokens.txt features.npz certificate.json README.md; then
        new=$(beside "${dir}")
        rm -rf "${new}"
        tool asr_export "${asr_exp}" --output "${new}" --inference_asr_model "${inference_asr_model}" \
            --wav_scp "${first_test_dir}/wav.scp" ${export_args_list[@]+"${export_args_list[@]}"}
        finish "${new}/.done"
        replace "${dir}"
    fi
fi

log "Finished."
