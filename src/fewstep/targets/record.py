"""When to record a node while the teacher degrades into the untrained student.

``EverySteps`` is the paper's rule: a node every n steps. It needs to be told how fast the teacher
degrades, and Table 6 shows what a wrong guess costs (11 nodes over 400 steps: 244.72 against 1.38).
``ByDistance`` measures instead, on a fixed set of probes (noisy inputs at several levels): with f_i
the estimates of node i there and f those of the degrading model,

- a node is recorded when rms(f - f_last node) reaches ``distance`` times rms(f_0 - mean f_0), the
  teacher's own spread over the probes;
- recording stops before collapse: when the spread of f has fallen below ``floor`` times the
  teacher's, or after ``max_steps``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.cost import unmetered
from fewstep.denoisers import Denoiser
from fewstep.resumable import Resumable, walk
from fewstep.system import distributed
from fewstep.values import BelowOne, Positive, Steps, Value


@dataclass(frozen=True)
class Decision:
    """``record``: add a node now. ``stop``: why the path ends here, or nothing."""

    record: bool
    stop: str = ""


class RecordRule(Resumable):
    """Decides after each degrading step."""

    @abc.abstractmethod
    def decide(self, step: int, model: Denoiser) -> Decision:
        """``step`` counts the finished steps, from 1; ``model`` is the degrading teacher."""

    def decides(self, step: int) -> bool:
        """Whether it looks at the model after ``step`` steps or may record it: always, unless a
        class knows better.
        """
        return True

    def expected_steps(self, nodes: int) -> int | None:
        """How many steps a path of ``nodes`` nodes, the teacher counted, will take, where that is
        known beforehand.
        """
        return None


@dataclass(frozen=True)
class Recording(Value, abc.ABC):
    """How a path is recorded: the settings of a rule."""

    @property
    def measures(self) -> bool:
        """Whether it looks at the degrading teacher, so that a path may end early."""
        return False

    @abc.abstractmethod
    def rule(self, probe: Callable[[Denoiser], Tensor], teacher: Denoiser) -> RecordRule:
        """A fresh rule; ``probe(model)`` gives a model's estimates (B, *D) on fixed inputs."""

    @abc.abstractmethod
    def bounds(self, planned: int) -> tuple[int, int]:
        """The least and the most steps in which ``planned`` nodes besides the teacher are
        recorded.
        """


@dataclass(frozen=True)
class RecordEvery(Recording):
    """A node every ``steps`` steps."""

    kind: Literal["every"] = field(default="every", kw_only=True)
    steps: Steps

    def rule(self, probe: Callable[[Denoiser], Tensor], teacher: Denoiser) -> RecordRule:
        return EverySteps(self.steps)

    def bounds(self, planned: int) -> tuple[int, int]:
        return self.steps * planned, self.steps * planned


@dataclass(frozen=True)
class RecordByDistance(Recording):
    """See the module's docstring.

    ``distance`` and ``floor`` are relative to the teacher's spread over the probes.
    """

    kind: Literal["distance"] = field(default="distance", kw_only=True)
    distance: Positive = 0.1
    floor: BelowOne = 0.5
    max_steps: Steps = 200

    @property
    def measures(self) -> bool:
        return True

    def rule(self, probe: Callable[[Denoiser], Tensor], teacher: Denoiser) -> RecordRule:
        return ByDistance(self, probe, teacher)

    def bounds(self, planned: int) -> tuple[int, int]:
        return 1, self.max_steps


class EverySteps(RecordRule):
    """A node every ``steps`` steps."""

    def __init__(self, steps: int):
        self.steps = RecordEvery(steps).steps

    def decide(self, step: int, model: Denoiser) -> Decision:
        return Decision(self.decides(step))

    def decides(self, step: int) -> bool:
        return step % self.steps == 0

    def expected_steps(self, nodes: int) -> int | None:
        return self.steps * (nodes - 1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return


class ByDistance(RecordRule):
    """See ``RecordByDistance``.

    ``probe(model)`` gives the model's estimates (B, *D) on fixed inputs.
    """

    def __init__(self, settings: RecordByDistance, probe: Callable[[Denoiser], Tensor], teacher: Denoiser):
        self.settings = settings
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
            self._unit, self._last = (
                _spread(whole),
                whole if self._last is None else self._last.to(whole).reshape(whole.shape),
            )
        now = self._look(model)
        # Processes on unlike devices differ in the last digits; one of them decides.
        self.travelled, spread = distributed.agreed(
            [float((now - self._last).square().mean().sqrt() / self._unit), float(_spread(now) / self._unit)]
        )
        record = self.travelled >= self.settings.distance
        if record:
            self._last = now
        if spread < self.settings.floor:
            return Decision(
                False,
                f"collapse was near: the estimates' spread fell to {spread:.2f} of the teacher's after {step} steps",
            )
        if step >= self.settings.max_steps:
            return Decision(record, f"the limit of {self.settings.max_steps} steps was reached")
        return Decision(record)

    def networks(self) -> Sequence[nn.Module]:
        return [value for value in walk((self._teacher, self._probe)) if isinstance(value, nn.Module)]

    def in_use(self) -> Sequence[nn.Module]:
        # What it is told of the teacher and of its probes is kept once it was looked for.
        return self.networks() if self._unit is None else ()

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": None if self._last is None else self._last.cpu().flatten().tolist(),
            "travelled": self.travelled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # In the form of the estimates once there is one.
        self._last, self._unit = (
            None if state["last"] is None else torch.tensor(state["last"], dtype=torch.float64),
            None,
        )
        self.travelled = state["travelled"]

    @torch.no_grad()
    def _look(self, model: Denoiser) -> Tensor:
        return self._probe(model).detach()


def _spread(estimates: Tensor) -> Tensor:
    return (estimates - estimates.mean(0)).square().mean().sqrt()
