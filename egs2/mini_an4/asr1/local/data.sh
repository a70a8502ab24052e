#!/usr/bin/env bash
# Stage 1: the AN4 utterances inside ESPnet's package -> data/{train_nodev,train_dev,test}
# The last training utterance is the validation set.
set -euo pipefail

. ./path.sh

package=$(python3 -c 'import importlib.util as u; print(u.find_spec("egs3").submodule_search_locations[0])')
archive="${package}/mini_an4/esp2_asr/downloads.tar.gz"
[ -f "${archive}" ] || { echo "data.sh: error: no ${archive}: this ESPnet has no AN4 sample" >&2; exit 1; }
mkdir -p downloads
tar -xzf "${archive}" -C downloads --strip-components 1
an4="${PWD}/downloads/an4"

# prepare DIR FOLDER: lines of a transcription, "WORDS (utterance-speaker-letter)", on the standard input
prepare() {
    mkdir -p "$1"
    sed -E 's/<\/?s>//g; s/^ *(.*[^ ]) *\(([^-]*)-([^-]*)-([^-]*)\)$/\3-\2-\4 \3 \2-\3-\4 \1/' | sort > "$1/.utterances"
    cut -d ' ' -f 1,2 "$1/.utterances" > "$1/utt2spk"
    cut -d ' ' -f 1,4- "$1/.utterances" > "$1/text"
    folder="${an4}/wav/$2" awk '{print $1, ENVIRON["folder"] "/" $2 "/" $3 ".sph"}' "$1/.utterances" > "$1/wav.scp"
    awk '{list[$2] = list[$2] " " $1} END {for (s in list) print s list[s]}' "$1/.utterances" | sort > "$1/spk2utt"
    rm "$1/.utterances"
    python3 -m espnet_ext.bin.data_validate "$1"
}

head -n -1 "${an4}/etc/an4_train.transcription" | prepare data/train_nodev an4_clstk
tail -n 1 "${an4}/etc/an4_train.transcription" | prepare data/train_dev an4_clstk
prepare data/test an4test_clstk < "${an4}/etc/an4_test.transcription"
