"""Line charts as numbers: what a chart shows, and where each part of it comes to lie in an SVG.

``draw`` turns a ``Chart`` into a ``Drawing``, whose coordinates ``templates/chart.html.j2`` writes
down. Colours are the page's, so that a chart follows light and dark; texts go through the
template's escaping; nothing depends on fonts or on a plotting library, so equal charts give equal
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fewstep.report.scale import Scale, scale_holding
from fewstep.report.words import compact, number

_LETTER = 7.4
_ROW = 15
_DOTTED = 40
_MOST_POINTS = 300


@dataclass(frozen=True)
class Series:
    """A named line through ``points`` (x, y), finite and in order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x``; ``label`` stands above it, ``step`` is the step that it marks.

    ``what`` begins there: the "target" moves to the label, or a "stage" of that name begins.
    """

    x: float
    label: str
    step: int
    what: Literal["target", "stage"] = "target"


@dataclass(frozen=True)
class Band:
    """A shaded stretch of the x axis."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line to compare with."""

    y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    ``size`` is (width, height) in units of the drawing; ``note`` is a sentence under it.
    """

    title: str
    x_label: str
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    bands: tuple[Band, ...] = ()
    levels: tuple[Level, ...] = ()
    log: bool = False
    size: tuple[int, int] = (480, 290)
    note: str = ""


@dataclass(frozen=True)
class Placed:
    """A text or line at (x, y); ``width`` for shaded stretches; ``hint`` shows when pointed at."""

    x: float
    y: float
    label: str = ""
    hint: str = ""
    step: int = 0
    width: float = 0.0


@dataclass(frozen=True)
class Line:
    """A line's SVG points, its dots, and the numbers of its colour and of its dashes (those repeat
    after eight lines).
    """

    name: str
    colour: int
    dashes: int
    points: str
    dots: tuple[Placed, ...]


@dataclass(frozen=True)
class Drawing:
    """A chart in coordinates: the plot lies between ``left`` and ``right``, ``top`` and ``bottom``.

    Each point is the mean of up to ``pooled`` lines of the log. ``text`` says in words what is to
    be seen.
    """

    chart: Chart
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Placed, ...]
    y_ticks: tuple[Placed, ...]
    lines: tuple[Line, ...]
    marks: tuple[Placed, ...]
    bands: tuple[Placed, ...]
    levels: tuple[Placed, ...]
    pooled: int
    text: str

    @property
    def marked(self) -> str:
        """What the marks are, for the legend."""
        return (
            ""
            if not self.chart.marks
            else {"target": "the target moves", "stage": "a stage begins"}[self.chart.marks[0].what]
        )


def _pool(length: int, most: int = _MOST_POINTS) -> int:
    """How many neighbours make one point, so that at most ``most`` points remain."""
    return max(1, -(-length // most))


def _thinned(points: tuple[tuple[float, float], ...], most: int = _MOST_POINTS) -> tuple[tuple[float, float], ...]:
    """At most ``most`` points, each the mean of its neighbours'."""
    size = _pool(len(points), most)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups)


def draw(chart: Chart) -> Drawing:
    """Lays a chart out; it must have at least one point."""
    points = [point for series in chart.series for point in series.points]
    x_scale = _x_scale(
        [x for x, _ in points]
        + [mark.x for mark in chart.marks]
        + [end for band in chart.bands for end in (band.low, band.high)]
    )
    y_scale = scale_holding([y for _, y in points] + [level.y for level in chart.levels], chart.log)
    width, height = chart.size
    y_values = y_scale.ticks(5 if height > 200 else 4)
    left = 14 + _LETTER * max((len(compact(value)) for value in y_values), default=1)
    frame = _Frame(x_scale, y_scale, left, width - 12.0, 10.0, height - 40.0)
    marks, rows = frame.marks(chart.marks)
    frame = replace(frame, top=10.0 + _ROW * rows)
    return Drawing(
        chart=chart,
        left=frame.left,
        right=frame.right,
        top=frame.top,
        bottom=frame.bottom,
        x_ticks=tuple(
            Placed(frame.x(value), frame.bottom, compact(value)) for value in x_scale.ticks(5 if width > 400 else 4)
        ),
        y_ticks=tuple(Placed(frame.left, frame.y(value), compact(value)) for value in y_values),
        lines=tuple(frame.line(series, index) for index, series in enumerate(chart.series)),
        marks=marks,
        bands=tuple(
            Placed(frame.x(band.low), frame.top, band.label, width=_short(frame.x(band.high) - frame.x(band.low)))
            for band in chart.bands
        ),
        levels=frame.levels(chart.levels),
        pooled=max(_pool(len(series.points)) for series in chart.series),
        text=_in_words(chart),
    )


@dataclass(frozen=True)
class _Frame:
    """The plot's place, and from it the coordinates of everything in it."""

    x_scale: Scale
    y_scale: Scale
    left: float
    right: float
    top: float
    bottom: float

    def x(self, value: float) -> float:
        return _short(self.left + (self.right - self.left) * self.x_scale.at(value))

    def y(self, value: float) -> float:
        return _short(self.bottom - (self.bottom - self.top) * self.y_scale.at(value))

    def line(self, series: Series, index: int) -> Line:
        points = _thinned(series.points)
        dots = (
            [
                Placed(self.x(x), self.y(y), hint=f"{series.name} {number(y)} at {compact(round(x, 1))}")
                for x, y in points
            ]
            if len(points) <= _DOTTED
            else []
        )
        return Line(
            series.name, index % 8, index // 8 % 3, " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points), tuple(dots)
        )

    def marks(self, marks: Iterable[Mark]) -> tuple[tuple[Placed, ...], int]:
        """The marks and how many rows their labels take; a label that fits in none of three rows is
        left to the hint.
        """
        ends: list[float] = []
        placed = []
        for mark in marks:
            half = _LETTER * len(mark.label) / 2
            middle = min(max(self.x(mark.x), self.left + half), self.right - half)
            row = next((i for i, end in enumerate(ends) if middle - half >= end + 4), len(ends))
            hint = f"{mark.what}: {mark.label}, from step {mark.step:,}"
            if row < 3:
                ends[row : row + 1] = [middle + half]
            label = mark.label if row < 3 else ""
            placed.append(Placed(self.x(mark.x), 20.0 + _ROW * min(row, 2) - 5, label, hint, mark.step, _short(middle)))
        return tuple(placed), len(ends)

    def levels(self, levels: Iterable[Level]) -> tuple[Placed, ...]:
        """The levels from the lowest up; ``width`` is where the label stands, moved up where it
        would cover the one below.
        """
        placed: list[Placed] = []
        for level in sorted(levels, key=lambda level: level.y):
            y = self.y(level.y)
            label_y = min(y - 4, placed[-1].width - 13) if placed else y - 4
            placed.append(Placed(self.left + 6, y, level.label, width=_short(label_y)))
        return tuple(placed)


def _x_scale(values: list[float]) -> Scale:
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < 0.3 * high else low
    return Scale(low, high) if high > low else Scale(low - 1, high + 1)


def _short(value: float) -> float:
    return round(value, 1)


def _in_words(chart: Chart) -> str:
    parts = [f"{chart.title} over {chart.x_label}."]
    for series in chart.series:
        values = [y for _, y in series.points]
        parts.append(
            f"{series.name}: from {number(values[0])} to {number(values[-1])}, lowest "
            f"{number(min(values))}, highest {number(max(values))}."
        )
    parts += [f"{level.label}." for level in chart.levels if level.label]
    parts += [f"The {mark.what} is {mark.label} from step {mark.step:,}." for mark in chart.marks]
    return " ".join(parts)
