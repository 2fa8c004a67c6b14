"""Answers that no HTTP library makes, from a server that writes them byte by byte."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
import requests

from flask_procore_webhooks.api import APIError
from flask_procore_webhooks.api import BadAnswer
from flask_procore_webhooks.api import procore_errors
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api import RateLimited
from flask_procore_webhooks.api import Unavailable

PATH = "/rest/v1.0/projects"
TOKEN = "a-token-of-the-raw-server"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n"
FAR = "Mon, 01 Jan 99999999999 00:00:00 GMT"


class Server:
    """Answers every GET with the same bytes."""

    def __init__(self, answer: bytes, token: Any, seconds: Any) -> None:
        self.answer = answer
        self.token = {"access_token": token, "expires_in": seconds}
        self.url = ""

    def api(self) -> ProcoreAPI:
        return ProcoreAPI(
            "id",
            "a client secret",
            company_id="1",
            base_url=self.url,
            login_url=self.url,
            wait=0,
        )


@contextmanager
def serving(answer: bytes, token: Any = TOKEN, seconds: Any = 5400) -> Iterator[Server]:
    found = Server(answer, token, seconds)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(found.token).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.wfile.write(found.answer)
            self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def error_of(server: Server) -> APIError:
    """The error of reading a list."""
    with pytest.raises(APIError) as caught:
        list(server.api().pages(PATH))
    assert str(caught.value).startswith(f"GET {PATH}: ")
    return caught.value


@pytest.mark.parametrize(
    "header",
    [
        f"Date: {FAR}",
        "Date: Mon, 01 Jan 2026 99:00:00 GMT",
        "Date: Mon, 01 Jan 0001 00:00:00 +9999",
        "Date: soon",
        "X-Rate-Limit-Reset: 1e400\r\nX-Rate-Limit-Limit: nan",
        "X-Rate-Limit-Limit: -5\r\nX-Rate-Limit-Remaining: -1",
        "Total: " + "9" * 5000,
        "Per-Page: " + "9" * 5000,
        "Total: ²",
    ],
)
def test_odd_headers_do_not_matter(header: str) -> None:
    answer = OK + header.encode("latin-1") + b"\r\n\r\n[]"
    with serving(answer) as server:
        assert list(server.api().pages(PATH)) == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\n\r\n", "ValueError"),
        (b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n", "302|Unicode"),
        (OK + b'Link: <http://[/x>; rel="next"\r\n\r\n[]', "Link names a page"),
        (OK + b'Link: <http://a/x?page=b>; rel="next"\r\n\r\n[]', "Link names a page"),
        (
            OK + b'Link: <http://a/?per_page=b>; rel="next"\r\n\r\n[]',
            "Link names a",
        ),
        (
            CHUNKED + b"-5\r\n[]",
            "no answer|read",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[", "no answer"),
        (
            GZIP + b"[]",
            "read",
        ),
        (b"garbage\r\n\r\n", "no answer"),
        (b"", "no answer"),
    ],
)
def test_answer_that_cannot_be_read_is_an_error(answer: bytes, text: str) -> None:
    with serving(answer) as server:
        error = error_of(server)
    assert any(each in str(error) for each in text.split("|")), str(error)


@pytest.mark.parametrize("status", ["429 Too Many", "503 Unavailable"])
@pytest.mark.parametrize(
    "header",
    [f"Date: {FAR}", "Retry-After: " + "9" * 400],
)
def test_odd_waits_are_an_error_of_the_call(status: str, header: str) -> None:
    answer = f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()
    with serving(answer) as server:
        assert isinstance(error_of(server), (RateLimited, Unavailable))


def test_endless_body_ends_at_the_limit() -> None:
    part = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with serving(CHUNKED + 66 * part) as server:
        assert "more than 64 MB" in str(error_of(server))


@pytest.mark.parametrize("token", ["a\r\nb: c", "€uro", "\ud800", "a b", "", 5, None])
def test_token_that_no_header_can_have_is_an_error_without_it(
    token: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(OK + b"\r\n[]", token) as server:
        with pytest.raises(BadAnswer, match="POST /oauth/token: ") as caught:
            server.api().get(PATH)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert not isinstance(token, str) or len(token) < 4 or token not in shown


@pytest.mark.parametrize(
    "seconds", [10**400, float("inf"), float("nan"), -5, 0, True, "90", None]
)
def test_odd_lifetime_of_a_token_is_the_usual_one(seconds: Any) -> None:
    with serving(OK + b"\r\n[]", seconds=seconds) as server:
        api = server.api()
        assert api.get(PATH) == []
        assert api.get(PATH) == []


@pytest.mark.parametrize("host", ["a..example", "x" * 70 + ".example"])
def test_impossible_host_is_an_error_of_the_call(host: str) -> None:
    url = f"https://{host}"
    api = ProcoreAPI("id", "a client secret", base_url=url, login_url=url)
    with pytest.raises(APIError, match="POST /oauth/token: "):
        api.get(PATH)


def test_company_that_no_header_can_have_is_an_error_of_the_call() -> None:
    with serving(OK + b"\r\n[]") as server:
        with pytest.raises(APIError, match=f"GET {PATH}: cannot be sent or read"):
            server.api().get(PATH, company_id="€")


def test_no_proxy_learns_of_calls_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(b"", token="the proxy's") as proxy, serving(OK + b"\r\n[]") as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert server.api().get(PATH) == []


def test_errors_of_the_apps_own_client_have_odd_headers_too() -> None:
    head = b"HTTP/1.1 503 No\r\nRetry-After: Mon, 01 Jan 99999999999 00:00:00 GMT\r\n"
    with serving(head + b"Content-Length: 0\r\n\r\n") as server:
        with pytest.raises(Exception, match="503") as caught, procore_errors():
            requests.get(f"{server.url}{PATH}").raise_for_status()
    assert type(caught.value).__name__ == "RetryLater"
