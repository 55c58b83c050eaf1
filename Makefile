# `make test` and `make demo` set everything up themselves; they need Python 3.11 or newer (PYTHON=... chooses one), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export COLLAB_HF_CHECKPOINTS ?= $(CURDIR)/.cache/checkpoints

NAMES := minilm rxn-bert rxn-bert-classifier rxn-albert antibody-bert dinov2-small
CHECKPOINTS := $(NAMES:%=$(COLLAB_HF_CHECKPOINTS)/%/config.json)

.DEFAULT_GOAL := help
.PHONY: help setup checkpoints test demo lint format docs clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv with the pinned environment

$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps -e .
	@touch $@

checkpoints: $(CHECKPOINTS) ## Fetch and convert the real checkpoints that tests use (340 MB)

# After a change to scripts/checkpoints.py, remove the directory: an existing checkpoint is not made again.
$(COLLAB_HF_CHECKPOINTS)/%/config.json: | $(READY)
	$(BIN)/python scripts/checkpoints.py $* --out $(@D)

# One torch thread a worker: two workers fill two cores, and sums split over threads differ in the last bit.
test: lint checkpoints ## Check style, types and docstrings, then run every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

demo: $(READY) ## Compress a real checkpoint, evaluate it, print the table
	$(BIN)/python scripts/demo.py

lint: $(READY) ## Check format, lint, types and docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet collab_hf scripts

format: $(READY) ## Format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## Build the documentation into site/
	$(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## Remove what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache site
