# The verbs that people and CI share; `make` alone lists them.

HOST ?= 127.0.0.1
PORT ?= 8000
# serve (CPU) or gpu (CUDA): the group of requirements/ that `make serve` runs in; gpu for `make triton` too.
ENVIRONMENT ?= serve
# More options for the command of a verb: make test ARGS="-k skeletons", make bench ARGS="--help".
ARGS ?=

# The first Python that is new enough; python3 may be an old one.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	"$$python" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null && echo "$$python" && break; done)
endif
BIN := .venv/dev/bin
# What requirements/ says must not depend on who compiled it: header and addresses.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	--python-version 3.10 $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help serve triton test lint format bench loadtest chaos soak fuzz requirements audit clean dev python

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: python ## install what serving needs and start the service (HOST, PORT, ENVIRONMENT=gpu)
	@$(PYTHON) scripts/environment.py $(ENVIRONMENT)
	@exec .venv/$(ENVIRONMENT)/bin/tritonpose serve --host "$(HOST)" --port "$(PORT)" $(ARGS)

triton: python ## install NVIDIA Triton, start it and the service on top; no docker (HOST, PORT, ENVIRONMENT=gpu)
	@$(PYTHON) scripts/environment.py serve
	@$(PYTHON) scripts/environment.py triton$(if $(filter gpu,$(ENVIRONMENT)),-gpu)
	@exec .venv/serve/bin/python -m deploy.triton $(if $(filter gpu,$(ENVIRONMENT)),--gpu) \
		--host "$(HOST)" --port "$(PORT)" $(ARGS)

test: dev ## run all tests (photographs: TRITONPOSE_DATA=FOLDER)
	$(BIN)/python -m pytest -q $(ARGS)

lint: dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev ## throughput of the service against the raw networks (last line JSON)
	$(BIN)/python -m loadtest.bench $(ARGS)

loadtest: dev ## Locust: closed and open loop, steps to saturation, rough callers; report in runs/loadtest
	$(BIN)/python -m loadtest.campaign $(ARGS)

chaos: dev ## 10,000 requests, a third bad, while workers are killed and a model is replaced (ARGS="--engine triton")
	$(BIN)/python -m loadtest.chaos $(ARGS)

soak: dev ## half an hour of good and bad load: does memory grow? Then the same with a planted leak
	$(BIN)/python -m loadtest.soak --plot runs/soak.png $(ARGS)

fuzz: dev ## 20,000 damaged inputs under a memory cap
	$(BIN)/python -m loadtest.fuzz $(ARGS)

requirements: dev ## compile requirements/*.txt from pyproject.toml (UPGRADE=1: newest versions)
	$(COMPILE) --group tools -o requirements/tools.txt
	$(COMPILE) pyproject.toml -o requirements/serve.txt
	$(COMPILE) -c requirements/serve.txt pyproject.toml --extra tracing -o requirements/tracing.txt
	$(COMPILE) -c requirements/serve.txt pyproject.toml --group train -o requirements/train.txt
	$(COMPILE) -c requirements/serve.txt pyproject.toml --group loadtest -o requirements/loadtest.txt
	$(COMPILE) -c requirements/serve.txt pyproject.toml --group peer-litserve -o requirements/peer-litserve.txt
	@sed -En 's/^((numpy|onnxruntime|opencv-python-headless|pillow)==.*[^ \\]) *\\?$$/\1/p' requirements/serve.txt \
		> .venv/dev/same-work.txt
	$(COMPILE) -c .venv/dev/same-work.txt --group peer-bentoml -o requirements/peer-bentoml.txt
	$(COMPILE) -c requirements/serve.txt -c requirements/train.txt pyproject.toml --group train --group vitpose \
		-o requirements/vitpose.txt
	$(COMPILE) -c requirements/serve.txt -c requirements/train.txt -c requirements/loadtest.txt pyproject.toml \
		-c requirements/tracing.txt --extra tracing --group train --group dev -o requirements/dev.txt
	$(COMPILE) -c requirements/serve.txt pyproject.toml --extra gpu --no-emit-package onnxruntime \
		-o requirements/gpu.txt
	$(COMPILE) --group triton -o requirements/triton.txt
	$(COMPILE) -c requirements/triton.txt --group triton-gpu -o requirements/triton-gpu.txt

audit: dev ## ask the advisory database about the pinned packages, where it can be reached
	$(BIN)/python scripts/audit.py requirements/*.txt

clean: ## remove environments, tools and caches of this checkout
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

dev: python
	@$(PYTHON) scripts/environment.py dev

python:
	@[ -n "$(PYTHON)" ] || { echo "tritonpose needs Python 3.10 or newer on the PATH" >&2; exit 1; }
