"""Dispatch: run the subscribers of a recorded event, or have another process do it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from collections.abc import Iterable

from ..endpoint import by_database
from ..endpoint import Endpoint
from ..errors import EventBusy
from ..errors import SubscribersFailed
from ..inbox.due import due_events
from ..inbox.due import status_of
from ..inbox.record import RecordResult
from ..inbox.tables import FINISHED
from .background import background_of
from .celery import publish
from .notify import notify
from .run import process
from .run import RunOutcome

log = logging.getLogger("flask_procore_webhooks")


def dispatch(endpoint: Endpoint, recorded: RecordResult) -> None:
    """Dispatch a recorded event that is not finished.

    :raises DeliveryError: ``inline`` only; see :func:`run_inline`.
    """
    if recorded.status in FINISHED:
        return
    mode = endpoint.dispatch
    if mode == "inline":
        run_inline(endpoint, recorded)
    elif mode == "background":
        background_of(endpoint.state).wake()
    else:
        notify_others(endpoint, mode, [recorded.row_id])


def notify_others(endpoint: Endpoint, mode: str, rows: Collection[int]) -> None:
    """Notify other processes of due events in the modes ``celery`` and ``worker``."""
    if mode == "celery":
        publish(endpoint, rows)
    elif mode == "worker" and endpoint.store.dialect_name == "postgresql":
        notify(endpoint.store)


def run_inline(endpoint: Endpoint, recorded: RecordResult) -> None:
    """Run the event in this request; return when it is finished.

    In this mode the sender repeats a failed run, so a 2xx is allowed only once the
    event is finished.

    :raises SubscribersFailed: it is due again; the sender's next delivery resumes it.
    :raises EventBusy: another request is running it.
    """
    start = time.monotonic()
    outcome = process(endpoint, recorded.row_id, ignore_backoff=True)
    _warn_if_slow(endpoint, recorded, time.monotonic() - start)
    if outcome is RunOutcome.RETRY:
        raise SubscribersFailed("a subscriber failed")
    if outcome is RunOutcome.NOT_CLAIMED and not _is_finished(endpoint, recorded):
        raise EventBusy(
            f"another request is running event {recorded.row_id}; if its process was"
            f" killed, the lease ends within {endpoint.settings.lease:g} s"
        )


def drain(endpoints: Iterable[Endpoint], *, ignore_backoff: bool = False) -> int:
    """Run every event of the endpoints that is due now, each once.

    :param ignore_backoff: also events that wait for their next attempt.
    :return: how many events were run.
    """
    groups = by_database(endpoints)
    return sum([_drain_database(group, ignore_backoff) for group in groups])


def _drain_database(group: list[Endpoint], ignore_backoff: bool) -> int:
    by_name = {endpoint.name: endpoint for endpoint in group}
    stores = [endpoint.store for endpoint in group]
    seen: set[int] = set()
    ran = 0
    while True:
        # Events that failed may be due again, and before events not seen yet.
        limit = len(seen) + 100
        found = due_events(stores, limit, ignore_backoff=ignore_backoff)
        unseen = [(name, row_id) for name, row_id in found if row_id not in seen]
        if not unseen:
            return ran
        for name, row_id in unseen:
            seen.add(row_id)
            outcome = process(by_name[name], row_id, ignore_backoff=ignore_backoff)
            ran += outcome is not RunOutcome.NOT_CLAIMED


def _warn_if_slow(endpoint: Endpoint, recorded: RecordResult, seconds: float) -> None:
    if seconds > endpoint.source.timeout:
        log.warning(
            "The subscribers of event %s took %.1f s in the request, and the sender"
            ' waits %g s: use another DISPATCH than "inline"',
            recorded.row_id,
            seconds,
            endpoint.source.timeout,
        )


def _is_finished(endpoint: Endpoint, recorded: RecordResult) -> bool:
    status = status_of(endpoint.store, recorded.row_id)
    # A deleted row needs no further run.
    return status is None or status in FINISHED
