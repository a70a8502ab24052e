# Sourced by every script: the virtual environment and this repository on the path.
espnet_ext_root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ "${espnet_ext_root}" = *:* ]]; then
    echo "${espnet_ext_root}: a directory with a colon in its name cannot be in PATH; rename it" >&2
    return 1
fi
if [ ! -x "${espnet_ext_root}/.venv/bin/python" ]; then
    echo "${espnet_ext_root} has no .venv, run: make setup" >&2
    return 1
fi
export PATH="${espnet_ext_root}/.venv/bin:${PATH}"
export PYTHONPATH="${espnet_ext_root}${PYTHONPATH:+:${PYTHONPATH}}"
export LC_ALL=C
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONIOENCODING=UTF-8
unset espnet_ext_root
