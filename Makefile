# SPDX-License-Identifier: Apache-2.0
# make nightly     set up what is missing, then a whole night of debian13 with nothing configured
# make test        set up, then every test that fits: a real build, boot and Glance included
# make check       lint, types, units that start no other programs: under a minute
# make test-long   what does not fit make test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
COMPUTE := .venv-compute
STATE  ?= $(CURDIR)/state
IMAGE  ?= debian13
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)
ROOT   := $(SUDO) env PYTHONDONTWRITEBYTECODE=1

.PHONY: setup setup-tests nightly test test-long check lint types unit lock docs benchmarks clean

setup: $(VENV)/.installed

setup-tests: $(VENV)/.packages-of-tests setup

$(VENV)/.packages: packages/apt.txt
	@SUDO="$(SUDO)" sh packages/install.sh packages/apt.txt
	@mkdir -p $(VENV) && touch $@

$(VENV)/.packages-of-tests: packages/apt.txt
	@SUDO="$(SUDO)" sh packages/install.sh packages/apt.txt --with-tests
	@mkdir -p $(VENV) && touch $@ $(VENV)/.packages

$(VENV)/.installed: $(VENV)/.packages locks/requirements.txt pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages from locks/requirements.txt"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r locks/requirements.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# the compute services of testsuite/cloud, apart from the factory's own environment
$(COMPUTE)/installed: $(VENV)/.packages-of-tests $(VENV)/.installed locks/compute.txt
	@$(BIN)/python -m testsuite.cloud install
	@touch $@

nightly: setup
	$(ROOT) $(BIN)/factory --state $(STATE) nightly $(IMAGE) --allow-dirty $(ARGS)

check: setup-tests lint types unit

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

unit:
	$(BIN)/pytest -q -n auto --dist loadfile -m "not slow and not programs" testsuite/unit

test: setup-tests $(COMPUTE)/installed
	$(ROOT) $(BIN)/python testsuite/groups.py $(ARGS)

test-long: setup-tests $(COMPUTE)/installed
	$(ROOT) $(BIN)/pytest -m slow testsuite/unit testsuite/integration testsuite/mutants

benchmarks: setup-tests
	$(ROOT) $(BIN)/python benchmarks/run.py

docs: setup
	$(BIN)/python docs/generate.py

lock:
	$(BIN)/uv pip compile pyproject.toml --extra cloud --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file locks/requirements.txt
	$(BIN)/uv pip compile testsuite/cloud/requirements.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file locks/compute.txt

clean:
	-$(BIN)/factory --state $(STATE) cloud down
	rm -rf $(VENV) $(COMPUTE) state build dist
