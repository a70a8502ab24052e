#!/usr/bin/env bash
# Decode, score and measure trained models, offline and as streams -> exp/<model>/evaluation_results.json of each.
# What is there and younger than the model is kept. docs/report.md says what is in the files.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
exec python -P -m espnet_ext evaluate "$@"
