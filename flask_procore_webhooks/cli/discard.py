"""``discard``: end jobs that are not to run any more."""

from __future__ import annotations

from flask.cli import with_appcontext

from ..operations.journal import DISCARD
from ._changes import change
from ._changes import changing
from ._options import command
from ._selected import Change
from ._selected import Request


@command("discard")
@changing
@with_appcontext
def discard_events(request: Request) -> None:
    """End pending and dead jobs, selected by id or by filters, as discarded.

    Also jobs of a --subscriber that the app does not have any more. An event without
    another job is done. With --status unmatched or quarantined, those events are done.
    A replay with --anew runs discarded jobs.
    """
    change(DISCARD, request, _nobody)


def _nobody(each: Change, rows: list[int]) -> None:
    """No process has to be told."""
