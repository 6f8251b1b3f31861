# Two commands do everything on a fresh machine with Python >= 3.11:
#   make sandbox   sets up .venv and runs the whole method on the embedded sandbox (about two minutes)
#   make test      sets up .venv and runs the tests
# Both can be run again at any time.

PYTHON ?= python3
VENV ?= .venv
# The torch that everything here was measured with. pip takes the build that its package sources offer:
# with CUDA from PyPI on Linux, for the CPU where a CPU build is offered to it.
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready

.PHONY: sandbox test test-slow lint format clean

sandbox: $(READY)
	$(VENV)/bin/spa run recipes/quickstart.yaml

test: $(READY)
	$(VENV)/bin/python -m pytest

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
