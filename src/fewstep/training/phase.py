"""What is trained: terms make a phase, phases that run together make a stage, and a run is a list
of stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers import Averaged
from fewstep.errors import UserError
from fewstep.objectives import Objective, Reduction, loss_of
from fewstep.resumable import Resumable, check_open, walk
from fewstep.states import States, Step
from fewstep.targets import StopRule
from fewstep.training.actions import Action
from fewstep.training.optimizer import Adam, Optimizer


@dataclass(frozen=True, eq=False)
class Term:
    """``weight`` times an objective on states."""

    objective: Objective
    states: States
    weight: float = 1.0
    name: str = ""

    @property
    def label(self) -> str:
        """Its name, or its objective's."""
        return self.name or type(self.objective).__name__


@dataclass(frozen=True, eq=False)
class Phase:
    """One network, one optimizer, a cadence, and terms.

    ``every``: runs at steps 0, every, 2 every, ... of its stage. ``after_step(steps finished,
    network)`` is called after each optimizer step; one that is a ``targets.Hook`` may be called
    before the host knows whether the step was finite. ``averages`` follow the network.
    """

    name: str
    network: nn.Module
    terms: Sequence[Term]
    optimizer: Optimizer = field(default_factory=Adam)
    every: int = 1
    after_step: Callable[[int, Any], None] | None = None
    averages: Sequence[Averaged] = ()

    @property
    def trained(self) -> nn.Module:
        """What the optimizer moves: the network, and what the objectives own."""
        return nn.ModuleList([self.network, *self.owned]) if self.owned else self.network

    @property
    def owned(self) -> list[nn.Module]:
        """The modules that its objectives own, once each."""
        return list({id(module): module for term in self.terms for module in term.objective.owned}.values())

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError(f"phase '{self.name}': needs at least one term to train on.")
        if self.every < 1:
            raise UserError(f"phase '{self.name}': 'every' must be at least 1, got {self.every}.")
        check_open(
            {"terms": self.terms, "optimizer": self.optimizer, "after_step": self.after_step}, f"phase '{self.name}'"
        )


@dataclass(frozen=True, eq=False)
class Stage:
    """Phases that run together, in order, until a number of steps or a stop rule; ``begin`` actions
    run once before the first step.
    """

    name: str
    until: int | StopRule
    phases: Sequence[Phase]
    begin: Sequence[Action] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise UserError(f"stage '{self.name}': needs at least one phase.")
        if isinstance(self.until, int) and self.until < 1:
            raise UserError(f"stage '{self.name}': needs at least 1 step, got {self.until}.")
        check_open({"until": self.until, "begin": self.begin}, f"stage '{self.name}'")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise UserError(f"stage '{self.name}': two phases have the same name; names tell them apart in the log.")

    @property
    def total(self) -> int | None:
        """The number of steps, where it is known."""
        return self.until if isinstance(self.until, int) else self.until.total

    def due(self, step: int) -> list[Phase]:
        """The phases that run at step ``step``, from 0."""
        return [phase for phase in self.phases if step % phase.every == 0]

    def finished(self, steps: int) -> bool:
        """Whether the stage ends after ``steps`` steps."""
        return steps >= self.until if isinstance(self.until, int) else self.until.finished(steps)


class PhaseLoss(nn.Module):
    """A phase's loss as a module: called with a step, it gives the weighted sum of the terms and,
    without a graph, the terms' own losses, the figures that they report, by name, and the
    reductions of those that are no means.

    What the phase trains is its submodule, whose parameters an engine finds there; everything else
    that the terms use is not.
    """

    def __init__(self, phase: Phase):
        super().__init__()
        self.trained = phase.trained
        # In a tuple, where nn.Module does not look for submodules.
        self._phase = (phase,)

    def forward(self, step: Step) -> tuple[Tensor, list[Tensor], dict[str, Tensor], dict[str, Reduction]]:
        (phase,) = self._phase
        total: Tensor | None = None
        losses: list[Tensor] = []
        figures: dict[str, Tensor] = {}
        reductions: dict[str, Reduction] = {}
        for term in phase.terms:
            loss = loss_of(term.objective, step, step.state(term.states))
            weighted = term.weight * loss.total
            # Made where the losses are: a number that came from the host would wait for the device.
            total = (torch.zeros((), device=weighted.device) if total is None else total) + weighted
            losses.append(loss.total.detach())
            figures |= {f"{phase.name}.{key}": figure for key, figure in loss.terms.items()}
            reductions |= {f"{phase.name}.{key}": reduction for key, reduction in loss.reductions.items()}
        assert total is not None, "a phase has at least one term"
        return total, losses, figures, reductions


def build_optimizers(stage: Stage) -> dict[str, torch.optim.Optimizer]:
    """Fresh optimizers of a stage, by phase; its networks are made trainable."""
    built = {}
    for phase in stage.phases:
        for module in (phase.network, *phase.owned):
            module.train()
        built[phase.name] = phase.optimizer.build(phase.trained.requires_grad_(True).parameters())
    return built


def check_optimizers(stages: Sequence[Stage], sharded: bool) -> None:
    """Raises ``UserError`` naming the first phase whose optimizer cannot be built here: before the
    first step, and not when its stage begins. ``sharded``: whether networks will be.
    """
    for phase in _phases(stages):
        try:
            phase.optimizer.check(sharded)
        except UserError as error:
            raise UserError(f"phase '{phase.name}': {error}") from error


def named_networks(stages: Sequence[Stage]) -> dict[str, nn.Module]:
    """Everything that training or an action writes, once each: trained networks by the name of the
    first phase that trains them, then averages and what actions write.
    """
    named: dict[str, nn.Module] = {}
    for phase in _phases(stages):
        if not _known(phase.network, named):
            if phase.name in named:
                raise UserError(
                    f"two networks are trained by phases named '{phase.name}'; give the phases different names."
                )
            named[phase.name] = phase.network
    for stage in stages:
        for phase in stage.phases:
            named |= {
                f"{phase.name}.owned-{i}": module for i, module in enumerate(phase.owned) if not _known(module, named)
            }
            named |= {
                f"{stage.name}.{phase.name}.average-{i}": average
                for i, average in enumerate(phase.averages)
                if not _known(average, named)
            }
        for index, action in enumerate(stage.begin):
            named |= {f"{stage.name}.begin-{index}": network for network in action.writes if not _known(network, named)}
    return named


def used_modules(stages: Sequence[Stage]) -> list[nn.Module]:
    """Every module that the stages' parts hold, trained or not: what is found by walking dataclass
    fields, lists and mappings.
    """
    return [value for value in walk(stages) if isinstance(value, nn.Module)]


def all_modules(
    stages: Sequence[Stage], networks: Mapping[str, nn.Module], stateful: Mapping[str, Resumable]
) -> Iterator[nn.Module]:
    """What is to be laid out over processes.

    A generator: only a layout that asks makes a stateful object allocate what it will need.
    """
    yield from networks.values()
    yield from used_modules(stages)
    for found in stateful.values():
        yield from found.networks()


def computes_in_full(stages: Sequence[Stage]) -> bool:
    """Whether any objective asks for full precision, alone or as a part of another: weights must
    then be there in it.
    """
    return any(isinstance(value, Objective) and value.full_precision for value in walk(stages))


def _known(network: nn.Module, named: dict[str, nn.Module]) -> bool:
    return any(network is other for other in named.values())


def _phases(stages: Sequence[Stage]) -> Iterator[Phase]:
    for stage in stages:
        yield from stage.phases
