#!/usr/bin/env bash
# Stage 1: the corpus that db.sh names -> data/{train,dev,test}; docs/own_corpus.md says how it is read and divided.
set -euo pipefail

. ./path.sh
. ./db.sh

exec python -m espnet_ext.bin.data_prep_corpus @SOURCE@ "$@" data
