#!/usr/bin/env bash
# Does this machine work? One line per check; exit status 1 if any fails.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
exec python -P -m espnet_ext check "$@"
