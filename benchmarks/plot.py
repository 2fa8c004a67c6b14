"""The same as a picture: one panel for each question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import Part
from .panels import Bar
from .panels import Panel
from .panels import panels
from .targets import Target

OUR_COLOR, OTHER_COLOR, TARGET_COLOR = "#ea580c", "#94a3b8", "#111827"
MET_COLOR, MISSED_COLOR = "#15803d", "#b91c1c"
FONT = {"font.size": 13, "axes.titlesize": 15, "axes.titleweight": "bold"}
COLUMNS = 2
#: Inches of a bar, and of a panel without bars.
BAR_HEIGHT, REST_HEIGHT = 0.42, 1.5
#: Of the longest bar: the room for the text beside it.
MARGIN = 1.2


def plot(parts: Sequence[Part], targets: Sequence[Target], path: Path) -> bool:
    """Write a PNG; whether matplotlib is there to do so."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Sheet
    except ImportError:
        return False
    shown = [*panels(parts, targets)]
    rows = [shown[i : i + COLUMNS] for i in range(0, len(shown), COLUMNS)]
    heights = [
        max(len(panel.bars) for panel in row) * BAR_HEIGHT + REST_HEIGHT for row in rows
    ]
    with rc_context(FONT):
        sheet = Sheet(figsize=(20, sum(heights) + 0.5), layout="constrained")
        grid = sheet.subplots(len(rows), COLUMNS, squeeze=False, height_ratios=heights)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        sheet.get_layout_engine().set(h_pad=0.15, w_pad=0.15)
        for number, panel in enumerate(shown):
            most = max(len(other.bars) for other in rows[number // COLUMNS])
            _draw(grid.flat[number], panel, most)
        sheet.suptitle("black line: target; thin line: half of the rounds", size=13)
        sheet.savefig(path, dpi=90)
    return True


def _draw(axes: Any, panel: Panel, most_bars: int) -> None:
    """Bars of one height: a row of panels has room for ``most_bars``."""
    for number, bar in enumerate(panel.bars):
        value, half = bar.figure.median, bar.figure.middle_half
        color = OUR_COLOR if bar.is_ours else OTHER_COLOR
        axes.barh(number, value, height=0.66, color=color)
        axes.plot(half, (number, number), color="#475569", linewidth=1.5)
        if bar.target:
            ends = number - 0.44, number + 0.44
            axes.plot([bar.target.limit] * 2, ends, color=TARGET_COLOR, linewidth=3)
        end = max(value, half[1], bar.target.limit if bar.target else 0)
        _write(axes, panel, bar, end, number)
    most = max(max(bar.figure.median, bar.figure.middle_half[1]) for bar in panel.bars)
    limits = [bar.target.limit for bar in panel.bars if bar.target]
    axes.set_xlim(0, max([most, *limits]) * (1 + MARGIN))
    axes.set_yticks(range(len(panel.bars)), [bar.name for bar in panel.bars])
    axes.set_ylim(most_bars - 0.4, -0.6)
    axes.set_title(panel.question, loc="left")
    axes.set_xlabel(panel.axis)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _write(axes: Any, panel: Panel, bar: Bar, end: float, number: int) -> None:
    """The value, and what was to be reached, behind the bar."""
    texts = [f"{_short(bar.figure.median)}{panel.unit}", bar.note]
    color = TARGET_COLOR
    if bar.target:
        color = MET_COLOR if bar.target.is_met else MISSED_COLOR
        is_met = "met" if bar.target.is_met else "missed"
        texts.append(f"target {bar.target.wanted} {is_met}")
    text = "   ".join(filter(None, texts))
    options = {"textcoords": "offset points", "va": "center", "color": color}
    axes.annotate(text, (end, number), (8, 0), weight="bold", **options)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
