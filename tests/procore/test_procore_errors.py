"""``procore_errors``: what errors of the API mean for a subscriber's job."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from support.hosts import Host
from support.hosts import run_host

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.api import APIError
from flask_procore_webhooks.api import procore_errors
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api import RateLimited
from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.testing import drain

MakeApp = Callable[..., Flask]
RFIS = "/rest/v1.0/projects/2/rfis"


@pytest.fixture
def host(make_app: MakeApp, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(), "flask_sqlalchemy", url) as host:
        yield host


def job_after(host: Host, call: Callable[[], object]) -> dict[str, Any]:
    """The job of a subscriber that makes the call."""

    @host.webhooks.on(name="sync")
    def sync(event: Event) -> None:
        with procore_errors():
            call()

    host.deliver()
    drain(host.app)
    return host.jobs()["sync"]


def test_404_ends_the_job_and_says_so(host: Host, api: ProcoreAPI) -> None:
    job = job_after(host, lambda: api.get(f"{RFIS}/5"))
    assert (job["state"], job["error_class"]) == ("discarded", "Discard")
    assert job["error"] == f"GET {RFIS}/5: 404, Not Found"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("429", "the hourly rate limit is used up for 900 s"),
        ("503", "503, Procore is unavailable for 900 s"),
        ("reset", "no answer from api.procore.com (ConnectionError)"),
    ],
)
def test_busy_procore_postpones_the_job_and_says_so(
    host: Host, fake: FakeProcore, api: ProcoreAPI, kind: str, text: str
) -> None:
    fake.answer_next(kind, path=RFIS, seconds=900)
    job = job_after(host, lambda: api.get(RFIS))
    assert (job["state"], job["waits_for"]) == ("pending", "later")
    assert (job["error_class"], job["error"]) == ("RetryLater", f"GET {RFIS}: {text}")
    assert job["attempts"] == 0
    if kind != "reset":
        waited = (job["due_at"] - job["started_at"]).total_seconds()
        assert 890 < waited < 910


@pytest.mark.parametrize("kind", ["500", "html", "redirect", "truncated"])
def test_other_answers_are_a_failed_attempt(
    host: Host, fake: FakeProcore, api: ProcoreAPI, kind: str
) -> None:
    fake.answer_next(kind, path=RFIS)
    job = job_after(host, lambda: api.get(RFIS))
    assert (job["state"], job["attempts"], job["waits_for"]) == ("pending", 1, "retry")
    assert job["error"].startswith(f"GET {RFIS}: ")


def test_403_is_a_failed_attempt(
    host: Host, fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.forbid(company="1", project="2")
    job = job_after(host, lambda: api.get(RFIS))
    assert job["error_class"] == "flask_procore_webhooks.api.errors.NotPermitted"
    assert job["attempts"] == 1


def test_errors_of_the_caller_pass() -> None:
    for error in (ValueError("mine"), OSError("disk"), FileNotFoundError("file")):
        with pytest.raises(type(error)) as caught, procore_errors():
            raise error
        assert caught.value is error


def test_cause_is_kept(api: ProcoreAPI) -> None:
    with pytest.raises(Discard) as caught, procore_errors():
        api.get(f"{RFIS}/5")
    assert isinstance(caught.value.__cause__, APIError)


# Clients of the app's own


@pytest.fixture
def served(fake: FakeProcore) -> Iterator[str]:
    with fake.serve() as url:
        yield url


def get(url: str, **options: Any) -> None:
    requests.get(url, **options).raise_for_status()


def test_404_of_requests_is_a_discard(fake: FakeProcore, served: str) -> None:
    with pytest.raises(Discard, match="^GET /nowhere: 404$"), procore_errors():
        get(f"{served}/nowhere?access_token=secret")


def test_503_of_requests_is_a_retry_later(fake: FakeProcore, served: str) -> None:
    fake.answer_next("503", path=RFIS, seconds=70)
    with pytest.raises(RetryLater) as caught, procore_errors():
        get(f"{served}{RFIS}")
    assert caught.value.after == 70
    assert caught.value.reason == f"GET {RFIS}: 503"


def test_other_statuses_of_requests_pass(fake: FakeProcore, served: str) -> None:
    fake.answer_next("500", path=RFIS)
    with pytest.raises(requests.HTTPError, match="500"), procore_errors():
        get(f"{served}{RFIS}")


def test_refused_connection_of_requests_is_a_retry_later(fake: FakeProcore) -> None:
    with fake.serve() as url:
        pass
    with pytest.raises(RetryLater) as caught, procore_errors():
        get(f"{url}{RFIS}?access_token=secret")
    assert caught.value.reason == f"GET {RFIS}: no answer (ConnectionError)"
    assert caught.value.after is None


def test_error_of_requests_without_a_request_is_named() -> None:
    with pytest.raises(RetryLater, match="a request: no answer .Timeout"):
        with procore_errors():
            raise requests.Timeout
    with pytest.raises(requests.HTTPError), procore_errors():
        raise requests.HTTPError


def test_invalid_address_of_requests_passes() -> None:
    with pytest.raises(requests.exceptions.MissingSchema), procore_errors():
        get("nowhere")


def test_rate_limited_names_the_seconds(fake: FakeProcore, api: ProcoreAPI) -> None:
    fake.answer_next("429", path=RFIS, seconds=900)
    with pytest.raises(RateLimited) as caught:
        api.get(RFIS)
    assert caught.value.after is not None
    assert 899 < caught.value.after <= 900
