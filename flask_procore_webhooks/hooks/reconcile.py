"""Reconcile: find in Procore's record of deliveries what the inbox lacks, and add it.

Procore discards the queue of a hook after twelve hours of failures, and sends nothing
of it again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone

from ..api.errors import APIError
from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..event import Event
from ..inbox.added import insert_events
from ..inbox.added import known_ids
from ..inbox.added import was_delivered
from ..inbox.status import Status
from ..operations.journal import end_reconcile
from ..operations.journal import new_batch
from ..operations.journal import note
from ..operations.journal import RECONCILE
from ..operations.seen import put_state
from ..operations.seen import states
from ..storage.store import Store
from ..storage.tally import count
from .calls import Hook
from .deliveries import Calendar
from .deliveries import Days
from .deliveries import Delivery
from .deliveries import LISTED
from .deliveries import WIDTHS
from .report import NO_DAYS
from .report import Options
from .report import Report
from .report import Stopped
from .report import UNCONTROLLED
from .report import UNREADABLE
from .survey import Survey

#: Days before the last one that was reconciled, which are read again: nothing
#: documents the zone of Procore's days, or whether they are those of the event.
OVERLAP = timedelta(days=2)
#: Delivered events after which the control group is judged, and days are finished.
ENOUGH = 20
#: Prefix of the names of rows in the state table with the last day of a hook.
CURSOR = "reconcile:"
#: The outcome in the tally.
RECONCILED = "reconciled"


class Reconciliation:
    """The reconciliation of one hook.

    :param dispatch: is called with the row ids that were inserted.
    """

    def __init__(
        self,
        survey: Survey,
        hook: Hook,
        days: Days,
        options: Options,
        actor: str,
        dispatch: Callable[[list[int]], None],
    ) -> None:
        self._endpoint: Endpoint = survey.endpoint
        self._store: Store = survey.endpoint.store
        self._hook = hook
        self._options = options
        self._actor = actor
        self._dispatch = dispatch
        self._days = days
        self._today = self._store.now().date()
        self._name = f"{CURSOR}{hook.id}"
        self._cursor, self._begins = self._find_cursor()
        # Procore's day may have begun where ours has not.
        last = self._today + timedelta(days=1)
        self.report = Report(hook.id, hook.scope, self._first_day(), last)
        #: What is to be inserted of days that are not finished.
        self._held: list[Delivery] = []
        #: The ids of all events that the inbox lacks.
        self._missing: set[str] = set()
        #: The earliest day with an event that is still to come.
        self._waiting = date.max
        self._batch: str | None = None

    def run(self) -> Report:
        """Read each day, and insert what is missing; the report says why it stopped."""
        report = self.report
        try:
            together = self._days.read_together(self._earliest(), report.last)
            if together is not None:
                self._take_all(together)
            else:
                self._read_days()
            self._finish(report.last)
        except (APIError, InboxUnavailable, Stopped) as error:
            report.error = str(error)
        with suppress(InboxUnavailable):
            self._close()
        if self._days.is_unknown:
            report.notes.append("Procore answers 404: the hook has sent nothing yet.")
        if report.unreadable:
            report.notes.append(UNREADABLE.format(report.unreadable))
        return report

    def _first_day(self) -> date:
        earliest, since = self._today - LISTED, self._options.since
        if since is not None:
            return max(earliest, min(since, self._today))
        cursor = self._cursor
        return earliest if cursor is None else max(earliest, cursor - OVERLAP)

    def _earliest(self) -> date:
        """The first day that is asked for: Procore's days may be others."""
        first = self.report.first
        if self._options.since is None:
            return first
        return max(self._today - LISTED, first - OVERLAP)

    def _find_cursor(self) -> tuple[date | None, date]:
        """The last whole day, and the day before which another receiver had events."""
        for row in states(self._store, self._name):
            if row["name"] == self._name:
                value, read = row["value"], date.fromisoformat
                return read(value["day"]), read(value.get("begins", f"{date.min}"))
        return None, date.min

    def _read_days(self) -> None:
        """Read each day of a hook that has deliveries in these days.

        :raises Stopped: Procore lists none for a single day.
        """
        for _ in range(WIDTHS):
            self._read_each_day()
            if self._days.has_found:
                return
            self._days.widen()
        raise Stopped(NO_DAYS.format(self._earliest(), self.report.last))

    def _read_each_day(self) -> None:
        day, report = self._earliest(), self.report
        while day <= report.last:
            self._take_all(self._days.read(day, is_open=day >= self._today))
            if report.delivered >= ENOUGH:
                self._finish(day)
            day += timedelta(days=1)

    def _take_all(self, found: list[Delivery]) -> None:
        """Count the deliveries, and hold what is to be inserted."""
        found = [each for each in found if not self._is_before(each.event)]
        known = known_ids(self._store, [each.event.id for each in found if each.event])
        for delivery in found:
            self._take(delivery, known)

    def _is_before(self, event: Event | None) -> bool:
        """Whether the event happened before the day that the operator has named."""
        begins = self._begins if self._options.since is None else self.report.first
        when = event.timestamp if event is not None else None
        return when is not None and when.date() < begins

    def _take(self, delivery: Delivery, known: set[str]) -> None:
        report, event = self.report, delivery.event
        is_known = event is not None and event.id in known
        report.seen += 1
        report.delivered += delivery.has_arrived
        report.found += delivery.has_arrived and is_known
        if is_known:
            return
        is_wanted = self._options.everything and delivery.has_arrived
        if event is None:
            report.skipped += not delivery.is_lost
            report.missing += delivery.is_lost
            report.unreadable += delivery.is_lost
        elif not delivery.is_lost and not is_wanted:
            report.skipped += 1
            if delivery.is_coming and event.timestamp is not None:
                when = max(event.timestamp.date(), self._earliest())
                self._waiting = min(self._waiting, when)
        elif event.id not in self._missing:
            self._missing.add(event.id)
            report.missing += 1
            self._held.append(delivery)

    def _finish(self, day: date) -> None:
        """Insert what is held, and note the last whole day.

        :raises Stopped: the inbox lacks too many delivered events.
        """
        report = self.report
        if not report.is_controlled and not self._may_lack_some():
            raise Stopped(UNCONTROLLED.format(report.delivered, report.found))
        if self._options.dry_run:
            return
        held, self._held = self._held, []
        if held:
            self._open()
            rows = insert_events(self._store, self._with_status(held))
            report.inserted += len(rows)
            count(self._store, RECONCILED, len(rows))
            self._dispatch(rows)
        self._note(day)

    def _note(self, day: date) -> None:
        """Note the last day before which no later run needs to look again."""
        cursor, first = self._cursor, self.report.first
        if self._options.since is not None and cursor is not None and cursor < first:
            return  # the days between were not read
        whole = min(day, self._today - timedelta(days=1), self._waiting)
        is_new = cursor is None or first < self._begins
        begins = first if self._options.since and is_new else self._begins
        put_state(self._store, self._name, {"day": f"{whole}", "begins": f"{begins}"})

    def _may_lack_some(self) -> bool:
        """With ``--all``, the inbox may be a copy of an older state, or empty."""
        report = self.report
        if not self._options.everything:
            return False
        days = (report.last - report.first).days + 1
        return report.found > 0 or not self._was_delivered(report.first, days)

    def _was_delivered(self, day: date, days: int) -> bool:
        """Whether the inbox has a delivered event of the scope of these days."""
        since = datetime.combine(day, time(), timezone.utc)
        until, scope = since + timedelta(days=days), self._hook.scope
        return was_delivered(self._store, since, until, scope.company, scope.project)

    def _with_status(
        self, deliveries: Iterable[Delivery]
    ) -> Iterator[tuple[Event, Status]]:
        for each in deliveries:
            if each.event is not None:
                is_own = self._endpoint.ignores(each.event)
                yield each.event, Status.IGNORED if is_own else Status.PENDING

    def _open(self) -> None:
        """Begin an entry in the journal, before the first row is inserted."""
        if self._batch is None:
            self._batch = new_batch()
            what = self.report.to_filter()
            note(self._store, RECONCILE, self._actor, batch=self._batch, filter=what)

    def _close(self) -> None:
        if self._batch is not None:
            report = self.report
            counts = report.missing, report.inserted
            end_reconcile(self._store, self._batch, report.to_filter(), *counts)


def reconcile(
    survey: Survey,
    options: Options,
    actor: str,
    *,
    progress: Callable[[int], None] = lambda number: None,
    dispatch: Callable[[list[int]], None] = lambda rows: None,
) -> Iterator[Report]:
    """Reconcile every hook of an endpoint; yield the report of each.

    Hooks are those of the endpoint's namespace in its scopes. Safe to repeat and to
    interrupt: a later call goes on at the last whole day.
    """
    today, calendar = survey.endpoint.store.now().date(), Calendar()
    for scope in survey.scopes:
        try:
            hooks = survey.calls(scope).hooks(survey.desired.namespace)
        except APIError as error:
            yield Report("", scope, today, today, error=str(error))
            continue
        mine = [each for each in hooks if each.namespace == survey.desired.namespace]
        if not mine:
            text = "Procore has no hook of this namespace here: run hooks apply."
            yield Report("", scope, today, today, notes=[text])
        for hook in mine:
            calls = survey.calls(scope)
            days = Days(survey.endpoint, calls, hook, calendar, progress)
            run = Reconciliation(survey, hook, days, options, actor, dispatch)
            yield run.run()
