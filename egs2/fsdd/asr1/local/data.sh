#!/usr/bin/env bash
# Stage 1: digit strings joined from the recordings of FSDD -> data/{train,dev,test}
# usage: local/data.sh [FSDD]: the FSDD directory or its .tar.gz archive (default: as db.sh says)
set -euo pipefail

. ./path.sh
. ./db.sh

fsdd="${1:-${FSDD:-}}"
if [ -z "${fsdd}" ]; then
    echo "data.sh: error: FSDD is empty: set it in db.sh to the FSDD directory or its .tar.gz archive" >&2
    exit 1
fi
[[ "${fsdd}" = /* ]] || fsdd="../../../${fsdd}"  # as seen from db.sh

exec python -m espnet_ext.bin.data_prep_fsdd "${fsdd}" data
