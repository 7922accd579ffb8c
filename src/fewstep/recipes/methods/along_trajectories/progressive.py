"""Progressive distillation (Salimans and Ho 2022; with guidance, Meng et al. 2023; with DDIL,
Garrepalli et al. 2024): each round halves the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.denoisers import Denoiser, NetworkDenoiser, copy_of, freeze, grown_denoiser
from fewstep.objectives import Imitation, ProgressiveDistillation
from fewstep.objectives.scores.score_matching import DenoisingWeight
from fewstep.objectives.trajectories.progressive_distillation import SNRPlusOne, TruncatedSNR
from fewstep.prediction import Prediction
from fewstep.recipes import config
from fewstep.recipes.kit.context import Context
from fewstep.recipes.kit.shares import divided, extended, planned
from fewstep.recipes.kit.state_sources import (
    Transitions,
    build_states,
    diffused,
    forward_states,
    teacher_transition,
)
from fewstep.recipes.methods.method import Built, Example, Method, Traits, student_phase
from fewstep.solvers.sampling import Sampling
from fewstep.states import States, WithGuidance
from fewstep.targets import Fixed
from fewstep.times import RhoGrid
from fewstep.training import Copy, Stage, Term
from fewstep.values import Later, Positive


class GuidanceRange(config.Section):
    """The guidance scale w, uniform in [low, high] and embedded; w = 1 is the conditional estimate,
    so that Meng et al.'s 2 to 14 is 3 to 15 here.

    ``sample_at``: the scale used unless told otherwise.
    """

    low: float = Field(3.0, ge=0)
    high: float = Field(15.0, ge=0)
    sample_at: float = Field(3.0, ge=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> GuidanceRange:
        if self.low > self.high:
            raise ValueError(f"'low' ({self.low}) must not exceed 'high' ({self.high})")
        return self


Part = Annotated[float, Field(gt=0, lt=1)]
Power = Annotated[int, Field(ge=1, le=10_000)]
Parts = Annotated[list[Positive], Field(min_length=1, max_length=2)]


class ProgressiveMethod(Method):
    """From ``start`` steps of the teacher to ``steps`` of the student, both powers of two.

    ``growth``: each round is this much longer than the one before. ``parts`` 2 splits each round in
    two, the second with a new warm-up (DDIL's protocol). ``rounds``, in the place of ``growth``,
    ``parts`` and the states' ``first_part``: of each round the lengths of its one or two parts, in
    proportion ([[5], [6, 4], [8, 6], [8, 6]] is DDIL's from 32 steps to 2). ``grid``: of the nested
    times. ``convert``: the student emits another prediction, for which it is first trained
    (``prepare``, a share of the run). ``convert_for``: of a student that is told the guidance scale
    as well, the share of the run in which it learns the prediction alone, without guidance, before
    ``prepare``; null to learn both together. ``sample_with``: DDIM steps, or DPM-Solver++ 2M as
    DDIL does (App. A).
    """

    kind: Literal["progressive"]
    start: Power = 32
    steps: Power = 4
    weighting: Annotated[DenoisingWeight, config.ByName({"truncated-snr": TruncatedSNR(), "snr+1": SNRPlusOne()})] = (
        TruncatedSNR()
    )
    growth: Positive = 1.25
    parts: Literal[1, 2] = 1
    convert: Literal["x0", "eps", "v"] | None = None
    guidance: GuidanceRange | None = None
    prepare: float = Field(0.15, gt=0, lt=1)
    sample_with: Literal["euler", "dpm2m"] = "euler"
    rounds: Annotated[list[Parts] | None, Later()] = None
    grid: Annotated[config.GridName, Later()] = RhoGrid()
    convert_for: Annotated[Part | None, Later()] = None

    traits: ClassVar[Traits] = Traits(
        frozenset({"forward", "rollout", "ddil", "per-batch"}),
        False,
        roles=("teacher", "student"),
        usual_roles=("teacher",),
    )
    examples: ClassVar[Mapping[str, Example]] = {
        "": Example({"start": 4, "steps": 2}),
        "2 parts": Example({"start": 4, "steps": 2, "parts": 2}),
        "converted": Example({"start": 4, "steps": 2, "convert": "eps"}),
        "guided": Example({"start": 4, "steps": 2, "guidance": {"low": 1.0, "high": 3.0}}, on_digits=True),
        "converted, then guided": Example(
            {"start": 4, "steps": 2, "convert": "eps", "convert_for": 0.2, "guidance": {"low": 1.0, "high": 3.0}},
            on_digits=True,
        ),
    }

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveMethod:
        if any(n & (n - 1) for n in (self.start, self.steps)) or self.start <= self.steps:
            raise ValueError(
                f"'start' ({self.start}) and 'steps' ({self.steps}) must be powers of two, 'start' the larger"
            )
        needed = len(list(self._halved()))
        if self.rounds is not None and len(self.rounds) != needed:
            raise ValueError(
                f"'rounds' has {len(self.rounds)} entries, but from {self.start} steps to {self.steps} "
                f"there are {needed} rounds; give the parts of each"
            )
        return self

    @model_validator(mode="after")
    def _converts_first(self) -> ProgressiveMethod:
        if self.convert_for is None:
            return self
        if self.convert is None or self.guidance is None:
            raise ValueError(
                "'convert_for' divides the training for 'convert' from that for 'guidance', and needs both; leave "
                "it out, or give both"
            )
        if self.convert_for + self.prepare >= 1:
            raise ValueError(
                f"'convert_for' ({self.convert_for}) and 'prepare' ({self.prepare}) leave nothing of the run for "
                "rounds; their sum must be below 1"
            )
        return self

    @property
    def effective_traits(self) -> Traits:
        if self.convert is None and self.guidance is None:
            return self.traits
        return replace(self.traits, students=frozenset({"copy"}))

    @property
    def steps_of_student(self) -> int:
        return self.steps

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            "ddim",
            self.grid,
            self.steps,
            guidance=None if self.guidance is None else self.guidance.sample_at,
            rule=self.sample_with,
        )

    def grown(self, copy: NetworkDenoiser) -> Denoiser:
        if self.convert is not None:
            copy = NetworkDenoiser(
                copy.network,
                copy.schedule,
                Prediction.from_description({"kind": self.convert}),
                copy.inputs,
                copy.shape,
                copy.classes,
            )
        return copy if self.guidance is None else grown_denoiser(copy, guidance=True)

    def build(self, context: Context) -> Built:
        rounds = list(self._halved())
        prepares = self.convert is not None or self.guidance is not None
        total = planned(context.training)
        parts = self._parts(context, len(rounds))
        shares = (
            [self.growth**index for index in range(len(rounds))]
            if self.rounds is None
            else [math.fsum(each) for each in parts]
        )
        before = ([] if self.convert_for is None else [self.convert_for]) + ([self.prepare] if prepares else [])
        rest = 1 - sum(before)
        lengths = divided(total, [*(share / rest * sum(shares) for share in before), *shares])
        teacher = context.teacher if self.guidance is None else context.guided_teacher
        stages = []
        if self.convert_for is not None:
            plain = WithGuidance(diffused(context, context.student_times(self.start)), 1.0, 1.0)
            stages.append(self._imitates(context, "convert", Fixed(context.teacher), plain, lengths.pop(0)))
        if prepares:
            states = forward_states(context, context.student_times(self.start))
            stages.append(self._imitates(context, "prepare", Fixed(teacher), states, lengths.pop(0)))
        slot = context.devices.placed("teacher", freeze(copy_of(context.averaged)))
        for index, (steps, length, split) in enumerate(zip(rounds, lengths, parts, strict=True)):
            first = index == 0 and not prepares
            # The average is what the round before has made: it becomes teacher, and the student
            # goes on from it.
            begin = (
                []
                if first
                else [Copy(context.average.average, slot), Copy(context.average.average, context.student.model)]
            )
            its_teacher = teacher if first else context.reflected(slot, "teacher")
            stages += self._round(context, its_teacher, steps, divided(length, split), begin)
        return Built(extended(stages, context.training))

    def _parts(self, context: Context, rounds: int) -> list[list[float]]:
        """The lengths of each round's parts, in proportion."""
        if self.rounds is not None:
            return self.rounds
        first = context.states.first_part
        return [[first, 1 - first] if self.parts == 2 else [1.0]] * rounds

    def _halved(self) -> Iterator[int]:
        steps = self.start
        while steps > self.steps:
            steps //= 2
            yield steps

    def _imitates(self, context: Context, name: str, teacher: Fixed, states: States, length: int) -> Stage:
        objective = Imitation(context.denoising_student, teacher, self.weighting)
        return Stage(name, length, [student_phase(context, [Term(objective, states, name="imitation")])])

    def _round(
        self, context: Context, teacher: Denoiser, steps: int, parts: Sequence[int], begin: Sequence[Copy]
    ) -> list[Stage]:
        student, times = context.denoising_student, context.student_times(steps)
        objective = ProgressiveDistillation(
            student, Fixed(teacher), times, context.student_times(2 * steps), self.weighting
        )
        transitions = Transitions(
            times, context.student_map, teacher_transition(teacher, 2, context), lambda: forward_states(context, times)
        )
        stages = []
        split = len(parts) == 2
        for part, share in enumerate(parts):
            states = build_states(context, transitions.data, transitions, part if split else None, sum(parts))
            name = f"{steps}-steps" + (f"-{part + 1}" if split else "")
            stages.append(
                Stage(
                    name,
                    share,
                    [student_phase(context, [Term(objective, states, name="progressive")])],
                    begin if part == 0 else [],
                )
            )
        return stages

    def guided(self, states: States) -> States:
        return states if self.guidance is None else WithGuidance(states, self.guidance.low, self.guidance.high)
