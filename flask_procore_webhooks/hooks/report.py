"""Report: what a reconciliation was asked for, and what it has found of one hook."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from dataclasses import field
from datetime import date
from datetime import datetime
from datetime import timedelta
from enum import auto
from enum import Enum

from ..config.api import LISTED_DAYS
from ..config.api import Scope
from ..errors import ProcoreWebhooksError

#: The part of the delivered events that the inbox must have. With less, it is another
#: database, or Procore's record has other ids: then everything would be inserted twice.
CONTROL = 0.9
#: Unknown statuses that a note names, and the characters of each.
MOST_STATUSES, LONGEST_STATUS = 5, 40

NOTHING_SENT = "Procore answers 404: the hook has sent nothing yet."
UNREADABLE = "{} missing events have no readable payload."
FOREIGN = "{} events of another company or project are not inserted."
UNKNOWN = "{} events have a status that is not documented, and are not inserted: {}."


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


class Kind(Enum):
    """What a delivery in Procore's list is for the inbox."""

    #: Delivered, and in the inbox.
    FOUND = auto()
    #: In the inbox, and not delivered by Procore: it was inserted, or enqueued.
    KNOWN = auto()
    #: Another delivery of an event that counts already.
    AGAIN = auto()
    #: Delivered, and lacking; with ``--all`` it is inserted.
    LACKING = auto()
    WANTED = auto()
    #: Discarded or failed, and lacking; without a payload it cannot be inserted.
    LOST = auto()
    UNREADABLE = auto()
    COMING = auto()
    #: Its status is not documented.
    UNKNOWN = auto()
    #: Of another company or project than the hook.
    FOREIGN = auto()
    #: From before the first day that an operator has named.
    LEFT_OUT = auto()


@dataclass
class Report:
    """What was found of one hook, or why there is no hook to look at."""

    #: Its id; ``""`` without a hook.
    hook: str
    scope: Scope
    first: date
    last: date
    inserted: int = 0
    notes: list[str] = field(default_factory=list)
    #: Why it was stopped.
    error: str | None = None
    #: What that means, and what to do: the same sentences for every hook.
    explanation: str = ""
    #: By the key of the delivery.
    kinds: dict[tuple[str, str], Kind] = field(default_factory=dict, repr=False)
    #: The statuses of those of an unknown status.
    statuses: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    _numbers: Counter[Kind] = field(default_factory=Counter, repr=False)

    def count(self, key: tuple[str, str], kind: Kind, status: str) -> None:
        """Count a delivery; what is read of it last counts."""
        if (former := self.kinds.get(key)) is not None:
            self._numbers[former] -= 1
        self.kinds[key] = kind
        self._numbers[kind] += 1
        self.statuses.pop(key, None)
        if kind is Kind.UNKNOWN:
            self.statuses[key] = status[:LONGEST_STATUS] or "none"

    @property
    def seen(self) -> int:
        """Events in Procore's record."""
        return sum(self._numbers.values()) - self.left_out

    @property
    def delivered(self) -> int:
        return self._number(Kind.FOUND, Kind.LACKING, Kind.WANTED)

    @property
    def found(self) -> int:
        """Delivered events that are in the inbox."""
        return self._number(Kind.FOUND)

    @property
    def missing(self) -> int:
        """Events that Procore no longer sends, and that the inbox lacks."""
        return self._number(Kind.LOST, Kind.UNREADABLE, Kind.WANTED)

    @property
    def unreadable(self) -> int:
        """Missing ones that cannot be inserted: Procore shows no payload with an id."""
        return self._number(Kind.UNREADABLE)

    @property
    def skipped(self) -> int:
        """Other events that the inbox lacks, and that are not inserted."""
        others = Kind.LACKING, Kind.UNKNOWN, Kind.FOREIGN
        return self._number(*others) + self.coming

    @property
    def coming(self) -> int:
        """Skipped ones that are still to come."""
        return self._number(Kind.COMING)

    @property
    def left_out(self) -> int:
        """Events before the first day that the inbox lacks."""
        return self._number(Kind.LEFT_OUT)

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

    def add_notes(self) -> None:
        """Note what was not inserted, and why."""
        if self.unreadable:
            self.notes.append(UNREADABLE.format(self.unreadable))
        if foreign := self._number(Kind.FOREIGN):
            self.notes.append(FOREIGN.format(foreign))
        if self.statuses:
            found = Counter(self.statuses.values()).most_common(MOST_STATUSES)
            listed = ", ".join(f"{status} ({number})" for status, number in found)
            self.notes.append(UNKNOWN.format(len(self.statuses), listed))

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

    def _number(self, *kinds: Kind) -> int:
        return sum(self._numbers[kind] for kind in kinds)
