"""A small distillation on a mixture, built by hand, on which the loop is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.denoisers import EDMInputs, NetworkDenoiser, copy_of, freeze
from fewstep.networks import build
from fewstep.objectives import DiffInstructWeight, DistributionMatching, EDMWeight, ScoreMatching
from fewstep.prediction import EDM
from fewstep.schedule import KarrasVE
from fewstep.states import Prior
from fewstep.targets import Backtracked, DegradationPath, Every, EverySteps, Fixed, Target
from fewstep.times import LogNormalTimes
from fewstep.training import Adam, CopyNode, Phase, Settings, Stage, Term, Trainer


def small_teacher(seed: int = 0, width: int = 16) -> NetworkDenoiser:
    """A frozen denoiser of points in the plane with random weights, its output layer too."""
    torch.manual_seed(seed)
    network = build({"kind": "residual-mlp", "dim": 2, "width": width, "depth": 2, "classes": 0})
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    return freeze(NetworkDenoiser(network, KarrasVE(), EDM(1.0), EDMInputs(1.0), (2,)))


class SmallRun:
    """Teacher, student, fake score and the stages of DisBack, Diff-Instruct or its warm ablation
    over them.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int | None,
        record: int = 3,
        switch: int = 4,
        steps: int = 30,
        batch: int = 8,
        seed: int = 0,
        width: int = 16,
    ):
        self.folder = folder
        self.teacher = small_teacher(width=width)
        self.student, self.fake = copy_of(self.teacher), copy_of(self.teacher)
        schedule = self.teacher.schedule
        self.prior = Prior(schedule, (2,), float(schedule.time_at_sigma(2.5)))
        times = LogNormalTimes()
        self.score_matching = ScoreMatching(self.fake, self.student, times, EDMWeight(1.0))
        self.target: Target = Fixed(self.teacher)
        self.path: DegradationPath | None = None
        self.stages: list[Stage] = []
        until: Any = steps
        if nodes is not None:
            self.path = DegradationPath(folder / "path", self.teacher)
            self.target = Backtracked(self.path, Every(switch))
            if nodes > 1:
                recorder = self.path.recorder(EverySteps(record))
                phase = Phase(
                    "degrade", self.fake, [Term(self.score_matching, self.prior)], Adam(1e-3), after_step=recorder
                )
                self.stages.append(Stage("record", self.path.full(nodes), [phase]))
                until = self.path.rest(steps + record * (nodes - 1))
        self.matching = DistributionMatching(self.student, self.fake, self.target, times, DiffInstructWeight())
        hook = self.target.advance if isinstance(self.target, Backtracked) else None
        phases = [
            Phase("student", self.student, [Term(self.matching, self.prior)], Adam(1e-3), after_step=hook),
            Phase("fake", self.fake, [Term(self.score_matching, self.prior)], Adam(1e-3)),
        ]
        begin = [CopyNode(self.path, self.fake)] if self.path is not None and self.stages else []
        self.stages.append(Stage("distill", until, phases, begin))
        self.settings = Settings(batch=batch, seed=seed, log_every=2, checkpoint_every=5)

    def trainer(self, **changes: Any) -> Trainer:
        """A trainer of these stages."""
        return Trainer(self.folder, self.stages, self.student, changes.pop("settings", self.settings), **changes)


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., SmallRun]:
    """Makes small runs in folders of their own."""

    def make(name: str = "run", nodes: int | None = None, **settings: Any) -> SmallRun:
        return SmallRun(tmp_path / name, nodes, **settings)

    return make
