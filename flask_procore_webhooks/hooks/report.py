"""Report: what a reconciliation was asked for, and what it has found of one hook."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from datetime import date
from datetime import datetime
from datetime import timedelta

from ..config.api import LISTED_DAYS
from ..config.api import Scope
from ..errors import ProcoreWebhooksError

#: The part of the delivered events that the inbox must have. With less, it is another
#: database, or Procore's record has other ids: then everything would be inserted twice.
CONTROL = 0.9


class WrongDay(ProcoreWebhooksError):
    """Procore lists no deliveries of the first day that the operator has named."""


@dataclass(frozen=True)
class Options:
    """What the operator has chosen.

    :param since: the first day, or how long ago it is, in the place of that after the
        last run.
    :param everything: insert also events that Procore has delivered.
    :param dry_run: insert nothing.
    """

    since: date | timedelta | None = None
    everything: bool = False
    dry_run: bool = False

    def first_day(self, now: datetime) -> date | None:
        """The day of ``since``.

        :param now: Procore's time.
        :raises WrongDay: it is in the future, or Procore lists it no longer.
        """
        if self.since is None:
            return None
        if isinstance(self.since, timedelta):
            day = (now - self.since).date()
        else:
            day = self.since
        if day > now.date():
            raise WrongDay(
                f"--since {day} is in the future: Procore's time is"
                f" {now:%Y-%m-%d %H:%M} UTC."
            )
        if day < now.date() - timedelta(days=LISTED_DAYS):
            raise WrongDay(
                f"Procore lists deliveries of the last {LISTED_DAYS} days:"
                f" --since {day} is earlier."
            )
        return day


@dataclass
class Report:
    """What was found of one hook, or why there is no hook to look at."""

    #: Its id; ``""`` without a hook.
    hook: str
    scope: Scope
    first: date
    last: date
    #: Events in Procore's record.
    seen: int = 0
    #: Delivered events; ``found`` of them are in the inbox.
    delivered: int = 0
    found: int = 0
    #: Events that Procore no longer sends, and that the inbox lacks.
    missing: int = 0
    #: Those of them that cannot be inserted: Procore shows no payload with an id.
    unreadable: int = 0
    inserted: int = 0
    #: Events that the inbox lacks and that are not inserted: still to come, or
    #: delivered, or of an unknown status.
    skipped: int = 0
    #: Those of them that are still to come.
    coming: int = 0
    notes: list[str] = field(default_factory=list)
    #: Why it was stopped.
    error: str | None = None
    #: What that means, and what to do: the same sentences for every hook.
    explanation: str = ""

    @property
    def insertable(self) -> int:
        """How many of the missing events can be inserted."""
        return self.missing - self.unreadable

    @property
    def whole_error(self) -> str | None:
        """Why it was stopped, with the explanation."""
        if self.error and self.explanation:
            return f"{self.error}. {self.explanation}"
        return self.error

    @property
    def is_controlled(self) -> bool:
        """Whether enough delivered events are in the inbox, or none was delivered."""
        return self.found >= CONTROL * self.delivered

    def to_filter(self) -> dict[str, str | int]:
        """What the journal has of it beside the counts."""
        return {
            "hook": self.hook,
            "scope": str(self.scope),
            "from": f"{self.first}",
            "to": f"{self.last}",
            "seen": self.seen,
            "found": self.found,
            "skipped": self.skipped,
        }
