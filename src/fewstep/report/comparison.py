"""Runs beside one another: the distance each reached for what it cost, as a PNG and as a page.

The axis of cost is network evaluations of one sample, so that methods with more networks pay for
them; the distance's axis is logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError
from fewstep.report.chart import Chart, Drawing, Level, Series, draw
from fewstep.report.page import render
from fewstep.report.scale import LEAST
from fewstep.report.words import compact, is_number, number
from fewstep.runs.pictures.sample_files import write_picture
from fewstep.system.caches import output
from fewstep.system.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0a7c86", "#57606a")
_SOFT = "#57606a"


@dataclass(frozen=True)
class DistanceCurve:
    """A run's Frechet distances ``fd`` at its ``steps``, after so many network ``evaluations`` of
    one sample; the three are equally long.
    """

    name: str
    steps: Sequence[int]
    evaluations: Sequence[int]
    fd: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.evaluations) == len(self.fd):
            raise UserError(
                f"curve '{self.name}': steps, evaluations and distances must be equally many, got "
                f"{len(self.steps)}, {len(self.evaluations)} and {len(self.fd)}."
            )

    def points(self) -> tuple[tuple[float, float], ...]:
        """(evaluations, distance) where the distance is finite and positive, as a logarithmic axis
        needs.
        """
        return tuple(
            (float(x), float(y)) for x, y in zip(self.evaluations, self.fd, strict=True) if is_number(y) and y > LEAST
        )


def plot_curves(curves: Sequence[DistanceCurve], path: Path, levels: Mapping[str, float] | None = None) -> Path:
    """Draws the curves into the picture ``path``, with a dashed line for each of ``levels`` (what
    it is: a distance), and returns the path.

    Raises ``UserError`` when there is nothing to draw. The same curves give the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _require_points(curves)
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        x, y = zip(*curve.points(), strict=True) if curve.points() else ((), ())
        style = ("-", "--", ":")[index // len(_COLOURS) % 3]
        axes.plot(
            x,
            y,
            style,
            color=_COLOURS[index % len(_COLOURS)],
            marker="o",
            markersize=3.5,
            linewidth=1.8,
            label=_plain(curve.name),
        )
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _dress(axes)
    _add_levels(axes, _positive(levels))
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_picture(path, content.getvalue())
    return Path(path)


def write_comparison_report(
    curves: Sequence[DistanceCurve],
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    levels: Mapping[str, float] | None = None,
    title: str = "Comparison of runs",
) -> Path:
    """Writes the HTML page ``path`` with the plot and a table, and returns the path.

    ``rows`` map column names to texts or numbers; ``columns`` orders and chooses them, by default
    all of them in the order of appearance. What a row lacks is a dash.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    numeric = [all(row.get(name) is None or is_number(row[name]) for row in rows if name in row) for name in names]
    with output(path):
        write_text(
            path,
            render(
                "comparison.html.j2",
                title=title,
                chart=_drawing(curves, _positive(levels)),
                columns=names,
                rows=cells,
                numeric=numeric,
            ),
        )
    return Path(path)


def _drawing(curves: Sequence[DistanceCurve], levels: Mapping[str, float]) -> Drawing | None:
    series = tuple(Series(curve.name, curve.points()) for curve in curves if curve.points())
    lines = tuple(Level(level, f"{name}: {number(level)}") for name, level in levels.items())
    return (
        draw(
            Chart(
                "Frechet distance", "network evaluations of one sample", series, levels=lines, log=True, size=(760, 400)
            )
        )
        if series
        else None
    )


def _require_points(curves: Sequence[DistanceCurve]) -> None:
    if not any(curve.points() for curve in curves):
        raise UserError(
            "nothing to compare: no run has a positive Frechet distance; let the runs take distances while they train."
        )


def _positive(levels: Mapping[str, float] | None) -> dict[str, float]:
    return {name: float(level) for name, level in (levels or {}).items() if is_number(level) and level > LEAST}


def _add_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Dashed lines from the lowest up, each with a name beside the plot, moved up where it would
    cover the one below.
    """
    for level in levels.values():
        axes.axhline(level, color=_SOFT, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    place = -1.0
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        place = max(math.log(level / low) / math.log(high / low), place + 0.035)
        axes.text(
            1.01,
            place,
            f"{_plain(name)}: {number(level)}",
            transform=axes.transAxes,
            va="center",
            fontsize=8.5,
            color=_SOFT,
        )


def _dress(axes: Axes) -> None:
    """Scales, labels and grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set(xlabel="network evaluations of one sample", ylabel="Frechet distance")
    axes.grid(True, color="#d1d9e0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """A name as itself: a dollar sign would begin mathematics, and a leading underscore would hide
    it from the legend.
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
