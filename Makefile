# meshwright: `make` prints this help.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:  ## what each verb does
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(STAMP)

setup: $(STAMP)  ## make the virtual environment (pip only; nothing outside .venv)

run: setup  ## plan the example deployment with the built-in policy, no key, no GPU
	@$(BIN)/meshwright plan examples/conditions/llama3_70b_8xh100.md --out runs/llama3_70b_8xh100

test: setup  ## offline tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

check: setup  ## format, lint, types, import layers, docs drift
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m agent.docs --check

docs: setup  ## regenerate the generated pages of docs/
	@$(BIN)/python -m agent.docs --write

eval: setup  ## the 68 cases with the built-in policy; fails where a committed score fell
	@$(BIN)/meshwright eval --out runs/eval

bench: setup  ## timings, reported and never asserted
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/bench_search.py
	@$(BIN)/python benchmarks/bench_check_dag.py

prove-all: setup  ## every architecture under every strategy, proven (minutes); writes benchmarks/prove_all.md
	@$(BIN)/python benchmarks/prove_all.py

accuracy: setup  ## predictions against the open measurements, where they lie beside the checkout
	@$(BIN)/python benchmarks/accuracy.py --write

wheel: setup  ## build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

tour: setup  ## layers, tools, checks, axes, engines, the ten longest functions
	@$(BIN)/python -m agent.docs --tour

clean:  ## remove what was built
	@rm -rf dist build .pytest_cache .ruff_cache .mypy_cache

.PHONY: help setup run test check docs eval bench prove-all accuracy wheel tour clean
