"""Plots as SVG that stands in a page: a few shapes that follow its colours, light and dark.

Each has a title for who cannot see it, and pages put the same figures into a table below. The
colours are classes of style.css, since pages allow no style of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from vision.scores import Bin

WIDTH, HEIGHT = 640, 220
# Where an axis of shares begins: a quarter of the rest is a round number.
FLOORS = (0.96, 0.92, 0.8, 0.6, 0.2, 0.0)
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 28  # room around the axes


@dataclass(frozen=True)
class Point:
    """One measurement: where on the x axis (0..1), its value, its interval, and it in words."""

    x: float
    y: float
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Measured:
    """A share that was measured of one version, its interval, and it in words."""

    version_id: int
    share: float
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Series:
    """Points that belong together, from left to right."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Bar:
    """One bar: its length, how much of that is filled, what stands below it, and it in words."""

    value: float
    filled: float
    label: str
    words: str


def shares(title: str, series: Sequence[Series], ends: tuple[str, str] = ("", "")) -> Markup:
    """Shares over something, with their intervals; ends: what stands at both ends of the axis."""
    points = [point for one in series for point in one.points]
    lowest = min((p.y if p.low is None else p.low for p in points), default=0.0)
    floor = next(one for one in FLOORS if one <= lowest or one == 0.0)
    parts = _grid([floor + (1 - floor) * step / 4 for step in range(5)], floor, 1.0)
    for number, one in enumerate(series):
        places = [(_x(p.x), _y(p.y, floor, 1.0)) for p in one.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        inside = [f'<polyline class="line" points="{line}"/>']
        for p, (x, y) in zip(one.points, places, strict=True):
            if p.low is not None and p.high is not None:
                inside.append(
                    f'<line class="spread" x1="{x:.1f}" x2="{x:.1f}" '
                    f'y1="{_y(p.low, floor, 1.0):.1f}" y2="{_y(p.high, floor, 1.0):.1f}"/>'
                )
            inside.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4">{_title(p.words)}</circle>')
        parts.append(f'<g class="series-{number % 4}">{"".join(inside)}</g>')
    parts += _ends(ends)
    return _svg(title, parts) + _legend(series)


def by_version(title: str, measured: Mapping[str, Sequence[Measured]]) -> Markup:
    """Shares of versions side by side, a series for each name; the newest version at the right."""
    numbers = sorted({one.version_id for rows in measured.values() for one in rows})
    places = {
        number: place / (len(numbers) - 1) if len(numbers) > 1 else 0.5
        for place, number in enumerate(numbers)
    }
    series = [
        Series(name, tuple(
            Point(places[one.version_id], one.share, one.low, one.high, one.words)
            for one in sorted(rows, key=lambda one: one.version_id)
        ))
        for name, rows in measured.items() if rows
    ]  # fmt: skip
    ends = [f"version {number}" for number in numbers]
    return shares(title, series, (ends[0] if len(ends) > 1 else "", ends[-1] if ends else ""))


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Counts side by side, of which a part is filled."""
    top = _round_up(max((one.value for one in rows), default=1.0))
    parts = _grid([0, top / 2, top], 0.0, top, percent=False)
    room = (WIDTH - LEFT - RIGHT) / max(1, len(rows))
    wide = min(48.0, max(1.0, room * 0.8))
    for place, one in enumerate(rows):
        x = LEFT + room * place + (room - wide) / 2
        whole, filled = _y(one.value, 0.0, top), _y(one.filled, 0.0, top)
        floor = HEIGHT - BOTTOM
        parts.append(
            f"<g>{_title(one.words)}"
            f'<rect class="bar" x="{x:.1f}" y="{whole:.1f}" width="{wide:.1f}" '
            f'height="{floor - whole:.1f}"/>'
            f'<rect class="bar filled" x="{x:.1f}" y="{filled:.1f}" width="{wide:.1f}" '
            f'height="{floor - filled:.1f}"/></g>'
        )
    if rows:
        parts += _ends((rows[0].label, rows[-1].label if len(rows) > 1 else ""))
    return _svg(title, parts)


def reliability(title: str, bins: Sequence[Bin]) -> Markup:
    """How right answers are by how sure they are; on the dashed line both are the same."""
    side = 300
    start, end, base, top = LEFT, side - 2 * RIGHT, side - BOTTOM, TOP

    def x(share: float) -> float:
        return start + (end - start) * share

    def y(share: float) -> float:
        return base - (base - top) * share

    most = max((one.images for one in bins), default=1)
    parts = []
    for step in range(0, 6):
        share = step / 5
        parts.append(
            f'<line class="axis" x1="{start}" x2="{end}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
            f'<text class="tick" x="{start - 6}" y="{y(share) + 4:.1f}" text-anchor="end">'
            f"{share:.0%}</text>"
            f'<text class="tick" x="{x(share):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{share:.0%}</text>"
        )
    for one in bins:
        tall = (base - top) * 0.25 * one.images / most
        parts.append(
            f'<rect class="bar" x="{x(one.low) + 1:.1f}" y="{base - tall:.1f}" '
            f'width="{max(1.0, x(one.high) - x(one.low) - 2):.1f}" height="{tall:.1f}"/>'
        )
    parts.append(f'<line class="even" x1="{start}" y1="{base}" x2="{end}" y2="{top}"/>')
    points = " ".join(f"{x(one.confidence):.1f},{y(one.accuracy):.1f}" for one in bins)
    parts.append(f'<g class="series-0"><polyline class="line" points="{points}"/>')
    for one in bins:
        words = (f"{one.images} answers, {one.confidence:.0%} sure on average, "
                 f"{one.accuracy:.0%} right")  # fmt: skip
        parts.append(
            f'<line class="spread" x1="{x(one.confidence):.1f}" x2="{x(one.confidence):.1f}" '
            f'y1="{y(one.accuracy_low):.1f}" y2="{y(one.accuracy_high):.1f}"/>'
            f'<circle cx="{x(one.confidence):.1f}" cy="{y(one.accuracy):.1f}" r="4">'
            f"{_title(words)}</circle>"
        )
    parts.append("</g>")
    return _svg(title, parts, side, side)


def _x(share: float) -> float:
    return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * share


def _y(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.0
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(1.0, max(0.0, share))


def _grid(values: Sequence[float], low: float, high: float, percent: bool = True) -> list[str]:
    parts = []
    for value in values:
        y = _y(value, low, high)
        word = f"{value:.0%}" if percent else _short(value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{word}</text>'
        )
    return parts


def _ends(ends: tuple[str, str]) -> list[str]:
    first, last = ends
    base = HEIGHT - 8
    return [
        f'<text class="tick" x="{LEFT}" y="{base}">{escape(first)}</text>',
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{base}" text-anchor="end">{escape(last)}'
        "</text>",
    ]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _round_up(value: float) -> float:
    """The next number of one digit that is no smaller, twice a round one."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next(step * times for times in (2, 4, 6, 8, 10) if step * times >= value)


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>"


def _svg(title: str, parts: Sequence[str], width: int = WIDTH, height: int = HEIGHT) -> Markup:
    named = f'role="img" aria-label="{escape(title)}"'
    return Markup(  # noqa: S704  (made here of numbers and escaped words)
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f"{named}>{''.join(parts)}</svg>"
    )


def _legend(series: Sequence[Series]) -> Markup:
    words = "".join(
        f'<span class="series-{number % 4}">'
        '<svg class="dot" viewBox="0 0 10 10" aria-hidden="true">'
        f'<circle cx="5" cy="5" r="4"/></svg> {escape(one.name)}</span>'
        for number, one in enumerate(series)
    )
    return Markup(f'<p class="legend">{words}</p>') if len(series) > 1 else Markup("")  # noqa: S704
