"""The mark ``serial``: a failed test is repeated once, two tests at most."""

from __future__ import annotations

import pytest

pytest_plugins = "pytester"

TESTS = """
import pytest

runs = []

@pytest.mark.parametrize("number", range({failing}))
@pytest.mark.serial
def test_that_fails_at_first(number):
    runs.append(number)
    assert runs.count(number) > 1

@pytest.mark.serial
def test_that_passes():
    runs.append("passes")
    assert runs.count("passes") == 1
"""
BROKEN = """
import pytest

@pytest.mark.serial
def test_serial():
    assert False

def test_other():
    assert False
"""


def run(pytester: pytest.Pytester, tests: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\nmarkers = serial\n")
    pytester.makepyfile(test_it=tests)
    return pytester.runpytest_subprocess("-p", "support.serial", "-p", "no:xdist")


@pytest.fixture(autouse=True)
def _import_support(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath / "tests"))


def test_two_failures_may_be_repeated_and_are_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, TESTS.format(failing=2))
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*repeated because*", "test_it.py::*first?0?"])


def test_three_repeated_failures_fail_the_run(pytester: pytest.Pytester) -> None:
    result = run(pytester, TESTS.format(failing=3))
    result.assert_outcomes(passed=4)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["More than 2: the run has failed."])


def test_second_failure_and_failures_of_other_tests_are_final(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, BROKEN)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["test_it.py::test_serial"])
    result.stdout.no_fnmatch_line("test_it.py::test_other")
