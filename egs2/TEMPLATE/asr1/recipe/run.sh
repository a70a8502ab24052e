#!/usr/bin/env bash
# @ABOUT@. Options after the name win over those
# below: ./run.sh --asr_config conf/train_asr_branchformer_gqa.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --ngpu @NGPU@ \
    --nj 4 \
    --inference_nj 4 \
    --fs @KHZ@k \
    --max_wav_duration @MAX@ \
    --token_type @TOKENS@ \
    --speed_perturb_factors "@SPEEDS@" \
    --use_lm false \
    --asr_config conf/train_asr_conformer_mha.yaml \
    --inference_config conf/decode_asr.yaml \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    "$@"
