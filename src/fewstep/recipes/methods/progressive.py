"""Progressive distillation (Salimans and Ho 2022; with guidance, Meng et al. 2023; with DDIL, Garrepalli et al. 2024): each round halves the number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.denoisers import Denoiser, Guided, NetworkDenoiser, copy_of, freeze, grown_denoiser
from fewstep.objectives import Imitation, ProgressiveDistillation
from fewstep.objectives.progressive import SNRPlusOne, TruncatedSNR
from fewstep.objectives.score_matching import DenoisingWeight
from fewstep.prediction import prediction_from
from fewstep.recipes import config
from fewstep.recipes.axes import Transitions, build_states, forward_states, teacher_transition
from fewstep.recipes.context import Context
from fewstep.recipes.methods.base import Built, Method, Traits, student_phase
from fewstep.recipes.shares import divided, extended, planned
from fewstep.solvers.sampling import Sampling
from fewstep.states import States, WithGuidance
from fewstep.targets import Fixed
from fewstep.training import Copy, Stage, Term


class GuidanceRange(config.Section):
    """The guidance scale w, uniform in [low, high] and embedded; w = 1 is the conditional estimate, so that Meng et al.'s 2 to 14 is 3 to 15 here.

    ``sample_at``: the scale used unless told otherwise.
    """

    low: float = Field(2.0, ge=0)
    high: float = Field(14.0, ge=0)
    sample_at: float = Field(2.0, ge=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> GuidanceRange:
        if self.low > self.high:
            raise ValueError(f"'low' ({self.low}) must not exceed 'high' ({self.high})")
        return self


Power = Annotated[int, Field(ge=1, le=10_000)]


class ProgressiveMethod(Method):
    """From ``start`` steps of the teacher to ``steps`` of the student, both powers of two. ``growth``: each round is this much longer than the one before. ``parts`` 2 splits each round
    in two, the second with a new warm-up (DDIL's protocol). ``convert``: the student emits another prediction, for which it is first trained (``prepare``, a share of the run).
    ``sample_with``: DDIM steps, or DPM-Solver++ 2M as DDIL does (App. A).
    """

    kind: Literal["progressive"]
    start: Power = 32
    steps: Power = 4
    weighting: Literal["truncated-snr", "snr+1"] = "truncated-snr"
    growth: config.Positive = 1.25
    parts: Literal[1, 2] = 1
    convert: Literal["x0", "eps", "v"] | None = None
    guidance: GuidanceRange | None = None
    prepare: float = Field(0.15, gt=0, lt=1)
    sample_with: Literal["euler", "dpm2m"] = "euler"

    traits: ClassVar[Traits] = Traits(frozenset({"forward", "rollout", "ddil", "per-batch"}), False, roles=("teacher", "student"), usual_roles=("teacher",))

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveMethod:
        if any(n & (n - 1) for n in (self.start, self.steps)) or self.start <= self.steps:
            raise ValueError(f"'start' ({self.start}) and 'steps' ({self.steps}) must be powers of two, 'start' the larger")
        return self

    @property
    def in_force(self) -> Traits:
        if self.convert is None and self.guidance is None:
            return self.traits
        return replace(self.traits, students=frozenset({"copy"}))

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling("ddim", steps=self.steps, guidance=None if self.guidance is None else self.guidance.sample_at, rule=self.sample_with)

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        if self.convert is not None:
            copy = NetworkDenoiser(copy.network, copy.schedule, prediction_from({"kind": self.convert}), copy.inputs, copy.shape, copy.classes)
        return copy if self.guidance is None else grown_denoiser(copy, guidance=True)

    def build(self, context: Context) -> Built:
        rounds = list(self._rounds())
        prepares = self.convert is not None or self.guidance is not None
        total = planned(context.training)
        shares = [self.growth**index for index in range(len(rounds))]
        lengths = divided(total, [self.prepare / (1 - self.prepare) * sum(shares), *shares] if prepares else shares)
        teacher = context.teacher if self.guidance is None else context.reflected(Guided(context.original), "teacher")
        stages = []
        if prepares:
            stages.append(self._prepare(context, teacher, lengths.pop(0)))
        slot = freeze(copy_of(context.averaged))
        for index, (steps, length) in enumerate(zip(rounds, lengths, strict=True)):
            first = index == 0 and not prepares
            # The average is what the round before has made: it becomes teacher, and the student goes on from it.
            begin = [] if first else [Copy(context.average.average, slot), Copy(context.average.average, context.student.model)]
            in_force = teacher if first else context.reflected(slot, "teacher")
            stages += self._round(context, in_force, steps, length, begin)
        return Built(extended(stages, context.training))

    def _rounds(self) -> Iterator[int]:
        steps = self.start
        while steps > self.steps:
            steps //= 2
            yield steps

    def _prepare(self, context: Context, teacher: Denoiser, length: int) -> Stage:
        states = forward_states(context, context.student_times(self.start))
        objective = Imitation(context.denoising_student, Fixed(teacher), self._weight())
        return Stage("prepare", length, [student_phase(context, [Term(objective, states, name="imitation")])])

    def _round(self, context: Context, teacher: Denoiser, steps: int, length: int, begin: Sequence[Copy]) -> list[Stage]:
        student, times = context.denoising_student, context.student_times(steps)
        objective = ProgressiveDistillation(student, Fixed(teacher), times, context.student_times(2 * steps), self._weight())
        transitions = Transitions(times, context.student_map, teacher_transition(teacher, 2, context), lambda: forward_states(context, times))
        stages = []
        first = context.states.first_part if isinstance(context.states, config.DDILStates) else 0.6
        for part, share in enumerate(divided(length, [first, 1 - first]) if self.parts == 2 else [length]):
            states = build_states(context, transitions.data, transitions, part if self.parts == 2 else None, length)
            name = f"{steps}-steps" + (f"-{part + 1}" if self.parts == 2 else "")
            stages.append(Stage(name, share, [student_phase(context, [Term(objective, states, name="progressive")])], begin if part == 0 else []))
        return stages

    def guided(self, states: States) -> States:
        return states if self.guidance is None else WithGuidance(states, self.guidance.low, self.guidance.high)

    def _weight(self) -> DenoisingWeight:
        return TruncatedSNR() if self.weighting == "truncated-snr" else SNRPlusOne()
