"""From sections of a recipe to the parts they name: the pieces that several builders share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import nn

from fewstep.caches import cache_folder
from fewstep.condition import Condition
from fewstep.data import Dataset, SampleSpace, digits, open_images, random_mixture
from fewstep.data.convert import huggingface, webdataset
from fewstep.data.mixture import sampled
from fewstep.data.synthetic import waves
from fewstep.denoisers import EDMInputs, HalfLife, NetworkDenoiser, PowerFunction, TimestepInputs
from fewstep.denoisers.average import Decay
from fewstep.errors import UserError
from fewstep.locations import absolute, folder_or_id
from fewstep.metrics.features import Features
from fewstep.metrics.quality import Evaluator
from fewstep.networks import build
from fewstep.objectives import (
    L1,
    DenoisingWeight,
    DiffInstructWeight,
    Distance,
    DMDWeight,
    EDMWeight,
    ExponentialWeight,
    MatchingWeight,
    Perceptual,
    PlainWeight,
    PseudoHuber,
    ScoreWeight,
    SDSWeight,
    SquaredL2,
)
from fewstep.prediction import prediction_from
from fewstep.recipes import config
from fewstep.recipes.spaces import build_space
from fewstep.schedule import KarrasVE, Schedule, schedule_from
from fewstep.solvers import NO_CHURN, Churn
from fewstep.solvers.sampling import GRIDS
from fewstep.times import Grid, LogNormalTimes, RhoTimes, TimeDistribution, UniformTimes
from fewstep.training import SGD, Adam, Optimizer
from fewstep.training.settings import Settings

_MATCHING_WEIGHTS: Mapping[str, MatchingWeight] = {
    "dmd": DMDWeight(),
    "diff-instruct": DiffInstructWeight(),
    "plain": PlainWeight(),
    "sds": SDSWeight(),
    "exponential": ExponentialWeight(),
}


def build_times(choice: config.LogNormal | config.Uniform | config.RhoUniform) -> TimeDistribution:
    """A distribution of training times."""
    if isinstance(choice, config.LogNormal):
        return LogNormalTimes(choice.mean, choice.std)
    if isinstance(choice, config.Uniform):
        return UniformTimes(choice.low, choice.high)
    return RhoTimes(choice.exponent, choice.low, choice.high)


def build_grid(name: str) -> Grid:
    """A time grid for sampling."""
    return GRIDS[name]


def fitting_grid(choice: config.SolverChoice, schedule: Schedule, key: str, first: float | None = None) -> Grid:
    """The grid of a solver that a recipe names under ``key``.

    Raises ``UserError`` where it cannot start at time ``first``, where the teacher's noise does unless given: before
    anything is trained.
    """
    grid = build_grid(choice.grid)
    try:
        grid.times(schedule, 2, first)
    except UserError as error:
        raise UserError(f"'{key}.grid: {choice.grid}' does not fit the teacher's schedule: {error}") from error
    return grid


def build_churn(choice: config.ChurnChoice, steps: int) -> Churn:
    """What is added at the steps of a sampler of so many."""
    if steps < choice.from_steps:
        return NO_CHURN
    return Churn(choice.amount, choice.low, math.inf if choice.high is None else choice.high, choice.noise)


def build_denoising_weight(choice: config.EDMWeighting | config.ScoreWeighting) -> DenoisingWeight:
    """A weight of denoising score matching."""
    return EDMWeight(choice.sigma_data) if isinstance(choice, config.EDMWeighting) else ScoreWeight()


def build_matching_weight(name: str) -> MatchingWeight:
    """A weight of distribution matching."""
    return _MATCHING_WEIGHTS[name]


def build_optimizer(choice: config.Optimizer) -> Optimizer:
    """An optimizer as a value."""
    if choice.kind == "sgd":
        return SGD(choice.lr, choice.weight_decay, choice.warmup, choice.decay, along=choice.decay_along)
    first, second = choice.betas
    return Adam(choice.lr, choice.weight_decay, choice.warmup, choice.decay, (first, second), along=choice.decay_along)


def build_decay(choice: config.HalfLifeAverage | config.PowerAverage) -> Decay:
    """How the average forgets."""
    return HalfLife(choice.steps, choice.ramp) if isinstance(choice, config.HalfLifeAverage) else PowerFunction(choice.std)


def build_settings(training: config.Training, spread: config.Distributed | None = None) -> Settings:
    """The loop's settings; ``spread``: over processes, as usual unless given."""
    spread = spread or config.Distributed()
    usual = Settings(training.batch, training.seed, training.precision, training.log_every, training.checkpoint_every, training.keep)
    return replace(usual, accumulate=training.accumulate, mode=spread.mode, replicas=spread.replicas, checkpoints=spread.checkpoints)


def data_of(choice: config.DataChoice | None) -> Dataset | None:
    """The data set of a recipe that may have none."""
    return None if choice is None else build_data(choice)


def build_data(choice: config.DataChoice) -> Dataset:
    """The data set; one of another library is turned into a zip in the cache folder first, once."""
    if isinstance(choice, config.DigitsData):
        return digits()
    if isinstance(choice, config.WavesData):
        channels, height, width = choice.shape
        return waves((channels, height, width), choice.classes, choice.samples, choice.seed)
    if isinstance(choice, config.ImagesData):
        images = open_images(absolute(choice.path), choice.size, choice.labels, choice.channels)
        if choice.classes is not None and images.classes != choice.classes:
            raise UserError(f"{choice.path}: has {images.classes} classes, 'data.classes' says {choice.classes}; use the set that the recipe is for, or correct 'data.classes'.")
        return images
    if isinstance(choice, config.HuggingFaceData):
        return open_images(huggingface(cache_folder() / "data", folder_or_id(choice.name, "data sets"), choice.split, choice.image, choice.label, choice.revision, choice.size))
    if isinstance(choice, config.WebDatasetData):
        return open_images(webdataset(cache_folder() / "data", choice.urls, choice.label, choice.size))
    # The mixture's schedule plays no part in its clean samples.
    mixture = random_mixture(KarrasVE(), choice.components, choice.half_width, choice.std, choice.seed)
    return sampled(mixture, choice.samples, choice.seed)


def build_network(choice: config.DenoisingNetwork | config.ClassifierChoice, classes: int, seed: int) -> nn.Module:
    """A fresh network, its initial weights a function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build({**choice.model_dump(), "classes": classes})


def check_takes(choice: config.DenoisingNetwork, key: str, shape: tuple[int, ...], classes: int) -> None:
    """Raises ``UserError``, naming the recipe's ``key``, for a denoising network that does not make samples of ``shape`` from such; tried where it costs nothing, on the meta device."""
    with torch.device("meta"):
        network = build({**choice.model_dump(), "classes": classes})
        x, condition = torch.zeros(1, *shape), Condition(labels=torch.zeros(1, classes) if classes else None)
        try:
            emitted = tuple(network(x, torch.zeros(1), condition).shape[1:])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"'{key}: {choice.kind}' does not take samples of shape {shape} ({reason}); change its sizes or its kind, or the data's.") from error
    if emitted != shape:
        raise UserError(f"'{key}: {choice.kind}' makes samples of shape {emitted} from samples of shape {shape}; change its sizes or its kind, or the data's.")


def build_model(model: config.DenoiserModel | config.ClassifierModel, data: Dataset, seed: int) -> nn.Module:
    """A fresh model; a denoiser's shape and classes are the data's."""
    if isinstance(model, config.ClassifierModel):
        return build_network(model.network, data.classes, seed)
    return build_denoiser(model, data.shape, data.classes, seed)


def build_denoiser(model: config.DenoiserModel, shape: tuple[int, ...], classes: int, seed: int) -> NetworkDenoiser:
    """A fresh denoiser of samples of ``shape``. Raises ``UserError`` for a network that does not take them."""
    check_takes(model.network, "model.network.kind", shape, classes)
    return around(build_network(model.network, classes, seed), model, shape, classes)


def around(network: nn.Module, model: config.DenoiserModel, shape: tuple[int, ...], classes: int) -> NetworkDenoiser:
    """The denoiser that a recipe's model section makes of its network."""
    schedule = schedule_from(model.schedule.model_dump())
    edm = model.prediction.kind == "edm"
    prediction = prediction_from({"kind": model.prediction.kind, **({"sigma_data": model.sigma_data} if edm else {})})
    # EDM's inputs need a finite sigma / alpha, which a flow does not have at t = 1.
    finite = float(schedule.alpha(schedule.t_max)) > 0
    inputs = EDMInputs(model.sigma_data) if finite else TimestepInputs(offset=0.0)
    return NetworkDenoiser(network, schedule, prediction, inputs, shape, classes)


def build_distance(choice: config.DistanceChoice, features: Features, space: SampleSpace) -> Distance:
    """A distance between samples; ``features`` for the perceptual one."""
    if isinstance(choice, config.PseudoHuberDistance):
        return PseudoHuber(0.00054 * prod(space.shape) ** 0.5 if choice.c is None else choice.c)
    if isinstance(choice, config.PerceptualDistance):
        return Perceptual(features)
    return L1() if isinstance(choice, config.L1Distance) else SquaredL2()


def build_features(choice: config.FeaturesChoice, data: Dataset | SampleSpace, device: torch.device | str = "cpu") -> Features:
    """The feature space in which samples are compared, its network on a device."""
    return build_space(choice, data, device).extract


def build_evaluator(choice: config.Evaluation, data: Dataset | None, device: torch.device | str = "cpu", like: SampleSpace | None = None) -> Evaluator:
    """What measures samples, its network on a device; without data, samples that look ``like`` that."""
    look = like if data is None else data.space
    assert look is not None
    space = build_space(choice.features, look, device)
    return Evaluator(data, space.extract, space.classify if space.labelled else None, choice.samples, choice.seed, look.classes)
