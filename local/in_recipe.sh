# Sourced by scripts that work in a recipe: reads their options, of which one is corpus, and goes to its directory.

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"; }
die() { log "error: $*" >&2; exit 1; }

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "${root}/path.sh"
assignments=$(python -m espnet_ext.bin.parse_options "$0" "$@") || exit 1
eval "${assignments}"
[ $# -eq 0 ] || die "'$1' is not an option"

quote="'"
shell_word() { printf "'%s'" "${1//${quote}/${quote}\\${quote}${quote}}"; } # a word of an option that is a list

recipe="${root}/egs2/${corpus}/asr1"
[[ "${corpus}" != librispeech* ]] || recipe="${root}"
[ -f "${recipe}/run.sh" ] || die "--corpus ${corpus}: no ${recipe}/run.sh"
cd "${recipe}"
