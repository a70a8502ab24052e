#!/usr/bin/env bash
# Write a recipe for an own corpus, egs2/NAME/asr1: docs/own_corpus.md.
# usage: local/new_recipe.sh NAME --wavs DIR --text FILE [--speakers FILE | --speaker_from RULE]
#        local/new_recipe.sh NAME --data DIR
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
exec python -P -m espnet_ext new-recipe "$@"
