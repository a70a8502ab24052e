#!/usr/bin/env bash
# Read English sentences: trains on a CPU. Say where the two corpora are in db.sh, then: ./run.sh
# Options after the name win over those below: ./run.sh --asr_config conf/train_asr_branchformer_gqa.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --ngpu 0 \
    --nj 2 \
    --inference_nj 2 \
    --fs 16k \
    --token_type char \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --use_lm false \
    --asr_config conf/train_asr_conformer_mha.yaml \
    --inference_config conf/decode_asr.yaml \
    --train_set train \
    --valid_set dev \
    --test_sets "kathleen speechocean" \
    "$@"
