# What a newcomer needs: `make demo` and `make test`. Both set up by themselves.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# the peers that benchmarks compare with, which nobody else needs
BENCHED := $(VENV)/.benchmarks-installed
BENCH = $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(GPU),--gpu)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench caltech stories clean
STORIES := little-data growing ladder staged architectures gate shortlist

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Make .venv with the versions known to work together

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "regraft needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED) ## Play three nights on real images (IMAGES=folder of class folders for your own)
	$(VENV)/bin/regraft demo $(if $(IMAGES),--images '$(IMAGES)')

test: lint ## Check style, types and layers, then run every test on real services
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED) ## Check style, types and the layers of the house
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(BENCHED) ## Measure everything against its peers into docs/benchmarks.md (DATA=folder, GPU=1); one part: make bench-train
	$(VENV)/bin/python -m benchmarks.bench $(BENCH)

bench-%: $(BENCHED)
	$(VENV)/bin/python -m benchmarks.bench $* $(BENCH)

$(BENCHED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	touch $@

stories: $(addprefix story-,$(STORIES)) ## Train every story of docs/stories again, hours on a CPU; DATA=folder of sets and weights; one: make story-growing

story-%: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.stories.$(subst -,_,$*) --data "$(DATA)"

caltech: $(INSTALLED) ## Two nights on Caltech-101 against logistic regression; DATA=folder that holds caltech101_max40 and weights
	$(VENV)/bin/python benchmarks/caltech_nights.py --data "$(DATA)"

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
