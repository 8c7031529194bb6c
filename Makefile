include deployments/engine.mk

.PHONY: init bench

# Take the example out, and make this your own: `make init NAME=acme-pipelines`.
init: .venv/installed
	@$(BIN)/python -m deployments.init "$(NAME)"

bench: .venv/installed
	@$(BIN)/python -m benchmarks.fan_out $(ARGS)
