PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow fuzz lint format benchmark reproduction docs constraints clean

quickstart: $(VENV)/installed
	@echo "Installed. Training 4 arms x 8 seeds on real digits; about a minute on two cores."
	$(BIN)/lenet-jax run --config=experiments/quickstart.py --workdir=runs/quickstart >/dev/null
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
	$(BIN)/pytest -m 'not slow' --nbmake --numprocesses=2 --dist=loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow

# Made-up files for the IDX reader, for so many seconds; on Linux. Finds stay in a folder of /tmp, which is printed. To
# keep them: .venv/bin/python tests/fuzz/fuzz_idx.py -merge=1 -use_counters=0 tests/fuzz/corpus FOLDER
FUZZ_SECONDS ?= 600

fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	finds=$$(mktemp -d) && echo "finds: $$finds" && $(BIN)/python tests/fuzz/fuzz_idx.py -max_total_time=$(FUZZ_SECONDS) \
		-timeout=10 -rss_limit_mb=256 -max_len=1024 -artifact_prefix=$$finds/ $$finds tests/fuzz/corpus

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

# About two hours on two cores; the report is runs/reproduction/reproduction.md. What is finished isn't run again.
# DATASET=idx:FOLDER for one's own MNIST.
DATASET ?= mnist
REPRODUCTION := lenet5_1998 lenet5_1998_distorted training_set_size lenet5_1998_ingredients lush_demo \
	lenet5_1998_choices lenet5_1998_magnitudes lenet5_1998_ingredient_rates

reproduction: $(VENV)/installed
	for name in $(REPRODUCTION); do \
		$(BIN)/lenet-jax run --config=experiments/$$name.py --config.dataset=$(DATASET) --workdir=runs/$$name || exit; \
	done
	$(BIN)/python experiments/reproduction/reproduction.py --runs=runs --out=runs/reproduction --dataset=$(DATASET)

# The documentation, into site/. To read it with search: .venv/bin/python -m http.server --directory site
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The newest versions that fit become the ones that everybody gets.
constraints: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[test]'
	$(BIN)/python -m pip freeze --exclude-editable > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
