# make demo    set up .venv and upscale the sample clip
# make check   set up .venv and run what CI runs: lint, format, types, tests
# make slow    the tests that take longer: many crashes, real servers, large clips, TensorRT's build

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo check lint types test slow clean

demo: $(VENV)/run.stamp
	$(BIN)/vsr upscale samples/bbb.mp4 --overwrite

check: lint types test

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m slow \
		-o timeout=900 -o session_timeout=5400

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vsr needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints-cpu.txt -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints-cpu.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
