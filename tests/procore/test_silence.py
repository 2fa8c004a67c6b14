"""``reconcile --silent-for``: whether a hook that usually speaks is silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path

import pytest
from flask import Flask
from support.commands import run
from support.commands import stdout_of
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.tally import count
from flask_procore_webhooks.storage.tally import flush

MakeApp = Callable[..., Flask]

#: A Thursday.
NOON = datetime(2026, 11, 26, 12, 0, 30, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
WEEK = timedelta(weeks=1)


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    """A site on each kind of database, at noon."""
    with open_site(make_app(), database_url) as site:
        site.clock.time = NOON
        yield site


@pytest.fixture
def sqlite_site(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    """A site on a SQLite file, at noon."""
    with open_site(make_app(), f"sqlite:///{tmp_path / 'test.db'}") as site:
        site.clock.time = NOON
        yield site


def tally(store: Store, times: Iterable[datetime], outcome: str = "recorded") -> None:
    """Count a delivery at each of some times."""
    for each in times:
        count(store, outcome, now=each)
    flush(store)


def every_week(hours: float, weeks: int = 4, first: int = 1) -> list[datetime]:
    """So many hours before now, in each of some weeks before."""
    before = timedelta(hours=hours)
    return [NOON - before - week * WEEK for week in range(first, first + weeks)]


def begin(store: Store) -> None:
    """Let the history be longer than the weeks that are compared."""
    tally(store, [NOON - 5 * WEEK])


def is_silent(site: Site, time: str = "6h") -> bool:
    code = run(site.app, "reconcile", "--silent-for", time, ok=None).exit_code
    assert code in (0, 2)
    return code == 2


def test_hook_that_is_silent_at_a_usual_time_is_an_alarm(site: Site) -> None:
    begin(site.store)
    tally(site.store, every_week(2))
    result = run(site.app, "reconcile", "--silent-for", "6h", ok=False)
    assert result.exit_code == 2
    assert result.output == (
        "procore_webhooks: SILENT: 0 deliveries in the last 6h; in the same hours of"
        " the weeks before: 1, 1, 1, 1\n"
    )


def test_hook_that_speaks_is_no_alarm(site: Site) -> None:
    begin(site.store)
    tally(site.store, [*every_week(2), NOON - 5 * HOUR, NOON - 4 * HOUR])
    assert stdout_of(site.app, "reconcile", "--silent-for", "6h") == (
        "procore_webhooks: 2 deliveries in the last 6h; in the same hours of the"
        " weeks before: 1, 1, 1, 1\n"
    )


def test_time_that_is_quiet_every_week_is_no_alarm(sqlite_site: Site) -> None:
    begin(sqlite_site.store)
    tally(sqlite_site.store, every_week(7))
    tally(sqlite_site.store, every_week(-1))
    assert not is_silent(sqlite_site)


def test_weekend_is_no_alarm(sqlite_site: Site) -> None:
    store = sqlite_site.store
    days = [NOON - timedelta(days=day) for day in range(35)]
    tally(store, [day for day in days if day.weekday() < 5])
    sqlite_site.clock.time = NOON + timedelta(days=3)
    assert not is_silent(sqlite_site, "24h")
    sqlite_site.clock.time = NOON + timedelta(days=5)
    assert is_silent(sqlite_site, "24h")


def test_endpoint_without_a_history_is_no_alarm(site: Site) -> None:
    shown = stdout_of(site.app, "reconcile", "--silent-for", "6h")
    assert shown == (
        "procore_webhooks: 0 deliveries in the last 6h; in the same hours of the"
        " weeks before: not known\n"
    )


@pytest.mark.parametrize(
    ("spoke", "alarm"),
    [((), False), ((1,), False), ((1, 2), True), ((3, 4), True), ((1, 2, 3, 4), True)],
)
def test_two_weeks_of_four_must_have_spoken(
    sqlite_site: Site, spoke: tuple[int, ...], alarm: bool
) -> None:
    begin(sqlite_site.store)
    tally(sqlite_site.store, [NOON - HOUR - week * WEEK for week in spoke])
    assert is_silent(sqlite_site) is alarm


@pytest.mark.parametrize(("weeks", "alarm"), [(1, False), (2, True), (3, True)])
def test_young_history_has_as_many_weeks_as_it_knows(
    sqlite_site: Site, weeks: int, alarm: bool
) -> None:
    tally(sqlite_site.store, [NOON - weeks * WEEK - 7 * HOUR])
    tally(sqlite_site.store, every_week(2, weeks))
    found = json.loads(
        run(
            sqlite_site.app, "reconcile", "--silent-for", "6h", "--json", ok=None
        ).output
    )
    assert found["procore_webhooks"]["weeks_before"] == [1] * weeks
    assert is_silent(sqlite_site) is alarm


@pytest.mark.parametrize(
    "outcome", ["recorded", "duplicate", "conflict", "quarantined"]
)
def test_every_authentic_delivery_breaks_the_silence(
    sqlite_site: Site, outcome: str
) -> None:
    begin(sqlite_site.store)
    tally(sqlite_site.store, every_week(2))
    assert is_silent(sqlite_site)
    tally(sqlite_site.store, [NOON - HOUR], outcome)
    assert not is_silent(sqlite_site)


@pytest.mark.parametrize("outcome", ["reconciled", "rejected", "unavailable", "run"])
def test_what_is_no_delivery_does_not_break_the_silence(
    sqlite_site: Site, outcome: str
) -> None:
    begin(sqlite_site.store)
    tally(sqlite_site.store, every_week(2))
    tally(sqlite_site.store, [NOON - HOUR], outcome)
    assert is_silent(sqlite_site)


def test_real_deliveries_are_counted(sqlite_site: Site) -> None:
    for weeks in range(5, 0, -1):
        sqlite_site.clock.time = NOON - weeks * WEEK - HOUR
        sqlite_site.send()
    flush(sqlite_site.store)
    sqlite_site.clock.time = NOON
    assert is_silent(sqlite_site)
    sqlite_site.clock.time = NOON - HOUR
    sqlite_site.send()
    flush(sqlite_site.store)
    sqlite_site.clock.time = NOON
    assert not is_silent(sqlite_site)


def test_other_endpoint_breaks_no_silence(sqlite_site: Site) -> None:
    app = sqlite_site.app
    app.config["BOLT_SECRET"] = "another secret"
    app.config["BOLT_DATABASE_URI"] = app.config["PROCORE_WEBHOOK_DATABASE_URI"]
    app.register_blueprint(
        ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    )
    bolt = endpoints(app)["bolt"].store
    bolt.now = sqlite_site.clock
    for store in (bolt, sqlite_site.store):
        begin(store)
        tally(store, every_week(2))
    tally(bolt, [NOON - HOUR])
    result = run(app, "reconcile", "--silent-for", "6h", "--json", ok=False)
    assert result.exit_code == 2
    found = json.loads(result.output)
    assert found["bolt"]["is_alarm"] is False
    assert found["procore_webhooks"] == {
        "seconds": 21600.0,
        "deliveries": 0,
        "weeks_before": [1, 1, 1, 1],
        "is_alarm": True,
    }
    named = ["reconcile", "--silent-for", "6h", "--endpoint"]
    assert run(app, *named, "bolt").exit_code == 0
    assert run(app, *named, "procore_webhooks", ok=False).exit_code == 2


def test_silence_needs_no_api(sqlite_site: Site) -> None:
    assert not sqlite_site.endpoint.settings.api.is_configured
    assert not is_silent(sqlite_site)


@pytest.mark.parametrize("time", ["soon", "-6h", "nan", ""])
def test_time_that_is_none_is_refused(sqlite_site: Site, time: str) -> None:
    args = ("reconcile", "--silent-for", time)
    result = run(sqlite_site.app, *args, ok=False)
    assert result.exit_code == 2
    assert "is not a time like 43200, 12h or 3d." in result.output


@pytest.mark.parametrize("time", ["169h", "3000w", "1e300"])
def test_time_of_more_than_a_week_is_refused(sqlite_site: Site, time: str) -> None:
    result = run(sqlite_site.app, "reconcile", "--silent-for", time, ok=False)
    assert result.exit_code == 2
    assert "at most 7d: it is compared with the weeks before." in result.output


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        *[("0", "0s"), ("0.5", "0.5s"), ("90", "90s"), ("21600", "6h"), ("90m", "90m")],
        *[("24h", "1d"), ("36h", "36h"), ("1.5d", "36h"), ("7d", "1w")],
    ],
)
def test_time_is_shown_in_its_largest_unit(
    sqlite_site: Site, time: str, shown: str
) -> None:
    text = stdout_of(sqlite_site.app, "reconcile", "--silent-for", time)
    assert f" deliveries in the last {shown}; in" in text


@pytest.mark.parametrize(
    "options", [["--all"], ["--dry-run"], ["--since", "2026-11-26"]]
)
def test_options_of_the_other_question_are_refused(
    sqlite_site: Site, options: list[str]
) -> None:
    args = ["reconcile", "--silent-for", "6h", *options]
    result = run(sqlite_site.app, *args, ok=False)
    assert result.exit_code == 2
    assert "--silent-for takes no --since, --all or --dry-run." in result.output


@pytest.mark.parametrize("time", ["0", "1w"])
def test_shortest_and_longest_time_are_answered(sqlite_site: Site, time: str) -> None:
    begin(sqlite_site.store)
    tally(sqlite_site.store, every_week(2, weeks=3, first=2))
    assert is_silent(sqlite_site, time) is (time == "1w")
