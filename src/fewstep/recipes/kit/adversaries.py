"""Critics as a recipe asks for them: where they get their features, and which phase trains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fewstep.denoisers import FrozenTrunk, Headed, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork, FeatureHead, ProjectedCritic
from fewstep.objectives.games.adversarial import (
    AdversarialCritic,
    AdversarialGenerator,
    Clean,
    CleanCritic,
    Critic,
    GANLoss,
    Hinge,
    Noised,
    NonSaturating,
    View,
)
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import forward_states
from fewstep.recipes.methods.method import trained
from fewstep.states import States
from fewstep.times import LogNormalTimes
from fewstep.training import Adam, Phase, Term
from fewstep.values import Count, Positive
from fewstep.zoo import digit_features


class _Adversary(config.Section):
    """``weight``: the generator's term's.

    ``r1``: the factor of R1 on what the critic sees. ``width``: of the critic's hidden layer.
    """

    apart: ClassVar[bool] = False
    """Whether it has its features from networks of its own."""
    weight: Positive = 0.01
    loss: Literal["non-saturating", "hinge"] = "non-saturating"
    r1: float = Field(0.0, ge=0)
    width: Count = 64


class FakeTrunk(_Adversary):
    """A head on the bottleneck of the fake score, trained as a second term of its phase, on noised
    samples (DMD2). ``critic_weight``: that term's.
    """

    kind: Literal["fake-trunk"]
    critic_weight: Positive = 0.03
    times: config.TimesChoice = LogNormalTimes()


class TeacherTrunk(_Adversary):
    """A head on the bottleneck of the frozen teacher, in a phase of its own, on noised samples."""

    kind: Literal["teacher-trunk"]
    times: config.TimesChoice = LogNormalTimes()
    optimizer: config.OptimizerChoice = Adam()


class ClassifierTrunk(_Adversary):
    """Heads on the layers of the frozen classifier of digits, in a phase of their own, on clean
    samples (projected GAN). The Frechet distance is measured in that network's features: a student
    trained so looks better there than it is.
    """

    apart: ClassVar[bool] = True
    kind: Annotated[Literal["classifier-features"], config.Names("shipped", file="digits-features")]
    optimizer: config.OptimizerChoice = Adam()


AdversarialChoice = Annotated[FakeTrunk | TeacherTrunk | ClassifierTrunk, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Adversary:
    """A critic and its part in a run: the student's ``generator_term``, and the ``phases`` with the
    critic's training put in.
    """

    critic: Critic
    generator_term: Term
    phases: list[Phase]


def build_adversary(
    choice: AdversarialChoice,
    context: Context,
    states: States,
    phases: Sequence[Phase],
    student: nn.Module | None = None,
) -> Adversary:
    """The recipe's critic.

    ``phases`` holds the fake score's, if there is one; ``student`` makes the samples, the run's
    unless given.

    Raises ``UserError`` for a critic on a trunk that is not there.
    """
    model = context.student.model if student is None else student
    loss: GANLoss = Hinge() if choice.loss == "hinge" else NonSaturating()
    critic, view = _critic(choice, context, phases)
    real = forward_states(context, context.student_times())
    of_critic = choice.critic_weight if isinstance(choice, FakeTrunk) else 1.0
    critic_term = Term(AdversarialCritic(critic, model, real, loss, view, choice.r1), states, of_critic, "critic")
    generator_term = Term(AdversarialGenerator(model, critic, loss, view), states, choice.weight, "adversarial")
    if isinstance(choice, FakeTrunk):
        assert isinstance(critic, Headed)
        joined = [
            replace(phase, network=critic, terms=[*phase.terms, critic_term]) if phase.name == "fake" else phase
            for phase in phases
        ]
        return Adversary(critic, generator_term, joined)
    assert isinstance(critic, nn.Module)
    return Adversary(critic, generator_term, [*phases, trained("critic", critic, [critic_term], choice.optimizer)])


def _critic(choice: AdversarialChoice, context: Context, phases: Sequence[Phase]) -> tuple[Critic, View]:
    classes = context.original.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.training.seed)
        if isinstance(choice, ClassifierTrunk):
            if context.space.shape != (1, 8, 8):
                raise UserError(
                    "'method.adversarial.kind: classifier-features' reads 8x8 digits; use 'teacher-trunk' "
                    "for this data."
                )
            network = digit_features()
            with torch.no_grad():
                channels = [features.shape[1] for features in network.stages(context.data.take(context.data.head(1)))]
            stages = context.devices.placed("critic", network).stages
            critic = ProjectedCritic(stages, channels, classes, choice.width)
            return context.devices.placed("critic", CleanCritic(critic)), Clean()
    view = Noised(context.original.schedule, choice.times)
    head = head_on_teacher(context, choice.width, f"method.adversarial.kind: {choice.kind}")
    if isinstance(choice, TeacherTrunk):
        return FrozenTrunk(context.original, head), view
    if "fake" not in type(context.method).model_fields:
        kind = context.method.kind
        raise UserError(
            f"'method.kind: {kind}' and 'method.adversarial.kind: fake-trunk' cannot be combined: there is "
            "no fake score whose trunk could be used; use 'teacher-trunk'."
        )
    fake = next((phase.network for phase in phases if phase.name == "fake"), None)
    if not isinstance(fake, NetworkDenoiser):
        raise UserError(
            "'method.adversarial.kind: fake-trunk' needs a fake score that is trained; use 'method.fake.kind: learned' "
            "or 'lora', or 'adversarial.kind: teacher-trunk'."
        )
    return context.devices.placed("fake", Headed(fake, head)), view


def head_on_teacher(context: Context, width: int, setting: str) -> FeatureHead:
    """A fresh critic's head for the bottleneck of the teacher's network, its weights drawn by the
    run's seed.

    Raises ``UserError`` for a network without features, naming the ``setting`` that asks for them.
    """
    trunk = context.original.network
    if not isinstance(trunk, DenoisingNetwork):
        raise UserError(
            f"'{setting}' puts a head on the teacher's features, which {type(trunk).__name__} has not; derive it "
            "from DenoisingNetwork."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.training.seed)
        return context.devices.placed("teacher", FeatureHead(trunk.bottleneck, context.original.classes, width))
