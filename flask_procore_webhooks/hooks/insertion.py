"""Insertion: events of Procore's record enter the inbox, with a journal entry."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

from ..endpoint import Endpoint
from ..event import Event
from ..inbox.added import insert_events
from ..inbox.status import Status
from ..operations.journal import end_reconcile
from ..operations.journal import new_batch
from ..operations.journal import note
from ..operations.journal import RECONCILE
from ..storage.tally import count
from .deliveries import Delivery
from .report import Report

#: Events that are inserted, and then dispatched, together.
AT_ONCE = 100
#: The outcome in the tally.
RECONCILED = "reconciled"


class Insertion:
    """What is inserted of one hook.

    :param report: gets the number of inserted events.
    :param dispatch: is called with the row ids that were inserted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        report: Report,
        actor: str,
        dispatch: Callable[[list[int]], None],
    ) -> None:
        self._endpoint = endpoint
        self._report = report
        self._actor = actor
        self._dispatch = dispatch
        self._batch: str | None = None

    def insert(self, deliveries: Sequence[Delivery]) -> None:
        """Insert those that the inbox lacks, and dispatch them."""
        if deliveries:
            self._open()
        for start in range(0, len(deliveries), AT_ONCE):
            part = deliveries[start : start + AT_ONCE]
            rows = insert_events(self._endpoint.store, self._with_status(part))
            self._report.inserted += len(rows)
            count(self._endpoint.store, RECONCILED, len(rows))
            self._dispatch(rows)

    def close(self) -> None:
        """Write into the journal what was found and inserted, if an entry was begun."""
        if self._batch is not None:
            report = self._report
            counts = report.missing, report.inserted
            end_reconcile(
                self._endpoint.store, self._batch, report.to_filter(), *counts
            )

    def _open(self) -> None:
        """Begin an entry in the journal, before the first row is inserted."""
        if self._batch is None:
            self._batch = new_batch()
            note(
                self._endpoint.store,
                RECONCILE,
                self._actor,
                batch=self._batch,
                filter=self._report.to_filter(),
            )

    def _with_status(
        self, deliveries: Sequence[Delivery]
    ) -> Iterator[tuple[Event, Status]]:
        for each in deliveries:
            if each.event is not None:
                is_own = self._endpoint.ignores(each.event)
                yield each.event, Status.IGNORED if is_own else Status.PENDING
