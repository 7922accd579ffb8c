"""How far the teacher's score is from that of a student's samples while it is distilled (DisBack,
Fig. 4): what the monitors logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.training.reporting.log import read_log

OVER_BOUND = "mismatch_over_bound"
NORM = "mismatch_norm"
_KEYS = ("step", "evaluations")


@dataclass(frozen=True)
class Track:
    """A run's mismatch degrees at its ``steps``, after so many network ``evaluations`` of one
    sample; the tuples are equally long.

    ``norms`` are Eq. 9 as it is printed, with ``deviations`` over the samples and their values on
    data in ``bounds``: None for runs of which they were not logged.
    """

    steps: tuple[int, ...]
    evaluations: tuple[int, ...]
    over_bound: tuple[float, ...]
    norms: tuple[float | None, ...]
    deviations: tuple[float | None, ...]
    bounds: tuple[float | None, ...]


def mismatch_over_training(folder: Path | str) -> list[tuple[int, int, float]]:
    """(step, evaluations, degree) of each reading, the degree over its value on data.

    Raises ``UserError`` for a run that logged none.
    """
    track = mismatch_track(folder)
    return list(zip(track.steps, track.evaluations, track.over_bound, strict=True))


def mismatch_track(folder: Path | str) -> Track:
    """All that a run logged of it. Raises ``UserError`` for a run that logged none."""
    entries = list(_readings(RunFolder(Path(folder)).log))
    if not entries:
        raise UserError(
            f"{folder}: has no mismatch degrees in metrics.jsonl; its health readings take them, every "
            "'training.health_every' steps, where there is data."
        )
    columns = {key: tuple(int(entry[key]) for entry in entries) for key in _KEYS}
    norms, deviations, bounds = (
        tuple(_number(entry.get(f"{NORM}{suffix}")) for entry in entries) for suffix in ("", "_deviation", "_on_data")
    )
    return Track(
        columns["step"],
        columns["evaluations"],
        tuple(float(entry[OVER_BOUND]) for entry in entries),
        norms,
        deviations,
        bounds,
    )


def _readings(log: Path) -> Iterator[Mapping[str, Any]]:
    for entry in read_log(log):
        if entry.get("probe") == "health" and all(_number(entry.get(key)) is not None for key in (*_KEYS, OVER_BOUND)):
            yield entry


def _number(value: Any) -> float | None:
    """A finite figure that a run may have logged."""
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53 else None
    )
