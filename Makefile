# `make` prints the targets. Everything runs in .venv, which each target builds when it is missing or out of date.

PYTHON ?= python3
# Another build of torch, e.g. a CUDA one: make venv TORCH="torch==2.13.0+cu130"
TORCH ?= torch==2.13.0
EXTRAS ?= eval,asr,dev
PY := .venv/bin/python
STAMP := .venv/.installed
QUICKSTART := runs/quickstart
APT_GET := $(if $(filter 0,$(shell id -u)),apt-get,sudo apt-get)

.PHONY: help venv quickstart test test-all lint browser clean
.DEFAULT_GOAL := help

help:  ## print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP)  ## build .venv: torch first, then the package with its eval, asr and dev extras

# The constraints file keeps every later package from bringing another build of torch.
$(STAMP): pyproject.toml requirements/no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "moss needs Python 3.11 or newer; choose one: make venv PYTHON=python3.12"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv/bin/pip freeze --disable-pip-version-check | grep -i '^torch==' > .venv/constraints.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -c .venv/constraints.txt -e '.[$(EXTRAS)]'
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/no-deps.txt
	touch $@

quickstart: venv  ## fetch speech, train a generator, speak, score: some 20 minutes on 2 cores
	$(PY) data_prep/00_fetch_speech.py --languages en
	$(PY) data_prep/01_manifest.py
	$(PY) data_prep/02_encode_codes.py --tokenizer cat_embedded
	$(PY) data_prep/03_write_shards.py
	$(PY) data_prep/04_verify_shards.py
	$(PY) train.py experiment=quickstart
	$(PY) -m moss.generation --checkpoint $(QUICKSTART)/latest --manifest data/speech/utterances.jsonl \
		--temperature 0 --text-temperature 0 --max-frames 250 --reconstruct --output $(QUICKSTART)/generations
	$(PY) evaluate.py benchmark=generations generations=$(QUICKSTART)/generations output=$(QUICKSTART) \
		training_run=$(QUICKSTART)/latest

test: venv  ## the tests that run in minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

test-all: venv browser  ## every test: also the slow ones and the report in a browser
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m ""

browser:
	@command -v chromedriver > /dev/null || { $(APT_GET) update && $(APT_GET) install -y chromium chromium-driver; }

lint: venv  ## ruff (lint, format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:  ## delete .venv, data and runs
	rm -rf .venv data runs
