# Of pyproject.toml's extras, what runs and workers need, e.g. `s3`; then `make lock`.
EXTRAS :=
DEV_EXTRAS := dev bench

include deployments/engine.mk

.PHONY: bench

bench: .venv/installed
	@$(BIN)/python -m benchmarks.fan_out $(ARGS)
