# Two commands: `make run` and `make test`. Both set up what they need first. `make test-fast` runs
# the unit tests only: no ranks, no runs of whole stages.
PYTHON ?= python3.11
LOCK ?= requirements/cpu.lock
BIN := .venv/bin
ARGS ?=

.PHONY: run test coverage test-fast check docs bench setup lock deployments mlflow prefect clean

run: setup
	$(BIN)/python -m flows.pipeline $(ARGS)

# Three workers for two cores: a third of the time of a test that starts processes is spent waiting
# for them. A file stays on one worker, and the longest files, which tests/conftest.py puts first,
# begin first.
# One thread each: a second one per worker would spin while it waits for a core.
WORKERS := -n $(shell expr $$(nproc) + $$(nproc) / 2) --maxprocesses 6 --dist loadfile --no-loadscope-reorder
# Bytecode is kept: the tests start about a hundred processes of the project, 1.5 s each to compile.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(WORKERS)

test: setup
	$(PYTEST) $(ARGS)

# Tracing every line makes the tests slower, so it is a target of its own
coverage: setup
	$(PYTEST) --cov --cov-report=term:skip-covered $(ARGS)

test-fast: setup
	$(PYTEST) -m "not slow and not ranks" $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# The site, in .site; its tools have a lock and an environment of their own
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/installed: requirements/docs.lock
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs || python3 -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.lock
	touch $@

bench: setup
	$(BIN)/python -m bench.training.speed $(ARGS)

setup: .venv/installed

# torch first, by pip and with its own dependencies, so that pip may use a wheel that it already knows
# of; the lock is complete, so uv needs no resolving (torchrec would pull the CUDA fbgemm-gpu). Bytecode
# is written here, on all cores: PYTHONDONTWRITEBYTECODE may forbid it later.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps
.venv/installed: $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) --no-deps --constraint $(LOCK) uv
	$(UV_INSTALL) --requirements $(LOCK)
	$(UV_INSTALL) --editable .
	touch $@

lock: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cpu --extra dev --python-version 3.11 \
		--override requirements/overrides-cpu.txt --no-emit-package torch --no-header --no-annotate -o requirements/cpu.lock
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cuda --extra dev --python-version 3.11 \
		--no-header --no-annotate -o requirements/cuda.lock
	$(BIN)/uv pip compile --quiet requirements/serving.in --constraint requirements/cpu.lock \
		--python-version 3.11 --generate-hashes --no-header --no-annotate -o requirements/serving.lock
	$(BIN)/uv pip compile --quiet requirements/docs.in --python-version 3.11 \
		--no-header --no-annotate -o requirements/docs.lock

deployments: setup
	$(BIN)/python -m flows.deployments

mlflow: setup
	$(BIN)/python -m flows.ui mlflow $(ARGS)

prefect: setup
	$(BIN)/python -m flows.ui prefect $(ARGS)

clean:
	rm -rf data models reports mlflow.db mlartifacts .tracking .work
