"""The host's session in a run: one for each, and put back as it was found."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from typing import Any

from sqlalchemy.orm import Session

#: Returns the session that subscribers use, the same one all through one run.
SessionSource = Callable[[], Session]

#: What the host may have called when a session commits, even one without writes.
COMMIT_HOOKS = (
    "before_commit",
    "after_commit",
    "after_transaction_create",
    "after_transaction_end",
)


@contextmanager
def session_scope(source: SessionSource) -> Iterator[Session]:
    """Give a session for one run; what is not committed in it is rolled back.

    One that a request or an outer run is using in this scope is put aside meanwhile.
    """
    registry: Any = getattr(source, "registry", None)
    aside = registry() if registry and registry.has() else None
    if aside is not None:
        registry.clear()
    session = source()
    try:
        yield session
    finally:
        _close(session)
        end_session(source)
        if aside is not None:
            registry.set(aside)


def is_unused(session: Session) -> bool:
    """Whether its commit would do nothing: write nothing, and call nobody's hooks."""
    if type(session).commit is not Session.commit:
        return False
    hooks = any(getattr(session.dispatch, name) for name in COMMIT_HOOKS)
    waiting = session.new or session.dirty or session.deleted
    return not (session.in_transaction() or waiting or hooks)


def end_session(source: SessionSource) -> None:
    """Roll the current session back, and let the next user have a new one."""
    _close(source())
    if remove := getattr(source, "remove", None):
        remove()


def _close(session: Session) -> None:
    # On a dead connection the rollback fails, and there is nothing to roll back.
    with suppress(Exception):
        session.close()
