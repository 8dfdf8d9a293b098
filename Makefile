# Everything below works without make as well: the README shows the commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
export TORCH_CPU_INDEX ?=
# CI logs and pipes stay readable; a terminal gets colours by itself.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench ui clean lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## create the virtual environment and install everything

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS) tools/install_torch.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, then the rest (two to five minutes the first time)"
	@$(BIN)/python tools/install_torch.py
	@$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[pipeline,lm,grib,dev]'
	@touch $@

demo: $(VENV)/.ready ## real data to a registered champion, with a report
	@$(BIN)/stfm run --system dlinear --system stid

test: $(VENV)/.ready ## run the tests
	@$(BIN)/python -m pytest

lint: $(VENV)/.ready ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(VENV)/.ready ## speed and memory, each beside its target
	@$(BIN)/python -m bench

ui: $(VENV)/.ready ## Dagster and MLflow in the browser
	@$(BIN)/stfm ui

clean: ## delete the virtual environment and caches; tables and models stay
	@test ! -x $(BIN)/stfm || $(BIN)/stfm clean
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build dist

lock: $(VENV)/.ready ## resolve the constraints anew (needs uv)
	@uv pip compile pyproject.toml --extra pipeline --extra lm --extra grib --extra video --extra ray --extra dev --universal \
	  --fork-strategy fewest --python-version 3.11 --override requirements/overrides.txt --no-annotate --no-header \
	  --upgrade -o $(CONSTRAINTS) && sed -i.bak '/^torch==/d' $(CONSTRAINTS) && rm $(CONSTRAINTS).bak
