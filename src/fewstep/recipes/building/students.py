"""Builds a recipe's student as it is before training: a copy of the teacher, an adapter on it, a
denoiser around another network, or a generator on latents; and where its samples start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.denoisers import Generator, NetworkDenoiser, Reflected, copy_of, device_of, load_model
from fewstep.denoisers.denoiser import Model
from fewstep.denoisers.model_files import describe_model
from fewstep.denoisers.threshold import StraightThrough, Threshold
from fewstep.errors import UserError
from fewstep.networks import GeneratorNetwork, add_adapter, build
from fewstep.networks.kinds.registry import arguments_of, kinds
from fewstep.recipes import config
from fewstep.recipes.building.parts import build_network, check_takes
from fewstep.recipes.kit.context import Student
from fewstep.recipes.methods import Method
from fewstep.schedule import Schedule
from fewstep.states import Prior
from fewstep.system.locations import absolute


def build_student(
    choice: config.StudentChoice, method: Method, teacher: NetworkDenoiser, threshold: Threshold | None
) -> tuple[Student, Prior]:
    """The student, on the teacher's device, and its prior; ``threshold``: of its own estimates,
    None for none.

    Raises ``UserError`` where it does not fit the teacher, or a file does not fit it.
    """
    if isinstance(choice, config.GeneratorStudent):
        generator = build_generator(choice, teacher.shape, teacher.classes, choice.seed, "student.kind")
        return Student(_started(generator, choice.start).to(device_of(teacher))), generator_prior(
            generator, teacher.schedule
        )
    own = (
        _started(_around(choice, teacher), choice.start).to(device_of(teacher))
        if isinstance(choice, config.NetworkStudent)
        else copy_of(teacher)
    )
    adapter = (
        add_adapter(own, choice.rank, choice.scale, choice.seed) if isinstance(choice, config.LowRankStudent) else None
    )
    network = method.grown(own)
    student = method.wrapped(network if threshold is None else Reflected(network, StraightThrough(threshold)))
    time = float(teacher.schedule.time_at_sigma(choice.first_sigma))
    # The way from a noise level to its time and back is exact up to rounding.
    if not teacher.schedule.t_min * (1 - 1e-9) <= time <= teacher.schedule.t_max * (1 + 1e-9):
        raise UserError(
            f"'student.first_sigma' is {choice.first_sigma}, outside the noise levels that the teacher was trained for."
        )
    return Student(student, adapter), method.prior(student, choice.first_sigma)


def build_generator(
    choice: config.NetworkSection, shape: tuple[int, ...], classes: int, seed: int, key: str
) -> Generator:
    """A fresh generator of samples of ``shape``, its weights a function of ``seed``.

    Raises ``UserError``, naming the recipe's ``key``, for a shape that this kind does not make.
    """
    cls = kinds(GeneratorNetwork)[choice.kind].cls
    assert issubclass(cls, GeneratorNetwork)
    try:
        sizes = cls.sizes_for(shape)
    except UserError as error:
        raise UserError(f"'{key}: {choice.kind}' {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(choice.description(**sizes, classes=classes))
    return Generator(network, (arguments_of(network)["latent"],), shape, classes)


def generator_prior(generator: Generator, schedule: Schedule) -> Prior:
    """Unit noise of the latent's shape; the schedule only lends it a time."""
    return Prior(schedule, generator.latent_shape, schedule.t_max, scale=1.0, classes=generator.classes)


def _around(choice: config.NetworkStudent, teacher: NetworkDenoiser) -> NetworkDenoiser:
    """A denoiser with the recipe's network in the teacher's place."""
    check_takes(choice.network, "student.network.kind", teacher.shape, teacher.classes)
    network = build_network(choice.network, teacher.classes, choice.seed)
    return NetworkDenoiser(
        network, teacher.schedule, teacher.prediction, teacher.inputs, teacher.shape, teacher.classes
    )


def _started(model: Model, start: str | None) -> Model:
    """The model, with the weights of a file if one is given, which must hold a model of the very
    same description.
    """
    if start is None:
        return model
    loaded, _ = load_model(Path(absolute(start)))
    key = first_difference(describe_model(loaded), describe_model(model))
    if key is not None:
        raise UserError(
            f"{start}: holds another model than the recipe's student ('{key}' differs); set 'student' as "
            "the file was made, or 'student.start' to null."
        )
    assert isinstance(loaded, type(model))
    return loaded


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The dotted key at which two nested descriptions first differ, None where they do not."""
    for key in [*one, *(key for key in other if key not in one)]:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = first_difference(a, b)
            if inner is not None:
                return f"{key}.{inner}"
        elif a != b or (key in one) != (key in other):
            return key
    return None
