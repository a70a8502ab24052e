#!/usr/bin/env bash
# Everything that needs a CUDA card, in eight minutes -> benchmarks/RESULTS_cuda.md; --help says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh
export PYTHONPATH="${PWD}/tests:${PYTHONPATH}"
exec python -m benchmarks.cuda_card "$@"
