# Two commands do everything: `make demo` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= $(or $(M3PO_STUDY),studies/easy_scenes.yaml)

# Tests run a file at a time in this many processes.
WORKERS ?= 2
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile

# Two busy-waiting OpenMP threads make a small model several times slower on a shared machine.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export DAGSTER_HOME ?= $(CURDIR)/.m3po/dagster

.PHONY: help setup demo test test-slow ui leaderboard world bench lint audit clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.installed  ## a virtual environment with the pinned packages

# torch first and alone: another package's looser wish must never choose which build of it is installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## the embedded study through Dagster, ending with the leaderboard
	$(BIN)/m3po world write
	$(BIN)/m3po run --study $(STUDY)

test: setup  ## the test suite
	$(PYTEST)

test-slow: setup  ## the tests that take minutes
	$(PYTEST) -m slow

ui: setup  ## Dagster's web interface on 127.0.0.1:3000
	$(BIN)/m3po world write
	$(BIN)/m3po ui --study $(STUDY)

leaderboard: setup  ## the embedded study with three seeds, the paper's rows, rivals and controls (much longer)
	$(BIN)/m3po world write
	$(BIN)/m3po run --study studies/easy_scenes_leaderboard.yaml

world: setup  ## rebuild the embedded world's weights (minutes)
	$(BIN)/m3po world build --all

bench: setup  ## the measured ratios
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

lint: setup  ## style, defects and the security lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# A tool of its own environment: what it needs is no business of this project's.
$(VENV)/audit/.installed: .ci/audit-requirements.txt
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check -r .ci/audit-requirements.txt
	@touch $@

audit: setup $(VENV)/audit/.installed  ## pins, licences and known advisories of everything installed
	$(VENV)/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off -f json \
		> $(VENV)/audit/advisories.json 2> $(VENV)/audit/said.txt || cat $(VENV)/audit/said.txt
	$(BIN)/python .ci/audit.py $(VENV)/audit/advisories.json

clean:  ## remove the environment and everything the studies made
	rm -rf $(VENV) .m3po data
