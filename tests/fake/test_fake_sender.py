"""FakeProcore's sender: payloads, attempts, pauses, backoff and flushes."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked
from fake_support import PROJECT
from fake_support import URL
from flask import Flask
from flask import g
from flask import request

from flask_procore_webhooks.fake import FakeProcore


@pytest.fixture
def there() -> Destination:
    return Destination()


def statuses(fake: FakeProcore) -> list[str]:
    return [row["status"] for row in fake.deliveries()]


# Payloads


def test_v4_payload_has_text_fields(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there)
    event = fake.emit("RFIs", "update", project="2", resource_id="7", user_id="8")
    assert fake.deliver() == 1
    assert there.payloads == [
        {
            "id": event,
            "reason": "update",
            "user_id": "8",
            "timestamp": "2026-11-23T09:00:00.000000Z",
            "company_id": "1",
            "project_id": "2",
            "resource_id": "7",
            "resource_type": "RFIs",
            "payload_version": "v4.0",
        }
    ]
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", event)


def test_v2_payload_has_numbers(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there, payload_version="v2.0")
    event = fake.emit("RFIs", "create", project="2", resource_id="7")
    fake.deliver()
    payload = there.payloads[0]
    assert payload["ulid"] == event
    assert len(str(payload.pop("id"))) == 19
    del payload["ulid"]
    assert payload == {
        "timestamp": "2026-11-23T09:00:00.000000Z",
        "metadata": {
            "source_user_id": 1001,
            "source_company_id": 1,
            "source_project_id": 2,
            "source_application_id": None,
            "source_operation_id": None,
        },
        "user_id": 1001,
        "company_id": 1,
        "project_id": 2,
        "api_version": "v2.0",
        "event_type": "create",
        "resource_name": "RFIs",
        "resource_id": 7,
    }


def test_v3_payload_has_related_resources(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there, payload_version="v3.0")
    fake.emit("RFIs", "create", project="2", related=[("9", "Direct Costs")])
    fake.deliver()
    assert there.payloads[0]["api_version"] == "v3.0"
    assert there.payloads[0]["related_resources"] == [{"id": 9, "name": "Direct Costs"}]


def test_ids_of_v4_and_v2_can_differ(fake: FakeProcore, there: Destination) -> None:
    fake.switches.same_id = False
    hooked(fake, there)
    hooked(fake, there, namespace="other", payload_version="v2.0")
    event = fake.emit("RFIs", "create", project="2")
    fake.deliver()
    v4, v2 = there.payloads
    assert v4["id"] == event != v2["ulid"]


def test_company_event_has_no_project(fake: FakeProcore, there: Destination) -> None:
    pairs = [("Projects", "create"), ("Projects", "update")]
    hooked(fake, there, project=None, company="1", triggers=pairs)
    hooked(
        fake,
        there,
        project=None,
        company="1",
        triggers=pairs,
        namespace="other",
        payload_version="v2.0",
    )
    id = fake.create("Projects", company="1", name="New")
    fake.update("Projects", id, name="Newer")
    assert fake.deliver() == 4
    seen = {
        payload.get("reason", payload.get("event_type")): payload["project_id"]
        for payload in there.payloads[::2] + there.payloads[1::2]
    }
    assert set(seen) == {"create", "update"}
    v4 = [p["project_id"] for p in there.payloads if "reason" in p]
    v2 = [p["project_id"] for p in there.payloads if "ulid" in p]
    assert (v4, v2) == (["", id], [None, int(id)])


def test_request_is_a_post_of_json(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there, authorization="Bearer s3cret")
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert there.headers[0]["Content-Type"] == "application/json"
    assert there.headers[0]["Authorization"] == "Bearer s3cret"
    assert there.urls == [URL]


def test_hook_without_authorization_sends_none(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there)
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert "Authorization" not in there.headers[0]


def test_other_headers_can_be_sent(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    changes = {"destination_headers": {"Authorization": "Bearer abc", "X-Key": "key"}}
    api.data("PATCH", path, changes)
    fake.emit("RFIs", "update", project="2")
    fake.switches.sends_other_headers = True
    fake.deliver()
    changed = api.data("PATCH", path, changes)
    assert changed["destination_headers"] == {
        "Authorization": "*****r abc",
        "X-Key": "key",
    }
    fake.switches.delivery_header = "X-Delivery"
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert ["X-Key" in each for each in there.headers] == [False, True]
    ids = [each.get("X-Delivery") for each in there.headers]
    assert ids == [None, fake.deliveries()[1]["id"]]


def test_project_of_a_company_event_can_be_absent(
    fake: FakeProcore, there: Destination
) -> None:
    fake.switches.company_project = "absent"
    pairs = [("Company Users", "create")]
    company = {"project": None, "company": "1", "triggers": pairs}
    hooked(fake, there, payload_version="v2.0", **company)
    hooked(fake, there, namespace="other", **company)
    fake.emit("Company Users", "create", company="1")
    fake.deliver()
    v2, v4 = sorted(there.payloads, key=lambda each: "reason" in each)
    assert "project_id" not in v2
    assert v4["project_id"] == ""


# Which hooks


def test_event_goes_to_hooks_with_its_trigger(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there, triggers=[("RFIs", "CREATE")])
    hooked(fake, there, project="3")
    hooked(fake, there, namespace="off", status="disabled")
    fake.emit("RFIs", "update", project="2")
    assert fake.deliver() == 0
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == 1


def test_unknown_names_are_errors(fake: FakeProcore) -> None:
    with pytest.raises(LookupError, match="no resource 'RFI'"):
        fake.emit("RFI", "update", project="2")
    with pytest.raises(LookupError, match="resource of projects"):
        fake.emit("RFIs", "update", company="1")
    with pytest.raises(LookupError, match="project '9'"):
        fake.emit("RFIs", "update", project="9")
    with pytest.raises(LookupError, match="no resources Projects"):
        fake.add_hook(
            project="2", destination_url=URL, triggers=[("Projects", "update")]
        )


def test_second_hook_of_a_namespace_is_an_error(fake: FakeProcore) -> None:
    fake.add_hook(project="2", destination_url=URL)
    with pytest.raises(ValueError, match="has a hook"):
        fake.add_hook(project="2", destination_url=URL)


def test_a_burst_has_different_ids_and_one_timestamp(
    fake: FakeProcore, there: Destination
) -> None:
    fake.switches.events_per_change = 3
    hooked(fake, there)
    fake.create("RFIs", project="2")
    assert fake.deliver() == 3
    assert len({each["id"] for each in there.payloads}) == 3
    assert len({each["timestamp"] for each in there.payloads}) == 1


# Attempts


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


def test_queue_is_flushed_after_twelve_hours(
    fake: FakeProcore, there: Destination
) -> None:
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.emit("RFIs", "update", project="2")
    fake.advance(hours=12)
    assert statuses(fake) == ["discarded", "discarded"]
    assert [len(row["delivery_attempts"]) for row in fake.deliveries()] == [23, 0]
    assert fake.advance(hours=12) == 0


def test_an_event_after_a_flush_starts_afresh(
    fake: FakeProcore, there: Destination
) -> None:
    there.status = 503
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(hours=13)
    fake.emit("RFIs", "update", project="2")
    assert fake.deliver() == 1
    assert fake.advance(seconds=1) == 1
    there.status = 200
    assert fake.advance(seconds=2) == 1
    assert statuses(fake) == ["discarded", "delivered"]
    assert fake.hooks()[0]["status"] == "active"


def test_success_resets_the_wait(fake: FakeProcore, there: Destination) -> None:
    there.statuses = [500, 500, 500, 200, 500]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(seconds=7)
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert fake.advance(seconds=1) == 1
    assert statuses(fake) == ["delivered", "delivered"]


def test_hook_that_was_down_too_long_gets_one_more_attempt(
    fake: FakeProcore, there: Destination
) -> None:
    there.statuses = [500]
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.deliver()
    fake.clock.advance(hours=13)
    assert fake.deliver() == 1
    assert statuses(fake) == ["delivered"]


def test_flush_can_disable_the_hook(fake: FakeProcore, there: Destination) -> None:
    fake.switches.disables_after_flush = True
    there.status = 500
    hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.advance(hours=13)
    assert fake.hooks()[0]["status"] == "disabled"
    fake.emit("RFIs", "create", project="2")
    assert len(fake.deliveries()) == 1


def test_discarded_row_can_be_a_new_row(fake: FakeProcore, there: Destination) -> None:
    fake.switches.discards_same_row = False
    hook = hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    before = fake.deliveries()[0]
    assert fake.discard(hook) == 1
    after = fake.deliveries()[0]
    assert after["status"] == "discarded"
    assert after["id"] != before["id"]
    assert after["payload"] == before["payload"]
    assert fake.deliver() == 0


def test_flush_can_end_in_another_status(fake: FakeProcore, there: Destination) -> None:
    hook = hooked(fake, there)
    fake.emit("RFIs", "create", project="2")
    fake.discard(hook, "failed")
    assert statuses(fake) == ["failed"]


@pytest.mark.parametrize(("scope", "attempts"), [("hook", 2), ("url", 1)])
def test_pause_is_of_a_hook_or_a_url(
    fake: FakeProcore, there: Destination, scope: str, attempts: int
) -> None:
    fake.switches.pause_scope = scope
    there.status = 500
    hooked(fake, there)
    hooked(fake, there, namespace="other")
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == attempts
    fake.advance(hours=12)
    assert statuses(fake) == ["discarded", "discarded"]


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


def test_disabled_hook_keeps_its_queue(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    fake.emit("RFIs", "create", project="2")
    api.data("PATCH", path, {"status": "disabled"})
    fake.emit("RFIs", "update", project="2")
    assert fake.advance(hours=13) == 0
    api.data("PATCH", path, {"status": "active"})
    assert fake.deliver() == 1
    assert statuses(fake) == ["delivered"]


def test_disabling_a_hook_can_flush_its_queue(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    fake.switches.pause_keeps_queue = False
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    fake.emit("RFIs", "create", project="2")
    api.data("PATCH", path, {"status": "disabled"})
    assert statuses(fake) == ["discarded"]


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
    fake.switches.timeout = 0.01

    def slow(environ: Any, start_response: Any) -> Any:
        time.sleep(0.05)
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


# Sockets


@contextmanager
def server(behave: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            behave(self)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/hooks?key=1"
        finally:
            running.shutdown()
            thread.join()


def deliver_to(fake: FakeProcore, url: str) -> dict[str, Any]:
    hooked(fake, Destination(), destination_url=url, authorization="Bearer s3cret")
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == 1
    attempt: dict[str, Any] = fake.deliveries()[0]["delivery_attempts"][0]
    return attempt


def test_loopback_destination_gets_a_real_request(fake: FakeProcore) -> None:
    seen: list[Any] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        body = json.loads(handler.rfile.read(length))
        seen.append((handler.path, handler.headers["Authorization"], body["reason"]))
        handler.send_response(202)
        handler.end_headers()
        handler.wfile.write(b"ok")

    with server(answer) as url:
        attempt = deliver_to(fake, url)
    assert seen == [("/hooks?key=1", "Bearer s3cret", "create")]
    assert (attempt["response_status"], attempt["response_body"]) == (202, "ok")


def test_redirect_is_not_followed(fake: FakeProcore) -> None:
    calls = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        handler.send_response(307)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with server(answer) as url:
        attempt = deliver_to(fake, url)
    assert (attempt["success"], attempt["response_status"]) == (False, 307)
    assert calls == ["/hooks?key=1"]


@pytest.mark.parametrize("headers_first", [True, False])
def test_slow_destination_is_a_failure(fake: FakeProcore, headers_first: bool) -> None:
    fake.switches.timeout = 0.2
    end = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if headers_first:
            handler.send_response(200)
            handler.end_headers()
        end.wait(5)

    with server(answer) as url:
        start = time.monotonic()
        attempt = deliver_to(fake, url)
        assert time.monotonic() - start < 4
        end.set()
    assert (attempt["success"], attempt["response_status"]) == (False, None)


@pytest.mark.parametrize(
    "url", ["https://elsewhere.example.com/", "https://10.0.0.1/", "https://[bad/"]
)
def test_nothing_but_loopback_is_connected_to(fake: FakeProcore, url: str) -> None:
    assert deliver_to(fake, url)["response_status"] is None


def test_closed_port_is_a_failure(fake: FakeProcore) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert deliver_to(fake, f"http://127.0.0.1:{port}/")["response_status"] is None


# Real time


def test_thread_delivers_in_real_time(fake: FakeProcore, there: Destination) -> None:
    fake.switches.first_wait = 0.05
    there.statuses = [500]
    hooked(fake, there)
    fake.start_sending(every=0.01)
    fake.start_sending(every=0.01)
    try:
        assert fake.clock.running
        fake.emit("RFIs", "create", project="2")
        deadline = time.monotonic() + 10
        while statuses(fake) != ["delivered"] and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        fake.stop_sending()
    assert statuses(fake) == ["delivered"]
    assert len(there.bodies) == 2
    assert not fake.clock.running
    now = fake.clock.now()
    fake.stop_sending()
    assert fake.clock.now() == now


def test_clock_without_a_time_runs() -> None:
    fake = FakeProcore()
    before = fake.clock.now()
    time.sleep(0.01)
    assert fake.clock.now() > before
    fake.advance(hours=1)
    assert (fake.clock.now() - before).total_seconds() > 3600
    fake.start_sending()
    fake.stop_sending()
    assert fake.clock.running
