#!/usr/bin/env bash
# Prints the path of a Python 3.12 or 3.13 that can make a virtual environment.
# PYTHON=/path/to/python overrides the search.
set -euo pipefail
shopt -s nullglob

# A candidate must run, not only exist: version managers leave shims for versions that are switched off.
probe() {
    local found
    found="$("$1" -c '
import sys
assert (3, 12) <= sys.version_info[:2] <= (3, 13)
import ensurepip, ssl, venv
print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null)" && echo "${found}"
}

if [ -n "${PYTHON:-}" ]; then
    probe "${PYTHON}" && exit
    echo "PYTHON=${PYTHON} is not a working Python 3.12 or 3.13 with the modules venv, ensurepip and ssl" >&2
    exit 1
fi

candidates=()
for version in 3.12 3.13; do
    candidates+=(
        "python${version}"
        "${PYENV_ROOT:-${HOME}/.pyenv}/versions/${version}"*/bin/python3
        "${UV_PYTHON_INSTALL_DIR:-${HOME}/.local/share/uv/python}/cpython-${version}"*/bin/python3
        {"${HOME}/.local",/usr/local,/usr,/opt/homebrew}"/bin/python${version}"
    )
done
candidates+=(
    python3
    python
    {"${CONDA_PREFIX:-/opt/conda}",/opt/conda,"${HOME}"/{mini,ana}conda3,"${HOME}"/miniforge3}/{,envs/*/}bin/python3
)
for candidate in "${candidates[@]}"; do
    probe "${candidate}" && exit
done
echo "found no working Python 3.12 or 3.13 (on PATH, pyenv, uv, conda, /usr/local); install one or give PYTHON=/path/to/python" >&2
exit 1
