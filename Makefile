# Everything from a fresh checkout, with nothing but make and Python 3.11 or newer.
# The environment is made on first use and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Compiled files are kept, or else each process that a test starts compiles the package again.
PYTEST := env OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# File by file, side by side: what a file makes for its tests is made once. tests/conftest.py
# decides in which order.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs
BENCH_READY := $(VENV)/.ready-bench

.DEFAULT_GOAL := help
.PHONY: help demo test check selfcheck slow machines torture bench gpu-check scale studies docs package clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Capture a small training run and see which data moved its neurons (minutes)
	$(BIN)/ontogeny demo

test: $(READY)  ## Run the tests, all but the slow proofs
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not torture"

check: $(READY)  ## Run what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not torture"

selfcheck: $(READY)  ## Compare capture with slower ways, on three families of models
	$(BIN)/ontogeny selfcheck demo
	$(BIN)/ontogeny selfcheck gpt2-tiny
	$(BIN)/ontogeny selfcheck pythia-tiny

# pytest leaves with 5 where no test is marked slow, which is no failure.
slow: $(READY)  ## Run the slow proofs (many minutes)
	$(PYTEST) -m "slow and not torture and not machines" || test $$? -eq 5

machines: $(READY)  ## Run slow proofs that CI leaves out: dying workers, DeepSpeed's stages, tasks at full size
	$(BIN)/python -m pytest -m "slow and machines"

torture: $(READY)  ## Kill, damage and fuzz thousands of times (an hour)
	$(BIN)/python -m pytest -s -m torture --durations=0

scale: $(READY)  ## Measure one worker against two, many shards and long runs (an hour)
	$(BIN)/python -m benchmarks.scale

studies: $(READY)  ## Train the small models of docs/studies/ and check what is said there (20 minutes)
	$(BIN)/python -m benchmarks.studies

gpu-check: $(BENCH_READY)  ## Try everything on one NVIDIA GPU, in at most 8 minutes; writes gpu-check.json
	$(BIN)/python -m benchmarks.gpu_check

bench: $(BENCH_READY)  ## Measure what capture, attribution and ablation cost, against other methods
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.attribution --synthetic 20
	$(BIN)/python -m benchmarks.ablation

docs: $(DOCS_READY)  ## Build the documentation as a site under build/docs; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

package: $(READY)  ## Build wheel and sdist, install each away from the checkout, run the demo there
	$(PYTEST) -m package

clean:  ## Remove the environment, caches and builds; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and alone, so that its pinned build is in place before any other package's
# looser wish for torch is looked at.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ontogeny needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (once, a few minutes; most of it is PyTorch)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet torch
	$(INSTALL) --quiet -e '.[dev]'
	@# They name packages that what is used of them never imports: torchvision; wandb and others.
	$(INSTALL) --quiet --no-deps kronfluence einconv transformer-lens
	@touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) --quiet -e '.[docs]'
	@touch $@

$(BENCH_READY): $(READY)
	$(INSTALL) --quiet -e '.[bench]'
	@touch $@
