r"""Adversarial terms: a critic that tells data from the student's samples, and the student that
fools it.

With logits l(x, t), one or several a sample (heads), and means over samples and heads:

- ``NonSaturating``: the critic's E softplus(-l(real)) + E softplus(l(fake)); the generator's E
  softplus(-l(fake)); source Goodfellow et al. 2014; StyleGAN, DMD2.
- ``Hinge``: the critic's E max(0, 1 - l(real)) + E max(0, 1 + l(fake)); the generator's -E l(fake);
  source Lim and Ye 2017; ADD, CTM.

The best critic of the first is l = log p_real / p_fake, where its loss is 2 log 2 - 2 JS(p_real,
p_fake); of the second, l = sign(p_real - p_fake).

What a critic sees is a ``View``: samples as they are (``Clean``; ADD), moved by a few pixels
(``Shifted``; DiffAugment), or noised to a random level (``Noised``; Diffusion-GAN, Wang et al.
2022; DMD2), which both keeps the two distributions overlapping and lets a diffusion network's own
features serve as the critic's. Within a step real and fake samples share their levels, not their
noise.

R1 (Mescheder et al. 2018, Eq. 9) is r1 / 2 E |grad_x sum_heads l(x, t)|^2 on the real samples as
the critic sees them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.denoisers.denoiser import frozen
from fewstep.errors import UserError
from fewstep.networks.elsewhere import Door
from fewstep.objectives.loss import Loss, Objective
from fewstep.schedule import Schedule
from fewstep.states import State, States, Step
from fewstep.times import TimeDistribution


class Critic(Protocol):
    """A module with logits: positive for what it takes for data."""

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B,) or (B, heads), from x (B, *D) at times t (B,), 0 for clean."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


class CleanCritic(nn.Module, Door):
    """A network on clean samples, ``network(x, condition) -> logits``, as a critic; it does not
    look at the time.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See ``Critic``."""
        logits: Tensor = self.network(self.brought(x), self.brought(condition))
        return logits.to(x.device)


@dataclass(frozen=True)
class GANLoss(abc.ABC):
    """The two losses of a game, as scalars, from logits of any shape."""

    @abc.abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """The generator's, of the logits of its samples."""

    @abc.abstractmethod
    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """The critic's, of the logits of data and of samples."""


@dataclass(frozen=True)
class NonSaturating(GANLoss):
    """Softplus; see the module's docstring."""

    def generator(self, fake: Tensor) -> Tensor:
        return functional.softplus(-fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()


@dataclass(frozen=True)
class Hinge(GANLoss):
    """Margins of one; see the module's docstring."""

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


@dataclass(frozen=True)
class View(abc.ABC):
    """How a critic sees samples."""

    @abc.abstractmethod
    def see(self, step: Step, side: str, role: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x as seen (B, *D), t (B,)); times are drawn for a ``side`` of the game, noise for a side
        and a ``role`` in it.
        """


@dataclass(frozen=True)
class Clean(View):
    """As they are, at t = 0."""

    def see(self, step: Step, side: str, role: str, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros(len(x), dtype=torch.float64)


@dataclass(frozen=True)
class Shifted(View):
    """Images (B, C, H, W) moved by whole pixels, at most ``pixels`` along each side and each by its
    own draw, ``fill`` coming in from outside; at t = 0.

    A critic of few images learns them by heart; what it is shown moved, it must know by its look
    (DiffAugment, Zhao et al. 2020, Sec. 3.2, whose translation this is).
    """

    pixels: int
    fill: float = -1.0

    def see(self, step: Step, side: str, role: str, x: Tensor) -> tuple[Tensor, Tensor]:
        choices = 2 * self.pixels + 1
        down, right = (
            step.key.integers(f"{side}-{role}-{way}", step.rows, choices, step.start).to(x.device)[:, None]
            for way in ("down", "right")
        )
        padded = functional.pad(x, (self.pixels,) * 4, value=self.fill)
        height, width = (torch.arange(size, device=x.device) for size in x.shape[2:])
        samples = torch.arange(len(x), device=x.device)[:, None, None]
        moved = padded[samples, :, (height + down)[:, :, None], (width + right)[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous(), torch.zeros(len(x), dtype=torch.float64)


@dataclass(frozen=True)
class Noised(View):
    """x_t of a schedule, t from ``times``."""

    schedule: Schedule
    times: TimeDistribution

    def see(self, step: Step, side: str, role: str, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self.times.draw(self.schedule, step.key, f"{side}-time", step.rows, step.start)
        return self.schedule.add_noise(x, t, step.noise_like(f"{side}-{role}-noise", x)), t


@dataclass(frozen=True, eq=False)
class AdversarialGenerator(Objective):
    """Moves ``student``'s samples to where ``critic`` takes them for data; the critic is not
    trained by it, whatever phase it belongs to.
    """

    student: nn.Module
    critic: Critic
    loss: GANLoss
    view: View

    def __call__(self, step: Step, state: State) -> Loss:
        x, t = self.view.see(step, "adversarial", "fake", step.run(self.student, state))
        with frozen(self.critic):
            logits = self.critic.logits(x, t, state.condition)
        total = self.loss.generator(logits)
        return Loss(total, {"adversarial": total.detach()})


@dataclass(frozen=True, eq=False)
class AdversarialCritic(Objective):
    """Trains ``critic`` to tell the clean samples x0 of ``real`` from those that ``student`` makes
    of the term's states; nothing reaches the student.

    ``real``: states that carry x0, each side having its own conditions. ``r1`` >= 0: the factor of
    R1, which is not computed at 0. Raises ``UserError`` for a negative r1 and for states without
    x0.
    """

    critic: Critic
    student: nn.Module
    real: States
    loss: GANLoss
    view: View
    r1: float = 0.0

    def __post_init__(self) -> None:
        if not self.r1 >= 0:
            raise UserError(f"adversarial critic: r1 must be at least 0, got {self.r1}.")

    @property
    def differentiates_twice(self) -> bool:
        return self.r1 > 0

    def __call__(self, step: Step, state: State) -> Loss:
        data = step.state(self.real)
        if data.x0 is None:
            raise UserError(
                f"adversarial critic: its real states ({type(self.real).__name__}) carry no clean samples; "
                "give it states made of data, such as ForwardDiffusion."
            )
        real, t = self.view.see(step, "critic", "real", data.x0)
        fake, s = self.view.see(step, "critic", "fake", step.sample(self.student, state))
        real = real.detach().requires_grad_(self.r1 > 0)
        real_logits = self.critic.logits(real, t, data.condition)
        fake_logits = self.critic.logits(fake, s, state.condition)
        total = self.loss.critic(real_logits, fake_logits)
        figures = {
            "critic": total.detach(),
            "critic_real": real_logits.detach().mean(),
            "critic_fake": fake_logits.detach().mean(),
        }
        if self.r1 > 0:
            penalty = gradient_penalty(real_logits, real)
            figures["r1"] = penalty.detach()
            total = total + 0.5 * self.r1 * penalty
        return Loss(total, figures)


def gradient_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """E |grad_x sum_heads l|^2 as a scalar with a graph, from logits (B,) or (B, heads) of x (B,
    *D) that requires a gradient.
    """
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()
