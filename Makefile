# Two commands: `make quickstart` and `make test`. Both make .venv and install into it what is missing.
# `make check` is for use before each commit: lint, types, and the tests of what changed since main.
# `make test-ci` also runs the tests marked `slow`, and `make test-all` those marked `long`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Many tests wait for processes of their own, so there are two workers a core.
WORKERS = $$((2 * $$(getconf _NPROCESSORS_ONLN)))
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal \
	-p tests.progress -o console_output_style=classic

.PHONY: quickstart check test test-changed test-ci test-all lint types clean

quickstart: $(INSTALLED)
	$(BIN)/nas quickstart

check: $(INSTALLED)
	$(MAKE) --jobs --output-sync lint types test-changed

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not long"

test-changed: $(INSTALLED)
	files=$$($(BIN)/python -m tests.changed); \
	[ -z "$$files" ] || $(BIN)/python -m pytest -m "not slow and not long" $$files

test-ci: $(INSTALLED)
	$(PYTEST) -m "not long"

test-all: $(INSTALLED)
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# torch first and exactly: another request for it may pull several GB of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
