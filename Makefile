# Every target sets itself up: a virtual environment with the pinned versions, then the models it needs.
PYTHON   ?= python3
VENV     ?= .venv
BIN      := $(VENV)/bin
export ICLKIT_HOME ?= $(CURDIR)/.cache/iclkit
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM   := false

MODELS   := smollm2-135m all-minilm-l6-v2
READY    := $(VENV)/.ready

.PHONY: demo test test-slow lint format bench clean help

help:
	@echo "make demo       choose demonstrations on the bundled set and measure the gain (fetches two small models)"
	@echo "make test       all tests but the slow ones    make test-slow  the slow ones"
	@echo "make lint       ruff and mypy --strict         make format     ruff format"
	@echo "make bench      the benchmarks, smoke size (BENCH_FULL=1 for the full size)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("iclkit needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: models
models: $(READY)
	$(BIN)/iclkit models pull $(MODELS)

demo: models
	$(BIN)/iclkit demo

test: models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-slow: models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: models
	for f in benchmarks/bench_*.py; do echo "== $$f"; $(BIN)/python $$f $(if $(BENCH_FULL),,--smoke) || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
