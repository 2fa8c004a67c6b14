"""Insertion: events of Procore's record enter the inbox, with a journal entry."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy.exc import IntegrityError

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
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
REFUSED = "the database refused an event (IntegrityError), after {} were inserted"


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
        """Insert those that the inbox lacks, and dispatch them, one part at a time.

        :raises InboxUnavailable: also if the database refuses a row: the parts before
            it are inserted.
        """
        if deliveries:
            self._open()
        for start in range(0, len(deliveries), AT_ONCE):
            part = deliveries[start : start + AT_ONCE]
            rows = self._insert_part(part)
            self._report.inserted += len(rows)
            count(self._endpoint.store, RECONCILED, len(rows))
            self._dispatch(rows)

    def close(self) -> None:
        """Write into the journal what was found and inserted, if an entry was begun.

        If the inbox can be used.
        """
        if self._batch is not None:
            report, store = self._report, self._endpoint.store
            counts = report.missing, report.inserted
            with suppress(InboxUnavailable):
                end_reconcile(store, self._batch, report.to_filter(), *counts)

    def _insert_part(self, part: Sequence[Delivery]) -> list[int]:
        try:
            return insert_events(self._endpoint.store, self._with_status(part))
        except IntegrityError:
            # A rule of the host's own on the table. The text of the error has values.
            text = REFUSED.format(self._report.inserted)
            raise InboxUnavailable(text) from None

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
