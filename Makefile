PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow fuzz lint format benchmark reproduction docs constraints clean

# Compiled modules are kept even if this is set: else every process compiles what it imports again, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=

quickstart: $(VENV)/installed
	@echo "Installed. Training 4 arms x 8 seeds on real digits; less than a minute on two cores."
	$(BIN)/lenet-jax run --config=experiments/quickstart.py --workdir=runs/quickstart >/dev/null
	$(BIN)/lenet-jax compare runs/quickstart

# uv installs in seconds what takes pip minutes. It comes from PyPI like everything else, and constraints.txt has the
# hashes of what the package and its tests need, its own too: an altered file stops the installation.
UV_INSTALL := VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt \
	--build-constraint constraints.txt --editable

define CHECK_PYTHON
import platform, sys
allowed = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit("Python: 3.11 to 3.14 is needed, and this is %s; say make PYTHON=python3.13" % platform.python_version())
if (sys.platform, platform.machine()) not in allowed:
    sys.exit("platform: JAX runs on Linux (x86_64, aarch64) and on Macs with Apple silicon; this is %s %s. "
             "On Windows use WSL2" % (sys.platform, platform.machine()))
endef
export CHECK_PYTHON

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Installing into $(VENV): some ten seconds, and the downloads."
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^[^ ]/ {wanted = /^uv==/} wanted' constraints.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.txt
	$(UV_INSTALL) .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(UV_INSTALL) '.[test]'
	touch $@

test: $(VENV)/installed-test
	@started=$$(date +%s); $(BIN)/pytest -m 'not slow' --nbmake --numprocesses=2 --dist=loadfile --no-loadscope-reorder; \
		code=$$?; echo "make test took $$(($$(date +%s) - started)) s"; exit $$code

test-slow: $(VENV)/installed-test
	$(UV_INSTALL) '.[test,mlflow]'
	$(BIN)/pytest -m slow

# Made-up files for the IDX reader, for so many seconds; on Linux. Finds stay in a folder of /tmp, which is printed. To
# keep them: .venv/bin/python tests/fuzz/fuzz_idx.py -merge=1 -use_counters=0 tests/fuzz/corpus FOLDER
FUZZ_SECONDS ?= 600

fuzz: $(VENV)/installed
	$(UV_INSTALL) '.[fuzz]'
	finds=$$(mktemp -d) && echo "finds: $$finds" && $(BIN)/python tests/fuzz/fuzz_idx.py -max_total_time=$(FUZZ_SECONDS) \
		-timeout=10 -rss_limit_mb=256 -max_len=1024 -artifact_prefix=$$finds/ $$finds tests/fuzz/corpus

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# About 20 minutes for the throughput, and longer for whole jobs; leave the machine alone meanwhile. Results:
# experiments/results/throughput and time_to_result. Repeating time_to_result.py resumes it.
benchmark: $(VENV)/installed
	$(UV_INSTALL) '.[benchmarks]'
	$(BIN)/python experiments/benchmarks/throughput.py
	$(BIN)/python experiments/benchmarks/time_to_result.py

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
	$(UV_INSTALL) '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The newest versions that fit become the ones that everybody gets, on every Python and platform.
constraints: $(VENV)/installed
	$(BIN)/uv pip compile setup.cfg --quiet --universal --upgrade --generate-hashes --no-annotate --no-header \
		--python-version 3.11 --extra test --output-file constraints.txt

clean:
	rm -rf $(VENV) .venv .venv-* build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
