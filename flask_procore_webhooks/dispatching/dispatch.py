"""Dispatch: run the subscribers of a recorded event, or have another process do it."""

from __future__ import annotations

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
from ..inbox.status import FINISHED
from ..log import log
from ..running.failures import RunOutcome
from ..running.run import process
from .background import background_of
from .celery import publish
from .notify import notify


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
        notify_others(endpoint, mode, [recorded.row_id], is_new=recorded.is_new)


def notify_others(
    endpoint: Endpoint, mode: str, rows: Collection[int], *, is_new: bool = False
) -> None:
    """Notify other processes of due events in the modes ``celery`` and ``worker``.

    :param is_new: the events were never due before.
    """
    if mode == "celery":
        publish(endpoint, rows, is_new=is_new)
    elif mode == "worker" and endpoint.store.dialect_name == "postgresql":
        notify(endpoint.store)


def run_inline(endpoint: Endpoint, recorded: RecordResult) -> None:
    """Run the event in this request; return when it is finished.

    In this mode the sender repeats a failed run, so a 2xx is allowed only if no job has
    failed. Postponed jobs wait for a worker.

    :raises SubscribersFailed: a job has failed; the sender's next delivery resumes it.
    :raises EventBusy: another request is running it.
    """
    start = time.monotonic()
    outcome = process(endpoint, recorded.row_id, hurry=True)
    _warn_if_slow(endpoint, recorded, time.monotonic() - start)
    if outcome is RunOutcome.RETRY:
        raise SubscribersFailed("a subscriber failed")
    if outcome is RunOutcome.NOT_CLAIMED and not _is_finished(endpoint, recorded):
        raise EventBusy(
            f"another request is running event {recorded.row_id}; if its process was"
            f" killed, the lease ends within {endpoint.settings.lease:g} s"
        )


def drain(endpoints: Iterable[Endpoint], *, ahead: float = 0.0) -> int:
    """Run every event of the endpoints that is due now.

    An event runs once, and again when the end of another one makes it due.

    :param ahead: also events that are due within so many seconds.
    :return: how many events were run.
    """
    groups = by_database(endpoints)
    return sum([_drain_database(group, ahead) for group in groups])


def _drain_database(group: list[Endpoint], ahead: float) -> int:
    by_name = {endpoint.name: endpoint for endpoint in group}
    stores = [endpoint.store for endpoint in group]
    seen: set[int] = set()
    ran = 0
    while True:
        # Events that failed may be due again, and before events not seen yet.
        found = due_events(stores, len(seen) + 100, ahead=ahead)
        unseen = [(name, row_id) for name, row_id in found if row_id not in seen]
        if not unseen:
            return ran
        for name, row_id in unseen:
            seen.add(row_id)
            woken: list[int] = []
            outcome = process(by_name[name], row_id, ahead=ahead, woken=woken)
            seen.difference_update(woken)
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
