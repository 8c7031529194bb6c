# Of pyproject.toml's extras, what runs and workers need, e.g. `s3`; then `make lock`.
EXTRAS :=

# From here on, the template's own, which `init` takes out.
DEV_EXTRAS := dev template
QUICK := not slow and not docker and not machines
ENGINE := not docker and not machines and not chaos
OTHER := .venv/other-prefect

include deployments/engine.mk

.PHONY: init bench test-all test-chaos test-cold test-machines test-prefect

init: ## Make this clone a project of your own, without the example: NAME=acme-pipelines
	@$(PYTHON) deployments/init "$(NAME)"

bench: .venv/installed ## Measure this beside plain run_deployment: ARGS=--full
	@$(BIN)/python -m benchmarks.fan_out $(ARGS)

# The files side by side: tests wait more than they compute. But for `starts/`, which changes the
# environment that all share.
SIDE_BY_SIDE := -n 2 --dist loadfile
test-all: lint ## All tests that need no Docker
	@$(BIN)/python -m pytest -m "$(ENGINE)" $(or $(ARGS),$(SIDE_BY_SIDE) --ignore tests/engine/starts)
	@$(if $(ARGS),,$(BIN)/python -m pytest -m "$(ENGINE)" tests/engine/starts)

# Faults, without warm starts: each interpreter runs code from outside of its environment. By
# default those that the start of a process could change; all with `ARGS=tests/engine/faults`.
STARTS = tests/engine/faults -k '(raises or is_killed or is_cancelled) and not worker and not durable'
test-cold: .venv/installed ## Tests of faults, without warm starts
	@PYTHONPATH="$(CURDIR)/tests/engine/starts/cold" $(BIN)/python -m pytest -m "$(ENGINE)" $(or $(ARGS),$(SIDE_BY_SIDE) $(STARTS))

# Some minutes, and another order by each number: CHAOS=7.
test-chaos: .venv/installed ## Kill durable runs at random: CHAOS=0
	@CHAOS=$(CHAOS) $(BIN)/python -m pytest -m chaos $(ARGS)

# As root on Linux, since it makes two machines with networks and Docker Engines of their own.
test-machines: .venv/installed ## Tests on two machines, with Docker Engines of their own
	@$(BIN)/python -m pytest -m machines $(ARGS)

# With another Prefect than the lock's: `make test-prefect PREFECT=3.8.8`; without, the newest.
# In a clone of the last commit, with a lock and a `.venv` of its own, since runs use that.
test-prefect: .venv/installed ## Test with the newest Prefect, or another: PREFECT=3.8.8
	@rm -rf $(OTHER) && git clone -q . $(OTHER)
	@echo 'prefect$(if $(PREFECT),==$(PREFECT))' >$(OTHER)/.git/prefect.txt
	@$(MAKE) -C $(OTHER) -o .venv/installed lock BIN=../bin UPGRADE='--upgrade-package prefect --override .git/prefect.txt'
	@$(MAKE) -C $(OTHER) test
