# The one list of tasks, for people and for CI. `make demo` and `make test` do all the set-up themselves.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test test-fast lint types imports stubs benchmarks clean

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

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

imports: $(VENV)/installed
	$(BIN)/lint-imports

stubs: $(VENV)/installed  ## regenerate the gRPC stubs after a change to proto/
	$(BIN)/python scripts/generate_stubs.py

benchmarks: $(VENV)/installed  ## measure everything side by side; writes docs/performance/
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks --output docs/performance

clean:
	rm -rf $(VENV)
