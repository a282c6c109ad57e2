# `make demo` and `make test` set everything up from a bare Python 3.10+ and then do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

.PHONY: demo test bench clean

# One stamp: the environment is made anew when the dependencies change.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gebm needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/gebm demo --seed $(SEED)

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Narrow networks, two minutes: finds what breaks. For speeds: benchmarks/bench.py --mode full on a quiet machine.
bench: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --threads 1 --json build/bench.json

clean:
	rm -rf $(VENV) build *.egg-info
