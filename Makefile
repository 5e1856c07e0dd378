# Each target makes the virtual environment that it needs; nothing but Python 3.11+ and make is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWER := build/lower-bounds

AZURITE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/taugrid-azurite

.PHONY: demo test test-long check texts lint types azurite chaos cluster-tests proofs mutants bench docs lower-bounds wheels clean

demo: $(STAMP)            ## train, sample and score the digits grid (minutes on a laptop)
	$(BIN)/taugrid run configs/digits.yaml

# Two processes, a file of tests each, the longest first (tests/durations.csv).
# Without bytecode, each of hundreds of processes that tests start would compile taugrid anew.
# xdist gives a test whose process ended to the next process, again and again: two are enough to see it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

test: $(STAMP)            ## the fast tests, under six minutes on two cores
	$(PYTEST) -m "not long"

test-long: $(STAMP)       ## the others: Ray Train, clusters, wheels, browsers, commands of the documents, simulations
	$(PYTEST) -m long

check: lint types         ## lint and types

texts: $(STAMP)           ## record what taugrid says (tests/texts) and how long tests take; needs Azurite: make azurite
	rm -rf tests/texts && echo test,seconds > tests/durations.csv
	$(PYTEST) --texts --times

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

# Two files at a time: most of their time they wait, for outages of 90 s and for nodes that are given up.
chaos: $(STAMP)           ## the long forms of the tests that kill things; SEED=... repeats what one run killed
	$(PYTEST) -m chaos --long $(if $(SEED),--seed $(SEED))

azurite:                  ## install Azure's emulator, which tests of az:// need (Node and npm; 190 MB, in the user's cache)
	npm install --no-fund --no-audit --prefix $(AZURITE) azurite@3

cluster-tests: $(STAMP)   ## slurm.sh on a real SLURM of three nodes, as root: apt-get install slurm-wlm munge
	$(BIN)/pytest -m cluster --long

proofs: $(STAMP)          ## what is claimed: orders, closed forms, other implementations, faults that the gate sees
	OMP_NUM_THREADS=1 $(BIN)/pytest -m proof --long

mutants: $(STAMP)         ## plant each mistake of tools/mutants.txt; fails if fast tests miss more than a tenth
	$(BIN)/python tools/mutants.py

bench: $(STAMP)           ## write benchmarks/RESULTS.md anew (hours); ONLY="restart grids" runs some
	$(BIN)/python -m benchmarks $(ONLY)

docs: $(STAMP)            ## docs/ as a site, in build/site; each broken link fails
	$(BIN)/python -m tools.docs.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# On x86_64 Linux this downloads a CUDA build of torch: about 3 GB, 7 GB unpacked.
lower-bounds:             ## the unit tests with the oldest versions that pyproject.toml admits
	rm -rf $(LOWER) && mkdir -p $(LOWER)
	$(PYTHON) tools/lower_bounds.py pyproject.toml > $(LOWER)/constraints.txt
	$(PYTHON) -m venv $(LOWER)
	PIP_CONFIG_FILE=/dev/null $(LOWER)/bin/pip install --quiet --constraint $(LOWER)/constraints.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWER)/bin/pytest -n 2 tests/unit --ignore tests/unit/test_architecture.py  # it needs lint tools

wheels: $(STAMP)          ## sdist and wheel in build/wheels; a grid runs from the wheel with each Python that is here
	$(BIN)/python tools/try_wheels.py

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "taugrid needs Python 3.11 or newer, and $(PYTHON) is older; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,lint]'
	touch $@

clean:                    ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
