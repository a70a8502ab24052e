# Sourced by evaluate_all.sh and run_all_baselines.sh with their arguments: reads their options, of which corpus, run_args
# and profile_config are shared, and goes to the recipe's directory.

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"; }
die() { log "error: $*" >&2; exit 1; }

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "${root}/path.sh"
assignments=$(python -m espnet_ext.bin.parse_options "$0" "$@") || exit 1
eval "${assignments}"
[ $# -eq 0 ] || die "'$1' is not an option"

recipe="${root}/egs2/${corpus}/asr1"
[[ "${corpus}" != librispeech* ]] || recipe="${root}"
[ -f "${recipe}/run.sh" ] || die "--corpus ${corpus}: no ${recipe}/run.sh"
cd "${recipe}"
if [ -z "${profile_config}" ]; then
    profile_config=conf/profile.yaml
    [ -f "${profile_config}" ] || profile_config="${root}/conf/profile.yaml"
fi
eval "run_words=(${run_args})"
