"""When to record a node while the teacher degrades into the untrained student.

``EverySteps`` is the paper's rule: a node every n steps. It needs to be told how fast the teacher degrades, and Table 6 shows what a wrong guess costs (11 nodes over 400 steps: 244.72
against 1.38). ``ByDistance`` measures instead, on a fixed set of probes (noisy inputs at several levels): with f_i the estimates of node i there and f those of the degrading model,

- a node is recorded when rms(f - f_last node) reaches ``distance`` times rms(f_0 - mean f_0), the teacher's own spread over the probes;
- recording stops before collapse: when the spread of f has fallen below ``floor`` times the teacher's, or after ``max_steps``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import distributed
from fewstep.cost import unmetered
from fewstep.denoisers import Denoiser
from fewstep.errors import UserError
from fewstep.stateful import Stateful


@dataclass(frozen=True)
class Decision:
    """``record``: add a node now. ``stop``: why the path ends here, or nothing."""

    record: bool
    stop: str = ""


class RecordRule(Stateful):
    """Decides after each degrading step."""

    @abc.abstractmethod
    def decide(self, step: int, model: Denoiser) -> Decision:
        """``step`` counts the finished steps, from 1; ``model`` is the degrading teacher."""

    def expected_steps(self, nodes: int) -> int | None:
        """How many steps a path of ``nodes`` nodes, the teacher counted, will take, where that is known beforehand."""
        return None


class EverySteps(RecordRule):
    """A node every ``steps`` steps."""

    def __init__(self, steps: int):
        if steps < 1:
            raise UserError(f"recording every {steps} steps: the number must be at least 1.")
        self.steps = steps

    def decide(self, step: int, model: Denoiser) -> Decision:
        return Decision(step % self.steps == 0)

    def expected_steps(self, nodes: int) -> int | None:
        return self.steps * (nodes - 1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return


class ByDistance(RecordRule):
    """See the module's docstring. ``probe(model)`` gives the model's estimates (B, *D) on fixed inputs; ``distance`` and ``floor`` are relative to the teacher's spread."""

    def __init__(self, distance: float, probe: Callable[[Denoiser], Tensor], teacher: Denoiser, floor: float = 0.5, max_steps: int = 200):
        if not distance > 0 or not 0 <= floor < 1 or max_steps < 1:
            raise UserError("recording by distance: need distance > 0, 0 <= floor < 1 and max_steps >= 1.")
        self.distance, self.floor, self.max_steps = distance, floor, max_steps
        self._probe, self._teacher = probe, teacher
        # Looked for when they are first needed: networks are where they work by then.
        self._last: Tensor | None = None
        self._unit: Tensor | None = None
        self.travelled = 0.0

    def decide(self, step: int, model: Denoiser) -> Decision:
        if self._unit is None or self._last is None:
            # Not counted: a resumed run looks once more.
            with unmetered():
                whole = self._look(self._teacher)
            self._unit, self._last = _spread(whole), whole if self._last is None else self._last.to(whole).reshape(whole.shape)
        now = self._look(model)
        # Processes on unlike devices differ in the last digits; one of them decides.
        self.travelled, spread = distributed.agreed([float((now - self._last).square().mean().sqrt() / self._unit), float(_spread(now) / self._unit)])
        record = self.travelled >= self.distance
        if record:
            self._last = now
        if spread < self.floor:
            return Decision(False, f"collapse was near: the estimates' spread fell to {spread:.2f} of the teacher's after {step} steps")
        if step >= self.max_steps:
            return Decision(record, f"the limit of {self.max_steps} steps was reached")
        return Decision(record)

    def state_dict(self) -> dict[str, Any]:
        return {"last": None if self._last is None else self._last.flatten().tolist(), "travelled": self.travelled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # In the form of the estimates once there is one.
        self._last, self._unit = None if state["last"] is None else torch.tensor(state["last"], dtype=torch.float64), None
        self.travelled = state["travelled"]

    @torch.no_grad()
    def _look(self, model: Denoiser) -> Tensor:
        return self._probe(model).detach()


def _spread(estimates: Tensor) -> Tensor:
    return (estimates - estimates.mean(0)).square().mean().sqrt()
