# `make` alone lists the targets. Everything is installed into .venv, nothing outside this folder.

.DEFAULT_GOAL := help
.PHONY: help run test lab lint bench packs verdicts clean

# The first Python >= 3.11 found; name another with `make run PYTHON=/path/to/python3.11`.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# PyPI's torch for Linux carries several GB of CUDA. Where there is no NVIDIA GPU, the CPU build of the same version comes
# from PyTorch's own index instead. `make run TORCH_INDEX=` turns this off.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
	echo https://download.pytorch.org/whl/cpu)

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

run: $(INSTALLED) ## execute chapter 06 (weight decay finds an equilibrium), print its verdicts, write its page
	@echo "executing chapter 06: it trains a few dozen small nets, about 4 minutes on 2 cores ..."
	@$(BIN)/python -m dynamics chapter 06 --out build
	@echo "the page: $(CURDIR)/build/06_weight_decay_equilibrium.html (open it in a browser; 'make lab' to play with it)"

test: $(INSTALLED_DEV) ## lint, the unit tests, and every chapter executed and compared with its committed output
	@echo "linting, then running the unit tests and the chapters, a file a core; it takes a quarter of an hour or more ..."
	@$(BIN)/python -m dynamics test

lab: $(INSTALLED) ## open the chapters in JupyterLab
	@echo "opening JupyterLab in notebooks/; stop it with Ctrl-C"
	@$(BIN)/python -m jupyterlab notebooks

lint: $(INSTALLED_DEV) ## check style and format with ruff
	@echo "checking style and format with ruff ..."
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check

bench: $(INSTALLED) ## run the benchmarks one after another
	@for f in benchmarks/[!_]*.py; do \
		[ -e "$$f" ] || { echo "no benchmarks here yet"; break; }; \
		echo "running $$f ..."; $(BIN)/python "$$f" || exit 1; done

packs: $(INSTALLED) ## record the sweeps that chapters draw (run packs) again; about an hour, goes on where it was stopped
	@$(BIN)/python -m dynamics packs

verdicts: $(INSTALLED_DEV) ## judge the ledger's claims that are unjudged or outdated, and record the verdicts
	@echo "judging claims by tests, by the chapters' outputs and by measurements; all of it takes minutes ..."
	@$(BIN)/python -m dynamics verdicts

clean: ## remove what was built, and the caches; .venv and data stay
	@echo "removing build/, dist/ and the caches (.venv and data/ stay: remove them by hand)"
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find dynamics tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The stamps lie in .venv, so that removing .venv starts again; a change of what to install installs again.
$(INSTALLED): pyproject.toml constraints.txt
	@p="$(PYTHON)"; "$${p:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "no Python 3.11 or newer (PYTHON='$$p'): install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making .venv with $$p"; "$$p" -m venv .venv; } || { \
		echo "$$p cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@index="$(TORCH_INDEX)"; [ -z "$$index" ] || { \
		echo "installing PyTorch, its CPU build (about 200 MB, no NVIDIA GPU found) ..."; \
		$(PIP) install -qq --retries 1 --timeout 20 --no-deps -c constraints.txt --index-url "$$index" torch; } || \
		echo "PyTorch's CPU index did not answer: taking torch from the ordinary index (on Linux several GB)"
	@echo "installing the package and what it needs into .venv, about 2 minutes the first time ..."
	@$(PIP) install -qq -e . -c constraints.txt
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "installing what the tests need ..."
	@$(PIP) install -qq -e '.[test,dev]' -c constraints.txt
	@touch $@
