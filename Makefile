# Everything here needs Python 3.11 or newer (with venv) and make; the rest is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: help demo demo-at test lint types imports check format benchmark gpu clean

help:
	@echo "make demo       install, calibrate, export and infer on the embedded digits"
	@echo "make demo-at    train a network adversarially, the same of it, and attacks on it, worst case first"
	@echo "make test       install what the tests need, run them all"
	@echo "make check      lint, types, import contracts and tests: what CI runs"
	@echo "make format     format the code"
	@echo "make benchmark  measure cost and sizes anew into benchmarks/results"
	@echo "make gpu        on a machine with an NVIDIA GPU: its tests and benchmark, installing nothing"
	@echo "make clean      remove $(VENV) and what the demo wrote"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sad-deploy needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	touch $@

# Where they cannot be downloaded, the tests that read them are skipped with the reason.
$(VENV)/trt-bindings: tests/enterprise_bindings.txt | $(BIN)/python
	mkdir -p $@
	$(BIN)/python -m pip download --quiet --no-deps --dest $@ --requirement $< && touch $@ || rm -rf $@

# Likewise; with a NumPy of its own, so beside the environment and not in it.
$(VENV)/triton: tests/triton_server.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --target $@ --requirement $< && touch $@ || rm -rf $@

$(VENV)/inference-servers: tests/inference_servers.txt | $(BIN)/python
	$(PYTHON) -m venv $@ && $@/bin/python -m pip install --quiet --requirement $< && touch $@ || rm -rf $@

demo: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

demo-at: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo_adversarial.sh

test: $(VENV)/.dev $(VENV)/trt-bindings $(VENV)/triton $(VENV)/inference-servers
	SAD_DEPLOY_TRT_BINDINGS="$(abspath $(VENV)/trt-bindings)" SAD_DEPLOY_TRITON="$(abspath $(VENV)/triton)" \
		SAD_DEPLOY_INFERENCE_SERVERS="$(abspath $(VENV)/inference-servers)" \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types imports test

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/cpu_cost.py
	$(BIN)/python benchmarks/engine_size.py
	$(BIN)/python benchmarks/start_up.py

# With PYTHON as it is: torch, onnxruntime and whatever else is there, nothing from a network.
gpu: export PYTHONPATH := $(CURDIR):$(CURDIR)/export:$(CURDIR)/runtime
gpu:
	$(PYTHON) -m pytest tests/gpu
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) sad-model predictions.jsonl predictions.jsonl.run.json report.html images overlays \
		sad-model.evaluation at-weights.safetensors at-model at-model.evaluation at-predictions.jsonl at-predictions.jsonl.run.json robustness.html
