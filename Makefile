# make demo | test [PROCESSES=2] | test-fast | test-slow | test-deployment | test-flower [FLWR=1.41.0] | bench | docker-demo | lint. Everything is installed into .venv from pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo
FAST := tests/test_imports.py tests/test_compose.py tests/test_overrides.py tests/config tests/data tests/objectives tests/models \
  $(addprefix tests/federation/test_,arrays.py codecs.py exact_sum.py grid.py guards.py rounds.py sampling.py server_optimizers.py)
PROCESSES ?= 2
FLWR ?=
FLOWERS ?= $(VENV)/flowers

.PHONY: demo docker-demo test test-fast test-slow test-deployment test-flower bench lint format clean help

help:
	@sed -n '1p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fedhubert needs Python 3.11 or newer; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/fedhubert prepare sample
	$(BIN)/fedhubert train experiment=demo out=$(OUT) resume=auto
	@test -f $(OUT)/huggingface/config.json || $(BIN)/fedhubert export --checkpoint $(OUT) --format huggingface --out $(OUT)/huggingface
	$(BIN)/fedhubert report $(OUT) --out $(OUT)/report.html
	@printf '%s\n' '' 'Done. To look at: $(OUT)/report.html, in a browser.' 'To use: $(OUT)/huggingface, by HubertModel.from_pretrained.' \
	  'Three things to do next, after `. $(VENV)/bin/activate`:' \
	  '  what it tells of speakers  pip install ".[eval]" && fedhubert evaluate \' \
	  '                               --checkpoint $(OUT) --probe speaker \' \
	  '                               --manifest ~/.cache/fedhubert/sample/manifest.csv' \
	  '  your own audio             fedhubert prepare folder --root DIR --out mine.csv' \
	  '                             fedhubert train experiment=speech_mini \' \
	  '                               data.manifest=mine.csv data.root=DIR' \
	  '  6.6 times smaller          fedhubert train experiment=demo_distill'

docker-demo:
	docker/demo.sh

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --ignore tests/models/test_compiled.py $(FAST)

test-slow: $(VENV)/.installed-dev
	$(BIN)/fedhubert prepare sample
	$(BIN)/python -m pytest -m slow -rA

test-deployment: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m deployment -rA tests/deployment

test-flower: $(VENV)/.installed-dev
	$(BIN)/python -m tests.on_flower $(FLOWERS) $(FLWR)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.ranks
	$(BIN)/python -m tests.benchmarks.distillation
	$(BIN)/python -m tests.benchmarks.data
	$(BIN)/python -m tests.benchmarks.archives
	$(BIN)/python -m tests.benchmarks.startup
	$(BIN)/python -m tests.benchmarks.switches
	$(BIN)/python -m tests.benchmarks.rounds
	$(BIN)/python -m tests.benchmarks.cohorts
	$(BIN)/python -m tests.benchmarks.secure
	$(BIN)/python -m tests.benchmarks.transport
	@test -n "$$FEDHUBERT_CORPUS" || { echo "the benchmarks on speech need FEDHUBERT_CORPUS: a folder of speech with a manifest.csv"; exit 1; }
	$(BIN)/python -m tests.benchmarks.clusters
	$(BIN)/python -m tests.benchmarks.codecs
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.deployment
	$(BIN)/python -m tests.benchmarks.sites
	$(BIN)/python -m tests.benchmarks.secure_rounds

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check fedhubert server_app client_app tests
	$(BIN)/ruff format --check fedhubert server_app client_app tests
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix fedhubert server_app client_app tests
	$(BIN)/ruff format fedhubert server_app client_app tests

clean:
	rm -rf $(VENV) build dist *.egg-info
