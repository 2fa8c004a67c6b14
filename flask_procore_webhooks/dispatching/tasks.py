"""Tasks: what Celery's workers run. One event beside other due ones, and the sweep.

Celery may acknowledge a message before its task begins, which is its default. With
``acks_late`` the broker would repeat the message of a killed worker while the lease of
its run still holds, to no effect. The sweep finds the row when the lease has ended.
"""

from __future__ import annotations

import functools
import time
from contextlib import suppress

from flask import current_app
from flask import has_app_context

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ConfigError
from ..errors import InboxUnavailable
from ..inbox.due import due_events
from ..inbox.due import is_paused
from ..inbox.due import seconds_to
from ..inbox.due import seconds_to_work
from ..log import log
from ..operations.seen import note_seen
from ..running.failures import RunOutcome
from ..running.run import process
from ..storage.connections import context_of
from ..storage.store import Store
from ..storage.tally import flush_all
from .celery import is_eager
from .celery import NO_CONTEXT
from .celery import publish
from .celery import RECONCILE
from .celery import RUN
from .celery import SWEEP
from .crew import Crew
from .worker import Worker

#: Events of batches that a process remembers until their own tasks come.
REMEMBERED = 10_000
#: Seconds; the sweep publishes events that are due later. Brokers redeliver a message,
#: or close the connection, when a worker has held it for long: RabbitMQ after 30
#: minutes, Redis after an hour.
LONGEST_COUNTDOWN = 900.0
#: Seconds by which the clocks of two workers may differ: an event is not run early.
CLOCK_TOLERANCE = 0.5
#: Events that a sweep publishes at most, and the seconds for which they have been due:
#: newer events still have their own message in the queue.
LARGEST_SWEEP, OVERDUE = 1000, 30.0

#: The actor of the task reconcile in the journal.
ACTOR = "celery"

NOT_INSTALLED = (
    "DISPATCH is 'celery', and Celery is not installed: pip install"
    " 'flask-procore-webhooks[celery]'"
)
NO_ENDPOINT = (
    "Event %s is not run: this worker's app has no endpoint %r. Start it with the"
    " Celery of the Flask app: celery -A ..."
)


def register_tasks() -> None:
    """Register the tasks with every Celery of this process, also with later ones.

    Called when the blueprint is registered: a Celery worker imports the app and
    receives no request.

    :raises ConfigError: Celery is not installed.
    """
    try:
        _register_tasks()
    except ImportError:
        raise ConfigError([f"{NOT_INSTALLED}."]) from None


@functools.cache
def _register_tasks() -> None:
    from celery import shared_task
    from celery.signals import worker_process_shutdown

    worker_process_shutdown.connect(lambda **_: flush_all(), weak=False)
    shared_task(run, name=RUN, ignore_result=True)
    shared_task(sweep, name=SWEEP, ignore_result=True)
    shared_task(reconcile, name=RECONCILE, ignore_result=True)


def run(endpoint: str, row_id: int, is_new: bool = False) -> None:
    """Run one event if it is due, then a batch of other due events of its endpoint.

    No batch follows an event that has taken long. Safe to repeat. The tasks of the
    other events find them run, and end.

    :param is_new: the message is the first one of the event.
    """
    if found := _endpoints(RUN).get(endpoint):
        batches, start = found.state.runtime.part(Batches, Batches), time.monotonic()
        # This process has run it since it was recorded. Later runs have other messages.
        if is_new and batches.forget(found, row_id):
            return
        if _run(found, row_id) and time.monotonic() - start < batches.batch_seconds:
            batches.run(found)
    elif has_app_context():
        log.error(NO_ENDPOINT, row_id, endpoint)


def sweep(overdue: float = OVERDUE, limit: int = LARGEST_SWEEP) -> int:
    """Publish the events that have been due for ``overdue`` seconds, oldest first.

    Their messages are lost or still queued; then these are second messages and change
    nothing.

    :param limit: events of each endpoint at most.
    :return: how many messages were sent.
    """
    sent = 0
    for endpoint in _endpoints(SWEEP).values():
        try:
            _note_seen(store := endpoint.store)
            if endpoint.dispatch == "celery" and not is_paused(store):
                found = due_events([store], limit, since=overdue)
                sent += publish(endpoint, [row_id for _, row_id in found])
        except InboxUnavailable as unavailable:
            log.error("%s is not swept: %s", endpoint.name, unavailable)
    return sent


def reconcile() -> int:
    """Insert the events that Procore has discarded and the inbox lacks.

    For Celery's beat, once a day; as the command ``reconcile``. It needs the extra
    ``procore``. Safe to repeat.

    :return: how many events were inserted.
    """
    from ..hooks.report import Options
    from .reconciling import reconcile_endpoint

    inserted = 0
    for endpoint in _endpoints(RECONCILE).values():
        if not endpoint.settings.api.is_configured:
            continue
        try:
            for report in reconcile_endpoint(endpoint, Options(), ACTOR):
                inserted += report.inserted
                where = f"{endpoint.name}, {report.scope}"
                if report.error:
                    log.error("%s is not reconciled: %s", where, report.whole_error)
                for note in report.notes:
                    log.warning("%s: %s", where, note)
        except (ConfigError, InboxUnavailable) as error:
            log.error("%s is not reconciled: %s", endpoint.name, error)
    return inserted


class Batches(Crew):
    """The workers of one app in one process that run events beside those of tasks.

    Each task has a worker of its own while it runs.
    """

    mode = "celery"
    #: Also the longest time of an event that a batch follows. An idle process takes a
    #: message and runs its event first: a batch holds events that wait anyway.
    batch_seconds = 0.5

    def __init__(self) -> None:
        self._idle: dict[str, list[Worker]] = {}
        #: Events that were run, whose own tasks may come: name of the endpoint, row.
        self._ran: set[tuple[str, int]] = set()

    def run(self, endpoint: Endpoint) -> None:
        """Run a batch of the endpoint's due events; afterwards no claim is held.

        Without an error: claims that cannot be released end with their lease, or are
        released before the next batch.
        """
        if is_eager(endpoint.app):
            return  # in a request
        idle = self._idle.setdefault(endpoint.name, [])
        worker = idle.pop() if idle else Worker([endpoint], poll=0.0, crew=self)
        try:
            worker.run_due()
        except InboxUnavailable as error:
            log.error("A batch of %s has ended: %s", endpoint.name, error)
        finally:
            with suppress(InboxUnavailable):
                worker.release()
        if not worker.is_abandoned:
            idle.append(worker)

    def forget(self, endpoint: Endpoint, row_id: int) -> bool:
        """Whether the event was run in a batch; asked again, the answer is no."""
        try:
            self._ran.remove((endpoint.name, row_id))
        except KeyError:
            return False
        return True

    def ended(
        self, endpoint: Endpoint, row_id: int, outcome: RunOutcome, woken: list[int]
    ) -> None:
        if len(self._ran) >= REMEMBERED:
            self._ran.clear()  # their tasks will ask the database
        self._ran.add((endpoint.name, row_id))
        _publish_next(endpoint, row_id, outcome, woken)

    def interrupted(self, error: BaseException) -> None:
        raise error  # Celery ends the task or the process

    def released(self, endpoint: Endpoint, rows: list[int]) -> None:
        # Their tasks may have found them claimed, and ended. The thread that renews
        # leases has no context.
        with context_of(endpoint.app):
            publish(endpoint, rows)


def _run(endpoint: Endpoint, row_id: int) -> bool:
    """Run the event, and publish its next run; return whether it was run."""
    store, woken = endpoint.store, list[int]()
    try:
        # After a pause, the sweep publishes the events that were recorded meanwhile.
        if seconds_to_work([store])[store.endpoint] != 0.0:
            return False
        _note_seen(store)
        outcome = process(endpoint, row_id, woken=woken)
        _publish_next(endpoint, row_id, outcome, woken)
    except InboxUnavailable as error:
        log.error("Event %s is left to the sweep: %s", row_id, error)
        return False
    return outcome is not RunOutcome.NOT_CLAIMED


def _publish_next(
    endpoint: Endpoint, row_id: int, outcome: RunOutcome, woken: list[int]
) -> None:
    """Publish the events that a run has made due, and the event's own next run."""
    publish(endpoint, woken)
    if outcome in (RunOutcome.RETRY, RunOutcome.POSTPONED):
        wait = seconds_to(endpoint.store, row_id)
        if wait is not None and wait <= LONGEST_COUNTDOWN:
            publish(endpoint, [row_id], countdown=wait + CLOCK_TOLERANCE)


def _note_seen(store: Store) -> None:
    with suppress(Exception):  # it is no failure of the task
        note_seen(store, "celery")


def _endpoints(task: str) -> dict[str, Endpoint]:
    """The endpoints of the app whose context the task runs in, by name."""
    if not has_app_context():
        log.error(NO_CONTEXT, task)
        return {}
    return endpoints(current_app)
