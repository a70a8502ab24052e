#!/usr/bin/env bash
# Stage 1: sentences of one native voice and of learners -> data/{train,dev,kathleen,speechocean}
set -euo pipefail

. ./path.sh
. ./db.sh

sources=()
for name in KATHLEEN SPEECHOCEAN762; do
    place="${!name:-}"
    if [ -z "${place}" ]; then
        echo "data.sh: error: ${name} is empty: set it in db.sh to the clone of the corpus" >&2
        exit 1
    fi
    [[ "${place}" = /* ]] || place="../../../${place}"  # as seen from db.sh
    sources+=("${place}")
done

exec python -m espnet_ext.bin.data_prep_read_english "$@" "${sources[@]}" data
