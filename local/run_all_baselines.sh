#!/usr/bin/env bash
# Train, decode, score and measure every encoder with every attention, and lay them side by side in comparison/.
# Run it again after a stop or a failure: what is done is kept. One model's failure does not stop the others.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
exec python -P -m espnet_ext run-all "$@"
