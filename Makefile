# The verbs of this project. Every target but `clean` first makes .venv with the locked dependencies.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test up bench lint simulate clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || { command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit("Lambent needs Python 3.11 or later; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "installing the locked dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup  ## start a server, deploy the examples, show the defining behaviour, check every claim
	@$(BIN)/python examples/demo.py

up: setup  ## the server in the foreground
	@exec $(BIN)/lambent up

test: setup  ## everything; under 15 minutes on 2 cores
	@$(BIN)/python -m pytest

simulate: setup  ## many seeds of the scheduler's simulation: make simulate SEEDS=10000
	@$(BIN)/python -m tests.simulation.simulator --count $(or $(SEEDS),1000)

bench: setup  ## the benchmark suite beside its floor
	@$(BIN)/python benchmarks/run.py

lint: setup  ## style, types, import contracts
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/ruff format --check -q . || { echo "run: ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) .cache build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis
