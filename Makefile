PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint format benchmark constraints clean

quickstart: $(VENV)/installed
	@echo "Installed. Training 4 arms x 8 seeds on real digits; about a minute on two cores."
	$(BIN)/lenet-jax run --config=experiments/quickstart.py --workdir=runs/quickstart
	$(BIN)/lenet-jax compare runs/quickstart

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.11")'
	@echo "Installing into $(VENV): a minute or two."
	$(PYTHON) -m venv --clear $(VENV)
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

# About 20 minutes; leave the machine alone meanwhile. Results: experiments/results/throughput.
benchmark: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python experiments/benchmarks/throughput.py

# The newest versions that fit become the ones that everybody gets.
constraints: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[test]'
	$(BIN)/python -m pip freeze --exclude-editable > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
