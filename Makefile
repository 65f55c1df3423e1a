# Every target makes the virtual environment first, when it is missing or pyproject.toml changed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Pure tests come first: they fail within seconds, before any cluster starts.
FIRST  := tests/core tests/simulation
TWO    := -n 2 --dist loadfile
# Tests of clusters wait a little now and then: three at a time keep two processors busy.
THREE  := -n 3 --dist loadfile
# Of these, those that say how long a thing may take, or fill the memory, have the machine alone.
BESIDE := -m 'not (alone or waits or slow or soak)'
# Those that wait most of the time share the machine among more of them.
WAITS  := -n 6 --dist load -m 'waits and not (slow or soak)'
ALONE  := -m 'alone and not (slow or soak)'
REST   := --maxfail 10 tests $(addprefix --ignore=,$(FIRST))
# A little of everything, in two minutes.
SMOKE  := tests/core tests/runtime tests/test_client.py tests/test_nested.py tests/test_get.py
# Of the tests that dask ships, in two processes.
TENTH  := --tenth --modes ours --fresh --jobs 2
CODE   := $(wildcard dask_ownership tests examples ci)

.PHONY: demo demo-compare test test-fast lint test-slow test-compat soak simulate replay bench conformance
.PHONY: conformance-dask clean coverage mutation test-downstream test-types packages docs

demo: $(VENV)/stamp
	$(BIN)/python examples/stdlib_index.py $(ARGS)

demo-compare: $(VENV)/stamp
	$(BIN)/python examples/stdlib_index.py --compare $(ARGS)

test: lint
	$(if $(ARGS),,$(BIN)/python -m pytest $(TWO) $(FIRST))
	$(BIN)/python -m pytest $(or $(ARGS),$(THREE) $(BESIDE) $(REST))
	$(if $(ARGS),,$(BIN)/python -m pytest $(WAITS) $(REST))
	$(if $(ARGS),,$(BIN)/python -m pytest $(ALONE) $(REST))
	$(if $(ARGS),,$(BIN)/python ci/conformance/dask_tests.py $(TENTH))

test-fast: lint
	$(BIN)/python -m pytest $(TWO) $(SMOKE)

lint: $(VENV)/stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

test-slow: $(VENV)/stamp
	$(BIN)/python -m pytest -m slow $(ARGS)

test-compat: $(VENV)/stamp-boosting
	$(BIN)/python -m pytest -m 'slow or not slow' $(or $(ARGS),tests/compat)

# What pyright sees in users' programs; mypy's view is part of `make test`. The package brings node.
test-types: $(VENV)/stamp-types
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error $(or $(ARGS),tests/typing_cases.py)

replay: $(VENV)/stamp
	$(BIN)/python tests/simulation/random_programs.py replay $(SEED)

simulate: $(VENV)/stamp
	$(BIN)/python tests/simulation/random_programs.py soak $(ARGS)

coverage: $(VENV)/stamp
	$(BIN)/python ci/core_coverage.py $(ARGS)

mutation: $(VENV)/stamp
	$(BIN)/python ci/mutation.py $(ARGS)

soak: $(VENV)/stamp
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(VENV)/stamp-bench
	$(BIN)/python -m dask_ownership.benchmarks $(ARGS)

# The site of the documentation, in site/; a warning is an error.
docs: $(VENV)/stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

conformance: $(VENV)/stamp-conformance
	$(BIN)/python ci/conformance $(ARGS)
	$(if $(ARGS),,$(MAKE) conformance-dask)

conformance-dask: $(VENV)/stamp
	$(BIN)/python ci/conformance/dask_tests.py $(ARGS)

# Other projects' tests need their packages, some of which ask for versions of their own.
test-downstream: .venv-downstream/stamp
	.venv-downstream/bin/python ci/conformance/downstream.py $(ARGS)

.venv-downstream/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-downstream
	.venv-downstream/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-downstream/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[downstream]'
	@touch $@

# The sdist and the wheel, tried in clean environments with each Python that is here.
packages:
	$(PYTHON) ci/packages.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-downstream .conformance .versions build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf dask-worker-space dask-scratch-space
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/stamp: pyproject.toml
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable .
	$(PIP) --editable '.[dev,examples,compat]'
	@touch $@

$(VENV)/stamp-bench: $(VENV)/stamp
	$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/stamp-docs: $(VENV)/stamp
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/stamp-types: $(VENV)/stamp
	$(PIP) --editable '.[types]'
	@touch $@

# A quarter of a gigabyte, which no other target needs.
$(VENV)/stamp-boosting: $(VENV)/stamp
	$(PIP) --editable '.[boosting]'
	@touch $@

$(VENV)/stamp-conformance: $(VENV)/stamp
	$(PIP) --editable '.[conformance]'
	@touch $@
