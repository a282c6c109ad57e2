# `make demo` and `make test` set everything up from a bare Python 3.10+ and then do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test coverage check lint docs bench reproduce lowest clean

# One stamp for each set of extras: the environment is made anew when the dependencies change.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gebm needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[test,onnx,slurm]'
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(PIP) -e '.[test,onnx,slurm,dev,docs]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/gebm demo --seed $(SEED)

test: $(VENV)/.ready
	$(PYTEST)

# Of the quick tests alone: tracing makes the others half as slow again.
coverage: $(VENV)/.ready
	$(PYTEST) --quick --cov=gebm --cov-report=
	@echo "lines of gebm that the quick tests run: $$($(BIN)/python -m coverage report --format=total) %"

# The inner loop, before each commit: three minutes.
check: lint
	$(PYTEST) --quick

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict gebm

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

# Narrow networks, two minutes: finds what breaks. For speeds: benchmarks/bench.py --mode full on a quiet machine.
bench: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --threads 1 --json build/bench.json

# Every result of the paper end to end, on small stand-in data.
reproduce: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python reproduce/run.py all --scale tiny --summary

# The quick tests with the lowest versions that pyproject.toml allows.
lowest:
	$(MAKE) VENV=build/lowest PIP='build/lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-lowest.txt' build/lowest/.ready
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -n 2 --quick

clean:
	rm -rf $(VENV) build *.egg-info
