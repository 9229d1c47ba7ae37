# make search   sets up, fetches CIFAR-10 and searches search_spaces/quick.yaml to the end
# make test     sets up, then lint, types and tests
# make test-slow  the long tests as well

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup search test test-slow lint reference clean

setup: .venv/installed

# Again only when the dependencies change. A half-made environment is started anew.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cifartune needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv: two minutes or more, 5 GB, mostly PyTorch with its CUDA libraries"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

search: setup
	$(BIN)/cifartune search search_spaces/quick.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without the real images the tests train on generated ones.
test: lint
	-$(BIN)/cifartune data fetch
	$(BIN)/pytest

# What is generated from the code and from timm.
reference: setup
	$(BIN)/python -m cifartune.models.index
	$(BIN)/python -m cifartune.config.reference

test-slow: setup
	$(BIN)/cifartune data fetch
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
