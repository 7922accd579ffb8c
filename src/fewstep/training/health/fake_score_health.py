"""Is the fake score well: near its student, near its target, and learning at all? One that stands
still answers for samples that the student no longer makes, and what it says is then wrong in the
direction in which the student moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.objectives import ScoreMatching
from fewstep.states import States, Step
from fewstep.system import distributed
from fewstep.training.monitors import Check, Reading


@dataclass(frozen=True, eq=False)
class FakeScoreLag(Check):
    """The fake score's loss on samples made now over its loss in training: above ``limit`` it
    trails the student and its gradients mislead.
    """

    objective: ScoreMatching
    states: States
    phase: str = "fake"
    limit: float = 1.5

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        trained = recent.get(f"{self.phase}.denoising")
        if not trained:
            return None
        ratio = float(self.objective.lag(step, step.state(self.states))) / trained
        warning = (
            f"the fake score trails the student (loss {ratio:.2f} times that in training, bound {self.limit:g}): "
            "update it more often, or lower the student's rate."
        )
        return Reading("fake_score_lag", ratio, warning if ratio > self.limit else "")


@dataclass(frozen=True, eq=False)
class Gap(Check):
    """The relative squared distance between fake and target score (``relative_gap``): above
    ``limit`` the student is far from everything the target knows.
    """

    phase: str = "student"
    limit: float = 2.0
    advice: str = "a lower rate helps"

    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        gap = recent.get(f"{self.phase}.gap")
        if gap is None:
            return None
        warning = (
            f"the scores of student and target are far apart (relative gap {gap:.2f}, bound {self.limit:g}): the "
            f"target is out of its depth on these samples; {self.advice}."
        )
        return Reading("gap", gap, warning if gap > self.limit else "")


@dataclass(frozen=True, eq=False)
class FakeScoreMoves(Check):
    """The norm of all weights of the ``fake`` score: where it is the same to the last bit at two
    readings, nothing has been trained between them.
    """

    fake: nn.Module

    @torch.no_grad()
    def read(self, step: Step, recent: Mapping[str, float]) -> Reading | None:
        squares: list[Tensor] = [
            distributed.whole(value.double().square().sum()).cpu() for value in self.fake.parameters()
        ]
        # Without a report there was no step, so that nothing can have moved.
        return Reading("fake_score_norm", float(torch.stack(squares).sum().sqrt())) if squares and recent else None

    def against(self, reading: Reading, past: Sequence[float]) -> str:
        if not past or reading.value != past[-1]:
            return ""
        return (
            "the fake score has moved by 0 since the last reading (bound: above 0), while the student was trained: "
            "it says nothing of the samples of today; give it a rate, and steps of its own."
        )
