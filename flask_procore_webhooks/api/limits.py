"""Rate limits: what the headers of an answer say, and the wait that follows.

Procore has a limit for ten seconds and one for the hour. The headers do not say which
one they describe: a reset within ten seconds belongs to the short limit. Times are
compared with the answer's own ``Date``, because this host's clock may differ.
https://developers.procore.com/documentation/content/rate-limit-handling
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple

#: Seconds; a reset further away is that of the hourly limit.
SPIKE = 10.0
#: Seconds of the longest window, and a minute for clocks that differ.
LONGEST = 3660.0
#: Seconds to wait where a 429 names none.
USUAL_WAIT = 10.0
#: Seconds to wait at least after a 429 or 503, so that repeated calls come to an end.
SHORTEST_WAIT = 0.5


@dataclass(frozen=True)
class Limit:
    """One rate limit as an answer describes it."""

    #: Requests in the window.
    size: int
    #: Requests left in the window.
    remaining: int
    #: Seconds until the window ends.
    reset_in: float


def read_limit(headers: Mapping[str, str]) -> Limit | None:
    """The limit that the headers describe; ``None`` without such headers."""
    size = _number(headers.get("X-Rate-Limit-Limit"))
    remaining = _number(headers.get("X-Rate-Limit-Remaining"))
    reset_in = _reset_in(headers)
    if size is None or remaining is None or reset_in is None:
        return None
    return Limit(int(size), int(remaining), reset_in)


def read_wait(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds to wait after an error; ``None`` if the headers name none.

    After a 429, the later of what they name. Other answers have the reset of a limit
    that is not used up.
    """
    given = headers.get("Retry-After")
    seconds = _number(given)
    if seconds is None and (when := _http_date(given)):
        seconds = when - _now_of(headers)
    reset_in = _reset_in(headers) if status == 429 else None
    waits = [each for each in (seconds, reset_in) if each is not None]
    return min(LONGEST, max(SHORTEST_WAIT, *waits)) if waits else None


class Block(NamedTuple):
    """A time in which no request is made."""

    #: When it ends, by the monotonic clock.
    until: float
    #: The limit that is used up, in words.
    limit: str


class Budget:
    """What the answers of one client have said of both limits; threads share it.

    :param reserve: the part of a limit that is left to others: 0.2 is a fifth.
    """

    def __init__(self, reserve: float = 0.0) -> None:
        self.reserve = reserve
        # Without a lock, which a fork could leave locked: of two blocks that are set
        # at once the shorter one may win, and the next 429 sets the longer one again.
        self.block_now = Block(0.0, "")

    def note(self, limit: Limit | None) -> None:
        """Take what an answer says; block the next request if the limit is used up."""
        if limit is not None and limit.remaining <= self.reserve * limit.size:
            self.block(limit.reset_in, left=limit.remaining)

    def block(self, seconds: float, *, left: int = 0) -> None:
        """Block requests for this many seconds; a longer block stays.

        :param left: requests that are left to others.
        """
        name = "rate limit of ten seconds" if seconds <= SPIKE else "hourly rate limit"
        if left:
            name += f", but for the {left} requests that are left to others,"
        new = Block(time.monotonic() + min(seconds, LONGEST), name)
        self.block_now = max(self.block_now, new)

    def unblock(self, block: Block) -> None:
        """End the block, unless another answer has extended it.

        A test's ``sleep`` does not move the monotonic clock.
        """
        if self.block_now == block:
            self.block_now = Block(0.0, "")


def _reset_in(headers: Mapping[str, str]) -> float | None:
    reset = _number(headers.get("X-Rate-Limit-Reset"))
    return None if reset is None else max(0.0, reset - _now_of(headers))


def date_of(headers: Mapping[str, str]) -> float | None:
    """The answer's ``Date`` in Unix seconds; ``None`` without that header."""
    return _http_date(headers.get("Date"))


def _now_of(headers: Mapping[str, str]) -> float:
    return date_of(headers) or time.time()


def _http_date(text: str | None) -> float | None:
    try:
        when: datetime = parsedate_to_datetime(text or "")
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        return when.timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < 1e12 else None
