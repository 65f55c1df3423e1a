# Every target makes the virtual environment first, when it is missing or pyproject.toml changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Pure tests come first: they fail within seconds, before any cluster starts.
FIRST  := tests/core tests/simulation
CODE   := $(wildcard dask_ownership tests examples)

.PHONY: demo demo-compare test lint test-slow soak bench clean

demo: $(VENV)/stamp
	$(BIN)/python examples/stdlib_index.py $(ARGS)

demo-compare: $(VENV)/stamp
	$(BIN)/python examples/stdlib_index.py --compare $(ARGS)

test: lint
	$(if $(ARGS),,$(BIN)/python -m pytest $(FIRST))
	$(BIN)/python -m pytest $(or $(ARGS),tests $(addprefix --ignore=,$(FIRST)))

lint: $(VENV)/stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

test-slow: $(VENV)/stamp
	$(BIN)/python -m pytest -m slow $(ARGS)

soak: $(VENV)/stamp
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(VENV)/stamp-bench
	$(BIN)/python -m dask_ownership.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf dask-worker-space dask-scratch-space
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/stamp: pyproject.toml
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[dev,examples]'
	@touch $@

$(VENV)/stamp-bench: $(VENV)/stamp
	$(PIP) --editable '.[bench]'
	@touch $@
