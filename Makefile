# make demo    train on real data embedded in the package, on this machine's CPU, in minutes
# make test    every test, with Keras 3 and then with Keras 2
# make lint    the linter, and the formatter in checking mode
# make clean   remove everything that these made, .venv included
#
# Another interpreter:          make demo PYTHON=python3.12
# Some tests, or more options:  make test PYTEST_ARGS="tests/cli -x"

PYTHON ?= python3
PYTEST_ARGS ?=
PYTEST_PROCESSES ?= 2

export TF_CPP_MIN_LOG_LEVEL ?= 3

BIN := .venv/bin
# Files in their order, as by default those with few tests come last, and they are the long ones.
PYTEST = $(BIN)/python -m pytest --numprocesses $(PYTEST_PROCESSES) --dist loadfile \
    --no-loadscope-reorder $(PYTEST_ARGS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Stamps: an install is repeated only when what it depends on has changed.
VENV := .venv/.created
PACKAGE := .venv/.installed
TEST_EXTRA := .venv/.installed-test

.PHONY: demo test lint clean

demo: $(PACKAGE)
	$(BIN)/tf-dynidx demo

# Both worlds to the end even if one fails: one run shows all that is broken. Files of tests are shared
# out among processes, which also bounds what the compiled functions of one of them hold.
test: $(TEST_EXTRA)
	@status=0; \
	echo "=== pytest with Keras 3"; \
	env -u TF_USE_LEGACY_KERAS $(PYTEST) || status=1; \
	echo "=== pytest with Keras 2 (TF_USE_LEGACY_KERAS=1)"; \
	env TF_USE_LEGACY_KERAS=1 $(PYTEST) || status=1; \
	exit $$status

lint: $(TEST_EXTRA)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "'$(PYTHON)' was not found. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' has no venv module. Install it (Debian and Ubuntu: apt install python3-venv), or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

$(PACKAGE): $(VENV) setup.cfg setup.py
	$(PIP) --editable .
	@touch $@

$(TEST_EXTRA): $(VENV) setup.cfg setup.py
	$(PIP) --editable '.[test]'
	@touch $(PACKAGE) $@
