"""What a stage may do before its first step.

An action only writes (weights, a file of pairs), so that running it again after an interruption
gives the same.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cost import unmetered
from fewstep.denoisers import Denoiser
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.random import Key
from fewstep.solvers import FlowMap
from fewstep.states import Prior, State, Step
from fewstep.states.pairs import write_pairs
from fewstep.states.state import CPU
from fewstep.system import distributed
from fewstep.targets import DegradationPath, Probes
from fewstep.targets.path import FEWEST
from fewstep.training.dealing import deal


@dataclass(frozen=True, eq=False)
class Action(abc.ABC):
    """Runs once, when its stage begins."""

    @abc.abstractmethod
    def run(self) -> None:
        """Does it."""

    @property
    def writes(self) -> Sequence[nn.Module]:
        """The models whose weights it writes; a checkpoint holds them."""
        return ()

    @property
    def remark(self) -> str:
        """What is worth a line once it has run; nothing unless a class has something to say."""
        return ""

    @property
    def samples(self) -> int:
        """How many samples it carries through networks; its cost grows with them."""
        return 0


@dataclass(frozen=True, eq=False)
class Copy(Action):
    """target := source, for two models of one kind."""

    source: nn.Module
    target: nn.Module

    def run(self) -> None:
        load_strictly(self.target, self.source.state_dict(), type(self.source).__name__)

    @property
    def writes(self) -> Sequence[nn.Module]:
        return (self.target,)


@dataclass(frozen=True, eq=False)
class CopyNode(Action):
    """target := the most degraded node of a path: where the fake score of DisBack starts (Alg.
    2).
    """

    path: DegradationPath
    target: Denoiser

    def run(self) -> None:
        self.path.load(self.path.last, self.target)

    @property
    def writes(self) -> Sequence[nn.Module]:
        return (self.target,)


@dataclass(frozen=True, eq=False)
class MeasureSpacing(Action):
    """Measures how far the nodes of a path of three recorded nodes or more lie apart.

    The way to a node is the root mean square by which the estimates on the probes change from the
    node before it. ``model`` takes each node in turn and stays at the last. What it costs is not
    counted: it is a check of health.
    """

    path: DegradationPath
    model: Denoiser
    probes: Probes

    @torch.no_grad()
    def run(self) -> None:
        if self.path.last < FEWEST:
            return
        ways: list[float] = []
        with unmetered():
            last = self.probes(self.path.teacher)
            for index in range(1, self.path.last + 1):
                self.path.load(index, self.model)
                here = self.probes(self.model)
                ways.append(float((here - last).double().square().mean().sqrt()))
                last = here
        self.path.lay_out(distributed.agreed(ways))

    @property
    def writes(self) -> Sequence[nn.Module]:
        return (self.model,)

    @property
    def remark(self) -> str:
        return self.path.uneven


@dataclass(frozen=True, eq=False)
class MakePairs(Action):
    """Draws ``count`` starts of the prior, carries each to t = 0 and stores both in ``path``
    (knowledge distillation, reflow, DMD's regression).

    ``seed`` and ``purpose`` say which starts; ``device`` is the flow map's.
    """

    flow_map: FlowMap
    prior: Prior
    count: int
    path: Path
    seed: int = 0
    purpose: str = "pairs"
    batch: int = 500
    device: torch.device = CPU

    @property
    def samples(self) -> int:
        return self.count

    @torch.no_grad()
    def run(self) -> None:
        key, starts, labels = Key(self.seed, self.purpose), [], []
        begins = range(0, self.count, self.batch)
        for begin in begins:
            state = self._drawn(key, begin)
            starts.append(state.x)
            # Of prompts the embeddings are their owner's; a pair remembers which prompt it is of.
            numbers = self.prior.conditions.numbers(key, len(state.x), begin)
            if numbers is not None:
                labels.append(numbers)

        def end(begin: int) -> Tensor:
            state = self._drawn(key, begin)
            return self.flow_map.at(key, begin)(state.x, self.prior.time, 0.0, state.condition)

        ends = deal(begins, end)
        write_pairs(
            self.path, torch.cat(starts), torch.cat(ends), torch.cat(labels) if labels else None, self._origin()
        )

    def _drawn(self, key: Key, begin: int) -> State:
        return self.prior.draw(Step(key, min(self.batch, self.count - begin), begin, self.device))

    def _origin(self) -> dict[str, Any]:
        """Which pairs these are; ``Pairs`` checks the time."""
        return {
            "seed": self.seed,
            "purpose": self.purpose,
            "time": self.prior.time,
            "schedule": self.prior.schedule.describe(),
        }
