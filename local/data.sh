#!/usr/bin/env bash
# Stage 1: LibriSpeech, from where db.sh says it is or, with --download true, from the web,
#   -> data/{train_clean_100,dev_clean,dev_other,test_clean,test_other} and dev, the two dev sets joined.
# Run from the directory of the recipe.
set -euo pipefail

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (${BASH_SOURCE[0]##*/}) $*" >&2; }
die() { log "error: $*"; exit 1; }

# begin options
download=false      # boolean: get the splits that are not there, into LIBRISPEECH or, where that is empty, downloads
url=                # text: base URLs of the archives, commas between (default: OpenSLR and its mirrors)
checksums=          # path: file of lines "md5 bytes split" (default: those of the published archives)
timeout=60          # positive: seconds without a byte until a connection counts as broken
check_counts=true   # boolean: refuse a split that has not as many utterances as LibriSpeech has
check_audio=true    # boolean: decode every file
nj=32               # positive_int: worker processes, at most one per core
# end options

. ./path.sh
assignments=$(python -m espnet_ext.bin.parse_options "${BASH_SOURCE[0]}" "$@") || exit 1
[ "${assignments}" != exit ] || exit 0 # after the help
while IFS= read -r line; do
    [ -z "${line}" ] || printf -v "${line%%=*}" '%s' "${line#*=}"
done <<< "${assignments}"
. ./db.sh

splits=(train-clean-100 dev-clean dev-other test-clean test-other)
if [ -z "${LIBRISPEECH:-}" ]; then
    LIBRISPEECH=downloads
    "${download}" || [ -d "${LIBRISPEECH}/LibriSpeech" ] ||
        die "LIBRISPEECH is empty: set it in db.sh to the directory with LibriSpeech/ in it, or get the corpus" \
            "with --download true (7.7 GB; through run.sh: --local_data_opts '--download true')"
fi
if "${download}"; then
    python3 -m espnet_ext.bin.data_download --timeout "${timeout}" ${url:+--url "${url}"} \
        ${checksums:+--checksums "${checksums}"} "${LIBRISPEECH}" "${splits[@]}"
fi
corpus="${LIBRISPEECH}/LibriSpeech"
[ -d "${corpus}" ] ||
    die "LIBRISPEECH=${LIBRISPEECH} in db.sh has no LibriSpeech/ in it: set it to the directory that has"
missing=()
for split in "${splits[@]}"; do
    [ -d "${corpus}/${split}" ] || missing+=("${split}")
done
[ ${#missing[@]} -eq 0 ] || die "${corpus} lacks ${missing[*]}: get these splits of LibriSpeech, or pass --download true"

for split in "${splits[@]}"; do
    log "preparing ${split}"
    python3 -m espnet_ext.bin.data_prep_librispeech --check_counts "${check_counts}" \
        --check_audio "${check_audio}" --nj "${nj}" "${corpus}/${split}" "data/${split//-/_}"
done
python3 -m espnet_ext.bin.data_combine data/dev data/dev_clean data/dev_other
log "done"
