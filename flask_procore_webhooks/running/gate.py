"""Gate: lets an event that may have killed its process run alone in the next one.

An event is a suspect when its last claim ended without an outcome: its process was
killed, by this event or by another one beside it. An attempt of a suspect counts before
it ends, but only while nothing else runs in the process: if the process dies then, the
suspect has killed it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from dataclasses import field
from math import inf
from typing import Any

from ..errors import InboxUnavailable
from ..inbox.held import Claim
from ..inbox.held import take_back
from ..inbox.jobs import Job
from ..log import log
from ..storage.store import Store
from .calls import Call
from .calls import current

#: Seconds that a suspect waits for younger runs to end, and that other runs then wait
#: for it. Both double with each of its claims that has ended without an outcome, so
#: that an event which kills its process late is found too.
WAIT = 5.0
ALONE = 10.0
LONGEST_ALONE = 3600.0
#: Seconds that a run in a request waits for other runs of its process at most.
IN_REQUEST = 2.0


@dataclass(eq=False)
class Turn:
    """The place of a run among the runs of its process."""

    store: Store = field(repr=False)
    claim: Claim
    #: When it began, by the monotonic clock.
    since: float = field(default_factory=time.monotonic)
    #: Whether it is a suspect, and nothing else runs in the process.
    is_alone: bool = False
    #: Until when other runs wait for it.
    until: float = 0.0
    #: The job of a suspect whose attempt was counted before its call.
    begun: Job | None = None


class Gate:
    """The runs of one app in one process."""

    def __init__(self) -> None:
        self.turns: set[Turn] = set()
        #: The suspect that other runs wait for. A run adds its turn before it reads
        #: this, and a suspect sets this before it reads the turns.
        self.suspect: Turn | None = None
        #: Runs whose call was abandoned and whose other subscribers run.
        self.rests: set[Any] = set()
        #: Calls that were abandoned and have not returned.
        self.hanging: set[Call] = set()
        self._changed = threading.Condition()

    def wait(self, turn: Turn, *, is_in_request: bool = False) -> None:
        """Wait until a suspect has run; a suspect then runs alone, if it can."""
        if current.get() is not None:
            return  # within another run, which waits for this one
        longest = IN_REQUEST if is_in_request else inf
        self.turns.discard(turn)
        deadline = time.monotonic() + longest
        while suspect := self._pass(turn, longest, deadline):
            # The lock is free: the database may be slow.
            try:
                if suspect.begun is not None:
                    take_back(suspect.store, suspect.claim, suspect.begun)
            except InboxUnavailable as unavailable:
                log.warning("An attempt counts before its end: %s", unavailable)

    def _pass(self, turn: Turn, longest: float, deadline: float) -> Turn | None:
        """Wait until the turn can begin, or return a suspect that ran alone so far."""
        with self._changed:
            while (suspect := self.suspect) is not None:
                seconds = min(suspect.until, deadline) - time.monotonic()
                if seconds <= 0 or not self._changed.wait(seconds):
                    if self._open(suspect):
                        return suspect
            turn.since = time.monotonic()
            self.turns.add(turn)
            if turn.claim.unsettled:
                self._isolate(turn, longest)
            return None

    def end_rest(self, run: Any) -> None:
        with self._changed:
            self.rests.discard(run)
            self._changed.notify_all()

    def wait_for_rests(self, seconds: float) -> None:
        """Wait at most so long until no run goes on without an abandoned call."""
        with self._changed:
            self._changed.wait_for(lambda: not self.rests, seconds)

    def leave(self, turn: Turn) -> None:
        """End a run while there is a suspect."""
        with self._changed:
            if self.suspect is turn:
                self.suspect = None
            self._changed.notify_all()

    def _isolate(self, turn: Turn, longest: float) -> None:
        """Wait for the runs that began lately; others have shown that they go on."""
        doubled = 2.0 ** min(turn.claim.unsettled - 1, 20)
        wait = min(WAIT * doubled, LONGEST_ALONE, longest)
        self.suspect, turn.until = turn, time.monotonic() + wait + 1
        while self.suspect is turn:
            others = [each.since for each in list(self.turns) if each is not turn]
            seconds = max(others, default=0.0) + wait - time.monotonic()
            if not others or seconds <= 0:
                break
            self._changed.wait(seconds)
        if self.suspect is turn and self.turns == {turn}:
            turn.is_alone = True
            turn.until = time.monotonic() + min(ALONE * doubled, LONGEST_ALONE)
        elif self.suspect is turn:
            self.suspect = None
            self._changed.notify_all()

    def _open(self, suspect: Turn) -> bool:
        """Let other runs begin beside the suspect, which has not killed its process.

        :return: whether its attempt was counted, because it ran alone.
        """
        if self.suspect is not suspect:
            return False
        was_alone, suspect.is_alone = suspect.is_alone, False
        self.suspect = None
        self._changed.notify_all()
        return was_alone
