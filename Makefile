# `make` lists the targets. Everything happens in .venv, which `make setup` (or any target that needs it) builds.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all test-gpu same-bytes reliability lint format schedules notebooks bench gpu-session gpu-ladder fairseq-env clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: .venv/ready ## the environment in .venv, with the versions of the last green run

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch .venv/ready

run: setup ## the default run: a small GPT on Python's documentation, with LAWA, EMA and SWA attached
	$(BIN)/python -m lawa_exp

# One process for each core, whole files to each, in order: the long ones (several ranks) come first. JOBS=1 for one.
JOBS ?= logical
PARALLEL := -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: lint ## lint, types and the everyday tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu and not fairseq"

test-all: setup ## every test that this machine can run, the slow ones too
	$(BIN)/python -m pytest $(PARALLEL) --harness-whole

test-gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

same-bytes: setup ## whether this checkout gives the bytes of REF=COMMIT; AGAINST=COMMIT in its place, ONLY=name,name*
	cd tests && ../$(BIN)/python -m same_bytes $(REF) $(if $(AGAINST),--against $(AGAINST)) $(if $(ONLY),--only '$(ONLY)')

reliability: setup ## the whole harness (damage, kills, hostile files, wrong command lines) into results/reliability.md
	rm -f .harness.jsonl
	$(BIN)/python -m pytest tests/harness --harness-whole --harness-out .harness.jsonl
	$(BIN)/python benchmarks/reliability.py .harness.jsonl --out results/reliability.md

lint: setup ## what `make test` checks before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

NANOGPT ?= ../nanoGPT
bench: setup ## the benchmarks, on a quiet machine; NANOGPT=DIR is a checkout of nanoGPT
	$(BIN)/python benchmarks/step_vs_nanogpt.py --nanogpt $(NANOGPT) --out results/speed/step_eager.md
	$(BIN)/python benchmarks/step_vs_nanogpt.py --nanogpt $(NANOGPT) --compile --out results/speed/step_compiled.md
	$(BIN)/python benchmarks/averaging_overhead.py --out results/speed/averaging_overhead.md
	$(BIN)/python benchmarks/averaging_overhead.py --size 10.6M --averagers eight --out results/speed/averaging_eight.md
	$(BIN)/python benchmarks/averagers.py --out results/speed/averagers.md
	$(BIN)/python benchmarks/wandb_overhead.py --out results/speed/wandb_overhead.md
	$(BIN)/python benchmarks/start_up.py --out results/speed/start_up.md
	$(BIN)/python benchmarks/status.py --out results/speed/status.md
	$(BIN)/python benchmarks/image_loading.py --out results/speed/image_loading.md

gpu-session: ## in five minutes on one GPU: its tests, averaging's cost, tokens/s and MFU (PYTHON=python3 of that machine)
	$(or $(PYTHON),$(BIN)/python) benchmarks/gpu_session.py

gpu-ladder: ## in eight minutes on one GPU: the 10.6M rung of the ladder; needs enwiki2015 in LAWA_DATA
	$(or $(PYTHON),$(BIN)/python) benchmarks/gpu_ladder.py

schedules: setup ## draw every learning-rate schedule into results/schedules.png
	$(BIN)/python -m lawa_exp.draw_schedules --out results/schedules.png

notebooks: setup ## execute notebooks/ and write their outputs; LAWA_RUNS=DIR: where the runs of reproduce are (runs/)
	$(BIN)/python notebooks/execute.py

fairseq-env: .fairseq/ready ## fairseq 0.12.2 in .fairseq, with Python 3.10 (PYTHON310=COMMAND): for the tests marked fairseq

.fairseq/ready: launch/fairseq_env.sh
	bash launch/fairseq_env.sh .fairseq
	@touch .fairseq/ready

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and caches (runs/ stays)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist
