# make run: the default study; make test: the tests; make faults: the full fault campaign; make fuzz: 2,000 examples a reader;
# make test-slurm and make slurm-faults: the same on a real Slurm; make bench: speed against a peer; make bench-gpu: the
# same on a GPU, in four minutes. All first set up the environment if it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc)

.PHONY: run test test-slurm faults fuzz slurm-faults bench bench-gpu lint setup setup-test clean

run: setup
	$(BIN)/snakemake --cores $(CORES)
	@echo "Report: results/demo/report.html; tables and figures: results/demo/tables, results/demo/figures"

test: setup-test lint
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --ignore tests/slurm

# Snakemake's Slurm executor slows every start of snakemake, so it is on the path for these tests only.
test-slurm: setup-test $(VENV)/slurm
	PYTHONPATH=$(abspath $(VENV)/slurm) $(BIN)/python -m pytest tests/slurm

faults: setup-test
	$(BIN)/python tests/faults/campaign.py

fuzz: setup-test
	VINY_FUZZ=2000 $(BIN)/python -m pytest tests/fuzz

slurm-faults: setup-test $(VENV)/slurm
	PYTHONPATH=$(abspath $(VENV)/slurm) $(BIN)/python tests/slurm/campaign.py

bench: setup-test
	$(BIN)/python benchmarks/speed.py

bench-gpu: setup-test
	$(BIN)/python benchmarks/gpu.py

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/lint-imports --no-logo --no-cache

setup: $(VENV)/.run
setup-test: $(VENV)/.test

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

clean:
	rm -rf $(VENV) build dist src/*.egg-info
