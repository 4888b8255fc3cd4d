# Every target makes the virtual environment it needs. `make demo` needs the library alone; the
# others add the tools of the [dev] extra. A changed setup.py installs again.
#   make app                      the live studio, with the painter that comes along
#   make demo                     train, paint and score in miniature
#   make test                     the quick tests
#   make PYTHON=python3.12 test   with an interpreter of your choice (3.11 to 3.13)
#   make test ARGS="-k mask -x"   with further arguments for pytest (-n0: in one process)

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input install -q
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
USABLE_VENV := import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help .venv app demo test test-slow lint lint-format lint-ruff lint-types format docs browser audit

help:
	@sed -n 's/^# *\(make .*\)/  \1/p' Makefile
	@echo "  other targets: .venv test-slow lint format docs audit browser (installs Chromium for tests, as root)"

.venv: $(VENV)/.installed-dev

$(VENV)/.installed: setup.py pyproject.toml
	@if ! $(PY) -c '$(USABLE_VENV)' 2>/dev/null; then \
	  for candidate in $(PYTHONS); do \
	    if "$$candidate" -c '$(SUITABLE)' 2>/dev/null; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No usable Python among: $(PYTHONS)." >&2; \
	    echo "process_gen needs Python 3.11, 3.12 or 3.13 with venv: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing process_gen into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV)"
	@$(PIP) -e '.[dev,remote]'
	@touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	@echo "Installing the studio into $(VENV)"
	@$(PIP) -e '.[app]'
	@touch $@

app: $(VENV)/.installed-app
	$(PY) -m launch.app

# Huge pages for what a training step takes and gives back: 1.2 times the steps (docs/performance.md).
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.installed
	rm -rf demo
	$(PY) -m launch.sample --prompts=configs/demo_prompts.jsonl --out=demo/shipped
	$(PY) -m launch.train --config=configs/strokes_tiny.py:demo --workdir=demo/run
	$(PY) -m launch.sample --checkpoint=demo/run --prompts=configs/demo_prompts.jsonl --out=demo
	$(PY) -m launch.evaluate --checkpoint=demo/run --suite=strokes --num_per_tag=12 --out=demo/evaluation
	@echo "Painted step by step, in a browser: demo/report.html (scores: demo/evaluation/report.html)"
	@echo "The same prompts by the painter that comes with the package: demo/shipped/report.html"

# On every core, and on at most four: each process holds its own jax and its own programs.
test: $(VENV)/.installed-dev
	$(PY) -m pytest -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(PY) -m pytest -m slow $(ARGS)

lint: lint-format lint-ruff lint-types

lint-format: $(VENV)/.installed-dev
	$(PY) -m ruff format --check

lint-ruff: $(VENV)/.installed-dev
	$(PY) -m ruff check

lint-types: $(VENV)/.installed-dev
	$(PY) -m pyright

format: $(VENV)/.installed-dev
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

browser:
	apt-get install -y --no-install-recommends chromium

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# In an environment of its own, so that it changes nothing of what it looks at. Strict: a package
# that the database does not answer for is an error, and not "no known vulnerabilities".
audit: $(VENV)/.installed-dev
	@[ -x $(VENV)/audit/bin/pip-audit ] || { $(PY) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip --disable-pip-version-check install -q 'pip-audit>=2.10,<3'; }
	@$(PY) -m pip --disable-pip-version-check list --format=freeze --exclude-editable \
	  > $(VENV)/audit/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --progress-spinner=off --no-deps --disable-pip \
	  --requirement $(VENV)/audit/installed.txt
