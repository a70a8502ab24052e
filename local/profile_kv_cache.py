#!/usr/bin/env python3
"""Stage 16: profile a model; see ``python -m espnet_ext.bin.asr_profile --help``.

    local/profile_kv_cache.py --config conf/tuning/train_asr_*_large.yaml
    local/profile_kv_cache.py --measure all --config exp/X/config.yaml \\
        --asr_model_file exp/X/valid.acc.ave.pth --wav_scp dump/raw/test_clean/wav.scp
"""

from espnet_ext.bin.asr_profile import main

if __name__ == "__main__":
    raise SystemExit(main())
