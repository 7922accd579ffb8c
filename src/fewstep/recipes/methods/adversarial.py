"""Adversarial diffusion distillation (ADD, Sauer et al. 2023): a hinge GAN on frozen features, and the teacher's estimate of the noised sample as a target (SDS in x0)."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal

from fewstep.denoisers import copy_of
from fewstep.errors import UserError
from fewstep.objectives import Delta, DistributionMatching, EDMWeight, ExponentialWeight, MatchingWeight, ScoreMatching, SDSWeight
from fewstep.recipes import config
from fewstep.recipes.adversaries import AdversarialChoice, FakeTrunk, TeacherTrunk, build_adversary
from fewstep.recipes.axes import Transitions, build_states, started_states, teacher_transition
from fewstep.recipes.backtracking import build_target
from fewstep.recipes.context import Context
from fewstep.recipes.methods.base import Built, Method, Traits, student_phase
from fewstep.times import LogNormalTimes
from fewstep.training import Stage, Term
from fewstep.values import Few, Positive


class AdversarialDiffusionMethod(Method):
    """``distillation``: the weight of the distillation's term, a mean over dimensions (the paper's lambda, 2.5, against an adversarial weight of 1); ``weighting``: the paper's two."""

    kind: Literal["adversarial-diffusion"]
    weighting: Annotated[MatchingWeight, config.ByName({"exponential": ExponentialWeight(), "sds": SDSWeight()})] = ExponentialWeight()
    distillation: Positive = 2.5
    times: config.TimesChoice = LogNormalTimes()
    adversarial: AdversarialChoice = TeacherTrunk(kind="teacher-trunk", weight=1.0, loss="hinge", r1=1e-5)
    steps: Few = 4

    traits: ClassVar[Traits] = Traits(frozenset({"forward", "rollout", "ddil", "per-batch"}), True, roles=("teacher", "student"))

    @property
    def steps_of_student(self) -> int:
        return self.steps

    def build(self, context: Context) -> Built:
        if isinstance(self.adversarial, FakeTrunk):
            raise UserError(
                "'method.kind: adversarial-diffusion' and 'method.adversarial.kind: fake-trunk' cannot be combined: there is no fake score whose trunk could be used; use 'teacher-trunk'."
            )
        student, times = context.student.model, context.student_times()
        transitions = Transitions(times, context.student_map, teacher_transition(context.teacher, 4, context), lambda: started_states(context, times), whole=True, anywhere=True)
        states = build_states(context, transitions.data, transitions)
        degraded = copy_of(context.original)
        recorded_by = ScoreMatching(degraded, student, self.times, EDMWeight())
        target = build_target(context, degraded, recorded_by, states, None, learned=False)
        matching = DistributionMatching(student, Delta(), target.target, self.times, self.weighting)
        fools, critics = build_adversary(self.adversarial, context, states, [])
        # Distribution matching sums over dimensions; the paper's distance, which lambda weighs against logits, is a mean.
        terms = [Term(matching, states, self.distillation / prod(context.space.shape), "distillation"), fools]
        stage = Stage("distill", target.until, [student_phase(context, terms, 1, target.hook), *critics], target.begin)
        return Built([*target.record, stage], target.path)
