"""What each option set promises, as sentences that a play has proven wrong."""

from __future__ import annotations

from collections.abc import Iterator

from .outcomes import Burst
from .outcomes import Outcome
from .outcomes import THREADS

#: Seconds of this machine for a delivery to reach a worker: "within a second".
PROMPT = 1.0
#: The same for an import, whose thousands of events keep the workers busy.
BUSY = 10.0
#: Seconds that two clocks of one machine may differ by rounding.
ROUNDING = 0.02


def broken(outcome: Outcome) -> list[str]:
    """The promises that the outcome breaks, each as one sentence."""
    found = [*_of_all(outcome)]
    for burst in outcome.bursts:
        found += [f"{outcome.name}, {burst.key}: {it}" for it in _of(outcome, burst)]
    return found


def _of_all(outcome: Outcome) -> Iterator[str]:
    """Each event ends done, and the option set keeps what it promises in the end."""
    for status, count in outcome.unfinished.items():
        yield f"{outcome.name}: {count} events are {status} at the end"


def _of(outcome: Outcome, burst: Burst) -> Iterator[str]:
    if not burst.is_wanted:
        if burst.fetches:
            yield f"{len(burst.fetches)} fetches of what when= excludes"
        return
    if not burst.fetches:
        yield "no fetch at all"
        return
    if burst.wrong and _keeps_right(outcome, burst):
        yield f"the final state of {', '.join(burst.wrong[:5])} is wrong"
    if outcome.options.is_serial and burst.overlaps:
        yield f"{burst.overlaps} calls began while another ran"
    if outcome.scenario.trouble is None:
        yield from _of_costs(outcome, burst)


def _keeps_right(outcome: Outcome, burst: Burst) -> bool:
    """Whether the last fetch shows the last change, and is stored last."""
    options, stale = outcome.options, outcome.scenario.stale
    if stale and stale > max(options.lag, options.settle, options.after):
        return False
    # A re-read long after the burst shows the last change to every call; ``lag`` and
    # ``one_at_a_time`` keep calls apart.
    is_kept = options.after or options.lag or options.is_serial
    return bool(is_kept) or burst.races == 0


def _of_costs(outcome: Outcome, burst: Burst) -> Iterator[str]:
    """Fetches and times, while the API works."""
    options, count = outcome.options, len(burst.fetches)
    if outcome.scenario.waits:
        # Each thread may begin with another event before the first of them is done.
        if count > THREADS:
            yield f"{count} fetches by {THREADS} threads"
    elif options.lag:
        if burst.first_fetch > PROMPT:
            yield f"the first fetch came after {burst.first_fetch:.2f} s"
        if outcome.scenario.is_burst and count > 2:
            yield f"{count} fetches instead of at most two"
    elif options.settle:
        yield from _of_settling(outcome, burst)
    elif not options.options.get("latest_only") and count < len(burst.events):
        yield f"{count} fetches for {len(burst.events)} events"


def _of_settling(outcome: Outcome, burst: Burst) -> Iterator[str]:
    """One fetch, ``settle`` after the last event; ``settle_max`` after the first."""
    options, factor = outcome.options, outcome.factor
    settle, settle_max = options.settle / factor, options.settle_max / factor
    rereads = len(burst.events) if options.after else 0
    prompt = BUSY if options.is_by_project else PROMPT
    if burst.first_fetch > settle_max + prompt:
        yield f"the first fetch came {burst.first_fetch:.2f} s after the first event"
    if not outcome.scenario.is_burst:
        return
    # One part, unless this machine was so slow that a gap grew to ``settle``.
    parts, count = burst.parts(settle), len(burst.fetches) - rereads
    if not 1 <= count <= len(parts):
        yield f"{count} fetches instead of {len(parts)}"
    early = parts[0][-1][0] + settle - burst.fetches[0]
    late = burst.fetches[0] - burst.deliveries[-1][1] - settle
    if early > ROUNDING:
        yield f"the first fetch came {early:.2f} s before settle was over"
    if late > prompt:
        yield f"the first fetch came {late:.2f} s after settle was over"
