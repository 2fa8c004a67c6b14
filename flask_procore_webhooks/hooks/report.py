"""Report: what a reconciliation was asked for, and what it has found of one hook."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from datetime import date

from ..config.api import Scope

#: The part of the delivered events that the inbox must have. With less, it is another
#: database, or Procore's record has other ids: then everything would be inserted twice.
CONTROL = 0.9

UNCONTROLLED = (
    "of {} events that Procore has delivered, the inbox has {}: it is another database,"
    " or Procore's record has other ids than its deliveries. Nothing more is inserted."
    " After the restore of an older copy, give --all; if another receiver had the hook"
    " before, --since with the first day of this one"
)
NO_DAYS = (
    "Procore lists more than a page of deliveries from {} to {}, and none for a single"
    " day"
)
UNREADABLE = "{} of the missing ones have no payload that can be read."


class Stopped(Exception):
    """Why nothing more is inserted."""


@dataclass(frozen=True)
class Options:
    """What the operator has chosen.

    :param since: the first day, in the place of that after the last run.
    :param everything: insert also events that Procore has delivered.
    :param dry_run: insert nothing.
    """

    since: date | None = None
    everything: bool = False
    dry_run: bool = False


@dataclass
class Report:
    """What was found of one hook."""

    hook: str
    scope: Scope
    first: date
    last: date
    #: Events in Procore's record.
    seen: int = 0
    #: Those that Procore has delivered, and those of them that the inbox has.
    delivered: int = 0
    found: int = 0
    #: Events that Procore no longer sends, and that the inbox lacks.
    missing: int = 0
    #: Those of them that cannot be inserted: Procore shows no payload with an id.
    unreadable: int = 0
    inserted: int = 0
    #: Events that the inbox lacks and that are not inserted: still to come, or
    #: delivered.
    skipped: int = 0
    notes: list[str] = field(default_factory=list)
    #: Why it was stopped.
    error: str | None = None

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
