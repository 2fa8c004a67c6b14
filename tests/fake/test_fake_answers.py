"""FakeProcore's broken answers, over WSGI, a socket and a mounted session."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import pytest
from fake_support import Api
from fake_support import PROJECT
from support.waiting import PATIENCE

from flask_procore_webhooks.fake import FakeProcore

HOOKS = f"{PROJECT}/hooks"
RFIS = "/rest/v1.0/projects/2/rfis"


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("empty", 200, b""),
        ("null", 200, b'{"data": null}'),
        ("redirect", 302, b""),
    ],
)
def test_answer_is_replaced(
    fake: FakeProcore, api: Api, kind: str, status: int, body: bytes
) -> None:
    fake.answer_next(kind)
    answer = api.call("GET", HOOKS)
    assert (answer.status_code, answer.data) == (status, body)
    assert api.call("GET", HOOKS).get_json() == {"data": []}


def test_html_is_a_login_page(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("html")
    answer = api.call("GET", HOOKS)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert "Log In" in answer.text


def test_redirect_leads_to_another_host(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("redirect")
    location = api.call("GET", HOOKS).headers["Location"]
    assert location.startswith("https://elsewhere.example.com/")


@pytest.mark.parametrize(("kind", "wait"), [("500", None), ("503", "9"), ("429", "9")])
def test_status_is_an_error(
    fake: FakeProcore, api: Api, kind: str, wait: str | None
) -> None:
    fake.answer_next(kind, seconds=9)
    answer = api.call("GET", HOOKS)
    assert answer.status_code == int(kind)
    assert answer.headers.get("Retry-After") == wait
    if kind == "429":
        reset = int(answer.headers["X-Rate-Limit-Reset"])
        assert reset == fake.clock.now().timestamp() + 9


def test_truncated_answer_is_no_json(fake: FakeProcore, api: Api) -> None:
    whole = api.call("GET", HOOKS).data
    fake.answer_next("truncated")
    answer = api.call("GET", HOOKS)
    assert answer.data == whole[: len(whole) // 2]
    assert answer.headers["Content-Length"] == str(len(answer.data))


def test_items_can_be_null(fake: FakeProcore, api: Api) -> None:
    hook = api.hook()
    fake.answer_next("null items", times=2)
    assert api.data("GET", HOOKS) == [None, hook]
    assert api.call("GET", RFIS).get_json() == [None]


def test_ids_can_be_numbers(fake: FakeProcore, api: Api) -> None:
    hook = api.hook()
    fake.answer_next("numbers")
    found = api.data("GET", HOOKS)[0]
    assert found["id"] == int(hook["id"])
    assert (found["project_id"], found["namespace"]) == (2, "mine")


def test_first_page_can_repeat(fake: FakeProcore, api: Api) -> None:
    for number in range(4):
        fake.create("RFIs", project="2", id=str(number))
    fake.answer_next("repeat", path="rfis", times=2)
    for page in (1, 2):
        answer = api.call("GET", RFIS, per_page=2, page=page)
        assert [row["id"] for row in answer.get_json()] == [0, 1]
        assert "page=2" in answer.headers["Link"]
    answer = api.call("GET", RFIS, per_page=2, page=2)
    assert [row["id"] for row in answer.get_json()] == [2, 3]


def test_order_names_method_path_and_number(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("500", method="POST")
    fake.answer_next("500", path=r"/rfis\?.*page=2", times=2)
    fake.answer_next("503", path="/hooks", skip=1)
    calls: list[tuple[str, dict[str, Any]]] = [
        (HOOKS, {}),
        (HOOKS, {}),
        (HOOKS, {}),
        (RFIS, {"page": 1}),
        (RFIS, {"page": 2}),
        (RFIS, {"page": 2}),
        (RFIS, {"page": 2}),
    ]
    statuses = [api.call("GET", path, **query).status_code for path, query in calls]
    assert statuses == [200, 503, 200, 200, 500, 500, 200]
    assert api.call("POST", RFIS, {}).status_code == 500
    assert fake.requests[-1] == ("POST", RFIS, 500)


def test_unknown_kind_is_an_error(fake: FakeProcore) -> None:
    with pytest.raises(ValueError, match="kind is one of html"):
        fake.answer_next("teapot")


def test_token_requests_can_be_broken(fake: FakeProcore) -> None:
    fake.answer_next("html", method="POST", path="/oauth/token")
    answer = fake.test_client().post("/oauth/token", data={})
    assert answer.mimetype == "text/html"


def test_reset_is_an_error_of_the_test_client(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("reset")
    with pytest.raises(ConnectionResetError):
        api.call("GET", HOOKS)
    assert fake.requests[-1] == ("GET", HOOKS, 0)


# Served


def get(base_url: str, api: Api, path: str, timeout: float = 10) -> Any:
    request = urllib.request.Request(base_url + path, headers=api.headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as answer:
        return answer.read()


def test_fake_is_served_on_loopback(fake: FakeProcore, api: Api) -> None:
    before = {*threading.enumerate()}
    with fake.serve() as base_url:
        assert base_url.startswith("http://127.0.0.1:")
        assert get(base_url, api, HOOKS) == b'{"data": []}'
        host = base_url.removeprefix("http://")
        with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
            connection.request("GET", HOOKS, headers=api.headers)
            with connection.getresponse() as answer:
                dates = answer.headers.get_all("Date")
        assert dates == ["Mon, 23 Nov 2026 09:00:00 GMT"]
    with pytest.raises(urllib.error.URLError):
        get(base_url, api, HOOKS)
    assert {*threading.enumerate()} <= before


def test_idle_connection_is_closed_with_the_server(fake: FakeProcore, api: Api) -> None:
    with fake.serve() as base_url:
        port = int(base_url.rpartition(":")[2])
        idle = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        idle.sendall(b"GET / HTTP/1.1\r\n")
        # Connections are accepted one after the other.
        get(base_url, api, HOOKS)
    with idle:
        assert idle.recv(1) == b""


def test_served_connection_can_be_reset(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("reset")
    with fake.serve() as base_url:
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            get(base_url, api, HOOKS)
        assert get(base_url, api, HOOKS) == b'{"data": []}'


def test_served_answer_can_be_slow(fake: FakeProcore, api: Api) -> None:
    fake.answer_next("slow", seconds=3600)
    with fake.serve() as base_url:
        with pytest.raises(TimeoutError):
            get(base_url, api, HOOKS, timeout=0.2)
    # The slow answer has ended with the server, long before its time.
    assert fake.requests == [("POST", "/oauth/token", 200), ("GET", HOOKS, 200)]


def test_links_name_the_served_host(fake: FakeProcore, api: Api) -> None:
    with fake.serve() as base_url:
        path = f"{PROJECT}/resources?payload_version=v4.0"
        request = urllib.request.Request(base_url + path, headers=api.headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["Link"].startswith(f"<{base_url}/rest/v2.0/")
