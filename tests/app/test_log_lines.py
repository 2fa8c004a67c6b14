"""Each line of the log is one event, whatever a sender, subscriber or receiver says."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import event_recorded
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.log import log
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

FORGED = "broken\nERROR forged\r\x1b[1A\u2028ERROR forged\u202e"
AGAIN = r"attempt 1 of 57, again at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[str]]]:
    """Return the lines that a file would have; each begins with its level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)

    def lines() -> list[str]:
        found = stream.getvalue().splitlines()
        for line in found:
            assert re.match(r"(INFO|WARNING|ERROR): ", line), line
            assert line.isprintable()
        return found

    yield lines
    log.removeHandler(handler)
    log.setLevel(before)


def forging_cause() -> Exception:
    error = RuntimeError(FORGED)
    error.__cause__ = KeyError(FORGED)
    error.__notes__ = [FORGED]  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_attempt_cannot_forge_a_line(
    app: Flask, webhooks: ProcoreWebhooks, lines: Any, is_async: bool
) -> None:
    if is_async:

        @webhooks.on(name="fails")
        async def fails(event: Event) -> None:
            raise forging_cause()
    else:
        webhooks.on(name="fails")(raising(forging_cause()))

    sent = payload(f"RFIs\n{FORGED}.update", id=f"id\n{FORGED}")
    assert deliver(app.test_client(), sent).status_code == 500
    failed, again, answered = lines()
    assert failed.startswith("ERROR: fails failed for 'RFIs")
    assert "RuntimeError: broken\\nERROR forged" in failed
    assert re.search(AGAIN, again)
    assert answered == "WARNING: procore_webhooks answered 500: a subscriber failed"


def test_a_dead_event_and_its_attempts_have_a_line_each(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, lines: Any
) -> None:
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=2)
    app.register_blueprint(webhooks)
    webhooks.on(name="one")(raising(RuntimeError(FORGED)))
    webhooks.on(name="two")(raising(RuntimeError(FORGED)))
    deliver(app.test_client(), payload("RFIs.update"))
    drain(app, advance=3600)
    assert [re.sub(r" evt_\w+| \|.*| [-\d]+ [\d:]+", "", line) for line in lines()] == [
        "ERROR: one failed for 'RFIs.update' of 'procore_webhooks'",
        "ERROR: two failed for 'RFIs.update' of 'procore_webhooks'",
        "WARNING: 'RFIs.update' of 'procore_webhooks': one: attempt 1 of 2, again at"
        " UTC",
        "WARNING: 'RFIs.update' of 'procore_webhooks': two: attempt 1 of 2, again at"
        " UTC",
        "WARNING: procore_webhooks answered 500: a subscriber failed",
        "ERROR: one failed for 'RFIs.update' of 'procore_webhooks'",
        "ERROR: two failed for 'RFIs.update' of 'procore_webhooks'",
        "ERROR: Gave up on 'RFIs.update' of 'procore_webhooks': one: RuntimeError:"
        r" broken\nERROR forged\r\x1b[1A\u2028ERROR forged\u202e",
        "ERROR: Gave up on 'RFIs.update' of 'procore_webhooks': two: RuntimeError:"
        r" broken\nERROR forged\r\x1b[1A\u2028ERROR forged\u202e",
    ]


class ForgingLater(RetryLater):
    def __str__(self) -> str:
        return FORGED


@pytest.mark.parametrize("error", [Discard(FORGED), ForgingLater(5)], ids=repr)
def test_a_discard_or_postponement_cannot_forge_a_line(
    app: Flask, webhooks: ProcoreWebhooks, lines: Any, error: Exception
) -> None:
    webhooks.on(name="stops")(raising(error))
    deliver(app.test_client(), payload("RFIs.update"))
    assert lines()[0].startswith("INFO: stops ")
    assert r"broken\nERROR forged" in lines()[0]


def test_a_receiver_cannot_forge_a_line(
    app: Flask, webhooks: ProcoreWebhooks, lines: Any
) -> None:
    webhooks.on(name="accepts")(lambda event: None)

    class Receiver:
        def __call__(self, app: Flask, **fields: object) -> None:
            raise forging_cause()

        def __repr__(self) -> str:
            return FORGED

    receiver = Receiver()
    event_recorded.connect(receiver)
    delivery_rejected.connect(receiver)
    deliver(app.test_client(), payload("RFIs.update"))
    deliver(app.test_client(), payload("RFIs.update"), timestamp="1\u20282")
    assert [line.partition(" failed")[0] for line in lines()] == [
        "ERROR: A receiver of event-recorded",
        "WARNING: procore_webhooks answered 401: "
        + lines()[1].partition("answered 401: ")[2],
        "ERROR: A receiver of delivery-rejected",
    ]


def test_a_quarantined_body_cannot_forge_a_line(app: Flask, lines: Any) -> None:
    for body in (f"{FORGED}".encode(), f'{{"id": "{FORGED}"'.encode(), b'"\r\n"'):
        deliver(app.test_client(), body)
    assert all("quarantined" in line for line in lines()) and len(lines()) == 3


def test_a_receiver_cannot_log_parameters(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver with a database of its own, whose errors show parameters."""
    engine = sa.create_engine("sqlite://")

    @event_recorded.connect
    def insert(app: Flask, event: Event) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO no VALUES (:b)"), {"b": event.body})

    deliver(app.test_client(), payload("RFIs.update", note="CONFIDENTIAL"))
    engine.dispose()
    assert "A receiver of event-recorded failed" in caplog.text
    assert "[SQL parameters hidden due to hide_parameters=True]" in caplog.text
    assert "CONFIDENTIAL" not in caplog.text


def test_an_error_of_the_database_cannot_forge_a_line(
    endpoint: Endpoint, lines: Any
) -> None:
    @sa.event.listens_for(endpoint.store.database.engine, "before_cursor_execute")
    def fail(*_: object) -> None:
        raise RuntimeError(FORGED)

    worker = Worker([endpoint], poll=1, sleep=lambda seconds: worker.stop())
    worker.run()
    (line,) = lines()
    assert line.startswith("ERROR: Polling again in 0.5 s")


def raising(error: Exception) -> Callable[[Event], None]:
    def fails(event: Event) -> None:
        raise error

    return fails
