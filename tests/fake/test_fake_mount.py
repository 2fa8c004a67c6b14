"""FakeProcore mounted into a session of requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_support import Api
from fake_support import HOOK
from fake_support import PROJECT

from flask_procore_webhooks.fake import FakeProcore

requests = pytest.importorskip("requests")

HOOKS = f"https://api.procore.com{PROJECT}/hooks"


@pytest.fixture
def session(fake: FakeProcore, api: Api) -> Iterator[Any]:
    """A session with the fake mounted, and a token."""
    with requests.Session() as session:
        session.trust_env = False
        fake.mount(session)
        session.headers.update(api.headers)
        yield session


def test_session_gets_real_responses(session: Any) -> None:
    answer = session.post(HOOKS, json=HOOK, timeout=5)
    assert isinstance(answer, requests.Response)
    assert (answer.status_code, answer.reason) == (201, "CREATED")
    assert answer.url == HOOKS
    assert answer.headers["content-type"] == "application/json"
    found = session.get(HOOKS, params={"namespace": "mine"}, timeout=(1, 5))
    assert found.json()["data"] == [answer.json()["data"]]


def test_token_is_issued_on_the_login_host(fake: FakeProcore, session: Any) -> None:
    form = {
        "grant_type": "client_credentials",
        "client_id": "id",
        "client_secret": "secret",
    }
    url = "https://login.procore.com/oauth/token"
    for body in ({"data": form}, {"json": form}, {"files": {}, "data": form}):
        assert "access_token" in session.post(url, **body).json()
    multipart = {name: (None, value) for name, value in form.items()}
    assert "access_token" in session.post(url, files=multipart).json()


def test_links_lead_through_the_pages(session: Any) -> None:
    url = f"https://api.procore.com{PROJECT}/resources"
    answer = session.get(url, params={"payload_version": "v4.0"})
    names = {row["name"] for row in answer.json()["data"]}
    while "next" in answer.links:
        answer = session.get(answer.links["next"]["url"])
        names |= {row["name"] for row in answer.json()["data"]}
    assert len(names) == int(answer.headers["Total"])


def test_response_can_be_streamed(session: Any) -> None:
    with session.get(HOOKS, stream=True) as answer:
        assert b"".join(answer.iter_content(4)) == b'{"data": []}'
    with session.get(HOOKS, stream=True) as answer:
        assert answer.raw.read(3) == b'{"d'


def test_redirect_is_followed_only_if_allowed(fake: FakeProcore, session: Any) -> None:
    fake.answer_next("redirect")
    answer = session.get(HOOKS, allow_redirects=False)
    assert answer.status_code == 302
    fake.mount(session, "https://elsewhere.example.com")
    fake.answer_next("redirect")
    answer = session.get(HOOKS)
    assert answer.url == "https://elsewhere.example.com/login"
    assert len(answer.history) == 1


def test_reset_is_a_connection_error(fake: FakeProcore, session: Any) -> None:
    fake.answer_next("reset")
    with pytest.raises(requests.ConnectionError):
        session.get(HOOKS)


@pytest.mark.parametrize("timeout", [1, (1, 1)])
def test_slow_answer_is_a_timeout(
    fake: FakeProcore, session: Any, timeout: Any
) -> None:
    fake.answer_next("slow", seconds=60)
    with pytest.raises(requests.ReadTimeout):
        session.get(HOOKS, timeout=timeout)
    fake.answer_next("slow", seconds=0.01)
    assert session.get(HOOKS, timeout=timeout).status_code == 200


def test_body_may_be_an_iterator(session: Any) -> None:
    body = iter([b'{"payload_version": "v4.0",', b'"namespace": "it"}'])
    answer = session.post(HOOKS, data=body)
    assert answer.json()["error"]["message"] == "destination_url is missing"


def test_host_can_be_chosen(fake: FakeProcore, api: Api) -> None:
    with requests.Session() as session:
        fake.mount(session, "https://procore.example.com/")
        url = f"https://procore.example.com{PROJECT}/hooks"
        assert session.get(url, headers=api.headers).json() == {"data": []}
        assert "https://api.procore.com/" not in session.adapters
