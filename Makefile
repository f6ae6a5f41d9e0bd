# make demo   train a diffusion model on real handwritten digits, into results/digits
# make test   formatting, lint, types, tests
# make docs   the site, into site/; warnings and broken links fail
# make long   what make test leaves out: most notebooks, long chains, and all but some cases of a test that has many
# make typed  tests of what functions compute, with every annotation of the package checked as it runs; a part of make long
# All first install the package, with pinned dependencies, for the Python that PYTHON names: 3.11 or newer. Every version has an
# environment of its own, .venv/3.11 for one. Python 3.11 gets the lowest versions that pyproject.toml allows, a newer one the newest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))')
PINS := $(if $(filter 3.11,$(VERSION)),constraints-lowest.txt,constraints-newest.txt)
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
TESTS ?= tests

TYPED := docs gaussian bernoulli networks reverse discrete bound evaluation respace entropy thermodynamics

.PHONY: demo test long typed docs lint types pytest install clean

demo: install
	$(BIN)/nedm run digits --out results/digits --resume

# The types are checked while the tests begin: one checks on a single core.
test: install
	@$(MAKE) --no-print-directory -j2 lint types pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: install
	$(BIN)/mypy --cache-dir .mypy_cache/$(VERSION)

pytest: install
	$(BIN)/pytest -n 2 --dist worksteal $(TESTS)

# Left out is what asks for the package's own sentences, before which the checker has its say.
typed: install
	$(BIN)/pytest -n 2 --dist worksteal --jaxtyping-packages=nedm_ppl,typed.checked -k 'not refuse and not raise and not pasted and not says' \
		$(TYPED:%=tests/test_%.py)

long: install typed
	$(BIN)/pytest -n 2 --dist worksteal -m long tests

docs: .venv/docs/installed
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet --strict

# The site reads the sources and imports nothing, so it is built without the library.
.venv/docs/installed: docs/requirements.txt
	$(PYTHON) -m venv --clear .venv/docs
	.venv/docs/bin/python -m pip install --quiet --no-compile --requirement docs/requirements.txt
	@touch $@

# Python compiles a module when it is first imported; to compile all that is installed takes a third of the time.
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(PINS) --editable '.[test,bench]'
	@touch $@

clean:
	rm -rf .venv .cache results site build dist *.egg-info
