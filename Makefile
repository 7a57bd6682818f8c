# Every target works from a fresh clone with Python >= 3.11, a C++17 compiler and make: it creates the virtual
# environment, installs the pinned dependencies, builds the extension, and does none of it again until an input changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
# What else may be installed: constraints-oldest.txt, constraints-newest.txt.
CONSTRAINTS ?= constraints.txt
DEMO ?= examples/sudoku.py
BENCH ?= benchmarks/run.py
SANITIZER ?= address,undefined
FUZZ_SEED ?= 0
FUZZ_ROUNDS ?= 800
FUZZ_EXAMPLES ?= 2000

BIN := $(abspath $(VENV))/bin
STAMPS := $(VENV)/.stamps
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
NATIVE := CMakeLists.txt $(shell find convexlayers/native -name '*.cpp' -o -name '*.hpp')

.PHONY: help test pytest trust lint format demo bench docs build dist check-dist sanitize kernels fuzz clean distclean FORCE

help:
	@echo "make test      lint, types and tests"
	@echo "make trust     the tests of the promises, and their page docs/trust.md"
	@echo "make lint      ruff and pyright"
	@echo "make format    rewrite the Python files in ruff's format"
	@echo "make demo      run $(DEMO)"
	@echo "make bench     run $(BENCH)"
	@echo "make docs      build the documentation into build/site"
	@echo "make build     build a wheel into dist"
	@echo "make dist      build the sdist, and from it a wheel, into dist; check-dist: look into them, install and use them"
	@echo "make sanitize  random inputs to the kernels under $(SANITIZER); SANITIZER=thread for data races"
	@echo "make kernels   the same without a sanitizer, compiled by CXX, run by RUNNER"
	@echo "make fuzz      random problems with random values, FUZZ_EXAMPLES of each kind"
	@echo "make clean     remove what was built; distclean: the virtual environment too"

# One thread per process: xdist already keeps the cores busy, and threads of BLAS only get in each other's way.
test: lint pytest

pytest: $(STAMPS)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

trust: $(STAMPS)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/trust --trust-table docs/trust.md

lint: $(STAMPS)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMPS)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMPS)/installed-demo
	$(BIN)/python $(DEMO)

bench: $(STAMPS)/installed-dev
	$(BIN)/python $(BENCH)

docs: $(STAMPS)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(STAMPS)/build-tools
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# The sdist is built first and the wheel from it, with tools that are fetched for that: nothing here helps.
dist: $(STAMPS)/build-tools
	rm -rf dist
	$(INSTALL) build
	$(BIN)/python -m build --outdir dist .

check-dist: dist
	$(BIN)/python tools/check_distributions.py dist --constraints $(CONSTRAINTS)

# Without Python inside, for every instruction set; one that the processor lacks runs as the next smaller one.
comma := ,
SANITIZED := build/sanitize-$(subst $(comma),-,$(SANITIZER))

sanitize: $(STAMPS)/build-tools
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DCMAKE_BUILD_TYPE=None \
		-DSKBUILD_PROJECT_VERSION=0 -DCONVEXLAYERS_SANITIZE=$(SANITIZER) -DCONVEXLAYERS_WERROR=ON
	$(BIN)/ninja -C $(SANITIZED)
	for set in baseline avx2 avx512; do \
		CONVEXLAYERS_ISA=$$set $(SANITIZED)/fuzz $(FUZZ_SEED) $(FUZZ_ROUNDS); \
	done

# For other compilers and processors: RUNNER="qemu-x86_64 -cpu Nehalem" is one without AVX.
KERNELS := build/kernels-$(notdir $(CXX))

kernels: $(STAMPS)/build-tools
	$(BIN)/cmake -S . -B $(KERNELS) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_CXX_COMPILER=$(CXX) -DSKBUILD_PROJECT_VERSION=0 -DCONVEXLAYERS_FUZZ=ON -DCONVEXLAYERS_WERROR=ON
	$(BIN)/ninja -C $(KERNELS)
	for set in baseline avx2 avx512; do \
		CONVEXLAYERS_ISA=$$set $(RUNNER) $(KERNELS)/fuzz $(FUZZ_SEED) $(FUZZ_ROUNDS); \
	done

# The tests' own examples are always the same ones; these are new every time.
fuzz: $(STAMPS)/installed-dev
	OMP_NUM_THREADS=1 CONVEXLAYERS_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n $(JOBS) tests/test_fuzz.py

clean:
	rm -rf build dist outputs .pytest_cache .ruff_cache $(STAMPS)
	find convexlayers tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# --------------------------------------------------------------------------------------------------- set-up

# The extension is built with the tools of the environment, so that a rebuild reuses what is already compiled.
$(STAMPS)/build-tools: $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) cmake nanobind ninja scikit-build-core
	mkdir -p $(STAMPS)
	touch $@

# Editable: Python files are read where they stand. A change in the C++ sources, or in which Python files there are,
# installs again; the former compiles what changed.
$(STAMPS)/installed-%: $(STAMPS)/build-tools $(STAMPS)/python-files pyproject.toml convexlayers/__init__.py $(NATIVE)
	$(INSTALL) --no-build-isolation --editable '.[$*]'
	touch $@

$(STAMPS)/python-files: FORCE | $(STAMPS)/build-tools
	@find convexlayers -name '*.py' | LC_ALL=C sort > $@.new
	@cmp --silent $@.new $@ && rm $@.new || mv $@.new $@
