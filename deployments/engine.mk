# What `make` can do in every project. The engine's own: the project's Makefile includes it.
PYTHON ?= python3
BIN := .venv/bin
# Of pyproject.toml's extras: those that runs and workers have, too, and those of this checkout alone.
EXTRAS ?=
DEV_EXTRAS ?= dev
QUICK ?= not docker
COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links $(UPGRADE) pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo dev flow test test-docker lint format check deploy up down update lock clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## Run the first parent on a server and worker for it: ARGS="-p key=value"
	@$(BIN)/python -m deployments demo $(ARGS)

dev: .venv/installed ## Work in one terminal, until Ctrl-C: server, UI, workers, deploys: PORT=4200
	@$(BIN)/python -m deployments dev $(if $(PORT),--port $(PORT)) $(ARGS)

flow: .venv/installed ## Write a new flow, its test and its entries: NAME=clean-gauges PARENT=1
	@$(BIN)/python -m deployments flow "$(NAME)" $(if $(PARENT),--parent)

test: lint ## Lint, check types, run the tests that need no Docker: ARGS="-k name"
	@$(BIN)/python -m pytest -m "$(QUICK)" $(ARGS)

test-docker: .venv/installed ## Run the tests in containers
	@$(BIN)/python -m pytest -m docker $(ARGS)

lint: .venv/installed ## Lint, and check types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/installed ## Mend what the linter can, and format
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

check: .venv/installed ## Compare prefect.yaml with the flows; and with your server: ARGS=--server
	@$(BIN)/python -m deployments check $(ARGS)

deploy: .venv/installed ## Bring prefect.yaml to your server: ARGS=docker, ARGS=--prune
	@$(BIN)/python -m deployments deploy $(ARGS)

up: .venv/installed ## Start a server and a worker in containers, and deploy what runs in them
	@$(BIN)/python -m deployments up $(ARGS)

down: .venv/installed ## Stop them: ARGS=--volumes forgets their data, too
	@$(BIN)/python -m deployments down $(ARGS)

# Of the git remote `template`, or FROM=<git url or path>; and ARGS=--ref=<branch, tag or commit>.
update: .venv/installed ## Merge what is new in the template
	@$(BIN)/python deployments/update.py $(if $(FROM),"$(FROM)") $(ARGS)

lock: .venv/installed ## Write requirements*.txt anew, after a change of pyproject.toml
	$(COMPILE) $(EXTRAS:%=--extra %) -o requirements.txt
	$(COMPILE) $(patsubst %,--extra %,$(EXTRAS) $(DEV_EXTRAS)) -c requirements.txt -o requirements-dev.txt

clean: ## Delete .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# pip installs uv alone, of the lock, and uv the rest, which takes less than half of the time. uv does
# not read pip's configuration: it is told the index, and where that is not all, pip installs. (It has
# the lock as a constraint, too: before 23.3, it looks for `sqlalchemy[asyncio]` without its pin.)
PIP = $(BIN)/python -m pip --disable-pip-version-check
INDEX = $(PIP) config list | sed -En "s/^(:env:|global)\.index-url='(.*)'/\2/p" | head -n 1
.venv/installed: requirements-dev.txt
	@echo "Making the environment in .venv ..." >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, e.g. make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@awk '/^[^ ]/ {is_uv = /^uv==/} is_uv' $< >.venv/uv.txt
	@{ $(PIP) install -q --require-hashes -r .venv/uv.txt \
		&& index="$${UV_DEFAULT_INDEX:-$$($(INDEX))}" && env $${index:+UV_DEFAULT_INDEX="$$index"} \
			$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r $<; } >&2 \
		|| { echo "uv can't install this here, see above: pip does, which takes longer." >&2; \
			$(PIP) install -q --require-hashes -c $< -r $< >&2; }
	@touch $@
