#!/usr/bin/env bash
# LibriSpeech-100: the repository is the recipe. Say where the corpus is in db.sh, then: ./run.sh
# Options after the name win over those below: ./run.sh --stage 11 --asr_config conf/tuning/train_asr_conformer_mla.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

train_set=train_clean_100

exec egs2/TEMPLATE/asr1/asr.sh \
    --lang en \
    --ngpu 1 \
    --nj 32 \
    --inference_nj 32 \
    --nbpe 5000 \
    --max_wav_duration 30 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --audio_format flac.ark \
    --feats_type raw \
    --use_lm false \
    --asr_config conf/train_asr.yaml \
    --inference_config conf/decode_asr.yaml \
    --train_set "${train_set}" \
    --valid_set dev \
    --test_sets "test_clean test_other dev_clean dev_other" \
    --lm_train_text "data/${train_set}/text" \
    --bpe_train_text "data/${train_set}/text" \
    "$@"
