r"""Stored pairs of noise and what a teacher makes of it.

Knowledge distillation (Luhman and Luhman 2021) and reflow (Liu et al. 2022) train on pairs (x, x0)
in which x0 is the end of the teacher's deterministic trajectory from x; the regression loss of DMD
(Yin et al. 2024a) uses such pairs too. They are made once and kept in one checksummed file (see
``files``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import LABELS, Conditions
from fewstep.errors import UserError
from fewstep.schedule import Schedule
from fewstep.states.state import State, States
from fewstep.states.step import Step
from fewstep.system.caches import output
from fewstep.system.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Pairs(States):
    """Pairs drawn with replacement from the file ``path``: State(x, ``time``, the condition, x0), x
    scaled as it was when stored. The file holds the numbers of ``conditions`` as its labels, where
    there are any.

    The file is read at the first draw, so that this can be built before the file is made. Raises
    ``UserError`` for a time outside the schedule's trained range, and at the first draw when the
    file is missing, damaged, holds no pairs, or says in its metadata that its ``time`` or
    ``schedule`` is another.
    """

    path: Path
    schedule: Schedule
    time: float
    conditions: Conditions = LABELS

    def __post_init__(self) -> None:
        if not self.schedule.t_min <= self.time <= self.schedule.t_max:
            raise UserError(
                f"pairs: the time must be in the schedule's trained range [{self.schedule.t_min:g}, "
                f"{self.schedule.t_max:g}], got {self.time}."
            )

    @functools.cached_property
    def _stored(self) -> dict[str, Tensor]:
        tensors, metadata = read_tensors(self.path)
        check_pairs(self.path, tensors)
        for key, ours in (("time", self.time), ("schedule", self.schedule.describe())):
            if key in metadata and metadata[key] != ours:
                raise UserError(
                    f"{self.path}: its pairs are of another {key}, {metadata[key]} instead of {ours}; make "
                    "the pairs anew."
                )
        return tensors

    @property
    def ahead(self) -> bool:
        return True

    def draw(self, step: Step) -> State:
        stored = self._stored
        index = step.key.integers("pair-index", step.rows, len(stored["x"]), step.start)
        condition = self.conditions.of(stored["labels"][index] if "labels" in stored else None)
        t = torch.full((step.rows,), float(self.time), dtype=torch.float64)
        return State(stored["x"][index], t, condition, x0=stored["x0"][index]).to(step.device)


def write_pairs(path: Path, x: Tensor, x0: Tensor, labels: Tensor | None, metadata: Mapping[str, Any]) -> str:
    """Stores pairs x, x0 (N, *D), N >= 1, with labels (N,) or None, and JSON metadata (``time`` and
    ``schedule`` are compared when read); returns the file's digest.

    Raises ``UserError`` for tensors that are no pairs, and when the file cannot be written.
    """
    tensors = {"x": x, "x0": x0} if labels is None else {"x": x, "x0": x0, "labels": labels}
    check_pairs(path, tensors)
    with output(path):
        return write_tensors(path, tensors, metadata)


def check_pairs(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ``UserError`` naming the file when ``tensors`` are not x, x0 (N, *D) and perhaps
    labels (N,), with N of at least 1.
    """
    if not {"x", "x0"} <= set(tensors) <= {"x", "x0", "labels"}:
        raise UserError(
            f"{path}: holds {', '.join(sorted(tensors)) or 'nothing'} instead of the tensors x, x0 and "
            "perhaps labels; give a file of pairs."
        )
    rows = len(tensors["x"])
    if tensors["x"].shape != tensors["x0"].shape or len(tensors.get("labels", tensors["x"])) != rows or rows == 0:
        raise UserError(
            f"{path}: x and x0 must have the same shape (N, *D) and labels (N,), with N of at least 1; make "
            "the pairs anew."
        )
