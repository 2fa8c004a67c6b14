"""The same as a picture: one panel for each benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .figures import Figure
from .figures import Measured
from .figures import OURS
from .figures import Part

AXES = {
    "verify": ("time", "µs a check"),
    "receive": ("time", "µs an event"),
    "load": ("rate", "events a second"),
    "process": ("rate", "events a second"),
    "growth": ("time", "µs an event"),
    "prune": ("p99", "ms, of 99 in 100 deliveries at most"),
    "memory": ("last", "MiB"),
}
#: Where there is nobody else.
ALL_OURS = ("growth", "prune", "memory")
OUR_COLOR, OTHER_COLOR = "#c2410c", "#94a3b8"


def plot(parts: Sequence[Part], targets: object, path: Path) -> bool:
    """Write a PNG; whether matplotlib is there to do so."""
    try:
        from matplotlib.figure import Figure as Sheet
    except ImportError:
        return False
    heights = [len(part.measured) + 2 for part in parts]
    sheet = Sheet(figsize=(11, 0.3 * sum(heights) + 0.5), layout="constrained")
    panels = sheet.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
    for (panel,), part in zip(panels, parts, strict=True):
        _draw(panel, part)
    sheet.savefig(path, dpi=120)
    return True


def _draw(panel: object, part: Part) -> None:
    key, axis = AXES[part.name]
    figures = [one.figures[key] for one in part.measured]
    colors = [_color(part, one) for one in part.measured]
    names = [one.name for one in part.measured]
    medians = [figure.median for figure in figures]
    bars = panel.barh(names, medians, color=colors, xerr=_errors(figures))  # type: ignore[attr-defined]
    labels = [_label(one, key) for one in part.measured]
    panel.bar_label(bars, labels, padding=4, fontsize=8)  # type: ignore[attr-defined]
    panel.set(title=part.title, xlabel=axis)  # type: ignore[attr-defined]
    panel.margins(x=0.45)  # type: ignore[attr-defined]
    panel.invert_yaxis()  # type: ignore[attr-defined]


def _color(part: Part, one: Measured) -> str:
    is_ours = one.who == OURS or part.name in ALL_OURS
    return OUR_COLOR if is_ours else OTHER_COLOR


def _errors(figures: Sequence[Figure]) -> list[list[float]]:
    """How far the middle half of the rounds lies from the median, both ways."""
    halves = [figure.middle_half for figure in figures]
    medians = [figure.median for figure in figures]
    below = [median - low for median, (low, _) in zip(medians, halves, strict=True)]
    above = [high - median for median, (_, high) in zip(medians, halves, strict=True)]
    return [below, above]


def _label(one: Measured, key: str) -> str:
    value = one.figures[key].median
    if key == "rate" and "p99" in one.figures:
        return f"{value:.0f} (p99 {one.figures['p99'].median:.0f} ms)"
    if "first" in one.figures:
        return f"{value:.1f} ({one.figures['first'].median:.1f} at first)"
    return f"{value:.1f}"
