"""What a replay or a discard would change, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import click

from ..inbox.jobs import EVERY_OTHER
from ..operations.changes import Summary
from ..operations.journal import REPLAY
from ..operations.plans import FINISHED
from ._output import on_one_line
from ._report import subscriptions
from ._selected import Change


def print_preview(changes: list[Change], *, is_new: bool = True) -> None:
    """Print what would change.

    :param is_new: whether the operation does not go on.
    """
    for each in changes:
        click.echo(f"{each.endpoint.name}: {described(each.summary)}")
        for hint in hints(each) if is_new else ():
            click.echo(on_one_line(f"  {hint}"))


def described(summary: Summary, *, left_out: bool = True) -> str:
    """The numbers of a summary in a line."""
    parts = [events(summary.events)]
    if summary.jobs:
        names = len(summary.subscribers)
        jobs, of = plural(summary.jobs, "job"), plural(names, "subscriber")
        parts.append(f"{jobs} of {of}")
    if summary.bare:
        parts.append(f"{summary.bare} without jobs")
    text = ", ".join(parts)
    if left_out:
        for reason, number in sorted(summary.left_out.items()):
            text += f"; {number} {reason}: left out" if number else ""
    return text


def hints(each: Change) -> Iterator[str]:
    known = {subscriber.name for subscriber, _ in subscriptions(each.endpoint)}
    wanted, summary = each.operation.wanted, each.summary
    name = wanted.subscriber
    if name is not None and not summary.events:
        if name in known and not wanted.statuses and each.operation.action == REPLAY:
            yield (
                "No job of it is dead. With --status done, events without a job of it"
                " get one."
            )
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            yield f"The app has no subscriber {name!r}.{meant}"
    if each.operation.action == REPLAY:
        if summary.left_out[FINISHED] and not summary.events:
            yield "With --anew, jobs that have finished run again."
        for absent in sorted(summary.subscribers - known - {EVERY_OTHER}):
            yield f"The app has no subscriber {absent!r}: its jobs wait for it."


def as_json(summary: Summary) -> Mapping[str, Any]:
    return {
        "events": summary.events,
        "jobs": summary.jobs,
        "without_jobs": summary.bare,
        "subscribers": sorted(summary.subscribers),
        "left_out": {k: n for k, n in sorted(summary.left_out.items()) if n},
    }


def events(number: int) -> str:
    return plural(number, "event")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
