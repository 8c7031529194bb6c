# What `make` can do in every project. The engine's own: the project's Makefile includes it.
PYTHON ?= python3
BIN := .venv/bin
OTHER := .other-prefect
# Of pyproject.toml's extras: those that runs and workers have, too, and those of this checkout alone.
EXTRAS ?=
DEV_EXTRAS ?= dev
COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links $(UPGRADE) pyproject.toml

.PHONY: demo test test-all test-cold test-docker test-machines test-prefect lint format check deploy up down update lock clean

demo: .venv/installed
	@$(BIN)/python -m deployments demo $(ARGS)

test: lint
	@$(BIN)/python -m pytest -m "not slow and not docker and not machines" $(ARGS)

test-all: lint
	@$(BIN)/python -m pytest -m "not docker and not machines" $(ARGS)

# Faults, without warm starts: each interpreter runs code from outside of its environment. By
# default those that the start of a process could change; all with `ARGS=tests/engine/faults`.
STARTS = tests/engine/faults -k '(raises or is_killed or timeout or is_cancelled) and not worker'
test-cold: .venv/installed
	@PYTHONPATH="$(CURDIR)/tests/engine/starts/cold" $(BIN)/python -m pytest -m "not docker and not machines" $(or $(ARGS),$(STARTS))

test-docker: .venv/installed
	@$(BIN)/python -m pytest -m docker $(ARGS)

# As root on Linux, since it makes two machines with networks and Docker Engines of their own.
test-machines: .venv/installed
	@$(BIN)/python -m pytest -m machines $(ARGS)

# With another Prefect than the lock's: `make test-prefect PREFECT=3.8.8`; without, the newest.
# In a clone of the last commit, with a lock and a `.venv` of its own, since runs use that.
test-prefect: .venv/installed
	@rm -rf $(OTHER) && git clone -q . $(OTHER)
	@echo 'prefect$(if $(PREFECT),==$(PREFECT))' >$(OTHER)/.git/prefect.txt
	@$(MAKE) -C $(OTHER) -o .venv/installed lock BIN=../$(BIN) UPGRADE='--upgrade-package prefect --override .git/prefect.txt'
	@$(MAKE) -C $(OTHER) test

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
	rm -rf .venv $(OTHER) .mypy_cache .pytest_cache .ruff_cache

# The lock is a constraint, too: pip before 23.3 looks for `sqlalchemy[asyncio]` without its pin.
.venv/installed: requirements-dev.txt
	@echo "Making the environment in .venv ..." >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, e.g. make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -c requirements-dev.txt -r requirements-dev.txt >&2
	@touch $@
