# Everything happens in .venv; all that has to be there is Python 3.10 or newer.
PYTHON ?= python3
BIN = .venv/bin

# What "make test" runs: the tests on SQLite, without processes and servers of their own.
QUICK = not slow and not server and not serial and not soak

.PHONY: demo test check soak bench lint clean

demo: .venv/demo
	$(BIN)/python examples/quickstart/demo.py

test: .venv/test
	$(BIN)/python -m pytest -n 2 -m "$(QUICK)" tests/unit tests/inbox tests/running tests/app

# Everything: lint and types, and all tests on PostgreSQL, MariaDB, Redis and RabbitMQ too,
# with coverage. Tests without their server are skipped; with CI=true they fail.
check: lint .venv/check
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 -m "not serial and not soak"
	$(BIN)/coverage run -m pytest -m "serial and not soak"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Kills processes and stops databases under load, for about ten minutes. To repeat one
# run: make soak SOAK="mariadb --runs crash --seed 4711"
soak: .venv/check
	cd tests && ../$(BIN)/python -m soak $(SOAK)
	$(BIN)/python -m pytest -q -m soak

# This package beside what else one could use, in about 40 minutes and 5 GB of disk; to try
# it: make bench BENCH=--quick; for a part of it: make bench BENCH="--only process". Uses
# PostgreSQL, wrk, node and Redis where they are.
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
