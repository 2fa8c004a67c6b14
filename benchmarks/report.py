"""What was measured as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

from .candidates import BARE
from .candidates import BY_HAND
from .figures import Figure
from .figures import Measured
from .figures import Part
from .targets import Target

#: Of the parts with simple tables: the heads, and the figures below them.
COLUMNS = {
    "process": {"events/s": "rate", "processor µs": "cpu"},
    "prune": {"p99 ms": "p99", "p50 ms": "p50"},
    "idle": {"% of a core": "cpu"},
    "memory": {"MiB after all": "last", "MiB after the first": "first"},
}
#: Where the profile of a missed target is, from the folder of the results.
PROFILES = "../README.md#where-the-time-goes"


def report(parts: Sequence[Part], targets: Sequence[Target], about: str) -> str:
    sections = ["# Benchmarks", about]
    for part in parts:
        sections += [f"## {part.title}", part.about, _figures(part)]
    if targets:
        sections += ["## Targets", _targets(targets)]
    if any(target.reached and not target.is_met for target in targets):
        where = f"[Where the time goes]({PROFILES})"
        sections.append(f"{where} has the profiles of what misses its target.")
    missing = [what for part in parts for what in (*part.left_out, *part.failures)]
    left_out = [f"- {what}" for what in missing]
    if left_out:
        sections += ["## Left out", "\n".join(left_out)]
    return "\n\n".join(sections) + "\n"


def _targets(targets: Sequence[Target]) -> str:
    rows = []
    for one in targets:
        if one.reached is None:
            rows.append((one.name, one.wanted, "not measured", "", ""))
            continue
        met = "yes" if one.is_met else "no"
        value, half = _short(one.reached.median), _half(one.reached)
        rows.append((one.name, one.wanted, f"{value}{one.unit}", half, met))
    return _table(("", "target", "reached", "half of the rounds", "met"), rows)


def _figures(part: Part) -> str:
    if part.name == "load":
        return _load_table(part)
    if part.name == "growth":
        return _growth_table(part)
    if part.name in COLUMNS:
        return _simple_table(part, COLUMNS[part.name])
    return _time_table(part)


def _time_table(part: Part) -> str:
    has_cpu = any("cpu" in one.figures for one in part.measured)
    heads = ["", "µs", "half of the rounds", "to bare", "to hand-written"]
    rows = []
    for one in part.measured:
        time = one.figures["time"]
        row = [one.name, _short(time.median), _half(time)]
        row += [_ratio(one, part.find(BARE, ""), "time")]
        row += [_ratio(one, part.find(BY_HAND, one.where), "time")]
        if has_cpu:
            row.append(_short(one.figures["cpu"].median))
        rows.append(row)
    if has_cpu:
        return _table([*heads, "processor µs"], rows)
    return _table(heads[:3], [row[:3] for row in rows])


def _load_table(part: Part) -> str:
    rows = []
    for one in part.measured:
        rate, p50, p99 = (one.figures[name] for name in ("rate", "p50", "p99"))
        bare = part.find(BARE, one.where.partition(",")[0])
        hand = part.find(BY_HAND, one.where)
        ratios = _ratio(one, bare, "rate"), _ratio(one, hand, "rate")
        times = _short(p50.median), _short(p99.median)
        rows.append((one.name, _short(rate.median), _half(rate), *ratios, *times))
    heads = "", "events/s", "half of the rounds", "to bare", "to hand-written"
    return _table((*heads, "p50 ms", "p99 ms"), rows)


def _growth_table(part: Part) -> str:
    rows = []
    first: dict[tuple[str, str], Measured] = {}
    for one in part.measured:
        least = first.setdefault((one.who, one.where.partition(",")[0]), one)
        time = one.figures["time"]
        row = one.name, _short(time.median), _half(time), _ratio(one, least, "time")
        rows.append(row)
    return _table(("", "µs", "half of the rounds", "to the smallest"), rows)


def _simple_table(part: Part, columns: dict[str, str]) -> str:
    first, *others = columns
    rows = []
    for one in part.measured:
        main = one.figures[columns[first]]
        rest = [_short(one.figures[columns[head]].median) for head in others]
        rows.append([one.name, _short(main.median), _half(main), *rest])
    return _table(["", first, "half of the rounds", *others], rows)


def _ratio(one: Measured, other: Measured | None, key: str) -> str:
    if other is None:
        return ""
    return f"{one.figures[key].over(other.figures[key]).median:.2f}"


def _half(figure: Figure) -> str:
    low, high = figure.middle_half
    return f"{_short(low)} – {_short(high)}"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (heads, rule, *lines[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"
