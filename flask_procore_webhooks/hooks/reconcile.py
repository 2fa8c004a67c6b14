"""Reconcile: find in Procore's record of deliveries what the inbox lacks, and add it.

Procore discards the queue of a hook after twelve hours of failures, and sends nothing
of it again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone

from ..api.errors import APIError
from ..errors import InboxUnavailable
from ..inbox.added import known_ids
from ..inbox.added import was_delivered
from .calls import Hook
from .calls import ScopeAPI
from .cursor import Cursor
from .deliveries import Calendar
from .deliveries import Days
from .deliveries import Delivery
from .deliveries import WIDTHS
from .insertion import Insertion
from .report import CONTROL
from .report import Options
from .report import Report
from .survey import Survey

#: Delivered events needed before the control group is judged and a day is finished.
ENOUGH = 20

UNCONTROLLED = "of {} delivered events, the inbox has {}"
#: What to do then.
ADVICE = (
    f"The inbox has less than {CONTROL:.0%} of what Procore has delivered: it is"
    " another database, or Procore's record has other ids than its deliveries. Nothing"
    " more is inserted. After the restore of an older copy, give --all. If another"
    " receiver had the hook before, give --since with the first day of this one."
)
NO_DAYS = (
    "Procore lists more than a page of deliveries from {} to {}, and none for a single"
    " day"
)
NO_HOOK = "Procore has no hook of namespace {!r} here: run hooks apply."
NOTHING_SENT = "Procore answers 404: the hook has sent nothing yet."
UNREADABLE = "{} missing events have no readable payload."


class Stopped(Exception):
    """Why nothing more is inserted.

    :param advice: what that means, and what to do.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


@dataclass(frozen=True)
class Run:
    """What the reconciliations of all hooks of an endpoint share.

    :param actor: who does it, for the journal.
    :param procore_time: Procore's time now, if an answer has named it. The days are
        Procore's, and this host's clock may be wrong.
    :param progress: is called with the number of deliveries of each page.
    :param dispatch: is called with the row ids that were inserted.
    """

    survey: Survey
    options: Options
    actor: str
    procore_time: Callable[[], datetime | None] = lambda: None
    progress: Callable[[int], None] = lambda number: None
    dispatch: Callable[[list[int]], None] = lambda rows: None

    def now(self) -> datetime:
        """Procore's time, or this host's if no answer has named it."""
        return self.procore_time() or self.survey.endpoint.store.now()


class Reconciliation:
    """The reconciliation of one hook."""

    def __init__(self, run: Run, hook: Hook, days: Days, cursor: Cursor) -> None:
        self._endpoint = run.survey.endpoint
        self._hook = hook
        self._options = run.options
        self._days = days
        self._cursor = cursor
        self._report = Report(hook.id, hook.scope, cursor.first, cursor.last)
        self._insertion = Insertion(
            self._endpoint, self._report, run.actor, run.dispatch
        )
        #: What is to be inserted of days that are not finished.
        self._held: list[Delivery] = []
        #: The ids of all events that the inbox lacks.
        self._missing: set[str] = set()
        #: The earliest day with an event that is still to come.
        self._waiting = date.max

    def run(self) -> Report:
        """Read each day, and insert what is missing; the report says why it stopped."""
        report = self._report
        try:
            self._read()
        except (APIError, InboxUnavailable) as error:
            report.error = str(error)
        except Stopped as stopped:
            report.error, report.explanation = str(stopped), stopped.advice
        finally:
            # Also after an error of the host, and Ctrl-C.
            with suppress(InboxUnavailable):
                self._insertion.close()
        if self._days.is_unknown:
            report.notes.append(NOTHING_SENT)
        if report.unreadable:
            report.notes.append(UNREADABLE.format(report.unreadable))
        return report

    def _read(self) -> None:
        """Read the days together if they are few, else each day.

        :raises Stopped: nothing more is inserted.
        """
        cursor = self._cursor
        together = self._days.read_together(cursor.earliest, cursor.last)
        if together is not None:
            self._take_all(together)
        else:
            self._read_days()
        self._finish(cursor.last)

    def _read_days(self) -> None:
        """Read each day of a hook that has deliveries in these days.

        :raises Stopped: Procore lists none for a single day.
        """
        for _ in range(WIDTHS):
            self._read_each_day()
            if self._days.has_found:
                return
            self._days.widen()
        raise Stopped(NO_DAYS.format(self._cursor.earliest, self._cursor.last))

    def _read_each_day(self) -> None:
        cursor = self._cursor
        day = cursor.earliest
        while day <= cursor.last:
            self._take_all(self._days.read(day, is_open=day >= cursor.today))
            if self._report.delivered >= ENOUGH:
                self._finish(day)
            day += timedelta(days=1)

    def _take_all(self, found: list[Delivery]) -> None:
        """Count the deliveries, and hold what is to be inserted."""
        found = [each for each in found if not self._cursor.is_before(each.event)]
        ids = [each.event.id for each in found if each.event]
        known = known_ids(self._endpoint.store, ids)
        for delivery in found:
            self._take(delivery, known)

    def _take(self, delivery: Delivery, known: set[str]) -> None:
        report, event = self._report, delivery.event
        is_known = event is not None and event.id in known
        report.seen += 1
        report.delivered += delivery.has_arrived
        report.found += delivery.has_arrived and is_known
        if is_known:
            return
        is_wanted = self._options.everything and delivery.has_arrived and event
        if not delivery.is_lost and not is_wanted:
            self._skip(delivery)
        elif event is None:
            report.missing += 1
            report.unreadable += 1
        elif event.id not in self._missing:
            self._missing.add(event.id)
            report.missing += 1
            self._held.append(delivery)

    def _skip(self, delivery: Delivery) -> None:
        """Count what is not inserted. The day of what is to come is read again."""
        report, event = self._report, delivery.event
        report.skipped += 1
        report.coming += delivery.is_coming
        if delivery.is_coming and event is not None and event.timestamp is not None:
            when = max(event.timestamp.date(), self._cursor.earliest)
            self._waiting = min(self._waiting, when)

    def _finish(self, day: date) -> None:
        """Insert what is held, and note the last whole day.

        :raises Stopped: the inbox lacks too many delivered events.
        """
        report = self._report
        if not report.is_controlled and not self._may_lack_some():
            text = UNCONTROLLED.format(report.delivered, report.found)
            raise Stopped(text, ADVICE)
        if self._options.dry_run:
            return
        held, self._held = self._held, []
        self._insertion.insert(held)
        self._cursor.note(min(day, self._waiting))

    def _may_lack_some(self) -> bool:
        """With ``--all``, the inbox may be a copy of an older state, or empty."""
        if not self._options.everything:
            return False
        return self._report.found > 0 or not self._was_delivered()

    def _was_delivered(self) -> bool:
        """Whether the inbox has a delivered event of the scope of these days."""
        scope, midnight = self._hook.scope, time(tzinfo=timezone.utc)
        since = datetime.combine(self._cursor.first, midnight)
        until = datetime.combine(self._cursor.last + timedelta(days=1), midnight)
        store = self._endpoint.store
        return was_delivered(store, since, until, scope.company, scope.project)


def reconcile(run: Run) -> Iterator[Report]:
    """Reconcile every hook of an endpoint; yield the report of each.

    Hooks are those of the endpoint's namespace in its scopes; a scope without one is an
    error. Safe to repeat and to interrupt: a later call goes on at the last whole day.

    :raises WrongDay: Procore does not list the first day that the operator has named.
    """
    survey, calendar, since = run.survey, Calendar(), None
    for scope in survey.scopes:
        calls = survey.calls(scope)
        hooks, error = _hooks(calls, survey.desired.namespace)
        now = run.now()
        since = since or run.options.first_day(now)
        if error:
            yield Report("", scope, now.date(), now.date(), error=error)
        for hook in hooks:
            cursor = Cursor(survey.endpoint.store, hook.id, since, now.date())
            days = Days(survey.endpoint, calls, hook, calendar, run.progress)
            yield Reconciliation(run, hook, days, cursor).run()


def _hooks(calls: ScopeAPI, namespace: str) -> tuple[list[Hook], str | None]:
    """The hooks of the namespace, or why there are none."""
    try:
        hooks = calls.hooks(namespace)
    except APIError as error:
        return [], str(error)
    found = [each for each in hooks if each.namespace == namespace]
    return found, None if found else NO_HOOK.format(namespace)
