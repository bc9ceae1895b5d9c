# Needs python3 >= 3.10, make and a package index; everything else is set up on the first call of a target.
PYTHON ?= python3
JOBS ?= 2
TABLE_JOBS = $(if $(filter command line environment,$(origin JOBS)),$(JOBS))
PROFILE ?= mini
EXTRAS ?= dev,parallel
VENV := .venv
BIN := $(VENV)/bin
RELA := $(BIN)/rela
STAMP := $(VENV)/.stamp-dev

TABLE1 := table1-cifar10 table1-cifar100 table1-tin table1-in1k
TABLES := $(TABLE1) table-headline table-methods table-learners table-ablation table-recipe

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long test-slow lint format types check wheel release-check docs clean table1 $(TABLES) figure2

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## .venv with rela and its development tools; instant when it is there

$(STAMP): pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON) here; install Python 3.10 or newer, or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$$($(PYTHON) --version) is too old: rela needs 3.10 or newer; say make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
		{ echo "$(PYTHON) has no venv or no ensurepip; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: WORDS = runtime.threads=1
demo: $(STAMP)  ## ReLA, the plain method, the plain method on everything, and the table; two minutes
	$(RELA) train +budget=0.5 $(WORDS)
	$(RELA) train prior=none budget=0.5 $(WORDS)
	$(RELA) train prior=none budget=1.0 $(WORDS)
	$(RELA) table

test: $(STAMP)  ## every test but those that train for long
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not long'

test-fast: $(STAMP)  ## the tests that take seconds
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not slow and not long'

test-long: $(STAMP)  ## RELA_DATA=FOLDER: does each method learn, about 20 minutes; and 200 kills at random times
	$(BIN)/python -m pytest -q -n $(JOBS) -m long -rA

test-slow: test-long  ## the same

lint: $(STAMP)  ## ruff: rules and format; which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff put things right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

check: lint types test  ## all that a change has to pass

wheel: $(STAMP)  ## dist/*.whl, with conf/ inside
	$(BIN)/python -m build --wheel --no-isolation

release-check: $(STAMP)  ## [TAG=v0.2.0]: versions agree, archives build and have all files, the wheel runs elsewhere
	$(BIN)/python scripts/release_check.py $(TAG)

docs: $(STAMP)  ## the site in build/site, from README.md, docs/ and conf/
	@test -x $(BIN)/zensical || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python scripts/site.py
	$(BIN)/zensical build --strict

clean:  ## caches and built things; .venv and outputs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find rela_cli tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The paper's tables: DATA=FOLDER [PROFILE=mini|full|smoke] [DRY_RUN=1] [LIVE=1] [JOBS=2] [OUT=FOLDER] [LAUNCHER=joblib]
ASKED = --profile=$(PROFILE) $(if $(DATA),--data="$(DATA)") $(if $(OUT),--out="$(OUT)") \
	$(if $(TABLE_JOBS),--jobs="$(TABLE_JOBS)") $(if $(LAUNCHER),--launcher="$(LAUNCHER)") \
	$(if $(filter-out 0 no false,$(DRY_RUN)),--dry-run) $(if $(filter-out 0 no false,$(LIVE)),--live)

table1-cifar10: ## DATA=FOLDER [PROFILE=mini|full|smoke]: the paper's Table 1 on CIFAR-10
table1-cifar100: ## the same on CIFAR-100
table1-tin: ## the same on Tiny-ImageNet
table1-in1k: ## the same on ImageNet-1K
table-headline: ## the abstract's two claims
table-methods: ## every SSL method, plain and with ReLA
table-learners: ## ResNet-18, -50, -101, ViT-S, MobileNet
table-ablation: ## transport, transfer layer, switch, budget
table-recipe: ## soft whitening, all components, views without colour, no switch: docs/recipe.md

$(TABLES): $(STAMP)
	@$(RELA) reproduce $@ $(ASKED)

table1: $(STAMP)  ## the paper's Table 1 on all datasets that are in DATA
	@failed=0; for table in $(TABLE1); do \
		$(RELA) reproduce $$table $(ASKED) || { status=$$?; [ $$status = 3 ] || failed=$$status; }; \
	done; exit $$failed

figure2: $(STAMP)  ## [OUT=FOLDER]: the paper's Figure 2, sample variance and relabelling against convergence; seconds
	$(BIN)/python scripts/figure2.py $(or $(OUT),outputs/figure2)
