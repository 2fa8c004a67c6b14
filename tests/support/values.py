"""Values of most tests: the secrets of test apps, and a clock."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

SECRET = "a secret of the test suite"
AUTHORIZATION = "Bearer a token of the test suite"


class Clock:
    """A clock that a test sets; the ``now`` of an inbox."""

    def __init__(self) -> None:
        self.time = datetime.now(timezone.utc)

    def __call__(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
