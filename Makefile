# Of pyproject.toml's extras, what runs and workers need, e.g. `s3`; then `make lock`.
EXTRAS :=
DEV_EXTRAS := dev bench

include deployments/engine.mk

.PHONY: init bench

# Once, in a fresh clone: takes the example out, `make init NAME=acme-pipelines`.
init:
	@$(PYTHON) deployments/init "$(NAME)"

bench: .venv/installed
	@$(BIN)/python -m benchmarks.fan_out $(ARGS)
