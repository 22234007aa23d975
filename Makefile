# Every target sets up .venv first when it is missing or older than its inputs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test lint docs bench image sbom clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@echo "setup: creating $(VENV) and installing pinned dependencies (about two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

setup: $(STAMP)  ## create .venv with every pinned dependency

demo: $(STAMP)  ## the whole path on a simulated world, or on DATA=<trivago events.parquet>
	@echo "demo: features, evaluator, mining, generator, bundle, serving, report"
	@$(BIN)/degre demo $(if $(DATA),--data $(DATA),)

test: $(STAMP)  ## all tests, on real Redis, Ray, Feast and HTTP
	@echo "test: unit and method tests, on all cores"
	@$(BIN)/python -m pytest -n logical tests/unit tests/method
	@echo "test: contract and integration tests, one after another on one Ray cluster"
	@$(BIN)/python -m pytest tests/contract tests/integration

lint: $(STAMP)  ## ruff, mypy, import direction
	@echo "lint: ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(STAMP)  ## the manual into build/docs, generated pages first
	@echo "docs: configuration, command line and HTTP reference from the code, then build/docs/index.html"
	@$(BIN)/python -m orchestration.manual docs > /dev/null
	@NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## decode, features, serving, swaps and faults (about 15 minutes); soak and quality by `degre bench`
	@for name in decode features serving swaps faults; do echo "bench: $$name"; $(BIN)/degre bench $$name --json || exit 1; done

image:  ## build the image; prints its size, layers, user, start-up time and what its history holds
	@deploy/docker/image.sh

sbom: $(STAMP)  ## bill of materials and licences of the dependencies, in build/
	@$(PYTHON) -m venv build/sbom
	@build/sbom/bin/pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom pip-licenses
	@$(BIN)/python deploy/docker/sbom.py build build/sbom/bin

clean:  ## remove .venv, runs and caches
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
