"""Crew: what a worker asks, and tells, the pool that it belongs to."""

from __future__ import annotations

from ..endpoint import Endpoint
from ..running.failures import RunOutcome


class Crew:
    """The pool of a worker. This base class stands for a worker without a pool."""

    #: As ``stats`` and ``check`` show it.
    mode = "worker"
    #: Seconds after which the rest of a batch is released: a claimed event waits for
    #: its turn here although another worker may be idle. During one long event, the
    #: rest is released after ``held.LONGEST_WAIT`` already.
    batch_seconds = 1.0

    def runs(self, own: int) -> list[int]:
        """The runs of each thread so far.

        :param own: those of the worker that asks.
        """
        return [own]

    def has_room(self) -> bool:
        """Whether a thread is idle, or one more can be started."""
        return False

    def wake(self) -> None:
        """More events may be due than this worker has claimed."""

    def check(self) -> None:
        """A call of this worker takes long, or is abandoned."""

    def ended(
        self, endpoint: Endpoint, row_id: int, outcome: RunOutcome, woken: list[int]
    ) -> None:
        """An event has run; the end of its jobs has made the rows ``woken`` due."""

    def interrupted(self, error: BaseException) -> None:
        """A run was interrupted, for example by a subscriber's ``SystemExit``.

        The event runs again, and the worker goes on unless this raises an error.
        """

    def released(self, endpoint: Endpoint, rows: list[int]) -> None:
        """Claimed events were not run, and are due again; called in any thread."""

    def needs(self, worker: object) -> bool:
        """Whether the worker goes on."""
        return True
