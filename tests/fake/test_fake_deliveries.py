"""FakeProcore's list of deliveries, with its filters and switches."""

from __future__ import annotations

from typing import Any

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked
from fake_support import PROJECT

from flask_procore_webhooks.fake import FakeProcore


@pytest.fixture
def path(fake: FakeProcore) -> str:
    """The path of the deliveries of a hook whose destination answers 200."""
    return f"{PROJECT}/hooks/{hooked(fake, Destination())}/deliveries"


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["payload"]["resource_id"] for row in rows]


def days(fake: FakeProcore) -> None:
    """An event at 9 o'clock on each of 23, 24 and 25 November."""
    for id in ("23", "24", "25"):
        fake.emit("RFIs", "update", project="2", resource_id=id)
        fake.clock.advance(days=1)
    fake.clock.advance(days=-1)


def test_a_row_has_the_fields_of_the_api(
    fake: FakeProcore, api: Api, path: str
) -> None:
    event = fake.emit("RFIs", "update", project="2")
    row = api.data("GET", path)[0]
    assert set(row) == {"id", "status", "payload", "delivery_attempts"}
    assert (row["status"], row["delivery_attempts"]) == ("enqueued", [])
    assert row["payload"]["id"] == event
    fake.deliver()
    row = api.data("GET", path)[0]
    assert row["status"] == "delivered"
    assert row["delivery_attempts"][0]["response_status"] == 200


def test_payload_can_be_the_v2_shape(fake: FakeProcore, api: Api, path: str) -> None:
    fake.switches.delivery_payload = "v2"
    event = fake.emit("RFIs", "update", project="2")
    payload = api.data("GET", path)[0]["payload"]
    assert (payload["ulid"], payload["api_version"]) == (event, "v2.0")


def test_newest_row_comes_first(fake: FakeProcore, api: Api, path: str) -> None:
    days(fake)
    assert ids(api.data("GET", path)) == ["25", "24", "23"]
    assert ids(api.data("GET", path, sort="timestamp")) == ["23", "24", "25"]
    fake.switches.order = "oldest"
    assert ids(api.data("GET", path)) == ["23", "24", "25"]
    assert ids(api.data("GET", path, sort="-timestamp")) == ["25", "24", "23"]


def test_days_are_inclusive(fake: FakeProcore, api: Api, path: str) -> None:
    days(fake)
    start, end = "2026-11-23", "2026-11-24"
    assert ids(api.data("GET", path, filter_start=end, filter_end=end)) == ["24"]
    fake.switches.filter_start_inclusive = False
    assert ids(api.data("GET", path, filter_start=start, filter_end=end)) == ["24"]
    fake.switches.filter_end_inclusive = False
    assert ids(api.data("GET", path, filter_start=start, filter_end=end)) == []


def test_days_have_a_zone(fake: FakeProcore, api: Api, path: str) -> None:
    days(fake)
    fake.switches.filter_zone = -10
    assert ids(api.data("GET", path, filter_start="2026-11-24")) == ["25"]


def test_days_can_be_those_of_the_delivery(
    fake: FakeProcore, api: Api, path: str
) -> None:
    fake.emit("RFIs", "update", project="2", resource_id="7")
    fake.clock.advance(days=2)
    fake.deliver()
    assert ids(api.data("GET", path, filter_start="2026-11-25")) == []
    fake.switches.filter_by = "delivery"
    assert ids(api.data("GET", path, filter_start="2026-11-25")) == ["7"]


def test_filters_have_two_spellings(fake: FakeProcore, api: Api, path: str) -> None:
    fake.emit("RFIs", "update", project="2", resource_id="7")
    fake.deliver()
    fake.emit("RFIs", "create", project="2", resource_id="8")
    for word in ("filter", "filters"):
        for status in ("succeeded", "delivered"):
            query = {f"{word}[status]": status}
            assert ids(api.data("GET", path, **query)) == ["7"]
        assert ids(api.data("GET", path, **{f"{word}[status]": "enqueued"})) == ["8"]
        assert ids(api.data("GET", path, **{f"{word}[event_type]": "CREATE"})) == ["8"]
        name = {f"{word}[resource_name]": "Submittals"}
        assert api.data("GET", path, **name) == []


@pytest.mark.parametrize(
    "query", [{"filter_status": "lost"}, {"filter_start": "23.11.2026"}]
)
def test_filter_without_a_meaning_is_refused(
    api: Api, path: str, query: dict[str, str]
) -> None:
    assert api.call("GET", path, **query).status_code == 400


def test_rows_are_listed_for_28_days(fake: FakeProcore, api: Api, path: str) -> None:
    fake.emit("RFIs", "update", project="2")
    fake.clock.advance(days=28)
    assert len(api.data("GET", path)) == 1
    fake.clock.advance(1)
    assert api.data("GET", path) == []
    fake.switches.listed_days = 30
    assert len(api.data("GET", path)) == 1


def test_hook_without_deliveries_answers_200_or_404(
    fake: FakeProcore, api: Api, path: str
) -> None:
    assert api.data("GET", path) == []
    fake.switches.fresh_deliveries = 404
    assert api.call("GET", path).status_code == 404
    fake.emit("RFIs", "update", project="2")
    assert len(api.data("GET", path)) == 1


def test_rows_come_in_pages(fake: FakeProcore, api: Api, path: str) -> None:
    for _ in range(12):
        fake.emit("RFIs", "update", project="2")
    answer = api.call("GET", path, filter_start="2026-11-23")
    assert len(answer.get_json()["data"]) == 10
    assert "filter%5Bstart%5D=2026-11-23&page=2" in answer.headers["Link"]
    assert answer.headers["Total"] == "12"
    assert len(api.data("GET", path, page=2)) == 2
    assert api.data("GET", path, page=3) == []
