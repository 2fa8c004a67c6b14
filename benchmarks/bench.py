"""What each part of a run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .databases import Databases
from .databases import Missing


@dataclass(frozen=True)
class Bench:
    databases: Databases
    #: On a disk; removed at the end.
    folder: Path
    #: The candidates, servers and databases that are left out.
    without: frozenset[str] = frozenset()
    #: Only to see that all of it works.
    is_quick: bool = False
    #: Of load in a round.
    seconds: int = 2
    #: In the inboxes that growth compares.
    sizes: tuple[int, ...] = (10_000, 5_000_000)

    def require(self, *names: str) -> None:
        """:raises Missing: one of them is not wanted."""
        if self.without.intersection(names):
            raise Missing("not wanted")

    def url(self, kind: str) -> str:
        """The URL of a new database.

        :raises Missing: it is not wanted, or there is no such server.
        """
        self.require(kind)
        return self.databases.make(kind)
