# Two commands: `make run` (the example, twice, in the box) and `make test` (everything). Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOGS := .make-logs

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test lint setup torch engine image clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: setup ## train the example twice in the box and compare the weights
	@scripts/run-twice.sh examples/charlm/train.py

# A test waits for boxes more than it computes, so four run at a time; those of one file by one worker, but for long files.
test: setup torch engine image ## run every test, those with real Docker and Podman engines included
	@$(BIN)/python -m pytest -n 4 --dist loadfile $(PYTEST_ARGS)

lint: setup ## format, lint, types, layers, workflows and actions
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(LOGS)/lint-imports.log || { cat $(LOGS)/lint-imports.log; exit 1; }
	@$(BIN)/actionlint
	@$(BIN)/zizmor --offline --quiet --no-progress .github >$(LOGS)/zizmor.log || { cat $(LOGS)/zizmor.log; exit 1; }
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions .github/actions/*/action.yml
	@echo "lint: clean"

setup: $(VENV)/.package ## make .venv and install reprobox into it

$(VENV)/.package: pyproject.toml
	@mkdir -p $(LOGS)
	@echo "setting up $(VENV) (log: $(LOGS)/setup.log)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	@{ $(BIN)/python -m pip install --upgrade 'pip>=25.1' && $(BIN)/python -m pip install -e . --group dev; } \
	    >$(LOGS)/setup.log 2>&1 || { tail -20 $(LOGS)/setup.log; exit 1; }
	@touch $@

torch: $(VENV)/.torch ## install the locked torch beside reprobox, for --engine local and the tests

# The image's own lock where it fits this interpreter, so that the tests meet the torch that users meet.
$(VENV)/.torch: docker/locks/cpu.txt | setup
	@echo "installing torch into $(VENV) (log: $(LOGS)/torch.log)"
	@scripts/install-torch.sh >$(LOGS)/torch.log 2>&1 || { tail -20 $(LOGS)/torch.log; exit 1; }
	@touch $@

engine: setup ## see that a container engine answers; install and start one if this user may
	@scripts/engine.sh --tests

image: setup engine ## build the CPU image, or find that it is there
	@reprobox build >/dev/null

clean: ## remove what make made (images and containers stay)
	rm -rf $(VENV) $(LOGS) .mypy_cache .ruff_cache .pytest_cache
