VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip
SOURCES := espnet_ext tests benchmarks

.PHONY: help setup test lint demo bench clean

help:
	@echo "make setup   create $(VENV) with the pinned packages (PYTHON=... picks the interpreter)"
	@echo "make test    setup, then every test (TESTS=tests/attention: those)"
	@echo "make lint    ruff and mypy on the Python files, bash -n on the scripts"
	@echo "make demo    eight small models on a synthetic corpus: trained, decoded, measured and compared"
	@echo "make bench   every benchmark into benchmarks/RESULTS.md, about half an hour"
	@echo "make clean   remove $(VENV) and caches; data, dump and exp stay"

setup: $(STAMP)

# Modules are compiled when first imported: compiling all of PyTorch's beforehand takes longer than that.
$(STAMP): pyproject.toml constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || { \
	    python="$$(local/find_python.sh)" && \
	    echo "Creating $(VENV) with $$python" && \
	    "$$python" -m venv --clear $(VENV); }
	@echo "Installing the pinned packages: about 3 GB to download, a few minutes ..."
	@$(PIP) install -qq --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed into $(VENV)."

test: setup
	@$(VENV)/bin/python -m pytest $(TESTS)

lint: setup
	@$(VENV)/bin/ruff check $(wildcard $(SOURCES))
	@$(VENV)/bin/mypy
	@git ls-files -z -co --exclude-standard '*.sh' .ci/run | xargs -0 -n 1 bash -n

# The first model gets all cores, so that its row is on the screen soon; then the others, one per core.
demo: setup
	@cd egs2/mini_librispeech/asr1 && OMP_NUM_THREADS="$$(nproc)" ./run.sh --stop_stage 11
	@$(VENV)/bin/espnet-ext run-all --corpus mini_librispeech --encoders conformer --attentions mha
	@$(VENV)/bin/espnet-ext run-all --corpus mini_librispeech --jobs "$$(nproc)" --nj 1 --run_args "--inference_nj 1"

bench: setup
	@$(VENV)/bin/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
