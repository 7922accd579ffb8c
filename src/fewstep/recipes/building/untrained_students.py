"""Builds a recipe's student as it is before training: a copy of the teacher, an adapter on it, a
denoiser around another network, or a generator on latents; and where its samples start.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fewstep.condition import Classes, Conditions
from fewstep.denoisers import Generator, NetworkDenoiser, Reflected
from fewstep.denoisers.threshold import StraightThrough, Threshold
from fewstep.networks.adapters import AdaptedBase
from fewstep.recipes import config
from fewstep.recipes.config.adapter_sections import LowRankSection
from fewstep.recipes.config.models import build_generator
from fewstep.recipes.config.starts import started
from fewstep.recipes.kit.context import RoleDevices, Student
from fewstep.recipes.methods import Method
from fewstep.recipes.reading.places import named_in
from fewstep.recipes.recipe import DistillRecipe
from fewstep.schedule import Schedule
from fewstep.states import Prior


def build_student(
    choice: config.StudentChoice,
    method: Method,
    teacher: NetworkDenoiser,
    base: AdaptedBase,
    conditions: Conditions,
    threshold: Threshold | None,
    devices: RoleDevices,
) -> tuple[Student, Prior]:
    """The student, on the device of its role, and its prior.

    ``base``: the teacher's network, for adapters; ``conditions``: what the teacher is asked for;
    ``threshold``: of the student's own estimates, None for none.

    Raises ``UserError`` where it does not fit the teacher, or a file does not fit it.
    """
    if isinstance(choice, config.GeneratorStudent):
        generator = build_generator(choice, teacher.shape, teacher.classes, choice.seed, "student.kind")
        placed = devices.placed("student", started(generator, choice.start))
        return Student(placed), generator_prior(generator, teacher.schedule)
    network = method.grown(choice.denoiser(teacher, base))
    student = method.wrapped(network if threshold is None else Reflected(network, StraightThrough(threshold)))
    prior = method.prior(student, choice.first_time(teacher.schedule))
    return Student(devices.placed("student", student)), replace(prior, conditions=conditions)


def remarks_of_starts(recipe: DistillRecipe, network: nn.Module) -> tuple[str, ...]:
    """Sentences on how the files were read from which the recipe's adapters begin, whoever's they
    are; ``network``: the teacher's.
    """
    sections = {id(named.owner): named.owner for named in named_in(recipe) if isinstance(named.owner, LowRankSection)}
    return tuple(remark for section in sections.values() for remark in section.remarks(network))


def generator_prior(generator: Generator, schedule: Schedule) -> Prior:
    """Unit noise of the latent's shape; the schedule only lends it a time."""
    return Prior(schedule, generator.latent_shape, schedule.t_max, scale=1.0, conditions=Classes(generator.classes))
