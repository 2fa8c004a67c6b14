"""The part of ``check`` that examines whether recorded events are run."""

from __future__ import annotations

import difflib
import inspect
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec

from ..dispatching.celery import problems
from ..endpoint import Endpoint
from ..event import Event
from ..inbox.due import pause_of
from ..inbox.status import Wait
from ..operations.numbers import abandoned
from ..operations.numbers import pending_jobs
from ..operations.numbers import recorded_types
from ..operations.numbers import seconds_due
from ..operations.numbers import Types
from ..operations.numbers import unmatched_types
from ..subscribers import ANY
from ..subscribers import Subscriber
from ._findings import Finding
from ._findings import warning
from ._output import NO_TYPE
from ._output import text
from ._processes import alive
from ._processes import hanging_runs
from ._processes import Process
from ._processes import processes
from ._report import subscriptions

#: Seconds after which a due event has waited for long.
LONG = 300.0
#: Newest events that are compared with the subscriptions.
NEWEST = 1000
#: From 0 to 1: how similar a resource type is that a pattern may mean.
SIMILAR = 0.85
#: Types that a finding names.
NAMED = 5
WORKERS = {
    "worker": "start flask procore-webhooks worker",
    "celery": "start Celery's worker and beat",
    "background": (
        "a server that gives no sign when it begins to serve starts the thread at its"
        " first request; call webhooks.start(app) in its start hook"
    ),
    "inline": "start flask procore-webhooks worker",
}


def subscribers(endpoint: Endpoint) -> Iterator[Finding]:
    found = [subscriber for subscriber, _ in subscriptions(endpoint)]
    if not found:
        yield warning(
            "There are no subscribers: events are recorded, and no work is done."
        )
    needy = [s.name for s in found if inspect.iscoroutinefunction(s.function)]
    if needy and find_spec("asgiref") is None:
        yield warning(f"{', '.join(needy)} cannot run: pip install 'flask[async]'.")


def celery(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.dispatch == "celery":
        for problem, stops_events in problems(endpoint.app):
            yield warning(f"No event runs: {problem}" if stops_events else problem)


def work(endpoint: Endpoint) -> Iterator[Finding]:
    """Pauses, processes that run events, events that wait."""
    pause, due = pause_of(endpoint.store), seconds_due(endpoint.store)
    found = processes(endpoint)
    if pause:
        waiting = "" if due is None else f"; events have been due for {due:.0f} s"
        reason = f" ({pause.reason})" if pause.reason else ""
        yield warning(
            f"Paused by {pause.actor} since {text(pause.since)}{reason}: no event runs"
            f" until resume{waiting}."
        )
    else:
        yield from _not_run(endpoint, found, due)
    yield from _hanging(endpoint, found)
    if count := abandoned(endpoint.store, 60):
        yield warning(
            f"{count} events are running with a lease that ended more than a minute"
            " ago: their process is gone, and no other process has claimed them."
        )


def _not_run(
    endpoint: Endpoint, found: list[Process], due: float | None
) -> Iterator[Finding]:
    mode = endpoint.dispatch
    running = alive(found)
    waiting = "" if due is None else f", and events have been due for {due:.0f} s"
    # A background thread lives as long as its server, which may be down for now.
    if not running and (mode in ("worker", "celery") or due is not None):
        last = "never" if not found else f"{found[0]['seen_seconds']:.0f} s ago"
        yield warning(
            f"DISPATCH is {mode!r}, and no process has been seen running events for 5"
            f" minutes (last seen: {last}){waiting}: {WORKERS[mode]}."
        )
    elif running and due is not None and due > LONG:
        yield warning(
            f"Events have been due for {due:.0f} s although {len(running)} processes"
            " run events: there are too few of them, or their subscribers hang."
        )


def _hanging(endpoint: Endpoint, found: list[Process]) -> Iterator[Finding]:
    for each in hanging_runs(endpoint, found):
        yield warning(
            f"The subscriber {each['subscriber']} has been running event"
            f" {each['event']} for {each['seconds']:.0f} s, in process {each['pid']} of"
            f" {each['host']}: does it wait for another system without a timeout?"
        )


def jobs(endpoint: Endpoint) -> Iterator[Finding]:
    """Pending jobs that no process will run."""
    pending = pending_jobs(endpoint.store)
    known = {subscriber.name for subscriber, _ in subscriptions(endpoint)} | {""}
    absent: Counter[str] = Counter()
    for (name, _), number in pending.items():
        absent[name] += number if name not in known else 0
    for name, number in absent.items():
        if number:
            yield warning(
                f"{number} jobs wait for the subscriber {name}, which this app does not"
                " have: deploy it again, or end them with flask procore-webhooks"
                f" discard --subscriber {name}."
            )
    if endpoint.dispatch == "inline" and not alive(processes(endpoint)):
        yield from _inline(endpoint, {wait for _, wait in pending})


def _inline(endpoint: Endpoint, waits: set[str]) -> Iterator[Finding]:
    """Jobs that wait for a worker, because no delivery makes them run."""
    # A delivery runs what is due, and a repeated one what has failed.
    if waits - {Wait.NOTHING.value, Wait.RETRY.value}:
        yield warning(
            "DISPATCH is 'inline', and postponed jobs wait, which no delivery runs:"
            f" {WORKERS['inline']}."
        )
        return
    later = [
        subscriber.name
        for subscriber, _ in subscriptions(endpoint)
        if subscriber.after or subscriber.settle or subscriber.one_at_a_time
    ]
    if later:
        yield warning(
            f"DISPATCH is 'inline', and the subscribers {', '.join(later)} have after,"
            f" settle or one_at_a_time: {WORKERS['inline']}, or drain() in tests."
        )


def unmatched(endpoint: Endpoint) -> Iterator[Finding]:
    """Types without a subscriber, and patterns without a matching event."""
    newest = recorded_types(endpoint.store, NEWEST)
    found = _events(newest | unmatched_types(endpoint.store))
    unwanted = {e: n for e, n in found.items() if not endpoint.subscribers_for(e)}
    yield from _wanted_now(endpoint)
    if unwanted:
        yield warning(
            f"These types have no subscriber: {_listed(unwanted)}. Once there is one,"
            " replay --status unmatched --type TYPE runs their events."
        )
    for each in endpoint.subscribers:
        if each.pattern == (ANY, ANY) or any(each.matches(event) for event in found):
            continue
        meant = _suggestion(each, list(unwanted)) or _similar(each, list(found))
        if unwanted or meant:
            yield warning(
                f"on({each.resource_type!r}, {each.reason!r}) of {each.name} matched"
                f" none of the newest {NEWEST} events.{meant}"
            )


def _wanted_now(endpoint: Endpoint) -> Iterator[Finding]:
    """Unmatched events that have a subscriber by now."""
    found = _events(unmatched_types(endpoint.store))
    if wanted := {e: n for e, n in found.items() if endpoint.subscribers_for(e)}:
        yield warning(
            f"Unmatched events have a subscriber now: {_listed(wanted)}. Run them with"
            " replay --status unmatched --type TYPE."
        )


def _events(types: Types) -> dict[Event, int]:
    return {Event("", *names): number for names, number in types.items()}


def _listed(events: dict[Event, int]) -> str:
    """The most frequent types with their numbers."""
    ranked = sorted(events.items(), key=lambda each: each[1], reverse=True)
    listed = [f"{event.type or NO_TYPE} ({n})" for event, n in ranked]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _suggestion(subscriber: Subscriber, events: list[Event]) -> str:
    resource_type, reason = subscriber.pattern
    by_name = {
        f"{event.resource_type} {event.reason if reason != ANY else ANY}".casefold(): (
            event.resource_type,
            event.reason,
        )
        for event in events
    }
    wanted = f"{resource_type} {reason}"
    for name in difflib.get_close_matches(wanted, by_name, 1):
        nearest, its_reason = by_name[name]
        if str(nearest).casefold() != resource_type:
            return f" Did you mean {nearest!r}?"
        return f" Did you mean {its_reason!r}?"
    return ""


def _similar(subscriber: Subscriber, events: list[Event]) -> str:
    """A recorded resource type that is nearly the pattern's, subscribed or not."""
    resource_type, _ = subscriber.pattern
    names = {(event.resource_type or "").casefold(): event for event in events}
    for name in difflib.get_close_matches(resource_type, names, 1, SIMILAR):
        if name != resource_type:
            return f" Did you mean {names[name].resource_type!r}?"
    return ""
