"""Methods that follow the target's scores: the fake score as a recipe asks for it, and what all
such methods are made of.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from fewstep.denoisers import NetworkDenoiser, copy_of, freeze, in_network
from fewstep.networks import AdaptedBase, build, describe_network
from fewstep.objectives import EDMWeight, ScoreMatching
from fewstep.objectives.scores.fakes import Delta, FakeScore, FieldOfSamples, Learned
from fewstep.objectives.scores.passes import PASSES, Passes
from fewstep.recipes import config
from fewstep.recipes.config.adapter_sections import LowRankSection
from fewstep.recipes.config.starts import FakePath, begun_fake
from fewstep.recipes.kit.adversaries import AdversarialChoice, Adversary, build_adversary
from fewstep.recipes.kit.backtracking import build_target
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.state_sources import trajectory_states
from fewstep.recipes.methods.method import Built, Method, Traits, student_phase, trained
from fewstep.solvers.sampling import Sampling
from fewstep.states import States
from fewstep.targets import Target
from fewstep.times import LogNormalTimes, RhoGrid, TimeDistribution
from fewstep.training import Adam, Phase, Stage, Term
from fewstep.training.actions import Action
from fewstep.values import Costly, Few, Later, Positive


@dataclass(frozen=True, eq=False)
class FakeParts:
    """A fake ``score``.

    Where it is learned, ``learning`` is its objective and ``phase`` what trains it.

    For a recorded path: ``degraded`` is trained by ``recorded_by``, and ``start`` takes the last
    node's weights, None for nothing.
    """

    score: FakeScore
    degraded: NetworkDenoiser
    recorded_by: ScoreMatching
    learning: ScoreMatching | None = None
    phase: Phase | None = None
    start: NetworkDenoiser | None = None


class Fake(config.Section, abc.ABC):
    """Where the score of the student's own distribution comes from."""

    @property
    def learned(self) -> bool:
        """Whether it is trained beside the student."""
        return False

    @property
    def adapts(self) -> bool:
        """Whether it is a low-rank adapter, as which a path can be recorded."""
        return False

    @property
    def every(self) -> int:
        """Its updates for one of the student."""
        return 1

    @abc.abstractmethod
    def parts(self, context: Context, states: States, times: TimeDistribution) -> FakeParts:
        """The fake score on a method's ``states``; ``times``: the method's, at which a path is
        recorded where nothing is learned.
        """


def _apart(score: FakeScore, context: Context, times: TimeDistribution) -> FakeParts:
    """Of a score that is not learned: a copy of the teacher is degraded for a path."""
    degraded = context.devices.placed("fake", copy_of(context.original))
    return FakeParts(score, degraded, ScoreMatching(degraded, context.student.model, times, EDMWeight()))


class _TrainedFake(Fake, abc.ABC):
    """``times`` and ``weighting``: of its denoising. ``updates``: of it, for one of the student."""

    times: config.TimesChoice = LogNormalTimes()
    weighting: config.DenoisingWeighting = EDMWeight()
    optimizer: config.OptimizerChoice = Adam()
    updates: Few = 1

    @property
    def learned(self) -> bool:
        return True

    @property
    def every(self) -> int:
        return self.updates

    def _learning(self, network: NetworkDenoiser, context: Context) -> ScoreMatching:
        return ScoreMatching(network, context.student.model, self.times, self.weighting)

    def _phase(self, learning: ScoreMatching, states: States) -> Phase:
        return trained("fake", learning.fake, [Term(learning, states, name="fake score")], self.optimizer)


class LearnedFake(_TrainedFake):
    """A denoiser of the student's distribution.

    ``start``: from the teacher's weights, from ``random`` ones, or from those in a file: of a model
    that was made from the same teacher, of a checkpoint's fake score, or of that of the newest
    checkpoint in a run's folder.
    """

    kind: Literal["learned"]
    start: FakePath = "teacher"

    def parts(self, context: Context, states: States, times: TimeDistribution) -> FakeParts:
        network = context.devices.placed("fake", self._network(context))
        learning = self._learning(network, context)
        score, phase = Learned(context.reflected(network, "fake")), self._phase(learning, states)
        if self.start != "random":
            # It starts as a degraded path does, and is degraded itself.
            return FakeParts(score, network, learning, learning, phase, network)
        degraded = context.devices.placed("fake", copy_of(context.original))
        return FakeParts(score, degraded, replace(learning, fake=degraded), learning, phase)

    def _network(self, context: Context) -> NetworkDenoiser:
        if self.start != "random":
            own = copy_of(context.original)
            return own if self.start == "teacher" else begun_fake(own, self.start)
        model = context.original
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.training.seed)
            network = build(describe_network(model.network))
        return in_network(model, network)


class LowRankFake(_TrainedFake, LowRankSection):
    """The teacher's own network with a low-rank adapter, which alone is trained (VSD).

    On a path of adapters (``target.recorded_as: lora``) it starts as the last node, and is itself
    what is degraded. On a path of copies its base is a copy of its own, which takes the last node's
    weights and stays when the target moves.
    """

    kind: Literal["lora"]
    rank: Few = 8
    scale: Positive | None = 1.0

    @property
    def adapts(self) -> bool:
        return True

    def parts(self, context: Context, states: States, times: TimeDistribution) -> FakeParts:
        path = context.target.backtracked
        copied = path is not None and path.recorded_as == "copy" and path.nodes > 1
        own = context.devices.placed("fake", freeze(copy_of(context.original))) if copied else None
        base = context.base if own is None else AdaptedBase(own.network)
        network = context.devices.placed("fake", self.role(base, context.original, context.training.seed))
        learning = self._learning(network, context)
        score, phase = Learned(context.reflected(network, "fake")), self._phase(learning, states)
        if path is not None and path.recorded_as == "lora":
            return FakeParts(score, network, learning, learning, phase, network)
        degraded = context.devices.placed("fake", copy_of(context.original))
        return FakeParts(score, degraded, replace(learning, fake=degraded), learning, phase, own)


class DeltaFake(Fake):
    """The sample itself (SDS)."""

    kind: Literal["delta"] = "delta"

    def parts(self, context: Context, states: States, times: TimeDistribution) -> FakeParts:
        return _apart(Delta(), context, times)


class FieldFake(Fake):
    """The stable target field of ``samples``: the sample itself and fresh ones (the unbiased
    estimate).
    """

    kind: Literal["field"]
    samples: Annotated[Few, Costly(8)] = 64

    def parts(self, context: Context, states: States, times: TimeDistribution) -> FakeParts:
        return _apart(FieldOfSamples(context.student.model, states, self.samples), context, times)


TrainedFakeChoice = Annotated[LearnedFake | LowRankFake, Field(discriminator="kind")]
"""Of methods whose fake score is always a network that is trained."""
FakeChoice = Annotated[LearnedFake | LowRankFake | DeltaFake | FieldFake, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Followed:
    """What a method makes its terms of: the ``states``, the ``fake`` score, the ``target``, how the
    estimates of both are made, and a critic where it has one.
    """

    context: Context
    states: States
    fake: FakeScore
    target: Target
    passes: Passes
    adversary: Adversary | None

    @property
    def student(self) -> nn.Module:
        """The student, which objectives run."""
        return self.context.student.model


class FollowsScores(Method, abc.ABC):
    """A method whose student follows the difference of the target's and its own scores: it gives
    the ``terms``, and all else follows.

    Each field is read here and declared in the method, whose fields have an order that its runs are
    known by, but for the later ``grid``, of the times of several steps, and ``passes``: how the
    estimates of target and fake score are made (``objectives.scores.passes``).
    """

    if TYPE_CHECKING:
        times: config.TimesChoice
        steps: Few

    grid: Annotated[config.GridName, Later()] = RhoGrid()
    passes: Annotated[Passes, config.ByName(PASSES), Later()] = PASSES["separate"]

    @property
    def own_score(self) -> Fake:
        """The fake score; the sample itself unless the method has another."""
        return DeltaFake()

    @property
    def critic(self) -> AdversarialChoice | None:
        """The critic, None for none."""
        return None

    @abc.abstractmethod
    def terms(self, followed: Followed) -> Sequence[Term]:
        """What trains the student, without the critic's term."""

    def states(self, context: Context) -> States:
        """What the student is asked at: pure noise for one step, and for several what the recipe
        says.
        """
        return trajectory_states(context, self.steps)

    def fake_parts(self, context: Context, states: States) -> FakeParts:
        """The fake score and its training, on the method's states."""
        return self.own_score.parts(context, states, self.times)

    def begin(self, followed: Followed) -> Sequence[Action]:
        """What is done once before the first step; nothing unless the method says so."""
        return ()

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling(grid=self.grid, steps=self.steps)

    @property
    def learns_fake(self) -> bool:
        return self.own_score.learned

    @property
    def judged_apart(self) -> bool:
        return self.critic is not None and self.critic.apart

    @property
    def adapts_fake(self) -> bool:
        return self.own_score.adapts

    @property
    def in_one_batch(self) -> bool:
        return self.passes is not PASSES["separate"]

    @property
    def student_every(self) -> int:
        return self.own_score.every

    def build(self, context: Context) -> Built:
        states = self.states(context)
        fake = self.fake_parts(context, states)
        target = build_target(
            context, fake.degraded, fake.recorded_by, states, fake.start, learned=self.own_score.learned
        )
        phases = [] if fake.phase is None else [fake.phase]
        adversary = None if self.critic is None else build_adversary(self.critic, context, states, phases)
        followed = Followed(context, states, fake.score, target.target, self.passes.begun(), adversary)
        terms = [*self.terms(followed), *([] if adversary is None else [adversary.generator_term])]
        student = student_phase(context, terms, self.student_every, target.hook)
        others = phases if adversary is None else adversary.phases
        stage = Stage("distill", target.until, [student, *others], [*target.begin, *self.begin(followed)])
        return Built([*target.record, stage], target.path, fake.learning, states)


class FollowsLearned(FollowsScores, abc.ABC):
    """Such a method whose fake score is always a network that is trained, and whose student takes
    one step or several.
    """

    if TYPE_CHECKING:
        fake: TrainedFakeChoice

    @property
    def effective_traits(self) -> Traits:
        return self.traits if self.steps == 1 else several_steps(self.traits)

    @property
    def own_score(self) -> TrainedFakeChoice:
        return self.fake


def several_steps(traits: Traits) -> Traits:
    """The traits of such a method when its student takes several steps."""
    because = {
        **traits.because,
        "prior": "a student of several steps is trained at all of its times",
        "generator": "a student of several steps must be a denoiser",
    }
    return replace(
        traits,
        states=frozenset({"forward", "rollout", "ddil", "per-batch"}),
        students=traits.students - {"generator"},
        because=because,
    )
