# The one list of tasks, for people and for CI. `make demo` and `make test` do all the set-up themselves.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test test-slow test-unit test-cuda test-oldest test-oldest-suites versions test-fast lint types imports stubs soak fairness leaks fuzz faults \
	benchmarks zoo docs images image-steps alerts clean

$(VENV)/installed: pyproject.toml server/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e ./server
	touch $@

demo: $(VENV)/installed  ## start a server, build the example policy on it, train it for a few steps
	$(BIN)/python examples/flow_policy/train.py

test: lint types imports docs test-unit  ## every check, and every test that is not slow; the tests have 40 minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --session-timeout=2400 --ignore tests/unit

test-slow: $(VENV)/installed  ## the tests marked slow: servers killed, under load, or with thousands of connections
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-unit: $(VENV)/installed  ## the unit tests, in one process and 120 seconds
	$(BIN)/python -m pytest tests/unit --session-timeout=120

CUDA_VENV := .venv-cuda
CUDA_TESTS := $(addprefix tests/integration/test_,forking.py builds.py call_signatures.py policies.py library_models.py \
	doctor.py plugins.py policy_constructor.py read_conditions_remote.py)

# PyPI's own build, whatever else this machine's pip is set up to prefer.
$(CUDA_VENV)/installed: pyproject.toml server/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CUDA_VENV)
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null \
		$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(CUDA_VENV)/bin/python -c 'import torch; assert torch.version.cuda, f"{torch.__version__} is not a CUDA build"'
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e ./server
	touch $@

test-cuda: $(CUDA_VENV)/installed  ## the tests of builds with PyPI's CUDA build of torch (2.5 GB); needs no GPU
	$(CUDA_VENV)/bin/python -m pytest -n 2 --dist loadfile $(CUDA_TESTS)

test-oldest: $(VENV)/installed  ## a client with the lower bounds of its requirements, and the server of this environment
	$(BIN)/python tests/versions/run.py oldest

OLDEST := .venv-versions/oldest/bin/python
OLDEST_SUITES := tests/unit/config tests/unit/program/test_newer_torch.py tests/unit/descriptor/test_weights.py \
	tests/fuzz/test_ops.py \
	$(addprefix tests/attacks/test_,hostile_programs.py hostile_responses.py hostile_modules.py hostile_source.py \
	false_sizes.py endless_responses.py shared_caches.py) \
	$(addprefix tests/integration/test_,builds.py drop_in.py forked_trainers.py goldens_remote.py http_proxies.py \
	offline.py store_bound.py)

# The client's environment has no server package: its tests start the server of this environment.
test-oldest-suites: test-oldest  ## unit tests, attacks and integration tests with the oldest client
	SERVER_COMMAND=$(CURDIR)/$(BIN)/model-factory $(OLDEST) -m pytest -n 2 --dist loadfile $(OLDEST_SUITES) \
		--ignore tests/unit/config/test_config_language_page.py  # which needs the server package

LEGS ?=

versions: $(VENV)/installed  ## clients of other versions (20 GB), LEGS="oldest openpi" for some; writes docs/versions.md
	$(BIN)/python tests/versions/run.py --write $(LEGS)
	$(BIN)/python tests/versions/page.py

test-fast: $(VENV)/installed  ## the suites that start no server
	$(BIN)/python -m pytest tests/unit tests/property tests/golden

FUZZ_EXAMPLES ?= 20000
FUZZ_SEED ?= 0
FUZZ_SECONDS ?=

# tests/fuzz runs each fuzzer for FUZZ_SECONDS, if given, else FUZZ_EXAMPLES times.
fuzz: $(VENV)/installed  ## what tests/property and tests/fuzz try, FUZZ_EXAMPLES times each; FUZZ_SEED repeats a run
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) FUZZ_SEED=$(FUZZ_SEED) FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -s \
		tests/property tests/fuzz --timeout=0 --hypothesis-seed=$(FUZZ_SEED)

FAULT_SECONDS ?= 600
FAULT_SEED ?= 0

faults: $(VENV)/installed  ## a server under load with one fault after another; FAULT_SEED repeats a run
	FAULT_SECONDS=$(FAULT_SECONDS) FAULT_SEED=$(FAULT_SEED) $(BIN)/python -m pytest -s -m "" tests/fault/test_under_faults.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/plain_words.py
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml docker/compose.gpu.yaml
	$(BIN)/hadolint docker/server.Dockerfile docker/trainer.Dockerfile

types: $(VENV)/installed
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 client/model_factory

imports: $(VENV)/installed
	$(BIN)/lint-imports

docs: $(VENV)/installed  ## build the site of docs/ into site/; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

FAIRNESS_ROUNDS ?= 100

fairness: $(VENV)/installed  ## one client at all its quotas beside another client, in FAIRNESS_ROUNDS rounds of 4 seconds
	FAIRNESS_ROUNDS=$(FAIRNESS_ROUNDS) $(BIN)/python -m pytest -s -m "" --timeout=0 tests/attacks/test_quotas.py -k within_twice

soak: $(VENV)/installed  ## an hour under load, with its plot in soak/; SOAK="--seconds 60 --clients 100" for less
	$(BIN)/python scripts/soak.py $(SOAK)

LEAK_JOBS ?= 5000

leaks: $(VENV)/installed  ## thousands of jobs of every ending, and a table of what the server has after them
	$(BIN)/python scripts/leaks.py --jobs $(LEAK_JOBS)

images: $(VENV)/installed  ## do what the Dockerfiles say in plain virtual environments (minutes); needs kubectl for its manifests
	$(BIN)/pip install --quiet --disable-pip-version-check kubernetes-validate
	for name in base gpu single; do kubectl kustomize docker/k8s/$$name >$(VENV)/$$name.yaml \
	&& $(BIN)/kubernetes-validate --strict $(VENV)/$$name.yaml || exit 1; done
	$(MAKE) image-steps

image-steps: $(VENV)/installed  ## the Dockerfiles' steps alone; IMAGE_ARGS="TORCH_INDEX=URL" for another build argument
	$(BIN)/python scripts/image_steps.py $(IMAGE_ARGS)

alerts:  ## check and try the rules for Prometheus; needs its promtool (in Debian's package prometheus)
	promtool check rules docs/alerts.yaml
	promtool test rules docs/alerts.test.yaml

stubs: $(VENV)/installed  ## regenerate the gRPC stubs after a change to proto/
	$(BIN)/python scripts/generate_stubs.py

benchmarks: $(VENV)/installed  ## measure everything side by side; writes docs/performance/
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks --output docs/performance

ZOO_VENV := .venv-zoo
ZOO ?= *

# PyPI's own build of torch, since torchvision's kernels from PyPI need its libraries.
$(ZOO_VENV)/installed: pyproject.toml server/pyproject.toml constraints.txt tests/zoo/requirements.txt \
		tests/zoo/without-dependencies.txt
	$(PYTHON) -m venv $(ZOO_VENV)
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null \
		$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . -e ./server \
		-r tests/zoo/requirements.txt
	$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/zoo/without-dependencies.txt
	touch $@

zoo: $(ZOO_VENV)/installed  ## models of public packages beside torch.export (an hour, 6 GB); writes docs/zoo.md; ZOO="timm/*" for some
	$(ZOO_VENV)/bin/python tests/zoo/run.py '$(ZOO)'
	$(ZOO_VENV)/bin/python tests/zoo/remote.py
	$(ZOO_VENV)/bin/python tests/zoo/page.py

clean:
	rm -rf $(VENV)
