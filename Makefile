# Everything starts here, from a bare Python and pip: the targets make the virtual environment that they need.

VENV ?= .venv
BIN := $(VENV)/bin
# Oldest first: the newest Python may be too new for some wheels of the lock.
PYTHON_CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14
LOCK_STAMP := $(VENV)/.stamp-lock
PROJECT_STAMP := $(VENV)/.stamp-project
PIP_FLAGS := --disable-pip-version-check --quiet --quiet
UV_VERSION := 0.13.9
SOURCES := safehaul workflows activities workers lab tests
# Most tests wait for servers: two processes take little more than half the time. All tests of a file stay together.
AT_ONCE := --numprocesses=2 --dist=loadfile
QUICK_TESTS := tests/unit tests/property tests/workflow tests/replay tests/contract tests/e2e

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all cancels bench crash-matrix soak check format venv lock clean

help: ## Show what can be done here
	@echo 'safehaul: backs up VMware VMs on NFS datastores straight from the filer.'
	@echo
	@echo 'First try:   make demo    a data centre on this machine, a backup job over it, a compared restore'
	@echo 'Then:        $(BIN)/safehaul --help'
	@echo
	@echo 'Targets (each makes $(VENV) first if it is missing; only Python >= 3.11 and pip are needed):'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1	\2/p' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables:   DEMO_ARGS="--keep --vms 8"   PYTEST_ARGS="-k cancel -x"   VENV=/elsewhere   PYTHON=/usr/bin/python3.12'

demo: venv ## Run the whole product once on this machine (no root), ends with "demo: PASSED"
	@$(BIN)/safehaul demo $(DEMO_ARGS)

test: venv ## Run the unit, property, workflow, replay and contract tests and the quick end-to-end ones
	@$(BIN)/python -m pytest -m 'not slow' $(AT_ONCE) $(QUICK_TESTS) $(PYTEST_ARGS)

test-all: venv ## Run every test, also the slow ones and those that kill, cut and fill
	@$(BIN)/python -m pytest tests $(PYTEST_ARGS)

cancels: venv ## Measure how soon a cancel is followed by the snapshot's removal (CANCELS=300 SEED=1: as many, from that seed)
	@$(if $(CANCELS),CANCELS=$(CANCELS)) $(if $(SEED),SEED=$(SEED)) $(BIN)/python -m pytest tests/fault/test_cancel_latency.py $(PYTEST_ARGS)

bench: venv ## Measure beside restic, borg and zstd (minutes; FULL=1: an hour, writes docs/performance.md)
	@$(BIN)/python -m tests.bench $(if $(FULL),--full) $(BENCH_ARGS)

crash-matrix: venv ## Kill every process at every kind of moment (an hour or two, goes on where it was; QUICK=1: minutes; CASE=…, FRESH=1, JOBS=2)
	@$(BIN)/python -m tests.crash $(if $(CASE),case '$(CASE)',matrix --jobs $(or $(JOBS),2) $(if $(QUICK),--quick) $(if $(FRESH),--fresh))

soak: venv ## Jobs back to back while processes die at random (SOAK_MINUTES=30)
	@$(BIN)/python -m tests.crash soak --minutes $(or $(SOAK_MINUTES),30) --seed $(or $(SOAK_SEED),0)

check: venv ## Check style, formatting, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: venv ## Put the code in form
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

venv: $(PROJECT_STAMP) ## Make the virtual environment from the hash-pinned lock

# The project itself: again when its entry points or packages may have changed. Nothing is downloaded.
$(PROJECT_STAMP): $(LOCK_STAMP) pyproject.toml
	@$(BIN)/python -m pip $(PIP_FLAGS) install --no-index --no-deps --no-build-isolation --editable .
	@touch $@

# Made anew when the lock changes, so that nothing of an older lock stays behind. The lock holds pip and
# setuptools too. A Python without ensurepip (Debian's, without python3-venv) serves when it has pip.
$(LOCK_STAMP): requirements.txt
	@python=''; for candidate in $(if $(PYTHON),'$(PYTHON)',$(PYTHON_CANDIDATES)); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; \
	  then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'safehaul needs Python 3.11 to 3.14; none of these is one: $(or $(PYTHON),$(PYTHON_CANDIDATES)).' >&2; \
	  echo 'Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or say where: make PYTHON=/path/to/python3 …' >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" -V), about half a minute …"; \
	if "$$python" -c 'import ensurepip' 2>/dev/null; then \
	  "$$python" -m venv --clear '$(VENV)'; pip=('$(BIN)/python' -m pip); \
	elif "$$python" -m pip --version >/dev/null 2>&1; then \
	  "$$python" -m venv --clear --without-pip '$(VENV)'; pip=("$$python" -m pip --python '$(BIN)/python'); \
	else \
	  echo "$$python has neither ensurepip nor pip: install one (Debian, Ubuntu: apt-get install python3-venv)." >&2; \
	  exit 1; \
	fi; \
	"$${pip[@]}" $(PIP_FLAGS) install --require-hashes --requirement requirements.txt
	@touch $@

# For maintainers: after a change of pyproject.toml's dependencies, or `make lock LOCK_ARGS=--upgrade`.
# uv names every file of a release by its hash, and no address. The platform's marker is cut off, so that
# another system fails loudly instead of installing nothing.
lock: ## Write requirements.txt again from pyproject.toml
	@python3 -m venv build/lock && build/lock/bin/python -m pip $(PIP_FLAGS) install uv==$(UV_VERSION)
	@cp requirements.txt build/requirements.txt
	@build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --output-file build/requirements.txt $(LOCK_ARGS) pyproject.toml
	@sed -E "s/ and sys_platform == 'linux'//; s/ ; sys_platform == 'linux'//" build/requirements.txt > requirements.txt
	@! grep -nE '://|^-' requirements.txt
	@echo "requirements.txt: $$(grep -c == requirements.txt) packages"

clean: ## Remove what was built and cached here, also the virtual environment
	@rm -rf '$(VENV)' build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
