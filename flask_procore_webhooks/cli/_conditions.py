"""Conditions of ``stats --fail-if``: a named number compared with a limit."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass

import click

from ..operations.queries import MOST_COUNTED

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
#: Numbers that are exact to :data:`MOST_COUNTED`.
COUNTED = (
    "pending",
    "running",
    "dead",
    "dead_jobs",
    "unmatched",
    "quarantined",
)
#: In seconds, 0 without an event or a run; and live processes.
MEASURED = ("oldest", "longest", "workers")
_CONDITION = re.compile(r"\s*(\w+)\s*([<>]=?|==)\s*(\d+(?:\.\d+)?)\s*", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """Holds if the number of that name compares so with the limit."""

    text: str
    name: str
    compare: Callable[[float, float], bool]
    limit: float

    def holds(self, numbers: Mapping[str, float]) -> bool:
        return self.compare(numbers[self.name], self.limit)


def condition(text: str) -> Condition:
    """Read ``dead>0``.

    :raises click.ClickException: it is none. The exit code is 1, as 2 means that a
        condition holds.
    """
    found = _CONDITION.fullmatch(text)
    if found is None or found[1] not in COUNTED + MEASURED:
        raise click.ClickException(
            f"--fail-if {text!r} is not a condition such as 'dead>0', with one of"
            f" {', '.join(COUNTED + MEASURED)}, and one of {' '.join(OPERATORS)}."
        )
    name, symbol, limit = found.groups()
    if name in COUNTED and float(limit) > MOST_COUNTED:
        raise click.ClickException(
            f"--fail-if {text!r}: events and jobs are counted to {MOST_COUNTED} only."
        )
    return Condition(text.strip(), name, OPERATORS[symbol], float(limit))
