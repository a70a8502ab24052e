#!/usr/bin/env bash
# Convert one trained model to a sweep of ranks and groups, decode each as it is and after fine-tuning, and lay them
# side by side in conversion/. Run it again after a stop: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
exec python -P -m espnet_ext curve "$@"
