"""The way of a delivery through HTTP: its bytes, its answers, and what never leaks."""

from __future__ import annotations

import gzip
import io
import json
import logging
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask import g
from flask import request
from flask_sqlalchemy import SQLAlchemy
from support.servers import free_port
from support.servers import serve
from support.servers import Server
from support.values import AUTHORIZATION
from support.values import Clock
from support.values import SECRET
from werkzeug.test import TestResponse

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import Discard
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.browse import find
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.samples import Credentials
from flask_procore_webhooks.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

PATH = "/webhooks/procore"
LIMIT = 100_000

MakeApp = Callable[..., Flask]


def rows(app: Flask) -> list[Any]:
    """What the app has recorded."""
    return [dict(row) for row in Deliveries(app).events()]


def body_of(app: Flask, event_id: str) -> bytes:
    (endpoint,) = endpoints(app).values()
    row = find(endpoint.inbox, event_id)
    assert row is not None
    return bytes(row["body"])


def post(app: Flask, body: bytes = b"{}", **options: Any) -> TestResponse:
    return app.test_client().post(PATH, data=body, **options)


@pytest.fixture
def token_app(make_app: MakeApp) -> Flask:
    """An app that authenticates by the Authorization header alone."""
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None,
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        PROCORE_WEBHOOK_MAX_BYTES=LIMIT,
    )
    app.register_blueprint(ProcoreWebhooks())
    return app


# The body, whoever else is interested in it


CONSUMERS: dict[str, Callable[[], object]] = {
    "form": lambda: request.form,
    "files": lambda: request.files,
    "values": lambda: request.values,
    "get_json": lambda: request.get_json(silent=True),
    "get_json of any type": lambda: request.get_json(force=True, silent=True),
    "get_data without cache": lambda: request.get_data(cache=False),
    "get_data after the form": lambda: request.get_data(parse_form_data=True),
    "stream": lambda: request.stream.read(),
}
CONTENT_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_host_that_consumes_the_body_first_does_not_break_verification(
    make_app: MakeApp, consumer: str, content_type: str
) -> None:
    app = make_app()
    app.before_request(lambda: setattr(g, "consumed", CONSUMERS[consumer]()))
    app.register_blueprint(ProcoreWebhooks())
    body = to_bytes(payload("RFIs.create", id="evt_1"))
    answer = deliver(app.test_client(), body, headers={"Content-Type": content_type})
    assert answer.json == {"received": True}
    assert body_of(app, "evt_1") == body


def test_a_real_multipart_body_is_authentic_and_quarantined(app: Flask) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = deliver(app.test_client(), body, headers=header)
    assert answer.json == {"received": True, "quarantined": True}


def test_a_body_that_was_gone_before_we_came_is_refused_with_a_reason(
    token_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of it must not be taken for the delivery."""
    token_app.url_value_preprocessor(lambda *_: print(request.get_data(cache=False)))
    answer = deliver(token_app.test_client(), payload("RFIs.create"))
    assert answer.status_code == 401
    assert "did not arrive whole" in caplog.text
    assert rows(token_app) == []


def test_hooks_of_the_host_are_all_run_for_a_body_that_is_refused(
    make_app: MakeApp,
) -> None:
    app = make_app(PROCORE_WEBHOOK_MAX_BYTES=10)
    app.before_request(lambda: setattr(g, "began", True))

    @app.after_request
    def report(response: Any) -> Any:
        response.headers["X-Began"] = str(g.began)
        return response

    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), b"x" * 11)
    assert (answer.status_code, answer.headers["X-Began"]) == (413, "True")


def test_routes_that_the_host_adds_to_the_blueprint_keep_their_bodies(
    make_app: MakeApp,
) -> None:
    webhooks = ProcoreWebhooks()
    webhooks.add_url_rule(
        "/upload", "upload", lambda: str(len(request.get_data())), methods=["POST"]
    )
    app = make_app(PROCORE_WEBHOOK_MAX_BYTES=10)
    app.register_blueprint(webhooks)
    answer = app.test_client().post(f"{PATH}/upload", data=b"x" * 100)
    assert answer.text == "100"


# Sizes


@pytest.mark.parametrize(
    ("size", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)]
)
def test_the_limit_holds_to_the_byte(token_app: Flask, size: int, status: int) -> None:
    answer = deliver(token_app.test_client(), b"{}".ljust(size))
    assert answer.status_code == status
    assert len(rows(token_app)) == (status == 200)


def test_the_limit_is_ours_and_not_the_one_of_the_host(make_app: MakeApp) -> None:
    app = make_app(MAX_CONTENT_LENGTH=10, PROCORE_WEBHOOK_MAX_BYTES=1000)
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), b"{}".ljust(1000)).status_code == 200
    assert deliver(app.test_client(), b"{}".ljust(1001)).status_code == 413


class Endless(io.RawIOBase):
    """A body that never ends and counts what was read of it."""

    read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.read_bytes += len(buffer)
        buffer[:] = b" " * len(buffer)
        return len(buffer)


def test_an_endless_body_is_read_up_to_the_limit_and_no_further(
    token_app: Flask,
) -> None:
    body = Endless()
    answer = token_app.test_client().post(
        PATH,
        headers={"Transfer-Encoding": "chunked", "Authorization": AUTHORIZATION},
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert (answer.status_code, body.read_bytes) == (413, LIMIT + 1)


def test_a_body_that_is_announced_as_too_large_is_not_read_at_all(
    token_app: Flask,
) -> None:
    body = Endless()
    answer = token_app.test_client().post(
        PATH,
        environ_overrides={"wsgi.input": body, "CONTENT_LENGTH": str(LIMIT + 1)},
    )
    assert (answer.status_code, body.read_bytes) == (413, 0)


@pytest.mark.parametrize(
    "length",
    ["1", "13", "14", "0", "-14", "+13", "1e1", "abc", "13, 13", "9" * 5000, "²"],
)
def test_a_body_of_another_length_than_announced_is_refused(
    token_app: Flask, length: str
) -> None:
    """Servers differ in what they let through; a shortened body would be accepted."""
    body = b'{"id": "evt"}' if length != "13" else b'{"id": "ev"}'
    answer = token_app.test_client().post(
        PATH,
        input_stream=io.BytesIO(body[: int(length) - 1] if length == "1" else body),
        headers={"Authorization": AUTHORIZATION},
        environ_overrides={"CONTENT_LENGTH": length, "wsgi.input_terminated": True},
    )
    assert answer.status_code == 401
    assert rows(token_app) == []


def test_a_length_with_leading_zeros_is_the_same_length(token_app: Flask) -> None:
    answer = post(
        token_app,
        b"{}",
        headers={"Authorization": AUTHORIZATION},
        environ_overrides={"CONTENT_LENGTH": "002"},
    )
    assert answer.status_code == 200


def test_a_chunked_body_is_refused_where_the_server_does_not_pass_it_on(
    token_app: Flask,
) -> None:
    """Werkzeug then finds no body at all, which is not what was sent."""
    answer = token_app.test_client().post(
        PATH,
        input_stream=io.BytesIO(b"{}"),
        headers={"Transfer-Encoding": "chunked", "Authorization": AUTHORIZATION},
    )
    assert answer.status_code == 401
    assert rows(token_app) == []


# Bytes


ODD_SPELLINGS = {
    "spaces": b'{ "id" :\t"evt_1" ,\n"type": "a.b" }',
    "escapes": rb'{"id": "\u0065vt_1", "type": "caf\u00e9.b"}',
    "emoji": '{"id": "evt_1", "type": "\N{CONSTRUCTION WORKER}.b"}'.encode(),
    "emoji as surrogates": rb'{"id": "evt_1", "type": "\ud83d\udc77.b"}',
    "lone surrogate": rb'{"id": "evt_1", "type": "\ud83d.b"}',
    "key order": b'{"type": "a.b", "z": 1, "id": "evt_1", "a": 2}',
    "trailing newline": b'{"id": "evt_1", "type": "a.b"}\n',
    "line ends": b'\r\n{"id": "evt_1",\r\n"type": "a.b"}\r\n',
    "numbers": b'{"id": "evt_1", "type": "a.b", "n": [1.0, 1e2, 1E+2, -0]}',
}


@pytest.mark.parametrize("spelling", ODD_SPELLINGS)
def test_a_body_is_verified_and_kept_as_the_bytes_that_were_sent(
    app: Flask, spelling: str
) -> None:
    body = ODD_SPELLINGS[spelling]
    assert deliver(app.test_client(), body).json == {"received": True}
    assert body_of(app, "evt_1") == body


@pytest.mark.parametrize("spelling", ODD_SPELLINGS)
def test_the_same_json_in_other_bytes_is_refused(app: Flask, spelling: str) -> None:
    body = ODD_SPELLINGS[spelling]
    respelt = json.dumps(json.loads(body), indent=1).encode()
    assert post(app, respelt, headers=sign(body, SECRET)).status_code == 401


@pytest.mark.parametrize("position", [0, 7, -1])
@pytest.mark.parametrize("spelling", ODD_SPELLINGS)
def test_one_changed_byte_is_refused(app: Flask, spelling: str, position: int) -> None:
    body = bytearray(ODD_SPELLINGS[spelling])
    headers = sign(bytes(body), SECRET)
    body[position] ^= 1
    assert post(app, bytes(body), headers=headers).status_code == 401
    assert rows(app) == []


NOT_JSON = {
    "not UTF-8": b"\xff\xfe",
    "UTF-8 cut in a letter": b'{"id": "caf\xc3',
    "UTF-16": '{"id": "evt_1"}'.encode("utf-16"),
    "NUL": b"\0",
    "nothing": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("content", NOT_JSON)
def test_an_authentic_body_that_cannot_be_read_is_kept_in_quarantine(
    app: Flask, content: str
) -> None:
    body = NOT_JSON[content]
    answer = deliver(app.test_client(), body)
    assert answer.json == {"received": True, "quarantined": True}
    (row,) = rows(app)
    assert row["status"] == "dead"
    assert body_of(app, row["event_id"]) == body


@pytest.mark.parametrize("content", NOT_JSON)
def test_an_unsigned_body_that_cannot_be_read_is_only_refused(
    app: Flask, content: str
) -> None:
    assert post(app, NOT_JSON[content]).status_code == 401
    assert rows(app) == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_quarantined_and_never_inflated(
    app: Flask, encoding: str
) -> None:
    """Inflated, this one would be larger than MAX_BYTES, and readable."""
    body = gzip.compress(b'{"id": "evt_1"}'.ljust(2**24), mtime=0)
    header = {"Content-Encoding": encoding}
    answer = deliver(app.test_client(), body, headers=header)
    assert answer.json == {"received": True, "quarantined": True}
    (row,) = rows(app)
    assert body_of(app, row["event_id"]) == body


# The way in


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_a_slash_at_the_end_makes_no_difference(app: Flask, path: str) -> None:
    body = to_bytes(payload("RFIs.create"))
    answer = app.test_client().post(path, data=body, headers=sign(body, SECRET))
    assert (answer.status_code, answer.json) == (200, {"received": True})


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_a_probe_by_head_is_answered_and_told_nothing(app: Flask, path: str) -> None:
    answer = app.test_client().head(path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert rows(app) == []


def test_a_signed_head_request_is_no_delivery(app: Flask) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = sign(body, SECRET)
    assert app.test_client().head(PATH, data=body, headers=headers).status_code == 204
    assert rows(app) == []


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_other_methods_are_refused_and_told_nothing(app: Flask, method: str) -> None:
    body = to_bytes(payload("RFIs.create"))
    answer = app.test_client().open(
        PATH, method=method, data=body, headers=sign(body, SECRET)
    )
    assert answer.status_code == 405
    assert "procore" not in answer.text.lower()
    assert rows(app) == []


def test_the_method_cannot_be_overridden_by_a_header(app: Flask) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {**sign(body, SECRET), "X-HTTP-Method-Override": "POST"}
    assert app.test_client().get(PATH, data=body, headers=headers).status_code == 405


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_the_case_of_header_names_is_irrelevant(
    app: Flask, spell: Callable[[str], str]
) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {spell(name): value for name, value in sign(body, SECRET).items()}
    assert post(app, body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Host"],
)
def test_what_a_proxy_says_decides_nothing(app: Flask, header: str) -> None:
    body = to_bytes(payload("RFIs.create"))
    claim = {header: "127.0.0.1"}
    assert post(app, body, headers=claim).status_code == 401
    assert post(app, body, headers=claim | sign(body, SECRET)).status_code == 200


# What is done before the signature has passed


def entered(call: Callable[[], object]) -> set[tuple[str, str]]:
    """Every function that ``call`` entered, with the file that it is in."""
    seen: set[tuple[str, str]] = set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            seen.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def readers(functions: set[tuple[str, str]]) -> set[str]:
    """Those among them that look into a body."""
    files = {"decoder.py", "formparser.py", "multipart.py", "provider.py", "events.py"}
    return {f"{file}:{name}" for file, name in functions if file in files}


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize(
    "forged",
    [
        {"X-Procore-Signature": "0" * 64},
        {"X-Procore-Signature": "é"},
        {"X-Procore-Timestamp": "1"},
    ],
)
def test_nothing_looks_into_a_body_that_is_not_authentic(
    app: Flask, forged: dict[str, str], content_type: str
) -> None:
    body = to_bytes(payload("RFIs.create"))
    headers = {**sign(body, SECRET), **forged, "Content-Type": content_type}
    client = app.test_client()
    client.get("/")  # what is done once in a process is done
    refused = entered(lambda: client.post(PATH, data=body, headers=headers))
    assert ("views.py", "refuse") in refused
    assert readers(refused) == set()


def test_an_authentic_body_is_looked_into(app: Flask) -> None:
    """So the test above would have noticed."""
    client = app.test_client()
    accepted = entered(lambda: deliver(client, payload("RFIs.create")))
    assert {"decoder.py:decode", "events.py:parse"} <= readers(accepted)


def test_forgeries_cost_no_row_and_no_connection(app: Flask) -> None:
    for _ in range(20):
        assert post(app, b"{}").status_code == 401
    assert not Path(app.instance_path).exists()


def test_a_forgery_cannot_use_up_the_id_of_a_genuine_event(app: Flask) -> None:
    event = payload("RFIs.create", id="evt_1")
    forged = deliver(
        app.test_client(), event, headers={"X-Procore-Signature": "0" * 64}
    )
    assert forged.status_code == 401
    assert deliver(app.test_client(), event).json == {"received": True}


# The answers


def exact(answer: TestResponse) -> tuple[int, dict[str, object], str | None]:
    """Status, content and Retry-After, after a check that there is nothing else."""
    assert answer.mimetype == "application/json"
    allowed = {"Content-Type", "Content-Length", "Retry-After"}
    assert set(answer.headers.keys()) <= allowed
    return (
        answer.status_code,
        json.loads(answer.data),
        answer.headers.get("Retry-After"),
    )


def test_a_new_event_is_received(app: Flask) -> None:
    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (200, {"received": True}, None)


def test_an_event_in_the_inbox_is_a_duplicate(app: Flask) -> None:
    event = payload("RFIs.create")
    deliver(app.test_client(), event)
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert [row["repeats"] for row in rows(app)] == [1]


def test_another_body_under_the_same_id_is_a_conflict_and_the_first_one_stays(
    app: Flask,
) -> None:
    first, second = (payload("RFIs.create", id="evt_1", user_id=n) for n in (1, 2))
    deliver(app.test_client(), first)
    answer = deliver(app.test_client(), second)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert [row["conflicts"] for row in rows(app)] == [1]
    assert body_of(app, "evt_1") == to_bytes(first)


def test_a_body_that_is_no_object_is_quarantined_each_time(app: Flask) -> None:
    for _ in range(2):
        answer = deliver(app.test_client(), b"[]", timestamp=None)
        assert exact(answer) == (200, {"received": True, "quarantined": True}, None)


def test_an_ignored_event_is_received(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_IGNORE_USER_IDS=["7"])
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), payload("RFIs.create", user_id=7))
    assert exact(answer) == (200, {"received": True}, None)
    assert [row["status"] for row in rows(app)] == ["ignored"]


BODY = b'{"id": "evt_1", "type": "RFIs.create"}'
GOOD = sign(BODY, SECRET)["X-Procore-Signature"]
NO_SIGNATURE: dict[str, dict[str, str | None]] = {
    "missing": {"X-Procore-Signature": None},
    "timestamp missing": {"X-Procore-Timestamp": None},
    "empty": {"X-Procore-Signature": ""},
    "timestamp empty": {"X-Procore-Timestamp": ""},
    "malformed": {"X-Procore-Signature": "sha256="},
    "timestamp malformed": {"X-Procore-Timestamp": "now"},
    "not ASCII": {"X-Procore-Signature": "\xe9" * 64},
    "wrong": {"X-Procore-Signature": "0" * 64},
    "of another time": {"X-Procore-Timestamp": "1700000000"},
    "another header": {"X-Procore-Signature": None, "X-Prudra-Signature": GOOD},
    "in Authorization": {"X-Procore-Signature": None, "Authorization": GOOD},
}


@pytest.mark.parametrize("case", NO_SIGNATURE)
def test_a_delivery_without_a_valid_signature_is_refused(app: Flask, case: str) -> None:
    headers = {**sign(BODY, SECRET), **NO_SIGNATURE[case]}
    sent = {name: value for name, value in headers.items() if value is not None}
    answer = post(app, BODY, headers=sent)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)
    assert rows(app) == []


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_signature_of_another_hour_is_refused(
    app: Flask, clock: Clock, seconds: int
) -> None:
    stamp = int(clock().timestamp()) + seconds
    answer = deliver(app.test_client(), BODY, timestamp=stamp)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", AUTHORIZATION[:-1], AUTHORIZATION.lower(), "\xff"]
)
def test_a_delivery_without_the_authorization_is_refused(
    token_app: Flask, value: str | None
) -> None:
    headers = {} if value is None else {"Authorization": value}
    answer = post(token_app, BODY, headers=headers)
    assert exact(answer) == (401, {"error": "Invalid authorization"}, None)
    assert rows(token_app) == []


@pytest.mark.parametrize(
    ("left_out", "error"),
    [
        ("X-Procore-Signature", "Invalid signature"),
        ("Authorization", "Invalid authorization"),
    ],
)
def test_what_is_configured_has_to_pass_and_both_if_both_are(
    make_app: MakeApp, left_out: str, error: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION)
    app.register_blueprint(ProcoreWebhooks())
    both = {**sign(BODY, SECRET), "Authorization": AUTHORIZATION}
    one = {name: value for name, value in both.items() if name != left_out}
    assert exact(post(app, BODY, headers=one)) == (401, {"error": error}, None)
    assert post(app, BODY, headers=both).status_code == 200


def test_a_body_over_the_limit_is_refused(token_app: Flask) -> None:
    answer = deliver(token_app.test_client(), b" " * (LIMIT + 1))
    assert exact(answer) == (413, {"error": "Payload too large"}, None)


def test_a_failed_subscriber_fails_the_delivery_and_the_next_one_resumes(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    outcomes: list[Exception | None] = [ValueError("password=hunter2"), None]

    @webhooks.on()
    def work(event: object) -> None:
        if outcome := outcomes.pop(0):
            raise outcome

    event = payload("RFIs.create")
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (500, {"error": "Processing failed"}, None)
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert outcomes == []


@pytest.mark.parametrize("error", [Discard("not ours"), ValueError("broken")])
def test_an_event_for_which_nothing_is_left_to_do_is_received(
    make_app: MakeApp, error: Exception
) -> None:
    """Discarded by its subscriber, or dead after its last attempt."""
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=1)
    webhooks = ProcoreWebhooks()
    app.register_blueprint(webhooks)

    @webhooks.on()
    def work(event: object) -> None:
        raise error

    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (200, {"received": True}, None)


def test_a_delivery_of_an_event_that_is_being_run_has_to_come_again(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    """The run might still fail, and only the sender would repeat it."""
    started, finish = threading.Event(), threading.Event()

    @webhooks.on()
    def work(event: object) -> None:
        started.set()
        assert finish.wait(20)

    event = payload("RFIs.create")
    first: list[TestResponse] = []
    thread = threading.Thread(
        target=lambda: first.append(deliver(app.test_client(), event))
    )
    thread.start()
    assert started.wait(20)
    try:
        second = deliver(app.test_client(), event)
    finally:
        finish.set()
        thread.join(20)
    assert exact(second) == (503, {"error": "Unavailable"}, "1")
    assert exact(first[0]) == (200, {"received": True}, None)


def test_an_error_page_of_the_host_does_not_replace_our_answers(
    make_app: MakeApp,
) -> None:
    app = make_app()
    app.register_error_handler(Exception, lambda error: ("oops", 418))
    for status in (401, 413, 500, 503):
        app.register_error_handler(status, lambda error: ("oops", 418))
    app.register_blueprint(ProcoreWebhooks())
    answer = post(app, BODY)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)


@pytest.mark.parametrize("testing", [True, False])
def test_answers_are_the_same_under_test_and_in_production(
    make_app: MakeApp, testing: bool
) -> None:
    app = make_app(TESTING=testing, PROCORE_WEBHOOK_DATABASE_URI="sqlite:////dev/null")
    app.register_blueprint(ProcoreWebhooks())
    assert exact(post(app, BODY))[0] == 401
    assert exact(deliver(app.test_client(), BODY))[0] == 503


# The database is not there


def host_db(app: Flask, url: str) -> SQLAlchemy:
    """Flask-SQLAlchemy whose engine shows its parameters in errors, as by default."""
    db = SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    app.register_blueprint(ProcoreWebhooks(db=db))
    return db


def drop(db: SQLAlchemy, app: Flask, *names: str) -> None:
    with app.app_context():
        db.metadata.drop_all(db.engine, tables=[db.metadata.tables[n] for n in names])


TABLES = ("procore_webhook_event", "procore_webhook_receipt")


@pytest.mark.parametrize("missing", [TABLES, TABLES[:1], TABLES[1:]])
def test_missing_tables_are_named_with_what_to_do_and_found_once_they_are_there(
    make_app: MakeApp,
    database_url: str,
    missing: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app()
    db = host_db(app, database_url)
    ran = []
    app.blueprints["procore_webhooks"].on()(ran.append)
    with app.app_context():
        db.create_all()
    drop(db, app, *missing)
    event = payload("RFIs.create")
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (503, {"error": "Unavailable"}, "5")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    for word in (*missing, "flask db upgrade", "init-db"):
        assert word in record.getMessage()
    with app.app_context():
        db.create_all()
    assert deliver(app.test_client(), event).status_code == 200
    assert len(ran) == 1
    with app.app_context():
        db.engine.dispose()


def broken_folder(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}"


def broken_file(tmp_path: Path) -> str:
    (tmp_path / "broken.db").write_bytes(b"no database " * 100)
    return f"sqlite:///{tmp_path / 'broken.db'}"


def nobody_listens(tmp_path: Path) -> str:
    return f"postgresql+psycopg://u:a-pass-word@127.0.0.1:{free_port()}/x"


def nobody_listens_either(tmp_path: Path) -> str:
    return f"mysql+pymysql://u:a-pass-word@127.0.0.1:{free_port()}/x"


BROKEN = (broken_folder, broken_file, nobody_listens, nobody_listens_either)


@pytest.mark.parametrize("hosted", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
def test_without_its_database_the_inbox_asks_the_sender_to_come_again(
    make_app: MakeApp,
    tmp_path: Path,
    broken: Callable[[Path], str],
    hosted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, app = broken(tmp_path), make_app()
    if hosted:
        host_db(app, url)
    else:
        app.config["PROCORE_WEBHOOK_DATABASE_URI"] = url
        app.register_blueprint(ProcoreWebhooks())
    reasons = []

    @delivery_rejected.connect
    def watch(app: Flask, status: int, reason: str, **_: object) -> None:
        reasons.append((status, reason))

    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (503, {"error": "Unavailable"}, "5")
    ((status, reason),) = reasons
    assert status == 503
    assert "the inbox of 'procore_webhooks' cannot be used" in caplog.text
    assert reason in caplog.text
    assert "Traceback" not in caplog.text
    assert "a-pass-word" not in caplog.text
    assert app.test_client().head(PATH).status_code == 204


def test_the_inbox_works_as_soon_as_its_database_does(
    make_app: MakeApp, tmp_path: Path
) -> None:
    obstacle = tmp_path / "inbox.db"
    obstacle.mkdir()
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=f"sqlite:///{obstacle}")
    app.register_blueprint(ProcoreWebhooks())
    event = payload("RFIs.create")
    assert deliver(app.test_client(), event).status_code == 503
    obstacle.rmdir()
    assert deliver(app.test_client(), event).json == {"received": True}


# What is never told to anybody

MARK = "the-body-of-a-delivery"
ECHO: dict[str, Any] = {"SQLALCHEMY_ENGINE_OPTIONS": {"echo": True}}


def failing_subscriber(app: Flask, db: SQLAlchemy) -> None:
    @app.blueprints["procore_webhooks"].on()
    def work(event: object) -> None:
        raise ValueError("broken")


def patient_subscriber(app: Flask, db: SQLAlchemy) -> None:
    @app.blueprints["procore_webhooks"].on()
    def work(event: object) -> None:
        raise RetryLater


def missing_tables(app: Flask, db: SQLAlchemy) -> None:
    drop(db, app, *TABLES)


def missing_receipts(app: Flask, db: SQLAlchemy) -> None:
    failing_subscriber(app, db)
    drop(db, app, TABLES[1])


def _alter(db: SQLAlchemy, app: Flask, *statements: str) -> None:
    """Run the statements that the database can run."""
    with app.app_context():
        dialect = db.engine.dialect.name
        with db.engine.begin() as connection:
            for statement in statements:
                only, _, rest = statement.partition(": ")
                if only in (dialect, "any"):
                    connection.execute(sa.text(rest))


def missing_column(app: Flask, db: SQLAlchemy) -> None:
    _alter(db, app, "any: ALTER TABLE procore_webhook_event DROP COLUMN conflicts")


def stranger_index(app: Flask, db: SQLAlchemy) -> None:
    """An insert violates a constraint that is not ours."""
    _alter(
        db,
        app,
        "any: CREATE UNIQUE INDEX strange ON procore_webhook_event (company_id)",
    )
    deliver(app.test_client(), payload("RFIs.create"))


def stranger_column(app: Flask, db: SQLAlchemy) -> None:
    _alter(
        db,
        app,
        "any: DROP TABLE procore_webhook_event",
        "any: CREATE TABLE procore_webhook_event (id INTEGER)",
    )


def narrow_column(app: Flask, db: SQLAlchemy) -> None:
    """What does not fit is part of some databases' messages."""
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER reason TYPE varchar(1)",
        "mysql: ALTER TABLE procore_webhook_event MODIFY body varbinary(10)",
        "sqlite: CREATE TRIGGER no BEFORE INSERT ON procore_webhook_event"
        " BEGIN SELECT RAISE(ABORT, 'no'); END",
    )


def wrong_type(app: Flask, db: SQLAlchemy) -> None:
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER body TYPE int USING 0",
        "mysql: ALTER TABLE procore_webhook_event MODIFY body int",
        "sqlite: CREATE TRIGGER no BEFORE INSERT ON procore_webhook_event"
        " BEGIN SELECT json(new.body || '\"'); END",
    )


def fails_late(app: Flask, db: SQLAlchemy) -> None:
    """The event is recorded, and cannot be claimed."""
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER lease TYPE varchar(1)",
        "mysql: ALTER TABLE procore_webhook_event MODIFY lease varchar(1)",
        "sqlite: CREATE TRIGGER no BEFORE UPDATE ON procore_webhook_event"
        " BEGIN SELECT no_such_function(new.body); END",
    )


def nothing_wrong(app: Flask, db: SQLAlchemy) -> None:
    pass


MISHAPS = (
    nothing_wrong,
    failing_subscriber,
    patient_subscriber,
    missing_tables,
    missing_receipts,
    missing_column,
    stranger_index,
    stranger_column,
    narrow_column,
    wrong_type,
    fails_late,
)


@pytest.fixture
def guarded_app(
    make_app: MakeApp, database_url: str
) -> Iterator[tuple[Flask, SQLAlchemy]]:
    """An app with everything that must not be told, and an engine that would."""
    app = make_app(
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["an older secret of the suite"],
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        PROCORE_WEBHOOK_MAX_BYTES=LIMIT,
        **ECHO,
    )
    db = host_db(app, database_url)
    with app.app_context():
        db.create_all()
    yield app, db
    with app.app_context():
        db.engine.dispose()


def sendings() -> Iterator[tuple[bytes, dict[str, str]]]:
    """Deliveries of every kind: good, not readable, and refused for each reason."""
    body = to_bytes(payload("RFIs.create", id="evt_1", note=MARK, user_id=3))
    good = {**sign(body, SECRET), "Authorization": AUTHORIZATION}
    yield body, good
    yield body, good
    other = body.replace(b"}", b', "more": 1}')
    yield other, good | sign(other, SECRET)
    for odd in (f"[{MARK!r}".encode(), b"\xff" + MARK.encode()):
        yield odd, good | sign(odd, SECRET)
    yield MARK.encode() * LIMIT, good
    yield body, good | {"X-Procore-Signature": "sha256=" + "5ecret" * 12}
    yield body, good | {"X-Procore-Timestamp": f"5ecret{MARK}"}
    yield body, good | {"X-Procore-Signature": "5" * 64}
    yield body, good | {"Authorization": f"5ecret {MARK}"}
    yield body, good | sign(body, SECRET, timestamp=1)
    yield body, good | sign(body, SECRET, timestamp=99_999_999_999)
    yield body, good | sign(body, SECRET, timestamp=1_900_000_000_000)
    yield body, {}


def forbidden(headers: dict[str, str]) -> list[str]:
    told = [SECRET, "an older secret of the suite", AUTHORIZATION, MARK, "5ecret"]
    return [*told, headers.get("X-Procore-Signature", "5" * 64)]


def everything_told(
    answer: TestResponse, records: list[logging.LogRecord], watched: list[object]
) -> str:
    formatter = logging.Formatter()
    told = [formatter.format(record) for record in records]
    told += [repr(record.__dict__) for record in records]
    return "\n".join([answer.text, str(answer.headers), repr(watched), *told])


@pytest.mark.parametrize("mishap", MISHAPS)
def test_nothing_secret_is_logged_or_answered_whatever_fails(
    guarded_app: tuple[Flask, SQLAlchemy],
    mishap: Callable[[Flask, SQLAlchemy], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even by the host's engine, which shows parameters and logs statements."""
    app, db = guarded_app
    mishap(app, db)
    caplog.set_level(logging.DEBUG)
    watched: list[object] = []

    @delivery_rejected.connect
    def watch(app: Flask, **fields: object) -> None:
        watched.append(fields)

    for body, headers in sendings():
        caplog.clear()
        watched.clear()
        answer = post(app, body, headers=headers)
        told = everything_told(answer, caplog.records, watched)
        for word in forbidden(headers):
            assert word not in told, (mishap.__name__, answer.status)


def test_every_mishap_of_the_test_above_does_fail(
    guarded_app: tuple[Flask, SQLAlchemy],
) -> None:
    app, db = guarded_app
    statuses = {}
    for mishap in MISHAPS[1:]:
        with app.app_context():
            db.drop_all()
            db.create_all()
        mishap(app, db)
        body = to_bytes(payload("RFIs.create", note=MARK))
        headers = {**sign(body, SECRET), "Authorization": AUTHORIZATION}
        statuses[mishap.__name__] = post(app, body, headers=headers).status_code
    expected = dict.fromkeys((mishap.__name__ for mishap in MISHAPS[3:]), 503)
    expected |= {"failing_subscriber": 500, "patient_subscriber": 500}
    assert statuses == expected


def test_nothing_secret_is_in_the_repr_of_anything(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    seen: list[object] = []
    webhooks.on()(seen.append)
    body = to_bytes(payload("RFIs.create", id="evt_1", note=MARK))
    deliver(app.test_client(), body)
    event: Any = seen[0]
    inbox = endpoint.inbox
    claim = inbox.claim(inbox.record(replace(event, id="evt_2")).row_id, 10)
    objects = [
        webhooks,
        endpoint,
        endpoint.settings,
        event,
        claim,
        inbox,
        inbox.database,
        inbox.database.engine,
        Credentials.of(endpoint),
        app.extensions,
    ]
    told = repr(objects)
    assert "evt_1" in told
    for word in (SECRET, repr(SECRET.encode()), MARK):
        assert word not in told


# On real servers

HOST = f"""
import os

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host", instance_path=os.environ["INSTANCE"])
app.config.update(
    SIGNED_SECRET={SECRET!r},
    SIGNED_MAX_BYTES={LIMIT},
    TOKEN_AUTHORIZATION={AUTHORIZATION!r},
    TOKEN_MAX_BYTES={LIMIT},
)
for name in ("signed", "token"):
    webhooks = ProcoreWebhooks(
        name, url_prefix="/" + name, config_prefix=name.upper() + "_"
    )
    app.register_blueprint(webhooks)
"""

SERVERS = {
    "gunicorn sync": ("gunicorn", ()),
    "gunicorn gthread": ("gunicorn", ("--worker-class=gthread", "--threads=4")),
    "waitress": ("waitress", ()),
    "flask": ("flask", ()),
}
ENDPOINTS = ("signed", "token")


#: Deliveries of what is answered 503.
ATTEMPTS = 5


class RealServer:
    """A running host, spoken to in raw bytes."""

    def __init__(self, server: Server, instance: Path) -> None:
        self.server = server
        self.instance = instance
        self.sent = 0

    def new_body(self, size: int = 0) -> bytes:
        self.sent += 1
        body = f'{{"id": "evt_{self.sent}", "type": "RFIs.create"}}'
        return body.encode().ljust(size)

    def deliver(self, endpoint: str) -> int | None:
        return self.post(endpoint, self.new_body())

    def post(self, endpoint: str, body: bytes, *extra: str) -> int | None:
        """As the sender does: again, if the disk keeps everybody waiting just now."""
        lines = [*authentic(endpoint, body), f"Content-Length: {len(body)}", *extra]
        statuses = (self.exchange(endpoint, lines, body) for _ in range(ATTEMPTS))
        return next((status for status in statuses if status != 503), 503)

    def exchange(
        self, endpoint: str, lines: list[str], body: bytes, *, hang_up: bool = False
    ) -> int | None:
        """Send a request; return the status of the answer, if there is one."""
        head = [f"POST /{endpoint} HTTP/1.1", "Host: localhost", "Connection: close"]
        message = "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + body
        return talk(self.server.port, message, hang_up)

    def recorded(self, body: bytes) -> bool:
        """Whether an event with exactly this body, or with its id, is there."""
        database = self.instance / "procore_webhooks.db"
        if not database.exists():
            return False
        look = "SELECT 1 FROM procore_webhook_event WHERE body = ? OR event_id = ?"
        try:
            event_id = json.loads(body)["id"]
        except ValueError:
            event_id = None
        connection = sqlite3.connect(database)
        try:
            return bool(connection.execute(look, (body, event_id)).fetchall())
        finally:
            connection.close()

    def count(self) -> int:
        connection = sqlite3.connect(self.instance / "procore_webhooks.db")
        try:
            look = "SELECT count(*) FROM procore_webhook_event"
            return int(connection.execute(look).fetchone()[0])
        finally:
            connection.close()


def talk(port: int, message: bytes, hang_up: bool) -> int | None:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        try:
            connection.sendall(message)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # A request need not be read to its end to be answered.
        with HTTPResponse(connection) as answer:
            try:
                answer.begin()
            except ConnectionError:
                return None
            answer.read()
            return answer.status


def authentic(endpoint: str, body: bytes) -> list[str]:
    if endpoint == "token":
        return [f"Authorization: {AUTHORIZATION}"]
    return [f"{name}: {value}" for name, value in sign(body, SECRET).items()]


def chunks(body: bytes, size: int = 8000) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.fixture(scope="module", params=SERVERS)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "hostapp.py").write_text(HOST)
    instance = folder / "instance"
    server, options = SERVERS[request.param]
    with serve(
        "hostapp:app",
        server=server,
        folder=folder,
        env={"INSTANCE": str(instance)},
        options=options,
    ) as running:
        real = RealServer(running, instance)
        assert real.deliver("signed") == 200
        yield real


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("size", "status"),
    [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (10 * LIMIT, 413)],
)
def test_a_chunked_body_over_the_limit_is_refused_not_cut(
    real: RealServer, endpoint: str, size: int, status: int
) -> None:
    body, before = real.new_body(size), real.count()
    lines = [*authentic(endpoint, body), "Transfer-Encoding: chunked"]
    assert real.exchange(endpoint, lines, chunks(body) + b"0\r\n\r\n") == status
    assert real.recorded(body) == (status == 200)
    assert real.count() == before + (status == 200)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("size", "status"),
    [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (10 * LIMIT, 413)],
)
def test_a_body_of_known_length_over_the_limit_is_refused(
    real: RealServer, endpoint: str, size: int, status: int
) -> None:
    body = real.new_body(size)
    assert real.post(endpoint, body) == status
    assert real.recorded(body) == (status == 200)


def test_an_announced_length_over_the_limit_is_refused_at_once(
    real: RealServer,
) -> None:
    lines = [f"Authorization: {AUTHORIZATION}", "Content-Length: 999999999999"]
    assert real.exchange("token", lines, b"{") == 413


@pytest.mark.parametrize("length", ["abc", "-5", "5, 5", "1e3", "0x10", "9" * 5000])
def test_a_malformed_length_is_never_accepted(real: RealServer, length: str) -> None:
    before = real.count()
    lines = [f"Authorization: {AUTHORIZATION}", f"Content-Length: {length}"]
    status = real.exchange("token", lines, real.new_body(), hang_up=True)
    assert status in (None, 400, 401, 413)
    assert real.count() == before
    assert real.deliver("token") == 200


def cut_length(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body) + 20}", body


def cut_in_half(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}", body[: len(body) // 2]


def nothing_came(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}", b""


def cut_in_a_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body) + b"20\r\n  "


def cut_between_chunks(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body)


def cut_in_a_large_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body.ljust(70_000), 70_000)[:-5000]


def no_chunks_at_all(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", b""


def wrong_chunk_size(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body) + b"zz\r\n  \r\n0\r\n\r\n"


def no_end_of_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body)[:-2] + b"XX0\r\n\r\n"


CUTS = (
    cut_length,
    cut_in_half,
    nothing_came,
    cut_in_a_chunk,
    cut_between_chunks,
    cut_in_a_large_chunk,
    no_chunks_at_all,
    wrong_chunk_size,
    no_end_of_chunk,
)


@pytest.mark.parametrize("cut", CUTS)
def test_a_body_that_breaks_off_is_never_accepted(
    real: RealServer, cut: Callable[[bytes], tuple[str, bytes]]
) -> None:
    """A JSON object can be whole in what arrived of it, and no signature tells."""
    body, before = real.new_body(), real.count()
    framing, sent = cut(body)
    lines = [*authentic("token", body), framing]
    assert real.exchange("token", lines, sent, hang_up=True) in (None, 400, 401)
    assert real.count() == before
    assert real.deliver("token") == 200


def test_the_server_outlives_senders_that_just_go_away(real: RealServer) -> None:
    body, before = real.new_body(), real.count()
    for _ in range(5):
        connection = socket.create_connection(("127.0.0.1", real.server.port), 20)
        head = f"POST /token HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZATION}\r\n"
        connection.sendall(head.encode() + b"Content-Length: 5000\r\n\r\n" + body)
        # Without lingering: the server sees a reset instead of an end.
        reset = b"\1\0\0\0\0\0\0\0"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.close()
    assert real.deliver("token") == 200
    assert real.count() == before + 1


@pytest.mark.parametrize("name", ["X-Procore-Signature", "X-Procore-Timestamp"])
def test_a_header_of_the_signature_sent_twice_is_refused(
    real: RealServer, name: str
) -> None:
    """Even with the same value: who checks the first must not be told the second."""
    body = real.new_body()
    again = f"{name}: {sign(body, SECRET)[name]}"
    assert real.post("signed", body, again) == 401
    assert not real.recorded(body)


@pytest.mark.parametrize("value", [AUTHORIZATION, "Bearer other", ""])
def test_an_authorization_sent_twice_is_refused(real: RealServer, value: str) -> None:
    body = real.new_body()
    assert real.post("token", body, f"Authorization: {value}") in (400, 401)
    assert not real.recorded(body)


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_servers_pass_headers_on_whatever_their_case(
    real: RealServer, spell: Callable[[str], str]
) -> None:
    body = real.new_body()
    signed = {spell(name): value for name, value in sign(body, SECRET).items()}
    lines = [f"{name}: {value}" for name, value in signed.items()]
    lines.append(f"{spell('Content-Length')}: {len(body)}")
    assert real.exchange("signed", lines, body) == 200


def test_a_header_with_underscores_is_not_taken_for_ours(real: RealServer) -> None:
    body = real.new_body()
    lines = [line.replace("-", "_") for line in authentic("signed", body)]
    lines.append(f"Content-Length: {len(body)}")
    assert real.exchange("signed", lines, body) in (400, 401)
    assert not real.recorded(body)


@pytest.mark.parametrize("value", ["\xe9" * 64, "\x80\xff", "5" * 63, "=", "sha256=,"])
def test_a_strange_signature_is_refused_by_every_server(
    real: RealServer, value: str
) -> None:
    body = real.new_body()
    lines = [f"X-Procore-Signature: {value}", "X-Procore-Timestamp: 1"]
    lines.append(f"Content-Length: {len(body)}")
    assert real.exchange("signed", lines, body) in (400, 401)


def test_the_log_of_a_server_holds_no_secret_and_no_traceback(
    real: RealServer,
) -> None:
    """Of all the requests above: this test is the last one on each server."""
    body = real.new_body().replace(b"RFIs", MARK.encode())
    assert real.post("signed", body) == 200
    assert real.post("signed", body + b" ", "X-Nothing: 1") == 200
    assert real.exchange("signed", ["Content-Length: 2"], b"{}") == 401
    output = real.server.output()
    assert "signed answered 401" in output
    for word in (SECRET, AUTHORIZATION, sign(body, SECRET)["X-Procore-Signature"]):
        assert word not in output
    assert MARK not in output
    assert "flask_procore_webhooks/" not in output
