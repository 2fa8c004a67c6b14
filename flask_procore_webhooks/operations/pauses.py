"""Pause and resume the runs of an endpoint's events."""

from __future__ import annotations

from ..inbox.due import PAUSE as STATE
from ..inbox.seen import put_state
from ..storage.store import Store
from .journal import actor_text
from .journal import note
from .journal import PAUSE
from .journal import RESUME

#: Characters of the reason that are kept.
LONGEST_REASON = 500


def pause(store: Store, actor: str, reason: str | None = None) -> None:
    """Pause the endpoint: events are recorded, and none runs until :func:`resume`."""
    reason = store.text(reason, LONGEST_REASON) or None
    note(store, PAUSE, actor, filter={"reason": reason} if reason else None)
    value = {"by": actor_text(store, actor)}
    put_state(store, STATE, value | {"reason": reason} if reason else value)


def resume(store: Store, actor: str) -> None:
    """End a pause; workers notice it at their next poll at the latest."""
    note(store, RESUME, actor)
    put_state(store, STATE, None)
