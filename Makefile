# `make demo` and `make test` need Python 3.10+ and g++, nothing else; where nvcc is, they build the CUDA kernels too.
# The build takes its settings (LEANATTN_CUDA, LEANATTN_CUDA_ARCHS, MAX_JOBS, ...) from the environment: CONTRIBUTING.md.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check

# Each is done again when what it depends on changed. What to compile again is ninja's to know.
REQUIREMENTS := $(VENV)/leanattn-requirements
LINT_REQUIREMENTS := $(VENV)/leanattn-lint-requirements
SASS_REQUIREMENTS := $(VENV)/leanattn-sass-requirements
INSTALLED := $(VENV)/leanattn-installed

.PHONY: demo test build lint hazards format wheel clean

demo: build
	$(PY) -m leanattn demo $(ARGS)

test: build
	$(PY) -m pytest tests $(ARGS)

build: $(INSTALLED)
	@$(PY) setup.py --quiet build_ext --inplace

# Those of the build without dependencies: of nvidia-cutlass only the headers are wanted, the others have none.
$(REQUIREMENTS): pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c 'import torch' 2>/dev/null || $(PIP) install '$(TORCH)'
	$(PY) -m build_support.requirements build | xargs $(PIP) install --no-deps
	$(PY) -m build_support.requirements test | xargs $(PIP) install --no-warn-conflicts
	touch $@

$(INSTALLED): $(REQUIREMENTS) setup.py
	$(PY) setup.py --quiet build_ext --inplace
	$(PIP) install --no-build-isolation --no-deps --editable .
	touch $@

# Those of an extra.
$(VENV)/leanattn-%-requirements: $(REQUIREMENTS)
	$(PY) -m build_support.requirements $* | xargs $(PIP) install --no-warn-conflicts
	touch $@

# In the machine code of the CUDA kernels, after a build with them.
hazards: $(SASS_REQUIREMENTS)
	$(PY) -m build_support.hazards

CXX_FILES = find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'

lint: $(LINT_REQUIREMENTS)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(CXX_FILES) | xargs $(VENV)/bin/clang-format --dry-run -Werror

format: $(LINT_REQUIREMENTS)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(CXX_FILES) | xargs $(VENV)/bin/clang-format -i

wheel: $(REQUIREMENTS)
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

# Leaves $(VENV), which took a while to download.
clean:
	rm -rf build dist *.egg-info leanattn/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
