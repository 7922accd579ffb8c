"""From sections of a recipe to the parts they name: the pieces that several builders share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fewstep.condition import Condition
from fewstep.data import Dataset, Described, SampleSpace
from fewstep.denoisers import EDMInputs, NetworkDenoiser, TimestepInputs
from fewstep.errors import UserError
from fewstep.metrics.features import Features
from fewstep.metrics.quality import Evaluator
from fewstep.networks import build
from fewstep.prediction import Prediction
from fewstep.recipes import config
from fewstep.recipes.building.spaces import build_space
from fewstep.schedule import Schedule
from fewstep.times import Grid
from fewstep.training.settings import Settings
from fewstep.values import name_of


def fitting_grid(choice: config.SolverChoice, schedule: Schedule, key: str, first: float | None = None) -> Grid:
    """The grid of a solver that a recipe names under ``key``.

    Raises ``UserError`` where it cannot start at time ``first``, where the teacher's noise does
    unless given: before anything is trained.
    """
    try:
        choice.grid.times(schedule, 2, first)
    except UserError as error:
        raise UserError(f"'{key}.grid: {name_of(choice.grid)}' does not fit the teacher's schedule: {error}") from error
    return choice.grid


def build_settings(training: config.Training, spread: config.Distributed | None = None) -> Settings:
    """The loop's settings; ``spread``: over processes, as usual unless given."""
    spread = spread or config.Distributed()
    usual = Settings(
        training.batch, training.seed, training.precision, training.log_every, training.checkpoint_every, training.keep
    )
    return replace(
        usual,
        accumulate=training.accumulate,
        mode=spread.mode,
        replicas=spread.replicas,
        checkpoints=spread.checkpoints,
    )


def data_of(choice: config.DataChoice | None) -> Dataset | None:
    """The data set of a recipe that may have none."""
    return None if choice is None else choice.open()


def build_network(choice: config.NetworkSection, seed: int, **given: Any) -> nn.Module:
    """A fresh network, its initial weights a function of ``seed``; ``given``: ``classes`` or what
    else whoever builds it gives.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(choice.description(**given))


def check_takes(choice: config.NetworkSection, key: str, shape: tuple[int, ...], classes: int) -> None:
    """Raises ``UserError``, naming the recipe's ``key``, for a denoising network that does not make
    samples of ``shape`` from such; tried where it costs nothing, on the meta device.
    """
    with torch.device("meta"):
        network = build(choice.description(classes=classes))
        x, condition = torch.zeros(1, *shape), Condition(labels=torch.zeros(1, classes) if classes else None)
        try:
            emitted = tuple(network(x, torch.zeros(1), condition).shape[1:])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"'{key}: {choice.kind}' does not take samples of shape {shape} ({reason}); change its "
                "sizes or its kind, or the data's."
            ) from error
    if emitted != shape:
        raise UserError(
            f"'{key}: {choice.kind}' makes samples of shape {emitted} from samples of shape {shape}; change "
            "its sizes or its kind, or the data's."
        )


def build_model(
    model: config.DenoiserModel | config.ClassifierModel | config.ReaderModel, data: Dataset, seed: int
) -> nn.Module:
    """A fresh model; a denoiser's shape, its classes and a reader's attributes are the data's.

    Raises ``UserError`` for a reader of data without attributes.
    """
    if isinstance(model, config.ClassifierModel):
        return build_network(model.network, seed, classes=data.classes)
    if isinstance(model, config.ReaderModel):
        if not isinstance(data, Described):
            raise UserError(
                "'model.kind: reader' learns the attributes of samples, which this data has not; set "
                "'data.kind: scenes', or train a classifier."
            )
        return build_network(model.network, seed, attributes=dict(data.values))
    return build_denoiser(model, data.shape, data.classes, seed)


def build_denoiser(model: config.DenoiserModel, shape: tuple[int, ...], classes: int, seed: int) -> NetworkDenoiser:
    """A fresh denoiser of samples of ``shape``.

    Raises ``UserError`` for a network that does not take them.
    """
    check_takes(model.network, "model.network.kind", shape, classes)
    return around(build_network(model.network, seed, classes=classes), model, shape, classes)


def around(network: nn.Module, model: config.DenoiserModel, shape: tuple[int, ...], classes: int) -> NetworkDenoiser:
    """The denoiser that a recipe's model section makes of its network."""
    schedule = model.schedule
    edm = {"sigma_data": model.sigma_data} if model.prediction.kind == "edm" else {}
    prediction = Prediction.from_description({"kind": model.prediction.kind, **edm})
    # EDM's inputs need a finite sigma / alpha, which a flow does not have at t = 1.
    finite = float(schedule.alpha(schedule.t_max)) > 0
    inputs = EDMInputs(model.sigma_data) if finite else TimestepInputs(offset=0.0)
    return NetworkDenoiser(network, schedule, prediction, inputs, shape, classes)


def build_features(
    choice: config.FeaturesChoice, data: Dataset | SampleSpace, device: torch.device | str = "cpu"
) -> Features:
    """The feature space in which samples are compared, its network on a device."""
    return build_space(choice, data, device).extract


def build_evaluator(
    choice: config.Evaluation, data: Dataset | None, device: torch.device | str = "cpu", like: SampleSpace | None = None
) -> Evaluator:
    """What measures samples, its network on a device; without data, samples that look ``like``
    that.
    """
    look = like if data is None else data.space
    assert look is not None
    space = build_space(choice.features, look, device)
    return Evaluator(
        data, space.extract, space.classify if space.labelled else None, choice.samples, choice.seed, look.classes
    )
