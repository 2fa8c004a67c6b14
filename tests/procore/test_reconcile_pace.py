"""``reconcile`` and Procore's rate limits: a fifth is left to the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reconcile_support import CLIENT_SECRET
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

#: Requests of an hour.
HOURLY = 50


@pytest.fixture
def mine(make_app: MakeApp, tmp_path: Path) -> Iterator[Integration]:
    """An integration on a SQLite file; pages are small, so that it asks often."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, switches={"most_per_page": 10}) as mine:
        yield mine


def left(mine: Integration) -> int:
    """How many requests are left of the hour, after one more."""
    client = mine.fake.test_client()
    form = {
        "grant_type": "client_credentials",
        "client_id": "id",
        "client_secret": CLIENT_SECRET,
    }
    token = client.post("/oauth/token", data=form).get_json()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "Procore-Company-Id": "1"}
    answer = client.get("/rest/v1.0/projects/2/rfis", headers=headers)
    return int(answer.headers["X-Rate-Limit-Remaining"])


def limited(mine: Integration) -> int:
    """How many requests Procore has refused because of a limit."""
    return sum(status == 429 for _, _, status in mine.fake.requests)


def lose_for_days(mine: Integration) -> list[str]:
    """Outages that take many pages to read; return the ids of the lost events."""
    mine.hook()
    lost: list[str] = []
    for _ in range(10):
        mine.deliver(21)
        mine.fake.advance(minutes=5)
        lost += mine.lose(20)
        mine.fake.advance(hours=10, minutes=55)
    return sorted(lost)


@pytest.mark.parametrize("limit_headers", ["spike", "nearest"])
def test_fifth_of_the_hour_is_left_to_the_app(
    mine: Integration, limit_headers: str
) -> None:
    mine.fake.switches.limit_headers = limit_headers
    lose_for_days(mine)
    mine.fake.switches.hourly_limit = HOURLY
    report = mine.report(code=1)
    assert "/deliveries: the hourly rate limit" in report["error"]
    assert report["error"].endswith(" is used up for 3600 s")
    assert report["error"].startswith("GET /rest/v2.0/companies/1/projects/2/")
    assert left(mine) == HOURLY / 5 - 1
    assert limited(mine) == 0


def test_run_of_the_next_hour_goes_on(mine: Integration) -> None:
    lost = lose_for_days(mine)
    mine.fake.switches.hourly_limit = HOURLY
    runs = 1
    while mine.reconcile().exit_code == 1:
        runs += 1
        mine.fake.advance(hours=1)
        assert runs < 20
    assert 1 < runs
    assert set(lost) <= set(mine.recorded)
    assert limited(mine) == 0
    mine.fake.switches.hourly_limit = None
    mine.report(code=0)


def test_second_run_in_the_hour_asks_once(mine: Integration) -> None:
    lose_for_days(mine)
    mine.fake.switches.hourly_limit = HOURLY
    mine.report(code=1)
    before = len(mine.fake.requests)
    mine.report(code=1)
    asked = [path for _, path, _ in mine.fake.requests[before:]]
    assert [path == "/oauth/token" for path in asked] == [True, False]
    assert limited(mine) == 0


def test_other_hooks_are_not_asked_for_when_the_hour_is_used_up(
    make_app: MakeApp, tmp_path: Path
) -> None:
    scopes = [{"company": "1", "project": each} for each in ("2", "3")]
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(
        make_app, url, SCOPES=scopes, switches={"most_per_page": 10}
    ) as mine:
        lose_for_days(mine)
        mine.hook(project="3")
        mine.fake.switches.hourly_limit = HOURLY
        first, second = mine.reports(code=1)
        assert "rate limit" in first["error"]
        assert "rate limit" in second["error"]
        assert not any("/projects/3/" in path for _, path, _ in mine.fake.requests)


def test_short_limit_is_waited_for(mine: Integration) -> None:
    lost = lose_for_days(mine)
    mine.fake.switches.spike_limit, mine.fake.switches.spike_seconds = 25, 1
    mine.fake.clock.run()
    assert mine.report(code=2)["error"] is None
    mine.fake.clock.stop()
    assert set(lost) <= set(mine.recorded)
    assert limited(mine) == 0


@pytest.mark.parametrize("retry_after", ["both", "reset", "retry-after"])
def test_limit_that_others_use_up_is_an_error_that_names_the_wait(
    mine: Integration, retry_after: str
) -> None:
    lose_for_days(mine)
    mine.fake.switches.limit_headers = "none"
    mine.fake.switches.retry_after = retry_after
    mine.fake.switches.hourly_limit = 30
    report = mine.report(code=1)
    assert "/deliveries: the hourly rate limit" in report["error"]
    assert report["error"].endswith(" is used up for 3600 s")
    assert limited(mine) == 1


@pytest.mark.parametrize("offset", [-3600, 3600])
def test_clock_of_procore_that_is_an_hour_off_changes_nothing(
    mine: Integration, offset: int
) -> None:
    mine.fake.switches.clock_offset = offset
    lose_for_days(mine)
    mine.fake.switches.hourly_limit = HOURLY
    report = mine.report(code=1)
    assert "/deliveries: the hourly rate limit" in report["error"]
    assert report["error"].endswith(" is used up for 3600 s")
    assert limited(mine) == 0


def test_busy_procore_is_an_error_that_names_the_wait(mine: Integration) -> None:
    mine.hook()
    mine.fake.switches.busy = 120
    report = mine.report(code=1)
    assert report["error"] == (
        "GET /rest/v2.0/companies/1/projects/2/webhooks/hooks: 503, Procore is"
        " unavailable for 120 s"
    )
