#!/usr/bin/env bash
# Smoke test: every stage on the few real AN4 utterances that ESPnet's package brings along, on a CPU.
# Options after the name win over those below: ./run.sh --asr_config conf/train_asr_branchformer_gqa.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --ngpu 0 \
    --nj 1 \
    --inference_nj 2 \
    --nbpe 30 \
    --bpemode bpe \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --use_lm false \
    --lm_config conf/train_lm_transformer.yaml \
    --asr_config conf/train_asr_conformer_mla.yaml \
    --inference_config conf/decode_asr.yaml \
    --train_set train_nodev \
    --valid_set train_dev \
    --test_sets test \
    --lm_train_text data/train_nodev/text \
    --bpe_train_text data/train_nodev/text \
    "$@"
