"""What a forked process has to forget of its parent: threads, connections, locks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Forgetful(Protocol):
    """Something that holds what belongs to one process only."""

    def after_fork(self) -> None:
        """Forget it; called in each child."""


def in_child(forget: Callable[[], object]) -> None:
    """Have ``forget`` called in each process that is forked off from now on."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=forget)


def remember_forks(holder: Forgetful) -> None:
    """Have ``holder.after_fork`` called in each child, as long as the holder lives."""
    _holders.add(holder)


def _tell_all() -> None:
    for holder in list(_holders):
        holder.after_fork()


_holders: weakref.WeakSet[Forgetful] = weakref.WeakSet()
in_child(_tell_all)
