"""What is trained: terms make a phase, phases that run together make a stage, and a run is a list of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.objectives import Objective
from fewstep.states import States
from fewstep.stopping import StopRule
from fewstep.training.actions import Action
from fewstep.training.optimizer import Adam


@dataclass(frozen=True, eq=False)
class Term:
    """``weight`` times an objective on states."""

    objective: Objective
    states: States
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True, eq=False)
class Phase:
    """One network, one optimizer, a cadence, and terms.

    ``every``: runs at steps 0, every, 2 every, ... of its stage. ``clip``: the largest norm of the gradient, None for no clipping. ``after_step(steps finished, network)`` is
    called after each optimizer step.
    """

    name: str
    network: nn.Module
    terms: Sequence[Term]
    optimizer: Adam = field(default_factory=Adam)
    every: int = 1
    clip: float | None = 1.0
    after_step: Callable[[int, Any], None] | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError(f"phase '{self.name}': needs at least one term to train on.")
        if self.every < 1:
            raise UserError(f"phase '{self.name}': 'every' must be at least 1, got {self.every}.")


@dataclass(frozen=True, eq=False)
class Stage:
    """Phases that run together, in order, until a number of steps or a stop rule; ``begin`` actions run once before the first step."""

    name: str
    until: int | StopRule
    phases: Sequence[Phase]
    begin: Sequence[Action] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise UserError(f"stage '{self.name}': needs at least one phase.")
        if isinstance(self.until, int) and self.until < 1:
            raise UserError(f"stage '{self.name}': needs at least 1 step, got {self.until}.")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise UserError(f"stage '{self.name}': two phases have the same name; names tell them apart in the log.")

    @property
    def total(self) -> int | None:
        """The number of steps, where it is known."""
        return self.until if isinstance(self.until, int) else self.until.total

    def finished(self, steps: int) -> bool:
        """Whether the stage ends after ``steps`` steps."""
        return steps >= self.until if isinstance(self.until, int) else self.until.finished(steps)


def build_optimizers(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    """Fresh optimizers of a stage, by phase; its networks are made trainable."""
    built = {}
    for phase in stage.phases:
        phase.network.requires_grad_(True).train()
        built[phase.name] = phase.optimizer.build(phase.network.parameters())
    return built


def named_networks(stages: Sequence[Stage]) -> dict[str, nn.Module]:
    """Every trained network once, by the name of the first phase that trains it."""
    named: dict[str, nn.Module] = {}
    for phase in _phases(stages):
        if not any(phase.network is network for network in named.values()):
            if phase.name in named:
                raise UserError(f"two networks are trained by phases named '{phase.name}'; give the phases different names.")
            named[phase.name] = phase.network
    return named


def _phases(stages: Sequence[Stage]) -> Iterator[Phase]:
    for stage in stages:
        yield from stage.phases
