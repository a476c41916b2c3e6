# make demo: train on a text that every Python carries, and read what the model writes. make test: everything we check,
# a process a core and a module at a time (threads of several processes would wait for each other).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench bench-gpu clean

demo: .venv/core
	$(BIN)/textwright train builtin:python-docs --minutes 3 --out runs/demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/preparation.py
	$(BIN)/python benchmarks/curves.py tinyshakespeare
	$(BIN)/python benchmarks/generation.py

bench-gpu: .venv/dev
	$(BIN)/python benchmarks/run.py gpu

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

# What `textwright` needs, and what working on it needs: each is installed once, and again when the lists change.
.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/core
	$(PIP) --editable ".[dev]"
	touch $@
