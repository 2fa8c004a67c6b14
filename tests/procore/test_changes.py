"""Sweeps: ``changed_since`` and ``enqueue_changes``."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
import requests
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import rows

from flask_procore_webhooks import Event
from flask_procore_webhooks.api import APIError
from flask_procore_webhooks.api import Change
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api.lists import LISTS
from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

HOUR = timedelta(hours=1)
MakeApp = Callable[..., Flask]


@pytest.fixture
def fake() -> FakeProcore:
    """A fake whose clock is this host's: the upper end of the range is now."""
    fake = FakeProcore("id", "a client secret", spike_limit=None)
    fake.add_company("1", projects=["2", "3"])
    return fake


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(), "flask_sqlalchemy", database_url) as host:
        yield host


def ago(**delta: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(**delta)


def owner_of(fake: FakeProcore, resource: str) -> dict[str, Any]:
    is_of_project = resource in fake.project_resources
    return {"project": "2"} if is_of_project else {"company": "1"}


# changed_since


@pytest.mark.parametrize("resource", LISTS)
def test_each_list_is_asked_for_what_has_changed(
    fake: FakeProcore, api: ProcoreAPI, resource: str
) -> None:
    old = fake.create(resource, **owner_of(fake, resource))
    fake.clock.advance(hours=2)
    new = [fake.create(resource, **owner_of(fake, resource)) for _ in range(3)]
    since = fake.clock.now() - HOUR
    found = [*api.changed_since(resource, since=since, project_id="2")]
    ids = [each.resource_id for each in found]
    assert old not in ids
    assert sorted(ids) == sorted(new)
    assert {each.resource_type for each in found} == {resource}
    assert {(each.company_id, each.project_id) for each in found} == {("1", "2")}
    for each in found:
        assert each.updated_at is not None and each.updated_at >= since
        assert str(each.item["id"]) == each.resource_id


def test_changes_of_every_page_are_found(fake: FakeProcore, api: ProcoreAPI) -> None:
    fake.switches.most_per_page = 10
    made = [fake.create("Submittals", project="2") for _ in range(25)]
    found = api.changed_since("Submittals", since=ago(hours=1), project_id=2)
    assert sorted(each.resource_id for each in found) == sorted(made)


def test_company_of_a_sweep_replaces_that_of_the_client(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.add_company("9")
    fake.create("Trades", company="9")
    (found,) = api.changed_since("Trades", since=ago(hours=1), company_id="9")
    assert (found.company_id, found.project_id) == ("9", None)


@pytest.mark.parametrize(
    ("resource", "near"),
    [("Submittal", "'Submittals'"), ("submittals", "'Submittals'"), ("Weather", "")],
)
def test_resource_without_such_a_list_is_refused_at_once(
    api: ProcoreAPI, resource: str, near: str
) -> None:
    with pytest.raises(ValueError, match=f"No list of '{resource}' is known") as caught:
        api.changed_since(resource, since=ago(hours=1), project_id="2")
    assert near in str(caught.value)


def test_missing_id_is_named_at_once(
    api: ProcoreAPI, session: requests.Session
) -> None:
    with pytest.raises(ValueError, match="The list of RFIs needs project_id=."):
        api.changed_since("RFIs", since=ago(hours=1))
    nobodys = ProcoreAPI("id", "a client secret", session=session)
    with pytest.raises(ValueError, match="The list of Trades needs company_id=."):
        nobodys.changed_since("Trades", since=ago(hours=1))


def test_time_without_a_zone_is_refused_at_once(api: ProcoreAPI) -> None:
    with pytest.raises(ValueError, match="since= has no time zone"):
        api.changed_since("RFIs", since=datetime(2026, 11, 1), project_id="2")


def test_list_that_fails_in_the_middle_is_an_error(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.switches.most_per_page = 2
    for _ in range(5):
        fake.create("RFIs", project="2")
    fake.answer_next("500", path="/rfis", skip=1)
    with pytest.raises(APIError, match="GET /rest/v1.0/projects/2/rfis: 500"):
        list(api.changed_since("RFIs", since=ago(hours=1), project_id="2"))


def test_items_without_an_id_or_a_time_are_read(
    fake: FakeProcore, api: ProcoreAPI
) -> None:
    fake.create("RFIs", project="2", id=None)
    fake.create("RFIs", project="2")
    fake.switches.record_ids = "text"
    found = [*api.changed_since("RFIs", since=ago(hours=1), project_id="2")]
    assert all(each.resource_id for each in found)


# enqueue_changes


def change(id: str = "4", **fields: Any) -> Change:
    at = fields.pop("updated_at", ago(minutes=5))
    item = {"id": id, "updated_at": at and at.isoformat(), **fields}
    return Change("Submittals", id, "1", "2", at, item)


def enqueue(host: Host, *changes: Change) -> list[Event]:
    with host.app.app_context():
        found = host.webhooks.enqueue_changes(changes)
        host.session.commit()
    return found


def test_change_is_an_update_for_the_same_subscribers(host: Host) -> None:
    seen: list[Event] = []
    host.webhooks.on("Submittals", "update", name="sync")(seen.append)
    (event,) = enqueue(host, change(title="Doors"))
    drain(host.app)
    (ran,) = seen
    assert ran.id == event.id
    assert (ran.resource_id, ran.company_id, ran.project_id) == ("4", "1", "2")
    assert (ran.type, ran.origin) == ("Submittals.update", "enqueue")
    assert ran.data is not None and ran.data["title"] == "Doors"


def test_each_change_is_enqueued_once(host: Host) -> None:
    at = ago(minutes=5)
    assert len(enqueue(host, change("4", updated_at=at), change("5"))) == 2
    assert enqueue(host, change("4", updated_at=at)) == []
    assert len(rows(host.store)) == 2


def test_later_change_of_the_same_resource_is_enqueued(host: Host) -> None:
    enqueue(host, change(updated_at=ago(minutes=5)))
    later = datetime.now(timezone.utc) + timedelta(minutes=1)
    assert len(enqueue(host, change(updated_at=later))) == 1


def test_change_without_a_time_is_identified_by_its_content(host: Host) -> None:
    assert len(enqueue(host, change(updated_at=None, title="Doors"))) == 1
    assert enqueue(host, change(updated_at=None, title="Doors")) == []
    enqueue(host, change(updated_at=None, title="Gates"))
    assert len(rows(host.store)) == 2


@pytest.mark.parametrize("type", ["Submittals.update", "submittals.delete"])
def test_change_whose_event_has_arrived_is_left_out(host: Host, type: str) -> None:
    sent = payload(type, resource_id="4", company_id="1", project_id="2")
    assert deliver(host.app.test_client(), sent).status_code == 200
    assert enqueue(host, change("4"), change("5"))[0].resource_id == "5"


def test_event_before_the_change_does_not_count(host: Host) -> None:
    sent = payload("Submittals.update", resource_id="4")
    assert deliver(host.app.test_client(), sent).status_code == 200
    later = datetime.now(timezone.utc) + timedelta(minutes=1)
    assert len(enqueue(host, change("4", updated_at=later))) == 1


def test_rolled_back_sweep_enqueues_nothing(host: Host) -> None:
    with host.app.app_context():
        assert len(host.webhooks.enqueue_changes([change()])) == 1
        host.session.rollback()
    assert rows(host.store) == []
    assert len(enqueue(host, change())) == 1


def test_sweep_finds_a_change_of_which_no_event_came(
    fake: FakeProcore, api: ProcoreAPI, host: Host
) -> None:
    seen: list[str | None] = []
    host.webhooks.on("Submittals", name="sync")(
        lambda event: seen.append(event.resource_id)
    )
    made = [fake.create("Submittals", project="2", title="Doors") for _ in range(3)]
    sent = payload("Submittals.create", resource_id=made[0], project_id="2")
    assert deliver(host.app.test_client(), sent).status_code == 200
    for _ in range(2):
        changes = api.changed_since("Submittals", since=ago(hours=1), project_id="2")
        enqueue(host, *changes)
        drain(host.app)
    assert sorted(filter(None, seen)) == sorted(made)


def test_sweep_on_a_database_in_memory_is_one_transaction(make_app: MakeApp) -> None:
    """A database in memory has one connection: another use of it would end it."""
    with run_host(make_app(), "flask_sqlalchemy", "sqlite://") as host:
        with host.app.app_context():
            host.note("before")
            assert len(host.webhooks.enqueue_changes([change("4"), change("5")])) == 2
            host.session.rollback()
        assert (rows(host.store), host.notes()) == ([], [])
        with host.app.app_context():
            host.note("kept")
            host.webhooks.enqueue_changes([change("4"), change("4"), change("5")])
            host.session.commit()
        assert (len(rows(host.store)), host.notes()) == (2, ["kept"])


def test_sweep_looks_into_its_own_transaction(host: Host) -> None:
    at = ago(minutes=5)
    twice = [change("4", updated_at=at), change("4", updated_at=at)]
    assert len(enqueue(host, *twice)) == 1


def test_own_change_that_the_loop_filter_ignored_is_left_out(
    make_app: MakeApp,
) -> None:
    keys = {"PROCORE_WEBHOOK_IGNORE_USER_IDS": ["90001"]}
    with run_host(make_app(**keys), "flask_sqlalchemy", "sqlite://") as host:
        sent = payload("Submittals.update", resource_id="4", user_id="90001")
        assert deliver(host.app.test_client(), sent).status_code == 200
        assert [row.status for row in rows(host.store)] == ["ignored"]
        assert enqueue(host, change("4")) == []


@pytest.mark.parametrize("days", [3, -3])
def test_sweep_does_not_depend_on_equal_clocks(
    fake: FakeProcore, api: ProcoreAPI, days: int
) -> None:
    fake.clock.advance(days=days)
    made = fake.create("Submittals", project="2")
    since = ago(days=4)
    (found,) = api.changed_since("Submittals", since=since, project_id="2")
    assert found.resource_id == made


@pytest.mark.parametrize(
    "title", ["x" * 1_100_000, float("nan"), "\ud800", {"a": {1, 2}}, 10**2000]
)
def test_object_that_cannot_be_stored_is_enqueued_without_its_data(
    host: Host, caplog: pytest.LogCaptureFixture, title: Any
) -> None:
    found = enqueue(host, change("4", title=title), change("5"))
    assert [event.resource_id for event in found] == ["4", "5"]
    assert "Submittals.update of 4 is enqueued without its data" in caplog.text
    assert enqueue(host, change("4", title=title)) == []
