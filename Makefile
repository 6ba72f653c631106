# Every target sets up .venv when it is missing; all that is needed is Python 3.11 to 3.14 and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast matrix bench package lint format clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/'

demo: $(VENV)/installed  ## train with and without unlabeled scans on synthetic hearts, in 2 to 8 minutes on two cores
	$(BIN)/python -m tools.demo

test: $(VENV)/ready  ## run the test suite on all cores
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-fast: $(VENV)/ready  ## run the tests that take little time: no training, no preparing of data
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

matrix:  ## run the fast tests in each Python from 3.11 to 3.14 that is here, in environments of their own in .matrix/
	$(PYTHON) tests/matrix.py

bench: $(VENV)/installed  ## time the training step against the order of the original code, in about ten minutes
	for bundle in la acdc; do $(BIN)/python -m benchmarks.training_step --bundle $$bundle || exit 1; done

package: $(VENV)/installed  ## make an archive of each bundle in dist/
	for bundle in bundles/*/; do $(BIN)/python -m tools.package $$bundle --output dist --overwrite true || exit 1; done

lint: $(VENV)/ready  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready  ## put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and what `make` wrote; weights and results of trainings stay
	rm -rf $(VENV) .matrix demo dist

# What users need; its commands start a second sooner without what only development needs.
$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 14) else "Python 3.11, 3.12, 3.13 or 3.14 is needed, found %s; give another with make PYTHON=python3.13" % sys.version.split()[0])'
	@echo "Installing into $(VENV), which takes some minutes ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/ready: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@
