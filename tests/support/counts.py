"""Counts of the tally, in memory and in the table."""

from __future__ import annotations

from datetime import datetime
from datetime import timezone

from flask_procore_webhooks.inbox import tally
from flask_procore_webhooks.storage.store import Store

LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)


def in_memory(store: Store) -> dict[str, int]:
    """What this process has counted for the endpoint and not added yet."""
    found: dict[str, int] = {}
    counts = store.database.parts[tally.Tally].counts
    for (endpoint, _, outcome), number in counts.items():
        if endpoint == store.endpoint:
            found[outcome] = found.get(outcome, 0) + number
    return found


def in_table(store: Store) -> dict[str, int]:
    """What all processes have added for the endpoint."""
    return tally.history(store, LONG_AGO)


def stop_tallies() -> None:
    """Let no thread of a test add its counts during another test."""
    while tally._tallies:
        if found := tally._tallies.pop()():
            found.stop()
