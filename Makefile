# make demo: train on a text that every Python carries, and read what the model writes. make test: everything we check,
# a process a core and a module at a time (threads of several processes would wait for each other).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench bench-gpu bench-translation clean

demo: .venv/core
	$(BIN)/textwright train builtin:python-docs --minutes 3 --out runs/demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: export CUDA_VISIBLE_DEVICES :=
bench: .venv/dev .peers/ready
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/preparation.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/curves.py tinyshakespeare --peers .peers/bin/python
	$(BIN)/python benchmarks/generation.py --peers .peers/bin/python
	$(BIN)/python benchmarks/tables.py

bench-gpu: .venv/dev
	$(BIN)/python benchmarks/run.py gpu gpu-recurrent
	$(BIN)/python benchmarks/tables.py

# Needs TEXTWRIGHT_DATA, a folder with multi30k and tatoeba-cmn-eng; three quarters of an hour.
bench-translation: export CUDA_VISIBLE_DEVICES :=
bench-translation: .venv/dev .joey/ready
	$(BIN)/python benchmarks/translation.py multi30k
	$(BIN)/python benchmarks/translation.py tatoeba --minutes 10
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .peers .joey build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

# What `textwright` needs, and what working on it needs: each is installed once, and again when the lists change.
.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/core
	$(PIP) --editable ".[dev]"
	touch $@

# What we are measured against. llama.cpp is compiled here and left out where that fails; its own kernels for AMX crashed
# where we tried them, so it does without.
LLAMA_FLAGS := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
PEERS_PIP := .peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.peers/ready: benchmarks/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv .peers
	$(PEERS_PIP) --requirement benchmarks/peers/requirements.txt
	@echo "compiling llama.cpp, which takes minutes …"
	CFLAGS="$(LLAMA_FLAGS)" CXXFLAGS="$(LLAMA_FLAGS)" $(PEERS_PIP) llama-cpp-python gguf \
	    || echo "llama.cpp could not be compiled and is left out; to try again: rm -r .peers"
	touch $@

# JoeyNMT asks for versions that the others do not take.
.joey/ready: benchmarks/peers/joey.txt
	$(PYTHON) -m venv .joey
	.joey/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/joey.txt
	touch $@
