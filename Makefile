# `make audit` audits the bundled cores, `make test` runs the tests; both need only python3 (3.11 or newer) with its venv
# module. `make lab` and `make lab-test` need root on Debian, and install QEMU and their other tools.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TESTING := .venv/testing
FAULTS := .venv/faults
BROWSER := .venv/browser
TOOLS := .venv/tools/installed
# One more than CPUs, for tests that wait: for a guest, a host, a timeout.
WORKERS = -n $$(($$(nproc) + 1)) --maxprocesses 8

.PHONY: audit test test-faults fuzz test-oldest-duckdb lint lab lab-test bench soak dist lock advisories clean

audit: $(INSTALLED)
	$(BIN)/lru-audit run tests/vmcores --audit bundled --warehouse warehouse

test: $(TESTING) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not lab and not faults"

# A random part of what is about time, chance and repetition; TEST_FULL=1 runs all of it, TEST_SEED=N the same part again.
test-faults: $(FAULTS)
	$(BIN)/python -m pytest -v $(WORKERS) --dist worksteal -m "faults and not lab"

# Audit 20,000 damaged cores, fuzz every parser with 100,000 cases in all, and print which lines of them the kept inputs
# reach: some hours. TEST_SEED=N repeats both.
fuzz: $(FAULTS)
	$(BIN)/python -m tests.fuzz cores $(if $(TEST_SEED),--seed $(TEST_SEED))
	$(BIN)/python -m tests.fuzz parsers --corpus .cache/fuzz $(if $(TEST_SEED),--seed $(TEST_SEED))
	$(BIN)/coverage run --data-file .cache/fuzz/coverage --source pipeline -m tests.fuzz parsers --replay .cache/fuzz
	$(BIN)/coverage report --data-file .cache/fuzz/coverage --skip-empty

# The tests that use DuckDB, with the oldest supported version.
test-oldest-duckdb: $(TESTING)
	$(BIN)/pip install --quiet --no-deps --upgrade --target .venv/oldest duckdb==1.5.6
	PYTHONPATH=$(CURDIR)/.venv/oldest:$(CURDIR) $(BIN)/python -m pytest tests/query tests/sql tests/report tests/warehouse tests/cli/test_sql.py

# .pre-commit-config.yaml runs it too.
lint: $(TESTING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Rebuild the bundled cores: fetch Debian's kernels, boot each, dump it and keep the pages that an audit reads.
lab: $(TESTING)
	sh tests/lab/install-tools.sh
	$(BIN)/python -m tests.lab bundle

# Boot and audit real kernels, and open the report in a browser; TEST_FULL=1 and TEST_SEED=N as for test-faults.
lab-test: $(BROWSER)
	sh tests/lab/install-tools.sh
	$(BIN)/python -m pytest $(WORKERS) --dist loadfile --no-loadscope-reorder -m lab

# Benchmark every part at the size of its budget: an hour or two on two idle cores, and 10 GB of disk. With
# BEFORE=REVISION also as it was in that revision.
bench: $(TESTING)
	$(BIN)/python -m tests.bench --full --json bench.json $(if $(BEFORE),--before $(BEFORE))

# Audit in a loop with faults, readers and expiry beside it, for an hour: MINUTES=N for another time, SEED=N to repeat one.
# Needs root, and makes namespaces of its own.
soak: $(TESTING)
	$(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# The wheel and the sdist of the last commit, the same bytes wherever they are built.
dist: $(INSTALLED)
	$(BIN)/python -m tests.dist

# Lock the newest versions that setup.cfg allows.
lock: $(TOOLS)
	.venv/tools/bin/python -m tests.lock

# Known vulnerabilities of the locked versions, from the index; says so when it has no answer.
advisories: $(TOOLS)
	.venv/tools/bin/python -m tests.advisories

$(TOOLS): $(INSTALLED)
	$(PYTHON) -m venv .venv/tools
	.venv/tools/bin/pip install --quiet --disable-pip-version-check uv pip-audit
	touch $@

$(INSTALLED): LOCKS := run
$(TESTING): LOCKS := run test
$(FAULTS): LOCKS := run test faults
$(BROWSER): LOCKS := run test browser
$(INSTALLED) $(TESTING) $(FAULTS) $(BROWSER): setup.cfg pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes $(LOCKS:%=--requirement requirements/%.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q pipeline  # pip does not compile an editable install
	touch $(INSTALLED) $@

clean:
	rm -rf .venv .cache build dist *.egg-info
