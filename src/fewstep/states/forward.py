"""States that are made of data: diffused, which a diffusion model is trained on, or clean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fewstep.condition import LABELS, NO_CLASS, Condition, Conditions
from fewstep.data import Dataset, Described
from fewstep.schedule import Schedule
from fewstep.states.prior import Prior
from fewstep.states.state import State, States, select
from fewstep.states.step import Step
from fewstep.times import TimeDistribution


@dataclass(frozen=True)
class ForwardDiffusion(States):
    """x_t = alpha x_0 + sigma eps, x_0 drawn from ``data`` with replacement, t from ``times``.

    Each sample's condition, which is ``conditions``' of its number, becomes the unconditional one
    with probability ``label_dropout`` in [0, 1], so that the network also learns the unconditional
    estimate which guidance needs. Where conditions hold a picture's sizes, they are the sample's.
    """

    data: Dataset
    schedule: Schedule
    times: TimeDistribution
    label_dropout: float = 0.0
    conditions: Conditions = LABELS

    @property
    def ahead(self) -> bool:
        return True

    def draw(self, step: Step) -> State:
        index = step.key.integers("data-index", step.rows, len(self.data), step.start)
        x0 = self.data.take(index).to(step.device)
        t = self.times.draw(self.schedule, step.key, "data-time", step.rows, step.start)
        noise = step.noise_like("data-noise", x0)
        numbers = None
        if self.data.numbers is not None:
            dropped = step.key.uniform("label-dropout", step.rows, step.start) < self.label_dropout
            numbers = torch.where(dropped, NO_CLASS, self.data.numbers[index])
        condition = self.conditions.sized(self.conditions.of(numbers), lambda: self.data.sizes(index))
        return State(self.schedule.add_noise(x0, t, noise), t, condition.to(step.device), x0, noise)


@dataclass(frozen=True)
class Attributed(States):
    """Clean samples, drawn from ``data`` with replacement, with their attributes as the condition's
    context: what a reader is trained on. x is x0, and t is 0.
    """

    data: Described

    @property
    def ahead(self) -> bool:
        return True

    def draw(self, step: Step) -> State:
        index = step.key.integers("data-index", step.rows, len(self.data), step.start)
        x0 = self.data.take(index).to(step.device)
        condition = Condition(context=self.data.attributes(index)).to(step.device)
        return State(x0, torch.zeros(step.rows, dtype=torch.float64), condition, x0)


@dataclass(frozen=True)
class Started(States):
    """The states of ``source``, but at the time of ``prior`` the prior's noise in the place of
    their x, with their conditions. x0 and noise are None, since they no longer belong to all.
    """

    source: States
    prior: Prior

    @property
    def ahead(self) -> bool:
        return self.source.ahead

    def draw(self, step: Step) -> State:
        state = step.state(self.source)
        start = self.prior.at(step.key, "started", step.rows, state.condition.labels, step.start).to(step.device)
        return replace(state, x=select(state.t == self.prior.time, start.x, state.x), x0=None, noise=None)
