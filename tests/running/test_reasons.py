"""The reason of a ``RetryLater`` or a ``Discard`` is the error of its job."""

from __future__ import annotations

from typing import Any

import pytest
from support.commands import stdout_of
from support.hosts import deliver_at
from support.hosts import Host
from support.values import Clock

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.operations.queries import incidents
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

BUSY = "GET /rest/v1.0/projects: 429, the hourly rate limit is used up"


def error_of(host: Host, name: str) -> tuple[Any, Any]:
    job = host.jobs()[name]
    return job["error_class"], job["error"]


def run_twice(host: Host) -> None:
    """Deliver an event, run it, and run it again when its next attempt is due."""
    clock = host.store.now = Clock()
    host.payload = payload("RFIs.update")
    deliver_at(host, host.payload, clock)
    drain(host.app)
    clock.forward(3600)
    drain(host.app)


def test_reason_of_a_postponed_job_is_its_error(host: Host) -> None:
    @host.webhooks.on(name="busy")
    def busy(event: Event) -> None:
        raise RetryLater(60, BUSY)

    host.deliver()
    drain(host.app)
    assert error_of(host, "busy") == ("RetryLater", BUSY)
    assert host.jobs()["busy"]["attempts"] == 0
    assert host.row()["error"] is None


def test_reason_of_a_postponed_job_is_no_incident(host: Host) -> None:
    @host.webhooks.on(name="busy")
    def busy(event: Event) -> None:
        raise RetryLater(60, BUSY)

    @host.webhooks.on(name="broken")
    def broken(event: Event) -> None:
        raise ValueError("broken")

    host.deliver()
    drain(host.app)
    found, _ = incidents(host.store)
    assert [each.subscriber for each in found] == ["broken"]


def test_postponed_job_without_a_reason_keeps_its_former_error(host: Host) -> None:
    errors: list[Exception] = [RetryLater(0), ValueError("broken")]

    @host.webhooks.on(name="busy")
    def busy(event: Event) -> None:
        raise errors.pop()

    run_twice(host)
    assert not errors
    assert error_of(host, "busy") == ("ValueError", "broken")


@pytest.mark.parametrize("options", [{}, {"one_at_a_time": True}, {"durable": True}])
def test_reason_of_a_discarded_job_is_its_error(
    host: Host, options: dict[str, Any]
) -> None:
    @host.webhooks.on(name="gone", **options)
    def gone(event: Event) -> None:
        host.note("rolled back")
        raise Discard("GET /rest/v1.0/projects/2: 404")

    host.deliver()
    drain(host.app)
    assert error_of(host, "gone") == ("Discard", "GET /rest/v1.0/projects/2: 404")
    assert host.jobs()["gone"]["state"] == "discarded"
    assert host.row()["status"] == "done"
    assert host.notes() == []
    assert incidents(host.store)[0] == []


def test_discard_after_a_failure_replaces_its_error(host: Host) -> None:
    errors: list[Exception] = [Discard("deleted"), ValueError("broken")]

    @host.webhooks.on(name="gone")
    def gone(event: Event) -> None:
        raise errors.pop()

    run_twice(host)
    assert error_of(host, "gone") == ("Discard", "deleted")


def test_discard_without_a_reason_has_no_error(host: Host) -> None:
    @host.webhooks.on(name="gone")
    def gone(event: Event) -> None:
        raise Discard

    host.deliver()
    drain(host.app)
    # Ends without an error are written with others.
    assert error_of(host, "gone") == (None, None)


class Strange(Discard):
    reason = 5  # type: ignore[assignment]  # as an app without mypy may have it

    def __init__(self) -> None:
        """Call no constructor."""


def test_reason_of_a_subclass_may_be_anything(host: Host) -> None:
    @host.webhooks.on(name="gone")
    def gone(event: Event) -> None:
        raise Strange

    host.deliver()
    drain(host.app)
    assert host.jobs()["gone"]["state"] == "discarded"
    assert error_of(host, "gone") == (None, None)


def test_show_prints_the_reason(host: Host) -> None:
    @host.webhooks.on(name="busy")
    def busy(event: Event) -> None:
        raise RetryLater(60, BUSY)

    host.deliver()
    drain(host.app)
    shown = stdout_of(host.app, "show", host.row()["event_id"])
    assert f"RetryLater: {BUSY}" in shown


def test_texts_name_time_and_reason() -> None:
    assert str(RetryLater(5, "busy")) == "retry after 5 s: busy"
    assert str(RetryLater(reason="busy")) == "retry: busy"
    assert str(Discard("gone")) == "gone"
