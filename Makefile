# The one list of tasks, for people and for CI. `make demo` and `make test` do all the set-up themselves.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: faults fuzz demo test test-fast lint types imports stubs clean

$(VENV)/installed: pyproject.toml server/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e ./server
	touch $@

demo: $(VENV)/installed  ## start a server, build the example policy on it, train it for a few steps
	$(BIN)/python examples/flow_policy/train.py

test: lint types imports  ## every check and every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/installed  ## the suites that start no server
	$(BIN)/python -m pytest tests/unit tests/property tests/golden

FUZZ_EXAMPLES ?= 20000
FUZZ_SEED ?= 0

fuzz: $(VENV)/installed  ## what tests/property tries, FUZZ_EXAMPLES times each; FUZZ_SEED repeats a run
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/property --timeout=0 --hypothesis-seed=$(FUZZ_SEED)

FAULT_SECONDS ?= 600
FAULT_SEED ?= 0

faults: $(VENV)/installed  ## a server under load with one fault after another; FAULT_SEED repeats a run
	FAULT_SECONDS=$(FAULT_SECONDS) FAULT_SEED=$(FAULT_SEED) $(BIN)/python -m pytest -s tests/fault/test_under_faults.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

imports: $(VENV)/installed
	$(BIN)/lint-imports

stubs: $(VENV)/installed  ## regenerate the gRPC stubs after a change to proto/
	$(BIN)/python scripts/generate_stubs.py

clean:
	rm -rf $(VENV)
