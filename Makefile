# The development verbs of fostore. `make` alone lists them; V=1 shows what pip and pytest do.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.fostore-setup
PIP := $(BIN)/python -m pip --disable-pip-version-check $(if $(V),,-qq) install -c constraints.txt
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
$(if $(V),,.SILENT:)

.PHONY: help
help: ## list the verbs
	echo "make VERB, where VERB is one of"
	grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort \
	  | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'
	echo "PYTHON=python3.12 chooses the interpreter, VENV=dir the environment, ARGS=... goes to the command."

.PHONY: setup
setup: $(STAMP) ## make the virtual environment (once; again when pyproject or constraints change)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fostore needs Python 3.11 or newer, $(PYTHON) is older or missing: say make PYTHON=python3.12" >&2; exit 1; }
	echo "Setting up $(VENV) (once; the first download takes some minutes) ..." >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch on its own comes first, so that no other requirement chooses another build of it.
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[dev]'
	touch $@

# Two test workers with two torch threads each would stall each other on two cores.
test doctest mutants torture: export OMP_NUM_THREADS ?= 1

.PHONY: test
test: setup ## run the suite
	$(PYTEST) -n $(WORKERS) $(ARGS)

.PHONY: check
check: lint types layers doctest docs house ## format, lint, types, layers, doctests of docstrings and README, the site

.PHONY: lint
lint: setup
	$(BIN)/ruff format --check --quiet . || { echo "not formatted: run make format" >&2; exit 1; }
	$(BIN)/ruff check --quiet .

.PHONY: types
types: setup
	$(BIN)/mypy

.PHONY: layers
layers: setup
	$(BIN)/lint-imports --no-logo

.PHONY: doctest
doctest: setup
	$(PYTEST) -q --doctest-modules fostore tests/test_readme.py

.PHONY: docs
docs: setup ## build the documentation site into build/site; a warning is an error
	# --quiet would drop warnings before they are counted.
	said=$$($(BIN)/mkdocs build --strict 2>&1) || { echo "$$said" >&2; exit 1; }

.PHONY: house
house: setup ## the house in numbers (files, imports, names, comments, calls): a report, no gate
	$(BIN)/python benchmarks/house.py $(ARGS)

.PHONY: format
format: setup ## format the code and apply the safe fixes of the linter
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .

.PHONY: demo
demo: setup ## run the main job on real data: train, stream, kill, resume, compare
	$(BIN)/fostore demo $(ARGS)

.PHONY: mutants
mutants: setup ## break the lines that keep promises, one by one: each has a test that must notice
	WORKERS=$(WORKERS) $(BIN)/python tests/mutants.py $(ARGS)

.PHONY: torture
torture: setup mutants ## the long forms: power cuts, faults, flipped bits (an hour)
	FOSTORE_POWER_CUTS=2000 FOSTORE_FAULTS=1500 FOSTORE_FLIPS=3000 FOSTORE_KILLS=300 HYPOTHESIS_PROFILE=nightly \
	  $(PYTEST) -n $(WORKERS) $(ARGS) tests/test_powercut.py tests/test_faults.py tests/test_flips.py \
	  tests/test_kill.py tests/test_units.py tests/test_journal.py tests/test_state_machine.py

.PHONY: bench
bench: setup ## run every benchmark in benchmarks/
	set -e; for file in $(filter-out benchmarks/house.py,$(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$file" >&2; $(BIN)/python $$file $(ARGS); done

.PHONY: clean
clean: ## remove the environment, caches and build products
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find fostore tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
