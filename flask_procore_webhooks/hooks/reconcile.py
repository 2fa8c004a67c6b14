"""Reconcile: find in Procore's record of deliveries what the inbox lacks, and add it.

Procore discards the queue of a hook after twelve hours of failures, and sends nothing
of it again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone

from ..api.errors import APIError
from ..errors import InboxUnavailable
from ..event import Event
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
from .report import Kind
from .report import NOTHING_SENT
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
NO_DAYS = "Procore lists deliveries from {} to {} that it lists for none of these days"
NO_HOOK = "Procore has no hook of namespace {!r} here: run hooks apply."
LEFT_OUT = (
    "{} events before {} are left out: --since of the first run. Give an earlier"
    " --since to include them."
)


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

    :param actor: the name of the user in the journal.
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
        #: The earliest day with an event that is still to come, or may be.
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
            self._insertion.close()
        self._add_notes()
        return report

    def _add_notes(self) -> None:
        report, cursor = self._report, self._cursor
        if self._days.is_unknown:
            report.notes.append(NOTHING_SENT)
        report.add_notes()
        if report.left_out and not cursor.is_told:
            report.notes.append(LEFT_OUT.format(report.left_out, cursor.begins))
        if cursor.note_of_damage:
            report.notes.append(cursor.note_of_damage)

    def _read(self) -> None:
        """Read the days together if they are few, else each day.

        :raises Stopped: nothing more is inserted.
        """
        cursor = self._cursor
        together = self._days.read_together(cursor.earliest, cursor.last)
        if together is not None:
            self._take_all(together, cursor.earliest)
        else:
            self._read_days()
        self._finish(cursor.last, is_whole=True)

    def _read_days(self) -> None:
        """Read each day, until single days have what Procore lists for all of them.

        :raises Stopped: they have not.
        """
        for _ in range(WIDTHS):
            self._read_each_day()
            if self._days.have_all:
                return
            self._days.widen()
        self._cursor.take_back()
        raise Stopped(NO_DAYS.format(self._cursor.earliest, self._cursor.last))

    def _read_each_day(self) -> None:
        cursor = self._cursor
        day = cursor.earliest
        while day <= cursor.last:
            self._take_all(self._days.read(day, is_open=day >= cursor.today), day)
            if self._report.delivered >= ENOUGH:
                self._finish(day, is_whole=self._days.are_whole)
            day += timedelta(days=1)

    def _take_all(self, found: list[Delivery], day: date) -> None:
        """Count the deliveries, and hold what is to be inserted.

        :param day: on which, or after which, they are listed.
        """
        ids = [each.event.id for each in found if each.event]
        known = known_ids(self._endpoint.store, ids)
        for delivery in found:
            event = delivery.event
            is_known = event is not None and event.id in known
            if is_known and self._cursor.is_before(event):
                continue
            kind = self._kind(delivery, is_known)
            self._report.count(delivery.key, kind, delivery.status)
            if event and kind in (Kind.LOST, Kind.WANTED):
                self._hold(delivery, event.id)
            elif kind in (Kind.COMING, Kind.UNKNOWN):
                # The day is read again.
                when = self._cursor.day_of(event) or day
                self._waiting = min(self._waiting, max(when, self._cursor.earliest))

    def _hold(self, delivery: Delivery, event_id: str) -> None:
        if event_id not in self._missing:
            self._missing.add(event_id)
            self._held.append(delivery)

    def _kind(self, delivery: Delivery, is_known: bool) -> Kind:
        event = delivery.event
        if event is not None:
            if event.id in self._missing:
                return self._report.kinds.get(delivery.key, Kind.AGAIN)
            if is_known:
                return Kind.FOUND if delivery.has_arrived else Kind.KNOWN
            if self._cursor.is_before(event):
                return Kind.LEFT_OUT
            if self._is_foreign(event):
                return Kind.FOREIGN
        if delivery.is_lost:
            return Kind.LOST if event else Kind.UNREADABLE
        if delivery.has_arrived:
            return Kind.WANTED if self._options.everything and event else Kind.LACKING
        return Kind.COMING if delivery.is_coming else Kind.UNKNOWN

    def _is_foreign(self, event: Event) -> bool:
        """Whether it names another company or project than that of the hook."""
        scope = self._hook.scope
        if event.company_id not in (None, scope.company):
            return True
        projects = (None, scope.project)
        return scope.project is not None and event.project_id not in projects

    def _finish(self, day: date, *, is_whole: bool) -> None:
        """Insert what is held.

        :param is_whole: whether days until this one were read whole, which is noted.
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
        if is_whole:
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

    Hooks are those of the endpoint's namespace in its scopes; a scope without one, for
    which the app has subscribers, is an error. Safe to repeat and to interrupt: a later
    call goes on at the last whole day.

    :raises WrongDay: Procore does not list the first day that the operator has named.
    """
    survey, calendar, since = run.survey, Calendar(), None
    for scope in survey.scopes:
        calls = survey.calls(scope)
        hooks, error = _hooks(survey, calls)
        now = run.now()
        since = since or run.options.first_day(now)
        if error:
            yield Report("", scope, now.date(), now.date(), error=error)
        for hook in hooks:
            days = Days(survey.endpoint, calls, hook, calendar, run.progress)
            try:
                cursor = Cursor(survey.endpoint.store, hook.id, since, now.date())
            except InboxUnavailable as unavailable:
                day, text = now.date(), str(unavailable)
                yield Report(hook.id, scope, day, day, error=text)
            else:
                yield Reconciliation(run, hook, days, cursor).run()


def _hooks(survey: Survey, calls: ScopeAPI) -> tuple[list[Hook], str | None]:
    """The hooks of the namespace, or why there are none though there should be."""
    namespace, wanted = survey.desired.namespace, survey.desired.wanted
    try:
        hooks = calls.hooks(namespace)
        found = [each for each in hooks if each.namespace == namespace]
        if found or not (wanted.is_incomplete or survey.wanted_in(calls.scope)):
            return found, None
    except APIError as error:
        return [], str(error)
    return [], NO_HOOK.format(namespace)
