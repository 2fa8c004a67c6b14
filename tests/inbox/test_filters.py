"""Filters: which events and jobs each of them selects, on every database."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.jobs import add_event
from support.jobs import failed
from support.values import Clock

from flask_procore_webhooks.inbox.filters import Filter
from flask_procore_webhooks.storage.store import Store


def selected(store: Store, **values: Any) -> set[str]:
    """The ids of the selected events."""
    query = sa.select(store.columns.event_id).where(Filter(**values).where(store))
    return {row.event_id for row in store.rows(query)}


def jobs(store: Store, **values: Any) -> set[tuple[int, str]]:
    j = store.database.tables.job.c
    query = sa.select(j.event, j.subscriber).where(Filter(**values).job_where(store))
    return {tuple(row) for row in store.rows(query)}


def test_types_and_reasons_are_compared_without_case(store: Store) -> None:
    add_event(store, "rfi", resource_type="RFIs", reason="create")
    add_event(store, "french", resource_type="Formés", reason="update")
    add_event(store, "plain", resource_type="Formes", reason="update")
    add_event(store, "spaced", resource_type="Formes ", reason="archived")
    for reason in ("create", "CREATED", "Created"):
        assert selected(store, reason=reason) == {"rfi"}
    assert selected(store, type="rfis.CREATE") == {"rfi"}
    assert selected(store, resource_type="FORMÉS") == {"french"}
    assert selected(store, resource_type="formes") == {"plain"}
    assert selected(store, resource_type="formes ") == {"spaced"}
    assert selected(store, reason="ARCHIVED") == {"spaced"}
    assert selected(store, resource_type="RFI") == set()
    assert selected(store, resource_type="R%") == set()


def test_ids_are_compared_exactly(store: Store) -> None:
    add_event(store, "lower", resource_id="a", project_id="1", user_id="3")
    add_event(store, "upper", resource_id="A", company_id="2", user_id="3 ")
    assert selected(store, resource_id="a") == {"lower"}
    assert selected(store, resource_id="A") == {"upper"}
    assert selected(store, user_id="3") == {"lower"}
    assert selected(store, project_id="1", company_id="2") == set()
    assert selected(store, resource_id="") == set()


def test_any_of_several_statuses_is_selected(store: Store) -> None:
    statuses = ("pending", "running", "done", "dead", "unmatched", "quarantined")
    for status in statuses:
        add_event(store, status, status=status)
    for status in statuses:
        assert selected(store, statuses=(status,)) == {status}
    assert selected(store, statuses=("dead", "pending")) == {"dead", "pending"}
    assert selected(store, statuses=statuses) == set(statuses)
    assert selected(store, statuses=("ignored",)) == set()


def test_one_job_of_the_event_has_all_that_is_asked(store: Store, clock: Clock) -> None:
    old = add_event(store, "old", failed("sync", "OSError: gone"))
    clock.forward(3600)
    since = clock.time
    new = add_event(
        store, "new", failed("sync", "ValueError: 50% off"), failed("mail", "E: no")
    )
    add_event(store, "fine", {"subscriber": "sync"})
    assert selected(store, subscriber="sync") == {"old", "new", "fine"}
    assert selected(store, subscriber="SYNC") == set()
    assert selected(store, subscriber="sünc") == set()
    assert selected(store, subscriber="sync", died_since=since) == {"new"}
    assert selected(store, died_since=since) == {"new"}
    assert selected(store, subscriber="mail", error="ValueError") == set()
    assert selected(store, died_since=since - timedelta(hours=1)) == {"old", "new"}
    assert jobs(store, subscriber="sync", error="gone") == {(old, "sync")}
    assert jobs(store, died_since=since) == {(new, "sync"), (new, "mail")}


@pytest.mark.parametrize(
    "error",
    [
        "ValueError",
        "valueerror: 50",
        "50% OFF",
        "É",
        "line\n2",
        "ValueError: 50% off É",
    ],
)
def test_error_is_a_part_of_class_and_text(store: Store, error: str) -> None:
    add_event(store, "it", failed("sync", "ValueError: 50% off é\nline\n2"))
    add_event(store, "other", failed("sync", "ValueErr: 501 off e\nline 2"))
    add_event(store, "without", {"subscriber": "sync"})
    assert selected(store, error=error) == {"it"}


def test_masked_message_selects_the_errors_that_it_stands_for(store: Store) -> None:
    same = "HTTP 503 (a+b) for 'x'\n of \u00e9 8f14e45fceea167a"
    other = "HTTP 7 (a+b) for 'it's\nan y' of é 1f14e45fceea167b"
    add_event(store, "same", failed("sync", f"api.Error: {same}"))
    add_event(store, "other", failed("sync", f"api.Error: {other}"))
    add_event(store, "longer", failed("sync", f"api.Error: {same} and more"))
    add_event(store, "word", failed("sync", f"api.Error: {same.replace('503', 'no')}"))
    masked = "HTTP # (a+b) for '…' of é #"
    assert selected(store, error=masked) == {"same", "other"}
    assert selected(store, error=f"api.Error: {masked}") == {"same", "other"}
    assert selected(store, error=f"Error: {masked}") == set()
