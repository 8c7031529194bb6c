include deployments/engine.mk

.PHONY: bench

bench: .venv/installed
	@$(BIN)/python -m benchmarks.fan_out $(ARGS)
