# Every target sets itself up: a virtual environment with the pinned versions, then the models it needs.
PYTHON   ?= python3
VENV     ?= .venv
BIN      := $(VENV)/bin
export ICLKIT_HOME ?= $(CURDIR)/.cache/iclkit
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM   := false

MODELS   := smollm2-135m all-minilm-l6-v2
READY    := $(VENV)/.ready

.PHONY: demo test test-slow test-faults test-floors lint format docs build bench clean help

help:
	@echo "make demo       choose demonstrations on the bundled set and measure the gain (fetches two small models)"
	@echo "make test       all tests but the slow ones    make test-slow  the slow ones"
	@echo "make test-faults  kills, hostile files and servers, full disks: every command must lose nothing and say why"
	@echo "make test-floors  the lowest versions that pyproject.toml allows, in an environment of their own"
	@echo "make lint       ruff and mypy --strict         make format     ruff format"
	@echo "make build      wheel and source archive in dist/, their contents checked"
	@echo "make docs       the documentation as a site, in site/index.html; every warning and dead link is an error"
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600 $(PYTEST_ARGS)

FAULTS ?=
test-faults: models
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign $(FAULTS)

# What pyproject.toml promises: the lowest version of each direct dependency, resolved by uv, and a quick part of the
# tests with them. FLOORS_PYTHON names an interpreter.
FLOORS        := .venv-floors
FLOORS_PYTHON ?= $(PYTHON)
FLOORS_TESTS  ?= tests/test_records.py tests/test_schema.py tests/test_database.py tests/prompts tests/serve \
                 tests/test_from_python.py tests/cli/test_select_cli.py
test-floors: models
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv venv -q --clear --python $(FLOORS_PYTHON) $(FLOORS)
	$(BIN)/uv pip install -q --python $(FLOORS)/bin/python --resolution lowest-direct --only-binary :all: \
	  --no-binary iclkit -e '.[datasets,langchain,pandas,serve]' 'pytest>=8.2' 'hypothesis>=6.100'
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -m "not slow" $(FLOORS_TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(READY)
	rm -rf dist
	$(BIN)/hatchling build -d dist
	$(BIN)/python -m pytest tests/test_packaging.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Benchmarks read real data: a folder of data sets as lines of {"input", "output"} (ICLKIT_TEST_DATA).
DATA  ?= $(or $(ICLKIT_TEST_DATA),../shared/data)
MODEL ?= $(ICLKIT_HOME)/models/smollm2-135m
RUN   := OMP_NUM_THREADS=1 ICLKIT_TEST_DATA=$(DATA) $(BIN)/python benchmarks

bench: models
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt rank-bm25
ifdef BENCH_FULL
	$(RUN)/bench_score.py $(MODEL) --fixed --prefix-shots 100
	$(RUN)/bench_feedback.py $(MODEL)
	$(RUN)/bench_gpu.py
	$(RUN)/bench_bm25.py $(DATA)
	$(RUN)/bench_words.py $(DATA)
	$(RUN)/bench_select.py $(DATA)
	$(RUN)/bench_search.py
	$(RUN)/bench_startup.py
	$(RUN)/bench_scale.py
	$(RUN)/bench_growth.py
	$(RUN)/bench_embed.py
	$(RUN)/bench_beam.py
	$(RUN)/bench_board.py
	$(RUN)/bench_eval_overhead.py
	$(RUN)/bench_many_shots.py
	$(RUN)/bench_tune.py
	$(RUN)/bench_explain.py
	$(RUN)/bench_serve.py
else
	$(RUN)/bench_score.py $(MODEL) --queries 8 --naive-queries 4 --repeats 1 --fixed
	$(RUN)/bench_feedback.py $(MODEL) --queries 5 --candidates 4 --repeats 1
	$(RUN)/bench_gpu.py --queries 8 --repeats 1
	$(RUN)/bench_bm25.py $(DATA) --rows 2000 --queries 50 --reference 5 --repeats 1
	$(RUN)/bench_select.py $(DATA) --rows 1000 --queries 32 --turns 1
	$(RUN)/bench_search.py --smoke
	$(RUN)/bench_startup.py --smoke
	$(RUN)/bench_scale.py --smoke
	$(RUN)/bench_growth.py --smoke --only "pool stats" "task"
	$(RUN)/bench_embed.py --smoke
	$(RUN)/bench_serve.py --smoke
	$(RUN)/bench_beam.py --smoke
	$(RUN)/bench_board.py --smoke
	$(RUN)/bench_eval_overhead.py --smoke
	$(RUN)/bench_tune.py
	$(RUN)/bench_explain.py --pool 20 --queries 6 -k 4
endif

clean:
	rm -rf $(VENV) $(FLOORS) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
