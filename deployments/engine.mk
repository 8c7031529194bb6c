# What `make` can do in every project. The engine's own: the project's Makefile includes it.
PYTHON ?= python3
BIN := .venv/bin
# Of pyproject.toml's extras: those that runs and workers have, too, and those of this checkout alone.
EXTRAS ?=
DEV_EXTRAS ?= dev
QUICK ?= not docker
COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links $(UPGRADE) pyproject.toml

.PHONY: demo dev test test-docker lint format check deploy up down update lock clean

demo: .venv/installed
	@$(BIN)/python -m deployments demo $(ARGS)

# At port 4200, the next one that is free, or PORT.
dev: .venv/installed
	@$(BIN)/python -m deployments dev $(if $(PORT),--port $(PORT)) $(ARGS)

test: lint
	@$(BIN)/python -m pytest -m "$(QUICK)" $(ARGS)

test-docker: .venv/installed
	@$(BIN)/python -m pytest -m docker $(ARGS)

lint: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/installed
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

check: .venv/installed
	@$(BIN)/python -m deployments check $(ARGS)

deploy: .venv/installed
	@$(BIN)/python -m deployments deploy $(ARGS)

up: .venv/installed
	@$(BIN)/python -m deployments up $(ARGS)

down: .venv/installed
	@$(BIN)/python -m deployments down $(ARGS)

# What is new in the template: of the git remote `template`, or `make update FROM=<git url or path>`;
# and `ARGS=--ref=<branch, tag or commit>`.
update: .venv/installed
	@$(BIN)/python deployments/update.py $(if $(FROM),"$(FROM)") $(ARGS)

lock: .venv/installed
	$(COMPILE) $(EXTRAS:%=--extra %) -o requirements.txt
	$(COMPILE) $(patsubst %,--extra %,$(EXTRAS) $(DEV_EXTRAS)) -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

# The lock is a constraint, too: pip before 23.3 looks for `sqlalchemy[asyncio]` without its pin.
.venv/installed: requirements-dev.txt
	@echo "Making the environment in .venv ..." >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, e.g. make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -c requirements-dev.txt -r requirements-dev.txt >&2
	@touch $@
