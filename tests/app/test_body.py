"""The body of a delivery: reads by the host, size limit, exact bytes."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask import g
from flask import Request
from flask import request
from flask import Response
from support.values import AUTHORIZATION
from support.values import SECRET
from support.web import body_of
from support.web import CONTENT_TYPES
from support.web import LIMIT
from support.web import PATH
from support.web import post
from support.web import recorded
from werkzeug.test import EnvironBuilder
from werkzeug.test import run_wsgi_app
from werkzeug.wsgi import get_input_stream

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
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


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_body_read_by_the_host_first_is_still_verified(
    make_app: MakeApp, consumer: str, content_type: str
) -> None:
    app = make_app()
    app.before_request(lambda: setattr(g, "consumed", CONSUMERS[consumer]()))
    app.register_blueprint(ProcoreWebhooks())
    body = to_bytes(payload("RFIs.create", id="evt_1"))
    answer = deliver(app.test_client(), body, headers={"Content-Type": content_type})
    assert answer.json == {"received": True}
    assert body_of(app, "evt_1") == body


def test_real_multipart_body_is_authentic_and_quarantined(app: Flask) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = deliver(app.test_client(), body, headers=header)
    assert answer.json == {"received": True, "quarantined": True}


def test_body_consumed_without_cache_is_refused_with_a_reason(
    token_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """The unread rest must not be treated as the delivery."""
    token_app.url_value_preprocessor(lambda *_: print(request.get_data(cache=False)))
    answer = deliver(token_app.test_client(), payload("RFIs.create"))
    assert answer.status_code == 401
    assert "did not arrive whole" in caplog.text
    assert recorded(token_app) == []


def test_host_hooks_run_for_a_refused_body(
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


def test_routes_added_to_the_blueprint_are_not_limited(
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


@pytest.mark.parametrize(
    ("size", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)]
)
def test_size_limit_is_exact(token_app: Flask, size: int, status: int) -> None:
    answer = deliver(token_app.test_client(), b"{}".ljust(size))
    assert answer.status_code == status
    assert len(recorded(token_app)) == (status == 200)


def test_max_bytes_replaces_max_content_length(make_app: MakeApp) -> None:
    app = make_app(MAX_CONTENT_LENGTH=10, PROCORE_WEBHOOK_MAX_BYTES=1000)
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), b"{}".ljust(1000)).status_code == 200
    assert deliver(app.test_client(), b"{}".ljust(1001)).status_code == 413


class Endless(io.RawIOBase):
    """An endless body that counts the bytes read."""

    read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.read_bytes += len(buffer)
        buffer[:] = b" " * len(buffer)
        return len(buffer)


def test_endless_body_is_read_up_to_the_limit(
    token_app: Flask,
) -> None:
    body = Endless()
    answer = token_app.test_client().post(
        PATH,
        headers={"Transfer-Encoding": "chunked", "Authorization": AUTHORIZATION},
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert (answer.status_code, body.read_bytes) == (413, LIMIT + 1)


def test_body_with_a_content_length_over_the_limit_is_not_read(
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
def test_body_that_differs_from_its_content_length_is_refused(
    token_app: Flask, length: str
) -> None:
    """Some servers pass such requests on; a shortened body could be accepted."""
    body = b'{"id": "evt"}' if length != "13" else b'{"id": "ev"}'
    answer = token_app.test_client().post(
        PATH,
        input_stream=io.BytesIO(body[: int(length) - 1] if length == "1" else body),
        headers={"Authorization": AUTHORIZATION},
        environ_overrides={"CONTENT_LENGTH": length, "wsgi.input_terminated": True},
    )
    assert answer.status_code == 401
    assert recorded(token_app) == []


def test_content_length_may_have_leading_zeros(token_app: Flask) -> None:
    answer = post(
        token_app,
        b"{}",
        headers={"Authorization": AUTHORIZATION},
        environ_overrides={"CONTENT_LENGTH": "002"},
    )
    assert answer.status_code == 200


def test_chunked_body_is_refused_without_server_support(
    token_app: Flask,
) -> None:
    """Werkzeug then reads an empty body instead of the delivery."""
    answer = token_app.test_client().post(
        PATH,
        input_stream=io.BytesIO(b"{}"),
        headers={"Transfer-Encoding": "chunked", "Authorization": AUTHORIZATION},
    )
    assert answer.status_code == 401
    assert recorded(token_app) == []


# The end of the body


def post_raw(app: Flask, body: bytes, **environ: Any) -> Response:
    """Post with the Authorization and exactly these keys for the body."""
    builder = EnvironBuilder(
        path=PATH, method="POST", headers={"Authorization": AUTHORIZATION}
    )
    made = {**builder.get_environ(), "wsgi.input": io.BytesIO(body)}
    made.pop("CONTENT_LENGTH", None)
    content, status, headers = run_wsgi_app(app, made | environ)
    return Response(content, status, headers)


@pytest.mark.parametrize("terminated", [{}, {"wsgi.input_terminated": False}])
@pytest.mark.parametrize("length", [{}, {"CONTENT_LENGTH": ""}])
@pytest.mark.parametrize(
    "chunked", [{}, {"HTTP_TRANSFER_ENCODING": "chunked"}, {"CONTENT_LENGTH": "2"}]
)
def test_body_without_a_known_end_is_refused_and_names_the_server(
    token_app: Flask,
    caplog: pytest.LogCaptureFixture,
    terminated: dict[str, Any],
    length: dict[str, Any],
    chunked: dict[str, Any],
) -> None:
    if "CONTENT_LENGTH" in chunked:
        chunked = {**chunked, "HTTP_TRANSFER_ENCODING": "gzip, chunked"}
    environ = {**terminated, **length, **chunked, "SERVER_SOFTWARE": "Strange/1.0"}
    answer = post_raw(token_app, b"{}", **environ)
    assert (answer.status_code, answer.json) == (401, {"error": "Invalid signature"})
    assert recorded(token_app) == []
    gave = "neither a Content-Length"
    if environ.get("CONTENT_LENGTH"):
        gave = "a Content-Length and Transfer-Encoding, which exclude each other"
    assert f"the server ('Strange/1.0') gave {gave}" in caplog.text


def test_empty_transfer_encoding_of_a_proxy_is_none(token_app: Flask) -> None:
    environ = {"CONTENT_LENGTH": "2", "HTTP_TRANSFER_ENCODING": ""}
    answer = post_raw(token_app, b"{}", **environ)
    assert answer.json == {"received": True}


def test_server_without_a_name_is_named_by_its_package(
    token_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    post_raw(token_app, b"{}")
    # The outermost package that is not of Python itself.
    assert re.search(r"the server \('_?(pytest|xdist|execnet)'\) gave", caplog.text)


@pytest.mark.parametrize("length", ["+2", " 2", "2 ", "-2", "2,2", "2, 2", "٢", "0x2"])
@pytest.mark.parametrize("terminated", [{}, {"wsgi.input_terminated": True}])
def test_malformed_content_length_is_refused(
    token_app: Flask, length: str, terminated: dict[str, Any]
) -> None:
    answer = post_raw(token_app, b"{}", CONTENT_LENGTH=length, **terminated)
    assert answer.status_code == 401
    assert recorded(token_app) == []


def test_terminated_body_needs_no_length(token_app: Flask) -> None:
    environ = {"wsgi.input_terminated": True}
    assert post_raw(token_app, b"{}", **environ).json == {"received": True}


def test_chunked_body_must_have_the_length_that_it_names(token_app: Flask) -> None:
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    assert post_raw(token_app, b"{}", CONTENT_LENGTH="3", **environ).status_code == 401
    assert post_raw(token_app, b"{}", CONTENT_LENGTH="1", **environ).status_code == 401
    assert recorded(token_app) == []
    assert post_raw(token_app, b"{}", CONTENT_LENGTH="2", **environ).status_code == 200


def test_empty_body_is_authentic_only_with_a_length(
    token_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a length, something may have read it before."""
    for environ in ({}, {"HTTP_TRANSFER_ENCODING": "chunked"}):
        answer = post_raw(token_app, b"", **environ, **{"wsgi.input_terminated": True})
        assert answer.status_code == 401
    assert "0 bytes are left of it" in caplog.text
    answer = post_raw(token_app, b"", CONTENT_LENGTH="0")
    assert answer.json == {"received": True, "quarantined": True}


# Headers before the body


class Unread(io.RawIOBase):
    """A body that must not be read."""

    def read(self, *_: object) -> bytes:
        raise AssertionError("the body was read")

    readinto = readall = readline = read  # type: ignore[assignment]


BAD_HEADERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "no timestamp": {"X-Procore-Signature": "0" * 64},
    "no signature": {"X-Procore-Timestamp": "1700000000"},
    "malformed": {"X-Procore-Signature": "x", "X-Procore-Timestamp": "1700000000"},
    "stale": sign(b"", SECRET, timestamp=1700000000),
    "no Authorization": sign(b"", SECRET, timestamp=4),
    "wrong Authorization": {"Authorization": "Bearer x"},
}


@pytest.mark.parametrize("headers", BAD_HEADERS)
@pytest.mark.parametrize("config", ["SECRET", "AUTHORIZATION", "both"])
def test_delivery_with_bad_headers_is_refused_unread(
    make_app: MakeApp, headers: str, config: str
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None if config == "AUTHORIZATION" else SECRET,
        PROCORE_WEBHOOK_AUTHORIZATION=None if config == "SECRET" else AUTHORIZATION,
    )
    app.before_request(lambda: setattr(g, "seen", request.get_data()))
    app.register_blueprint(ProcoreWebhooks())
    for environ in ({"CONTENT_LENGTH": "100"}, {"wsgi.input_terminated": True}):
        environ |= {"wsgi.input": Unread()}
        answer = app.test_client().post(
            PATH, headers=BAD_HEADERS[headers], environ_overrides=environ
        )
        assert answer.status_code == 401


def test_both_factors_are_judged_before_the_body(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION)
    app.register_blueprint(ProcoreWebhooks())
    environ: dict[str, Any] = {"CONTENT_LENGTH": "100", "wsgi.input": Unread()}
    headers = {**sign(b"", SECRET), "Authorization": "Bearer x"}
    answer = app.test_client().post(PATH, headers=headers, environ_overrides=environ)
    assert answer.json == {"error": "Invalid authorization"}


# Request classes of hosts


class SmallLimit(Request):
    """The limit is a property that cannot be set."""

    @property
    def max_content_length(self) -> int | None:  # type: ignore[override]
        return 5


class NoCache(Request):
    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["cache"] = False
        return super().get_data(*args, **kwargs)


class NoArguments(Request):
    def get_data(self) -> bytes:  # type: ignore[override]
        return super().get_data(cache=True)


class Replaced(Request):
    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        return "replaced" if kwargs.get("as_text") else b"replaced"


class Failing(Request):
    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no data")


class OwnStream(Request):
    @property
    def stream(self) -> Any:  # type: ignore[override]
        return io.BytesIO(b"another")


class ReadsFirst(Request):
    def __init__(self, environ: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(environ, *args, **kwargs)
        self.early = self.get_data()


class StreamOfEnvironment(Request):
    @property
    def stream(self) -> Any:  # type: ignore[override]
        return get_input_stream(self.environ)


CLASSES = [SmallLimit, NoCache, NoArguments, Replaced, Failing, OwnStream, ReadsFirst]
CLASSES.append(StreamOfEnvironment)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("chunked", [False, True])
def test_request_class_of_the_host_does_not_matter(
    make_app: MakeApp, kind: type[Request], chunked: bool
) -> None:
    app = make_app(PROCORE_WEBHOOK_MAX_BYTES=LIMIT)
    app.request_class = kind
    app.register_blueprint(ProcoreWebhooks())
    for size, status in ((100, 200), (LIMIT, 200), (LIMIT + 1, 413)):
        body = f'{{"id": "evt_{size}"}}'.encode().ljust(size)
        headers = sign(body, SECRET)
        environ: dict[str, Any] = {}
        if chunked:
            environ = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
            environ["wsgi.input_terminated"] = True
        client = app.test_client()
        answer = client.post(
            PATH, data=body, headers=headers, environ_overrides=environ
        )
        assert answer.status_code == status
        if status == 200:
            assert body_of(app, f"evt_{size}") == body
    assert post(app, b"{}", headers=sign(b"[]", SECRET)).status_code == 401


class Socket(io.BytesIO):
    """As a server's socket, which has no end: a read after the body would wait."""

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        assert part or size == 0, "the read would wait for the sender"
        return part


@pytest.mark.parametrize("kind", [*CLASSES[1:-2], StreamOfEnvironment])
def test_socket_is_read_to_the_end_of_the_body_only(
    make_app: MakeApp, kind: type[Request]
) -> None:
    app, seen = make_app(PROPAGATE_EXCEPTIONS=True), []
    app.request_class = kind
    app.register_blueprint(ProcoreWebhooks())

    @app.after_request
    def look(response: Any) -> Any:
        seen.append(request.stream.read())
        return response

    body = b'{"id": "evt_1"}'
    builder = EnvironBuilder(PATH, method="POST", headers=sign(body, SECRET))
    environ = builder.get_environ()
    environ |= {"wsgi.input": Socket(body), "CONTENT_LENGTH": str(len(body))}
    _, status, _ = run_wsgi_app(app, environ)
    assert status == "200 OK"
    assert kind is not StreamOfEnvironment or seen == [body]


@pytest.mark.parametrize("kind", [Request, SmallLimit, NoCache])
def test_later_callers_get_the_same_bytes(
    make_app: MakeApp, kind: type[Request]
) -> None:
    app, seen = make_app(), []
    app.request_class = kind
    app.before_request(lambda: seen.append(request.get_data()))

    @app.after_request
    def look(response: Any) -> Any:
        if kind is not NoCache:
            seen.append(request.get_data())
        return response

    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), b"{}").status_code == 200
    assert set(seen) == {b"{}"}


@pytest.mark.parametrize(
    "limit", [{"MAX_CONTENT_LENGTH": 5}, {"MAX_FORM_MEMORY_SIZE": 5}]
)
@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_limits_of_the_app_do_not_matter(
    make_app: MakeApp, limit: dict[str, int], content_type: str
) -> None:
    app = make_app(**limit)
    app.register_blueprint(ProcoreWebhooks())
    body = to_bytes(payload("RFIs.create", id="evt_1"))
    answer = deliver(app.test_client(), body, headers={"Content-Type": content_type})
    assert answer.json == {"received": True}
    assert body_of(app, "evt_1") == body


def test_view_that_is_called_twice_verifies_twice(make_app: MakeApp) -> None:
    """A host may wrap the view, for example to retry it."""
    app = make_app()
    app.register_blueprint(ProcoreWebhooks())
    view = app.view_functions["procore_webhooks.receive"]
    app.view_functions["procore_webhooks.receive"] = lambda: (view(), view())[1]
    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert answer.json == {"received": True, "duplicate": True}


def test_view_without_its_preprocessor_still_verifies(make_app: MakeApp) -> None:
    app = make_app()
    app.register_blueprint(ProcoreWebhooks())
    app.url_value_preprocessors.clear()
    assert deliver(app.test_client(), payload("RFIs.create")).status_code == 200
    assert post(app, b"{}").status_code == 401


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
def test_body_is_verified_and_stored_byte_for_byte(app: Flask, spelling: str) -> None:
    body = ODD_SPELLINGS[spelling]
    assert deliver(app.test_client(), body).json == {"received": True}
    assert body_of(app, "evt_1") == body


@pytest.mark.parametrize("spelling", ODD_SPELLINGS)
def test_reserialised_json_is_refused(app: Flask, spelling: str) -> None:
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
    assert recorded(app) == []


NOT_JSON = {
    "not UTF-8": b"\xff\xfe",
    "UTF-8 cut in a letter": b'{"id": "caf\xc3',
    "UTF-16": '{"id": "evt_1"}'.encode("utf-16"),
    "NUL": b"\0",
    "nothing": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("content", NOT_JSON)
def test_authentic_unreadable_body_is_quarantined(app: Flask, content: str) -> None:
    body = NOT_JSON[content]
    answer = deliver(app.test_client(), body)
    assert answer.json == {"received": True, "quarantined": True}
    (row,) = recorded(app)
    assert row["status"] == "quarantined"
    assert body_of(app, row["event_id"]) == body


@pytest.mark.parametrize("content", NOT_JSON)
def test_unsigned_unreadable_body_is_refused_and_not_recorded(
    app: Flask, content: str
) -> None:
    assert post(app, NOT_JSON[content]).status_code == 401
    assert recorded(app) == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_compressed_body_is_quarantined_and_never_inflated(
    app: Flask, encoding: str
) -> None:
    """The inflated body would be readable and larger than MAX_BYTES."""
    body = gzip.compress(b'{"id": "evt_1"}'.ljust(2**24), mtime=0)
    header = {"Content-Encoding": encoding}
    answer = deliver(app.test_client(), body, headers=header)
    assert answer.json == {"received": True, "quarantined": True}
    (row,) = recorded(app)
    assert body_of(app, row["event_id"]) == body
