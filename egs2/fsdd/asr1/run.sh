#!/usr/bin/env bash
# Spoken digit strings: trains to a real word error rate on a CPU of 2 cores. Say where FSDD is in db.sh, then: ./run.sh
# Options after the name win over those below: ./run.sh --asr_config conf/train_asr_branchformer_gqa.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --ngpu 0 \
    --nj 2 \
    --inference_nj 2 \
    --fs 8k \
    --token_type word \
    --speed_perturb_factors "" \
    --use_lm false \
    --asr_config conf/train_asr_conformer_mha.yaml \
    --inference_config conf/decode_asr.yaml \
    --train_set train \
    --valid_set dev \
    --test_sets test \
    "$@"
