"""What a stage may do before its first step. An action only writes weights, so that running it again after an interruption gives the same."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import nn

from fewstep.denoisers import Denoiser
from fewstep.networks.store import load_strictly
from fewstep.targets import DegradationPath


@dataclass(frozen=True, eq=False)
class Action(abc.ABC):
    """Runs once, when its stage begins."""

    @abc.abstractmethod
    def run(self) -> None:
        """Does it."""


@dataclass(frozen=True, eq=False)
class Copy(Action):
    """target := source, for two models of one kind."""

    source: nn.Module
    target: nn.Module

    def run(self) -> None:
        load_strictly(self.target, self.source.state_dict(), type(self.source).__name__)


@dataclass(frozen=True, eq=False)
class CopyNode(Action):
    """target := the most degraded node of a path: where the fake score of DisBack starts (Alg. 2)."""

    path: DegradationPath
    target: Denoiser

    def run(self) -> None:
        self.path.load(self.path.last, self.target)
