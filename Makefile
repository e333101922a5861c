# `make help` lists the targets. All but clean first set up the environment if it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc)

.PHONY: help run test test-slurm faults fuzz slurm-faults bench bench-gpu lint setup setup-test clean

help:  ## this list, as make alone
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

run: setup  ## run the default study, the demo
	$(BIN)/snakemake --cores $(CORES)
	@echo "Report: results/demo/report.html; tables and figures: results/demo/tables, results/demo/figures"

test: setup-test lint  ## all checks and tests
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --ignore tests/slurm

# Snakemake's Slurm executor slows every start of snakemake, so it is on the path for these tests only.
test-slurm: setup-test $(VENV)/slurm  ## the tests on a real Slurm, which they start here
	PYTHONPATH=$(abspath $(VENV)/slurm) $(BIN)/python -m pytest tests/slurm

faults: setup-test  ## the full campaign of kills and disk faults, ten minutes
	$(BIN)/python tests/faults/campaign.py

fuzz: setup-test  ## every reader with 2,000 files of any content
	VINY_FUZZ=2000 $(BIN)/python -m pytest tests/fuzz

slurm-faults: setup-test $(VENV)/slurm  ## the campaign of faults on a real Slurm
	PYTHONPATH=$(abspath $(VENV)/slurm) $(BIN)/python tests/slurm/campaign.py

bench: setup-test  ## speed against a peer
	$(BIN)/python benchmarks/speed.py

bench-gpu: setup-test  ## the same on a GPU, in four minutes
	$(BIN)/python benchmarks/gpu.py

lint: setup-test  ## style, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/lint-imports --no-logo --no-cache

setup: $(VENV)/.run  ## install what a run needs, into .venv
setup-test: $(VENV)/.test  ## install what the tests need, too

$(VENV)/.run: envs/viny.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/viny.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.test: $(VENV)/.run envs/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/test.txt
	touch $@

$(VENV)/slurm: envs/slurm.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ -r envs/slurm.txt
	touch $@

clean:  ## remove .venv and builds; results stay
	rm -rf $(VENV) build dist src/*.egg-info
