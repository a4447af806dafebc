# On a fresh machine: `make demo` and `make test`. Both set up `.venv` first; CONTRIBUTING.md lists the other commands.
PYTHON := $(shell for p in python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
LAB ?= lab
JOBS ?= 2
WORKERS = -n $(JOBS) --dist loadfile --no-loadscope-reorder  # a file is one worker's; tests/conftest.py orders the files
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED = False
export SALAD_LAB = $(LAB)

.PHONY: demo test test-all test-bare test-marked coverage pins lint types docs select arena sql clean

demo: .venv/installed
	@$(BIN)/salad demo

# every test that this machine can run; -rs lists what was skipped, with the reason
test: .venv/installed
	$(BIN)/python -m pytest -q -rs $(WORKERS)

# the same, with the share of lines that ran in each module; lines that run in a subprocess are not counted
coverage: .venv/installed
	$(BIN)/python -m pytest -q $(WORKERS) --cov=store --cov=salad --cov=workbench --cov-report=term:skip-covered \
		--cov-report=html:build/coverage

# tests that need Python, make and git only, and tests that need a further tool (tests/tools.py); CI runs both
MARKED := chromium or compiler or slurm or sshd or rsync or sky or root or onnx or data or real
test-bare: .venv/installed
	$(BIN)/python -m pytest -q -rs $(WORKERS) -m "not ($(MARKED))"

test-marked: .venv/installed
	$(BIN)/python -m pytest -q -rs $(WORKERS) -m "$(MARKED)"

test-all: .venv/installed
	SALAD_FAULT_ROUNDS=$${SALAD_FAULT_ROUNDS:-20} $(BIN)/python -m pytest -q -rs $(WORKERS)

# losses, scored rows and ids of a tiny study must be the same in this tree and in its parent commit (or REV=...)
pins: .venv/installed
	$(BIN)/python -m tests.pins $(if $(REV),--rev $(REV))

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/marimo check --strict notebooks/

# static types of store/ and salad/, checked by mypy; the first run takes minutes, later ones seconds
types: .venv/installed
	$(BIN)/python -m mypy

# the documentation site, in build/site; a broken link or a page that the navigation lacks is an error
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore::DeprecationWarning -m mkdocs build --strict

.venv/docs: pyproject.toml .venv/installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

select: .venv/installed
	$(BIN)/marimo edit notebooks/selection.py

arena: .venv/installed
	$(BIN)/python -m workbench.arena

sql: .venv/installed
	@$(BIN)/salad sql "$${Q:-select terms, sum(d*n_positions)/sum(n_positions) as d from divergences join clusters using (clustering_id, cluster_id) group by all order by d desc}"

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or 3.12 (python3.12, python3.11 or python3 on the PATH); none was found" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
