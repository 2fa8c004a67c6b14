"""FakeProcore's attempts: success, failure, pauses and waits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked
from fake_support import statuses
from fake_support import URL
from flask import Flask
from flask import g
from flask import request

from flask_procore_webhooks.fake import FakeProcore


def test_success_is_recorded(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there)
    fake.emit("RFIs", "update", project="2")
    assert statuses(fake) == ["enqueued"]
    fake.deliver()
    row = fake.deliveries()[0]
    assert row["status"] == "delivered"
    attempt = row["delivery_attempts"][0]
    assert set(attempt) == {
        "id",
        "success",
        "response_status",
        "response_body",
        "response_headers",
        "started_at",
        "completed_at",
    }
    assert (attempt["success"], attempt["response_status"]) == (True, 200)
    assert attempt["response_body"] == "seen"
    assert attempt["response_headers"]["X-Node"] == "a"


def test_failure_pauses_the_hook(fake: FakeProcore, there: Destination) -> None:
    there.statuses = [500]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.emit("RFIs", "update", project="2")
    assert fake.deliver() == 1
    assert statuses(fake) == ["retrying", "enqueued"]
    assert fake.deliver() == 0
    fake.clock.advance(1)
    assert fake.deliver() == 2
    assert [each["reason"] for each in there.payloads] == ["create", "create", "update"]
    assert there.bodies[0] == there.bodies[1]


@pytest.mark.parametrize("status", [302, 401, 410, 500])
def test_status_other_than_2xx_is_a_failure(
    fake: FakeProcore, there: Destination, status: int
) -> None:
    there.statuses = [status]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == 1
    assert statuses(fake) == ["retrying"]
    assert len(there.bodies) == 1


def test_waits_double_up_to_an_hour(fake: FakeProcore, there: Destination) -> None:
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    start = fake.clock.now()
    assert fake.advance(hours=12, seconds=-1) == 23
    attempts = fake.deliveries()[0]["delivery_attempts"]
    times = [sum(2**n for n in range(n)) for n in range(13)]
    times += [4095 + 3600 * n for n in range(1, 11)]
    expected = [f"{t // 3600 + 9:02}:{t // 60 % 60:02}:{t % 60:02}" for t in times]
    assert [each["started_at"][11:19] for each in attempts] == expected
    assert statuses(fake) == ["retrying"]
    assert (fake.clock.now() - start).total_seconds() == 12 * 3600 - 1


def test_wait_can_have_a_random_part(fake: FakeProcore, there: Destination) -> None:
    fake.switches.jitter = 1
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.deliver()
    assert fake.advance(seconds=0.99) == 0
    assert fake.advance(seconds=1.02) == 1


def test_success_resets_the_wait(fake: FakeProcore, there: Destination) -> None:
    there.statuses = [500, 500, 500, 200, 500]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(seconds=7)
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert fake.advance(seconds=1) == 1
    assert statuses(fake) == ["delivered", "delivered"]


def test_redelivery_sends_the_same_body(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there)
    event = fake.emit("RFIs", "create", project="2")
    fake.deliver()
    assert fake.redeliver(event) == 1
    assert fake.deliver() == 1
    assert there.bodies[0] == there.bodies[1]
    assert len(fake.deliveries()[0]["delivery_attempts"]) == 2
    with pytest.raises(LookupError):
        fake.redeliver("7")


def test_app_that_raises_is_a_failure(
    fake: FakeProcore, there: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    hooked(fake, there, authorization="Bearer s3cret")

    def broken(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("out of order")

    fake.receive(URL, broken)
    fake.emit("RFIs", "create", project="2")
    fake.deliver()
    assert statuses(fake) == ["retrying"]
    assert "out of order" in caplog.text
    assert "s3cret" not in caplog.text


def test_subscriber_may_call_the_fake_during_a_delivery(
    fake: FakeProcore, api: Api
) -> None:
    found = []

    def app(environ: Any, start_response: Any) -> Any:
        path = "/rest/v1.0/projects/2/rfis"
        threads = threading.Thread(target=lambda: found.append(api.call("GET", path)))
        threads.start()
        threads.join(5)
        fake.deliver()
        start_response("204 No Content", [])
        return []

    hooked(fake, Destination())
    fake.receive(URL, app)
    fake.create("RFIs", project="2")
    assert fake.deliver() == 1
    assert len(found[0].get_json()) == 1
    assert statuses(fake) == ["delivered"]


def test_destination_has_a_context_of_its_own(fake: FakeProcore) -> None:
    found: list[Any] = []
    app = Flask(__name__)

    @app.post("/webhooks")
    def receive() -> str:
        found.append((g.get("mine"), request.remote_addr, request.is_secure))
        return ""

    hooked(fake, Destination())
    fake.receive(URL, app)
    fake.emit("RFIs", "create", project="2")
    with app.app_context():
        g.mine = True
        fake.deliver()
    assert found == [(None, "127.0.0.1", True)]


def test_slow_app_is_a_failure(fake: FakeProcore) -> None:
    fake.switches.timeout = 0

    def slow(environ: Any, start_response: Any) -> Any:
        called = time.monotonic()
        while time.monotonic() == called:
            pass  # however coarse the clock is
        start_response("200 OK", [])
        return []

    hooked(fake, Destination())
    fake.receive(URL, slow)
    fake.emit("RFIs", "create", project="2")
    fake.deliver()
    assert statuses(fake) == ["retrying"]
    assert fake.deliveries()[0]["delivery_attempts"][0]["response_status"] is None


@pytest.mark.parametrize("seconds", [None, 5])
def test_endless_chain_of_events_is_an_error(
    fake: FakeProcore, seconds: int | None
) -> None:
    left = [5]

    def change(environ: Any, start_response: Any) -> Any:
        left[0] -= 1
        if left[0] != 0:
            fake.update("RFIs", rfi, subject="Again")
        start_response("204 No Content", [])
        return []

    hooked(fake, Destination())
    fake.receive(URL, change)
    rfi = fake.create("RFIs", project="2")
    assert fake.deliver() == 5
    fake.update("RFIs", rfi)
    with pytest.raises(RuntimeError, match="ever more events"):
        fake.advance(seconds=seconds) if seconds else fake.deliver()
