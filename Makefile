# Fermion on one machine. `make` alone tells what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# The long ones first, so that the three at a time come to their end together.
TESTS := $(wildcard tests/e2e tests/integration tests/conformance tests/contract tests/unit)
SLOW := $(wildcard tests/fuzz tests/chaos)
DURATION ?= 600
SEED ?=

.PHONY: help setup demo up down test test-all check generate lock bench chaos clean

help: ## Tell what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.stamp ## Make the virtual environment (done by the others where it is missing)

.venv/.stamp: requirements/dev.txt requirements/client.in requirements/platform.in pyproject.toml
	@[ "$$(uname -s)" = Linux ] || { echo "Fermion's embedded start runs on Linux; this is $$(uname -s)."; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Fermion needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Making .venv with locked dependencies (about 120 MB, half a minute) …"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --require-hashes -r requirements/dev.txt | grep -v '^Requirement already' || [ $${PIPESTATUS[0]} -eq 0 ]
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Run the main job from nothing, with a check behind every sentence
	@$(BIN)/python examples/demo.py

up: setup ## Start the platform and keep it in the foreground
	@$(BIN)/fermion up

down: setup ## Stop a platform that runs
	@$(BIN)/fermion down

test: setup ## Run the tests (ten to fifteen minutes on two cores)
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(TESTS)

test-all: test ## Also the slow tiers
	@[ -z "$(SLOW)" ] || $(BIN)/python -m pytest $(SLOW)

check: setup ## Lint, format, types, import contracts, protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy chassis services fermion
	@$(BIN)/lint-imports
	@$(BIN)/python proto/generate.py --check
	@! grep -nE 'https?://' requirements/* services/executor/recipes/* || { echo "An address stands in a lock file; they name packages only."; exit 1; }

generate: setup ## Write the Python of the protos, the pages of help that are kept, and the table of metrics
	@$(BIN)/python proto/generate.py
	@$(BIN)/python -m tests.unit.fermion.manual
	@$(BIN)/python -m tests.contract.watching

lock: setup ## Lock the dependencies again (needs uv)
	@for part in dev run client bench; do uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate $$([ $$part = dev ] || echo --constraint requirements/dev.txt) requirements/$$part.in -o requirements/$$part.txt; done
	@for recipe in services/executor/recipes/*.in; do uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate $$recipe -o $${recipe%.in}.txt; done

bench: setup .venv/.bench ## Measure, side by side, and print a table (half an hour; PART=fold for some of it)
	@$(BIN)/python -m tests.bench $(PART)

.venv/.bench: requirements/bench.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	@touch $@

chaos: setup ## Strike a platform under load with every fault, and count: make chaos DURATION=600 SEED=7
	@$(BIN)/python -m tests.chaos --duration $(DURATION) $(if $(SEED),--seed $(SEED))

clean: ## Take away what was built
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
