"""ProcoreAPI and the rate limits: which one is used up, and how long a call waits."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
import requests

from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api import RateLimited
from flask_procore_webhooks.api import Unavailable
from flask_procore_webhooks.api.limits import read_limit
from flask_procore_webhooks.api.limits import read_wait
from flask_procore_webhooks.fake import FakeProcore

PATH = "/rest/v1.1/projects/2/submittals"
NOON = 1_796_040_000


class Client:
    """A client whose waits move the fake's clock."""

    def __init__(
        self, fake: FakeProcore, session: requests.Session, **options: Any
    ) -> None:
        self.fake = fake
        self.waits: list[float] = []
        self.api = ProcoreAPI(
            "id",
            "a client secret",
            company_id="1",
            session=session,
            sleep=self._sleep,
            **options,
        )
        self.api.get(PATH)

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        # The fake's clock stands while the real one goes on.
        self.fake.clock.advance(seconds + 0.1)

    def statuses(self) -> list[int]:
        """The statuses of the calls, without those of tokens."""
        return [status for _, path, status in self.fake.requests if path == PATH]


@pytest.fixture(params=[0, 3600, -3600])
def offset(request: pytest.FixtureRequest, fake: FakeProcore) -> int:
    """Seconds by which Procore's clock is ahead of this host's."""
    fake.switches.clock_offset = request.param
    return int(request.param)


def test_calls_wait_for_the_short_limit(
    fake: FakeProcore, session: requests.Session, offset: int
) -> None:
    fake.switches.spike_limit = 5
    client = Client(fake, session)
    for _ in range(19):
        client.api.get(PATH)
    assert client.statuses() == [200] * 20
    assert len(client.waits) == 3
    assert all(0 < wait <= 11 for wait in client.waits)


def test_used_up_hour_is_an_error_with_the_time_that_is_left(
    fake: FakeProcore, session: requests.Session, offset: int
) -> None:
    fake.switches.hourly_limit = 5
    client = Client(fake, session)
    for _ in range(4):
        client.api.get(PATH)
    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            client.api.get(PATH)
        text = "the hourly rate limit is used up for "
        assert str(caught.value).startswith(f"GET {PATH}: {text}")
        assert caught.value.after is not None
        assert 3000 < caught.value.after <= 3601
    # Neither the wait nor the refused calls asked Procore.
    assert client.waits == []
    assert client.statuses() == [200] * 5


@pytest.mark.parametrize("shown", ["spike", "nearest", "none"])
@pytest.mark.parametrize("told", ["both", "reset", "retry-after"])
def test_429_waits_as_told_and_repeats(
    fake: FakeProcore, session: requests.Session, shown: str, told: str
) -> None:
    fake.switches.spike_limit = 3
    fake.switches.limit_headers, fake.switches.retry_after = shown, told
    client = Client(fake, session)
    for _ in range(8):
        assert client.api.get(PATH) == []
    assert client.statuses().count(200) == 9
    assert sum(client.waits) <= 3 * 11


def test_wait_that_does_not_fit_is_not_waited(
    fake: FakeProcore, session: requests.Session
) -> None:
    fake.switches.spike_limit = 1
    client = Client(fake, session, wait=3)
    with pytest.raises(RateLimited, match="rate limit of ten seconds is used up"):
        client.api.get(PATH)
    assert client.waits == []
    assert client.api.get(PATH, wait=11) == []


def test_waits_of_a_call_share_its_time(
    fake: FakeProcore, session: requests.Session
) -> None:
    client = Client(fake, session, wait=10)
    for _ in range(3):
        fake.answer_next("503", path=PATH, seconds=4)
    with pytest.raises(Unavailable, match="503, Procore is unavailable for 4 s"):
        client.api.get(PATH)
    assert client.waits == [4, 4]
    assert client.statuses() == [200, 503, 503, 503]


def test_503_without_a_time_is_an_error_at_once(
    fake: FakeProcore, session: requests.Session
) -> None:
    client = Client(fake, session)
    fake.answer_next("503", path=PATH, seconds=0)
    with pytest.raises(Unavailable) as caught:
        client.api.get(PATH)
    assert caught.value.after is None
    assert client.waits == []


def test_busy_procore_is_an_error_with_the_time_that_it_names(
    fake: FakeProcore, session: requests.Session
) -> None:
    client = Client(fake, session)
    fake.switches.busy = 120
    with pytest.raises(Unavailable) as caught:
        client.api.get(PATH)
    assert caught.value.after == 120


def test_reserve_leaves_a_part_of_the_limit_to_others(
    fake: FakeProcore, session: requests.Session
) -> None:
    fake.switches.spike_limit, fake.switches.hourly_limit = None, 50
    client = Client(fake, session, reserve=0.2)
    with pytest.raises(RateLimited, match="hourly"):
        for _ in range(50):
            client.api.get(PATH)
    assert len(client.statuses()) == 40


@pytest.mark.parametrize("limit_by", ["app", "company"])
def test_limit_of_a_company_does_not_stop_the_others(
    fake: FakeProcore, session: requests.Session, limit_by: str
) -> None:
    fake.add_company("9", projects=["7"])
    fake.switches.limit_by, fake.switches.hourly_limit = limit_by, 3
    client = Client(fake, session)
    for _ in range(2):
        client.api.get(PATH)
    with pytest.raises(RateLimited):
        client.api.get(PATH)
    other, path = client.api.of_company("9"), "/rest/v1.1/projects/7/submittals"
    if limit_by == "company":
        assert other.get(path) == []
    else:
        with pytest.raises(RateLimited):
            other.get(path)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"X-Rate-Limit-Reset": str(NOON + 5)}, 5),
        ({"Retry-After": "7", "X-Rate-Limit-Reset": str(NOON + 9)}, 9),
        ({"Retry-After": "9", "X-Rate-Limit-Reset": str(NOON + 7)}, 9),
        ({"Retry-After": formatdate(NOON + 30, usegmt=True)}, 30),
        ({"Retry-After": "0"}, 0.5),
        ({"X-Rate-Limit-Reset": str(NOON - 60)}, 0.5),
        ({"Retry-After": "1000000"}, 3660),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({}, None),
    ],
)
def test_wait_is_the_later_of_both_headers(
    headers: dict[str, str], seconds: float | None
) -> None:
    date = {"Date": formatdate(NOON, usegmt=True)}
    assert read_wait(429, headers | date) == seconds
    has_time = seconds is not None and "Retry-After" in headers
    assert (read_wait(503, headers | date) is not None) == has_time


@pytest.mark.parametrize("missing", ["Limit", "Remaining", "Reset"])
def test_limit_with_a_missing_or_malformed_header_is_none(missing: str) -> None:
    name = f"X-Rate-Limit-{missing}"
    headers = {
        "Date": formatdate(NOON, usegmt=True),
        "X-Rate-Limit-Limit": "25",
        "X-Rate-Limit-Remaining": "24",
        "X-Rate-Limit-Reset": str(NOON + 10),
    }
    limit = read_limit(headers)
    assert limit is not None
    assert (limit.size, limit.remaining, limit.reset_in) == (25, 24, 10)
    assert read_limit(headers | {name: "many"}) is None
    assert read_limit({k: v for k, v in headers.items() if k != name}) is None
