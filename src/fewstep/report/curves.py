"""Which charts a run has: the distance over its cost, what training reported, and the health
readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fewstep.report.chart import Band, Chart, Drawing, Level, Mark, Series, draw
from fewstep.report.gather import Run
from fewstep.report.history import Entry, History
from fewstep.report.scale import wants_log
from fewstep.report.words import is_number, number

Axis = Literal["step", "evaluations"]
_LABEL: dict[Axis, str] = {"step": "steps", "evaluations": "network evaluations of one sample"}
_SMALL = (350, 190)
_RECORDING = "the degradation path is being recorded"

_NORM = "mismatch_norm"
# What is drawn in the chart of the norm.
_BESIDE = {"mismatch_norm_deviation": "deviation over samples", "mismatch_norm_on_data": "on data"}

# A reading's title, what it means, and the value that it should be near, where there is one.
_READINGS = {
    "fake_score_lag": (
        "Lag of the fake score",
        "Its loss on samples made now, over its loss in training: well above 1 it trails the student.",
        1.0,
    ),
    "gap": ("Gap between the scores", "The relative squared distance between fake and target score.", None),
    "mismatch_over_bound": (
        "Mismatch degree",
        "The teacher's on the student's samples, over its value on data: 1 is as good as data.",
        1.0,
    ),
    _NORM: (
        "Mismatch degree, Eq. 9",
        "The mean norm of the difference of scores on the student's samples, as DisBack prints it.",
        None,
    ),
    "spread_over_data": (
        "Spread within classes",
        "The samples' over the data's: below 1 the student collapses, above it scatters.",
        1.0,
    ),
    "mean_shift": (
        "Shift of the mean",
        "By how many of the data's deviations the samples' mean is off, in the worst channel.",
        0.0,
    ),
    "contrast_over_data": (
        "Contrast",
        "The deviation of the samples' values over the data's: below 1 they fade, above it they glare.",
        1.0,
    ),
    "sample_spread": ("Spread of the samples", "Root mean square distance from their mean.", None),
    "sample_mean": ("Mean of the samples", "Of all their values.", None),
    "sample_deviation": ("Deviation of the samples", "Of their values, over samples and pixels.", None),
    "fake_score_norm": (
        "Norm of the fake score",
        "Of its weights: where it stays the same the fake score is not trained.",
        None,
    ),
    "saturation": ("Saturation", "The fraction of values outside the data's range.", None),
}


def main_charts(run: Run) -> list[Drawing]:
    """Distance and class accuracy over evaluations; over steps the losses of denoising, the gap
    between the scores, and the student's own terms, whichever the method has.
    """
    history = run.history
    distance = _series(history.evaluation, ["fd"], "evaluations", {"fd": "student"})
    accuracy = _series(history.evaluation, ["accuracy"], "evaluations", {"accuracy": "student"})
    charts = [
        *_chart(history, "Frechet distance", "evaluations", distance, levels=_distance_levels(run)),
        *_chart(history, "Class accuracy", "evaluations", accuracy, may_be_log=False),
        *_chart(history, "Denoising loss", "step", _series(history.training, _ending(history, "denoising"), "step")),
        *_chart(
            history,
            "Gap between fake and target score",
            "step",
            _series(history.training, _ending(history, "gap"), "step"),
        ),
    ]
    for name in _own_terms(history):
        charts += _chart(
            history,
            f"{_term(name).capitalize()} loss of the student",
            "step",
            _series(history.training, [name], "step"),
        )
    return charts


def other_charts(history: History) -> list[Drawing]:
    """Everything else that training reported, one small chart a name; gradient norms are
    together.
    """
    norms = _ending(history, "gradient_norm")
    shown = {*norms, *_ending(history, "denoising"), *_ending(history, "gap"), *_own_terms(history)}
    charts = _chart(
        history, "Gradient norm before clipping", "step", _series(history.training, norms, "step"), size=_SMALL
    )
    for name in history.names():
        if name not in shown:
            title = f"{name.partition('.')[0].replace('_', ' ').capitalize()}: {_term(name)}"
            charts += _chart(history, title, "step", _series(history.training, [name], "step"), size=_SMALL)
    return charts


def _own_terms(history: History) -> list[str]:
    """The student's loss terms that have no chart of their kind: what methods other than
    distribution matching train by.
    """
    shared = ("denoising", "gap", "gradient", "gradient_norm")
    return [name for name in history.names() if name.startswith("student.") and name.partition(".")[2] not in shared]


def _term(name: str) -> str:
    return name.partition(".")[2].replace("_", " ")


def health_charts(history: History) -> list[Drawing]:
    """One small chart a reading."""
    charts = []
    for name in history.readings():
        if name in _BESIDE:
            continue
        title, meaning, ideal = _READINGS.get(name) or _other_reading(name)
        levels = (Level(ideal, ""),) if ideal is not None else ()
        names = {name: title, **_BESIDE} if name == _NORM else {name: title}
        charts += _chart(
            history,
            title,
            "step",
            _series(history.health, [*names], "step", names),
            levels=levels,
            size=_SMALL,
            note=meaning,
        )
    return charts


def _other_reading(name: str) -> tuple[str, str, float | None]:
    phase, is_gradient, _ = name.partition("_gradient_over_clip")
    if is_gradient:
        return f"Gradient of {phase}", "Its mean norm before clipping, over the clipping bound.", None
    return name.replace("_", " ").capitalize(), "", None


def _marks_over(history: History, axis: Axis) -> tuple[Mark, ...]:
    """The target's switches along an axis; where it has none, the stages of a run that has
    several.
    """
    index = 0 if axis == "step" else 1
    switches = history.switches()
    if switches:
        return tuple(
            Mark(switch.step if axis == "step" else switch.evaluations, switch.name, switch.step) for switch in switches
        )
    stages = [stage for stage in history.stages() if stage.name != "record"]
    return (
        tuple(Mark(stage.first[index], stage.name, stage.first[0], "stage") for stage in stages)
        if len(stages) > 1
        else ()
    )


def _bands_over(history: History, axis: Axis) -> tuple[Band, ...]:
    """The recording stage along an axis."""
    index = 0 if axis == "step" else 1
    return tuple(
        Band(stage.first[index], stage.last[index], _RECORDING) for stage in history.stages() if stage.name == "record"
    )


def _chart(
    history: History,
    title: str,
    axis: Axis,
    series: tuple[Series, ...],
    *,
    levels: tuple[Level, ...] = (),
    size: tuple[int, int] = (480, 290),
    note: str = "",
    may_be_log: bool = True,
) -> list[Drawing]:
    """The chart, or nothing when there is nothing to draw."""
    if not series:
        return []
    values = [y for line in series for _, y in line.points] + [level.y for level in levels]
    log = may_be_log and wants_log(values)
    marks, bands = _marks_over(history, axis), _bands_over(history, axis)
    if size == _SMALL:
        marks, bands = (), ()
    return [draw(Chart(title, _LABEL[axis], series, marks, bands, levels, log, size, note))]


def _series(
    entries: Sequence[Entry], keys: Sequence[str], axis: Axis, names: dict[str, str] | None = None
) -> tuple[Series, ...]:
    """A line for each key that has finite values."""
    found = []
    for key in keys:
        points = tuple((float(entry[axis]), float(entry[key])) for entry in entries if is_number(entry.get(key)))
        if points:
            found.append(Series((names or {}).get(key) or key.partition(".")[0].replace("_", " "), points))
    return tuple(found)


def _ending(history: History, name: str) -> list[str]:
    return [key for key in history.names() if key.partition(".")[2] == name]


def _distance_levels(run: Run) -> tuple[Level, ...]:
    """The teacher's distances, and that between the halves of the data."""
    levels = []
    for row in run.evaluated:
        distance = row.figures.get("fd")
        if row.model == "teacher" and is_number(distance):
            levels.append(
                Level(float(distance), f"teacher, {row.steps} step{'s' * (row.steps != 1)}: {number(distance)}")
            )
    halves = run.reference.get("halves_fd")
    if is_number(halves):
        levels.append(Level(float(halves), f"two halves of the data: {number(halves)}"))
    return tuple(levels)
