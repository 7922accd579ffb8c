"""How long, how often, and how it is measured, against what."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

import torch
from pydantic import AfterValidator, Field

from fewstep.denoisers import HalfLife
from fewstep.denoisers.average import Decay
from fewstep.recipes.config.feature_spaces import FeaturesChoice
from fewstep.recipes.config.section import Kinds, Section, Seed
from fewstep.recipes.config.shared_choices import SamplerChoice
from fewstep.values import Count, Few, Later, NotNegative

TEACHER_STEPS = 35
"""A teacher's steps where nothing says how many."""


PlacedRole = Literal["teacher", "fake", "student", "critic", "features"]
"""What a run has networks for, each of which may have a device of its own."""


def _device_name(name: str) -> str:
    # Of a large number, torch takes the last bits.
    if not re.fullmatch(r"cpu|cuda:(0|[1-9]\d?)", name):
        raise ValueError(f"'{name}' is no place for networks; use 'cpu', or a GPU by its number, such as 'cuda:1'")
    return name


_Place = Annotated[str, AfterValidator(_device_name)]


class Placement(Section):
    """The devices of the networks of each role, 'cpu' or a GPU by its number, 'cuda:1'; roles that
    are not named are on the run's device.

    ``teacher``: with the target's node of a path, and critics on its features. ``fake``: the fake
    score, with a critic on its features, and the network that a path is recorded of. ``student``:
    with its averages. ``critic``: one on networks of its own. ``features``: those that samples are
    compared in.
    """

    teacher: Annotated[_Place | None, Later()] = None
    fake: Annotated[_Place | None, Later()] = None
    student: Annotated[_Place | None, Later()] = None
    critic: Annotated[_Place | None, Later()] = None
    features: Annotated[_Place | None, Later()] = None

    def devices(self) -> dict[PlacedRole, torch.device]:
        """The device of each role that is named."""
        named = {role: getattr(self, role) for role in get_args(PlacedRole)}
        return {role: torch.device(name) for role, name in named.items() if name is not None}


class KeepBest(Section):
    """The best student that a run had, kept beside the last (see ``training.saving.best_student``).

    ``measure``: by what it is the best, on held-out noise, every ``evaluation.every`` steps: the
    Frechet distance, the share of pictures that show what their prompts ask for, or the mean
    distance within a prompt or class. ``patience``: the run ends after so many measurements of its
    last stage without a better student; never where null.
    """

    measure: Literal["fd", "prompt-accuracy", "diversity"] = "fd"
    patience: Count | None = None


class Training(Section):
    """``steps``: of all stages together.

    Cadences are in steps. ``laid_out_for``: the steps that the shares of stages and nodes were made
    for, when a resumed run was given more. ``device``: where networks and samples are; ``auto`` is
    a GPU where there is one and the CPU elsewhere. Plans, rehearsals and twins do not look at it.
    ``accumulate``: portions in which each process works off its samples of a step, one after
    another; less memory, the same step. ``recompute``: networks of many blocks forget their
    activations and compute them again in the backward pass (gradient checkpointing). ``frozen``:
    the type in which the weights of linear and convolutional layers are kept that nothing trains,
    those of the teacher and of a path's node in use; copies that are trained are in float32.
    ``offload``: networks that a phase does not use wait in the host's memory, with their moments.
    ``placement``: devices of the roles, where these are several.
    ``keep_best``: the best student is kept beside the last; only the last where null.
    """

    steps: Count
    laid_out_for: Count | None = None
    batch: int = Field(64, ge=1, le=65_536)
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    accumulate: Few = 1
    average: Annotated[Decay, Kinds()] = HalfLife()
    log_every: Count = 20
    checkpoint_every: Count = 500
    keep: Count = 2
    health_every: Count = 200
    frozen: Annotated[Literal["fp32", "bf16"], Later()] = "fp32"
    offload: Annotated[bool, Later()] = False
    placement: Annotated[Placement, Later()] = Placement()
    keep_best: Annotated[KeepBest | None, Later()] = None


class Distributed(Section):
    """How several processes (torchrun) share the work: they hold all networks each (``ddp``) or
    shard them (``fsdp``), in ``replicas`` groups that hold a copy each. None of this changes what
    is computed. ``checkpoints``: one file, a folder of shards, or such a folder written in the
    background; unless given, shards for ``fsdp`` and a file otherwise.
    """

    mode: Literal["ddp", "fsdp"] = "ddp"
    replicas: Few = 1
    checkpoints: Literal["file", "shards", "background"] | None = None


class TeacherReference(Section):
    """What samples are compared with where that is not the data: the teacher's own samples, for how
    far a student is from its teacher.

    ``samples``: how many, of which mean and covariance are taken once and kept in the cache folder.
    ``steps``: of the teacher, the most of ``evaluation.teacher_steps`` unless given; ``guidance``:
    its scale, that of the evaluation unless given.
    """

    kind: Literal["teacher"]
    samples: int = Field(5000, ge=2, le=1_000_000)
    steps: Few | None = None
    guidance: NotNegative | None = None


class Evaluation(Section):
    """``every``: steps between quick measurements (one draw) of the student while it trains;
    ``samples`` a draw. ``batch``: of samples that are made at a time. ``pictures``: of samples that
    are shown.

    ``guidance``: the scale of classifier-free guidance of the teacher's samples, none unless given.
    ``reference``: what Frechet distances are to, the data unless given.
    """

    features: FeaturesChoice
    samples: int = Field(5000, ge=2, le=1_000_000)
    draws: Few = 3
    seed: Seed = 0
    every: Count = 200
    teacher_steps: list[Few] = Field([TEACHER_STEPS, 1], max_length=100)
    student_steps: list[Few] = Field([1], max_length=100)
    solver: SamplerChoice = SamplerChoice()
    batch: Annotated[int, Field(ge=1, le=500), Later()] = 500
    pictures: Annotated[int, Field(ge=1, le=1000), Later()] = 80
    guidance: Annotated[NotNegative | None, Later()] = None
    reference: Annotated[TeacherReference | None, Later()] = None

    @property
    def reference_steps(self) -> int:
        """The teacher's steps for the reference."""
        given = None if self.reference is None else self.reference.steps
        return max(self.teacher_steps, default=TEACHER_STEPS) if given is None else given

    @property
    def reference_guidance(self) -> float | None:
        """The teacher's guidance scale for the reference."""
        given = None if self.reference is None else self.reference.guidance
        return self.guidance if given is None else given
