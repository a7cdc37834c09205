# Probabilistic SSL Companion. `make` lists the targets; `make reproduce` and `make test` set up what they need first.

PAPER ?= all
N ?= 10
# make PY=python runs everything in the environment that is active, a conda one for example.
PY := .venv/bin/python
# Two files of tests at a time, in the order they are collected.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# The first Python in range that really runs: a name on the path may be a launcher for a version that is not installed.
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do "$$p" -c '$(IN_RANGE)' 2>/dev/null && echo "$$p" && break; done)

# Two makes at once: the second waits, then finds the stamp. macOS has no flock and goes without.
LOCK := $(if $(shell command -v flock),flock requirements.txt)
# A .venv copied from elsewhere would run the other checkout's code.
MOVED := $(shell grep -qsF " $(CURDIR)/.venv" .venv/pyvenv.cfg || echo moved)

# A misspelt variable would be passed over, and the default run.
KNOWN := PROFILE PAPER EXECUTOR JOBS GPUS N PARAMS IMAGES ENCODER EPOCHS OUT ONLY IDS PY PYTHON RESULTS_DIR DATA_DIR SNAKEMAKE_PROFILE
STRAY := $(filter-out $(KNOWN) MAKEFLAGS,$(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name))))
$(if $(STRAY),$(error No target reads $(STRAY); the variables are $(KNOWN)))

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-long test-versions smoke notebook lab score site figures progress benchmark lint clean FORCE

help: ## list the targets (this)
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: ## create .venv and install the pinned requirements and the project (skipped when done)
ifneq ($(origin PY),command line)
	@$(LOCK) $(MAKE) -s .venv/.installed
endif

# uv installs in a minute what takes pip four. It does not read pip's configuration, so that where an
# index is set there, pip installs after uv has failed. It compiles only when told to, and where
# PYTHONDONTWRITEBYTECODE is set, as in many containers, each job would compile all that it imports.
# setuptools comes first because two pins exist as source only and are built with it, like the project itself.
# A dist-info without RECORD is an interrupted install that would be taken for a complete one.
PINNED = "$$(grep '^$(1)==' requirements.txt)"
WITH_UV := $(PY) -m uv pip install --python $(PY) --compile-bytecode --no-deps --no-build-isolation
WITH_PIP := $(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation
.venv/.installed: requirements.txt pyproject.toml $(if $(MOVED),FORCE)
	@"$(PYTHON)" -c '$(IN_RANGE)' 2>/dev/null || { echo "No Python 3.11 to 3.13 found (PYTHON='$(PYTHON)'): install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f .venv/.installed
	@{ test -z "$(MOVED)" && $(PY) -m pip --version >/dev/null 2>&1; } || { echo "Creating .venv with $(PYTHON)"; "$(PYTHON)" -m venv --clear .venv; }
	@for info in .venv/lib/python*/site-packages/*.dist-info; do test -e "$$info/RECORD" || rm -rf "$$info"; done
	@echo "Installing requirements.txt (3 GB the first time)"
	@$(WITH_PIP) --quiet $(call PINNED,setuptools) $(call PINNED,uv)
	@$(WITH_UV) --requirement requirements.txt || { echo "uv could not install: trying pip, which takes some minutes"; $(WITH_PIP) --requirement requirements.txt; }
	@$(WITH_PIP) --quiet --editable .
	@$(PY) -m pip check
	@echo "Compiling the augmentations, so that no job has to"
	@$(PY) -c "from lib.data import views; views.compile_views()"
	@touch .venv/.installed

reproduce: setup ## pretrain, evaluate, draw: PROFILE=quick PAPER=all (vs1 vs2 simvae prosmin vje) EXECUTOR= JOBS= GPUS=
	@$(PY) -m lib reproduce --profile $(or $(PROFILE),quick) --paper $(PAPER) $(if $(EXECUTOR),--executor $(EXECUTOR)) $(if $(JOBS),--jobs="$(JOBS)") $(if $(GPUS),--gpus="$(GPUS)")

test: setup ## run the tests, every notebook in profile smoke included, two at a time
	@$(PY) -m pytest $(PARALLEL) -m "not long and not versions" -rs

test-long: setup ## run the tests that need minutes or a cluster: a killed reproduction, several processes, Slurm
	@$(PY) -m pytest $(PARALLEL) -m long -rs

test-versions: setup ## run the tests under the oldest and newest versions allowed; resolve the pins for other Pythons and systems
	@$(PY) -m pytest -m versions -rs

smoke: setup ## run the whole pipeline in profile smoke
	@$(PY) -m lib reproduce --profile smoke

notebook: ## run one notebook: N=10 PROFILE=smoke PARAMS="method=simsiam seed=1"
	@test -n "$(N)" || { echo 'usage: make notebook N=10 [PROFILE=smoke] [PARAMS="method=simsiam seed=1"]' >&2; exit 2; }
	@$(MAKE) -s setup
	@$(PY) -m lib notebook "$(N)" --profile $(or $(PROFILE),smoke) --params="$(PARAMS)"

lab: setup ## open the notebooks in JupyterLab, on this machine only
	@$(PY) -m jupyterlab --ip=127.0.0.1

# The folders come through the environment, as they were typed: a name may hold spaces, quotes and dollars.
override IMAGES := $(value IMAGES)
override OUT := $(value OUT)
export IMAGES OUT
score: ## how sure VI-SimSiam is of each image of a folder: IMAGES=folder ENCODER=vi_simsiam EPOCHS= OUT=
	@test -n "$$IMAGES" || { echo 'usage: make score IMAGES=folder [ENCODER=vi_simsiam] [EPOCHS=100] [OUT=folder]' >&2; exit 2; }
	@$(MAKE) -s setup
	@$(PY) -m lib score --profile $(or $(PROFILE),standard) --encoder="$$ENCODER" --epochs="$${EPOCHS:-0}" --out="$$OUT" -- "$$IMAGES"

site: setup ## build results/<profile>/site, which opens from disk: PROFILE=standard
	@$(PY) -m lib site --profile $(or $(PROFILE),standard)

figures: setup ## publish figures of a profile in figures/: PROFILE=standard IDS="32_roc 90_verdicts" (default: those there)
	@$(PY) -m lib figures --profile $(or $(PROFILE),standard) $(if $(IDS),--ids $(IDS))

progress: setup ## write results/<profile>/README.md, what is done and to come: PROFILE=standard
	@$(PY) -m lib progress $(or $(PROFILE),standard)

benchmark: setup ## time pretraining against the bare network and others' loops (half an hour): ONLY="cifar10-w16 drawing"
	@$(PY) -m tests.benchmarks $(if $(ONLY),--only $(ONLY))

lint: setup ## check code and notebooks (ruff), and that a room imports lower rooms only (import-linter)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

clean: ## remove caches and stamps; results, data and .venv stay
	@rm -rf .snakemake .pytest_cache .ruff_cache .import_linter_cache .hypothesis .versions .venv/.installed results/*/.done
	@find . \( -path ./.venv -o -path ./data -o -path ./.git \) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
