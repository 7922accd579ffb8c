"""Distribution matching: SDS, the unbiased estimate, VSD, Diff-Instruct, DMD and DMD2 are one method, told apart by the fake score and by what is added to it.

==================  ================  =======================  ==========================================
method              ``fake``          ``steps``                added
==================  ================  =======================  ==========================================
SDS                 ``delta``         1                        -
unbiased estimate   ``field``         1                        -
VSD                 ``lora``          1                        -
Diff-Instruct       ``learned``       1                        -
DMD                 ``learned``       1                        ``regression`` on pairs, weighting ``dmd``
DMD2                ``learned``       1 to 4, own rollouts     ``adversarial``, several updates of the fake score
==================  ================  =======================  ==========================================

With ``target.kind: backtracked`` each is DisBack's version of it; with ``fixed`` it is the method itself. One node equals the fixed target bit for bit, two nodes are the warm ablation.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fewstep.denoisers import NetworkDenoiser, copy_of
from fewstep.networks import add_adapter, build, describe
from fewstep.networks.lora import fold_adapter
from fewstep.objectives import DistributionMatching, DMDWeight, EDMWeight, EndpointRegression, ScoreMatching, SquaredL2
from fewstep.objectives.fakes import Delta, FakeScore, FieldOfSamples, Learned
from fewstep.recipes import config
from fewstep.recipes.adversaries import AdversarialChoice, build_adversary
from fewstep.recipes.axes import trajectory_states
from fewstep.recipes.backtracking import build_target
from fewstep.recipes.context import Context
from fewstep.recipes.methods.base import Built, Method, Traits, student_phase, trained
from fewstep.recipes.parts import fitting_grid
from fewstep.recipes.shares import drawn, planned
from fewstep.solvers import HEUN, Solver
from fewstep.states import Pairs, States
from fewstep.times import LogNormalTimes
from fewstep.training import Adam, Phase, Stage, Term
from fewstep.training.actions import Action, MakePairs
from fewstep.values import Few, Positive


class _TrainedFake(config.Section):
    """``times`` and ``weighting``: of its denoising. ``updates``: of it, for one of the student."""

    times: config.TimesChoice = LogNormalTimes()
    weighting: config.DenoisingWeighting = EDMWeight()
    optimizer: config.OptimizerChoice = Adam()
    updates: Few = 1


class LearnedFake(_TrainedFake):
    """A denoiser of the student's distribution, from the teacher or from random weights."""

    kind: Literal["learned"]
    start: Literal["teacher", "random"] = "teacher"


class LowRankFake(_TrainedFake):
    """The teacher with a low-rank adapter, which alone is trained (VSD). Its base is its own: it stays when the target moves."""

    kind: Literal["lora"]
    rank: Few = 8
    scale: Positive = 1.0


class DeltaFake(config.Section):
    """The sample itself (SDS)."""

    kind: Literal["delta"]


class FieldFake(config.Section):
    """The stable target field of ``samples``: the sample itself and fresh ones (the unbiased estimate)."""

    kind: Literal["field"]
    samples: Few = 64


FakeChoice = Annotated[LearnedFake | LowRankFake | DeltaFake | FieldFake, Field(discriminator="kind")]


class Regression(config.Section):
    """DMD's regression term: ``weight`` times a distance to the teacher's solution, on ``pairs`` (no more than the run draws) made once by ``steps`` steps of the solver."""

    weight: Positive = 0.25
    pairs: int = Field(5000, ge=1, le=10_000_000)
    steps: Few = 18
    solver: config.SolverChoice = config.SolverChoice(rule=HEUN)
    distance: config.DistanceChoice = SquaredL2()


class DistributionMatchingMethod(Method):
    """See the module's docstring."""

    kind: Literal["distribution-matching"]
    weighting: config.MatchingWeighting = DMDWeight()
    times: config.TimesChoice = LogNormalTimes()
    fake: FakeChoice = LearnedFake(kind="learned")
    steps: Few = 1
    regression: Regression | None = None
    adversarial: AdversarialChoice | None = None

    traits: ClassVar[Traits] = Traits(frozenset({"prior"}), True, frozenset({"copy", "lora", "generator"}), ("teacher", "fake", "student"))

    @property
    def in_force(self) -> Traits:
        traits = self.traits if self.steps == 1 else several_steps(self.traits)
        if not isinstance(self.fake, _TrainedFake):
            traits = replace(traits, roles=("teacher", "student"))
        if self.regression is not None or self.adversarial is not None:
            because = {**traits.because, "generator": "pairs of noise and sample, and data at the student's times, need a student that is a denoiser"}
            traits = replace(traits, students=traits.students - {"generator"}, because=because)
        return traits

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def learns_fake(self) -> bool:
        return isinstance(self.fake, _TrainedFake)

    @property
    def student_every(self) -> int:
        return self.fake.updates if isinstance(self.fake, _TrainedFake) else 1

    def build(self, context: Context) -> Built:
        student = context.student.model
        states = trajectory_states(context, self.steps)
        fake, phases, objective = self._fake(context, states)
        if objective is not None and isinstance(self.fake, (LearnedFake, LowRankFake)):
            degraded, recorded_by, start = recorded(self.fake, objective, context)
        else:
            degraded, start = copy_of(context.original), None
            recorded_by = ScoreMatching(degraded, student, self.times, EDMWeight())
        target = build_target(context, degraded, recorded_by, states, start, learned=objective is not None)
        matching = DistributionMatching(student, fake, target.target, self.times, self.weighting)
        terms, begin = [Term(matching, states, name="matching")], list(target.begin)
        if self.regression is not None:
            term, action = self._regression(context, self.regression)
            terms.append(term)
            begin.append(action)
        if self.adversarial is not None:
            generator_term, phases = build_adversary(self.adversarial, context, states, phases)
            terms.append(generator_term)
        stage = Stage("distill", target.until, [student_phase(context, terms, self.student_every, target.hook), *phases], begin)
        return Built([*target.record, stage], target.path, objective, states)

    def _fake(self, context: Context, states: States) -> tuple[FakeScore, list[Phase], ScoreMatching | None]:
        choice, student = self.fake, context.student.model
        if isinstance(choice, DeltaFake):
            return Delta(), [], None
        if isinstance(choice, FieldFake):
            return FieldOfSamples(student, states, choice.samples), [], None
        adapter: nn.Module | None = None
        if isinstance(choice, LowRankFake):
            network = copy_of(context.original)
            adapter = add_adapter(network, choice.rank, choice.scale, context.training.seed)
        else:
            network = started(choice, context)
        objective = ScoreMatching(network, student, choice.times, choice.weighting)
        phase = trained("fake", network, [Term(objective, states, name="fake score")], choice.optimizer, adapter)
        return Learned(context.reflected(network, "fake")), [phase], objective

    def _regression(self, context: Context, choice: Regression) -> tuple[Term, Action]:
        path = context.folder / "pairs.safetensors"
        grid = fitting_grid(choice.solver, context.schedule, "method.regression.solver", context.prior.time)
        solver = Solver(context.teacher, choice.steps, choice.solver.rule, grid)
        pairs = Pairs(path, context.schedule, context.prior.time)
        term = Term(EndpointRegression(context.denoising_student, choice.distance.within(context.features), None), pairs, choice.weight, "regression")
        count = drawn(choice.pairs, planned(context.training), context.training)
        return term, MakePairs(solver, context.prior, count, path, context.training.seed, device=context.works_on)


def several_steps(traits: Traits) -> Traits:
    """The traits of such a method when its student takes several steps."""
    because = {"prior": "a student of several steps is trained at all of its times", "generator": "a student of several steps must be a denoiser"}
    return replace(traits, states=frozenset({"forward", "rollout", "ddil", "per-batch"}), students=traits.students - {"generator"}, because=because)


def started(choice: LearnedFake, context: Context) -> NetworkDenoiser:
    """A learned fake score as it starts: a copy of the teacher, or of the same kind with random weights."""
    if choice.start == "teacher":
        return copy_of(context.original)
    model = context.original
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.training.seed)
        network = build(describe(model.network)).to(context.device)
    return NetworkDenoiser(network, model.schedule, model.prediction, model.inputs, model.shape, model.classes)


def recorded(choice: LearnedFake | LowRankFake, objective: ScoreMatching, context: Context) -> tuple[NetworkDenoiser, ScoreMatching, NetworkDenoiser | None]:
    """For a backtracked target of a method with a learned fake score: what is degraded, by which objective, and what takes the last node's weights.

    A fake score that starts as the teacher is degraded itself. Of one with an adapter the base takes the last node; one that starts at random weights takes none.
    """
    fake = objective.fake
    assert isinstance(fake, NetworkDenoiser)
    if isinstance(choice, LearnedFake) and choice.start == "teacher":
        return fake, objective, fake
    degraded = copy_of(context.original)
    return degraded, replace(objective, fake=degraded), base_of(fake) if isinstance(choice, LowRankFake) else None


def base_of(adapted: NetworkDenoiser) -> NetworkDenoiser:
    """A denoiser with a fresh adapter, without that adapter but with the same parameters: what is written into it is written into the other's base."""
    base = copy.deepcopy(adapted, {id(parameter): parameter for parameter in adapted.parameters()})
    # A fresh adapter adds 0, so that this leaves the weights as they are.
    fold_adapter(base)
    return base
