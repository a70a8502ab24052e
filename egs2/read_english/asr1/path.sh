# shellcheck source=/dev/null
. ../../../path.sh
