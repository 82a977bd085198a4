PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint format constraints clean

quickstart: $(VENV)/installed
	$(BIN)/lenet-jax run --config=experiments/quickstart.py --workdir=runs/quickstart
	$(BIN)/lenet-jax compare runs/quickstart

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

test: $(VENV)/installed-test
	$(BIN)/pytest -m 'not slow'

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The versions that are installed now become the ones that everybody gets.
constraints: $(VENV)/installed-test
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
