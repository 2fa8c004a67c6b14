"""The mark ``serial``: tests that need a quiet machine, and may be repeated once.

Serial tests measure time while they work, so the Makefile runs them alone, after the
other tests. A failed test is repeated once, and named in the summary. The run fails if
a test fails twice, or if more than :data:`MOST` tests are repeated.
"""

from __future__ import annotations

import pytest
from _pytest.runner import runtestprotocol

#: Maximum of repeated tests in one run.
MOST = 2

_repeated: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> object:
    if not item.get_closest_marker("serial"):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports):
        _repeated.append(item.nodeid)
        for report in reports:
            item.add_report_section("call", "first attempt", report.longreprtext)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(_repeated) > MOST and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _repeated:
        return
    terminalreporter.section("repeated because they failed at first")
    for name in _repeated:
        terminalreporter.line(name)
    if len(_repeated) > MOST:
        terminalreporter.line(f"More than {MOST}: the run has failed.", red=True)
