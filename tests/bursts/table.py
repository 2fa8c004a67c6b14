"""The outcomes as a table in Markdown, and its place in a document."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

from .outcomes import Outcome

HEADS = ("scenario", "options", "fetches", "first fetch", "final state")
BEGIN, END = "<!-- table of the simulator -->", "<!-- end of the table -->"


def table(outcomes: Iterable[Outcome]) -> str:
    """One line for each scenario and option set."""
    lines, before = [_line(HEADS), _line(["---"] * len(HEADS))], ""
    for outcome in outcomes:
        about = outcome.scenario.about
        lines.append(_line(["" if about == before else about, *_cells(outcome)]))
        before = about
    return "\n".join(lines) + "\n"


def put_into(path: Path, text: str) -> None:
    """Replace what stands between the two marks of the document."""
    document = path.read_text()
    head, mark, rest = document.partition(f"{BEGIN}\n")
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{head}{mark}\n{text}\n{end}{tail}")


def _cells(outcome: Outcome) -> list[str]:
    return [
        str(outcome.options),
        _fetches(outcome),
        f"{outcome.first_fetch():.1f} s",
        _state(outcome),
    ]


def _fetches(outcome: Outcome) -> str:
    """The fewest and the most fetches of a burst."""
    if outcome.scenario.is_import:
        return f"{sum(outcome.counts()):,}"
    low, *_, high = [*outcome.counts()] * 2
    text = str(low) if low == high else f"{low} to {high}"
    refused = sum(burst.refused for burst in outcome.wanted) / len(outcome.wanted)
    return f"{text}, and {refused:.1f} without an answer" if refused else text


def _state(outcome: Outcome) -> str:
    if not outcome.wrong:
        return "right"
    every = sum(len(burst.events) for burst in outcome.wanted)
    if not outcome.scenario.is_import:
        every = len(outcome.wanted)
    return f"old in {len(outcome.wrong)} of {every}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
