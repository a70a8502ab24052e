#!/usr/bin/env bash
# Stage 1: speak the corpus, then prepare it as LibriSpeech is prepared; options of LibriSpeech's local/data.sh.
set -euo pipefail

. ./path.sh
. ./db.sh

local="../../../local"
python "${local}/make_mini_librispeech.py" "${LIBRISPEECH}" --nj 2
exec bash "${local}/data.sh" --check_counts false "$@"
