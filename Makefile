# Set up and run: `make audit` audits the bundled cores, `make test` passes the tests; both need python3 (3.11 or
# newer) with its venv module, and nothing else. The lab needs root and Debian's QEMU; it installs what it needs.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TESTING := .venv/testing

.PHONY: audit test test-oldest-duckdb lint lab lab-test bench clean

audit: $(INSTALLED)
	$(BIN)/lru-audit run tests/vmcores --audit bundled --warehouse warehouse

test: $(TESTING) lint
	$(BIN)/python -m pytest -m "not lab"

# What DuckDB is in, with the oldest version that is supported.
test-oldest-duckdb: $(TESTING)
	$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/oldest duckdb==1.5.6
	PYTHONPATH=$(CURDIR)/.venv/oldest:$(CURDIR) $(BIN)/python -m pytest tests/query tests/sql tests/report tests/warehouse tests/cli/test_sql.py

lint: $(TESTING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Rebuild the bundled cores from nothing: fetches Debian's kernels, boots each, dumps it and keeps what an audit reads.
lab: $(TESTING)
	sh tests/lab/install-tools.sh
	$(BIN)/python -m tests.lab bundle

# Boot real kernels and audit them, and open the report in a browser, at a size for every change.
lab-test: $(TESTING)
	sh tests/lab/install-tools.sh
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[browser]'
	$(BIN)/python -m pytest -m lab

# Every part against its limit, at the sizes of the budgets: an hour or two on two idle cores, and 10 GB of disk.
bench: $(TESTING)
	$(BIN)/python -m tests.bench --full --json bench.json

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m compileall -q pipeline  # pip compiles what it copies only
	touch $@

$(TESTING): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .cache build dist *.egg-info
