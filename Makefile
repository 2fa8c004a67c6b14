# All targets set up what they need in .venv. They require Python 3.10 or newer.
PYTHON ?= python3
BIN = .venv/bin

# The tests of "make test": on SQLite, without other processes and servers.
QUICK = not slow and not server and not serial and not soak
QUICK_TESTS = $(addprefix tests/,unit inbox operations running app fake procore)

.PHONY: demo test check soak bursts bench lint clean

demo: .venv/demo
	$(BIN)/python examples/quickstart/demo.py

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)" $(QUICK_TESTS)

# Lint, types, a few seconds of fuzzing, and all tests with coverage, also on PostgreSQL,
# MariaDB, Redis and RabbitMQ. A test whose server is missing is skipped; with CI=true it
# fails.
check: lint .venv/check
	cd tests && ../$(BIN)/python -m fuzz --seconds 3
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 4 --dist worksteal -m "not serial and not soak"
	$(BIN)/coverage run -m pytest -m "serial and not soak"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Kill processes, stop and fill databases under load, and fuzz: more than an hour. To repeat
# one run: make soak SOAK="mariadb --runs worker --seed 4711"
soak: .venv/check
	cd tests && ../$(BIN)/python -m soak $(SOAK)
	cd tests && ../$(BIN)/python -m fuzz --seconds 60
	$(BIN)/python -m pytest -q -m soak

# Play Procore's bursts with each option set of on(), and print a table; about 10 minutes.
# One scenario, four times as fast: make bursts BURSTS="stale --factor 4"
bursts: .venv/check
	cd tests && ../$(BIN)/python -m bursts $(BURSTS)

# Compare the package with alternatives; about 30 minutes and 8 GB of disk or memory, on a
# machine with nothing else to do. A trial: make bench BENCH=--quick. Some parts: make bench
# BENCH="--only process,load". PostgreSQL, wrk, node, Redis and git are used if there are any.
bench: .venv/bench
	$(BIN)/python -m benchmarks $(BENCH)

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

.venv/check: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test,check]'
	touch $@

.venv/bench: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[bench]'
	touch $@

.venv/lint: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test,lint]'
	touch $@
