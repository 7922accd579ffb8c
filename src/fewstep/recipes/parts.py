"""From sections of a recipe to the parts they name: the pieces that several builders share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.data import Dataset, digits, random_mixture
from fewstep.data.mixture import sampled
from fewstep.denoisers import EDMInputs, HalfLife, NetworkDenoiser, PowerFunction, TimestepInputs, freeze, load_model
from fewstep.denoisers.average import Decay
from fewstep.errors import UserError
from fewstep.metrics.features import Features, fourier_features
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
from fewstep.schedule import KarrasVE, schedule_from
from fewstep.solvers.sampling import GRIDS
from fewstep.times import Grid, LogNormalTimes, RhoTimes, TimeDistribution, UniformTimes
from fewstep.training import Adam
from fewstep.training.settings import Settings
from fewstep.zoo import digit_features, shipped_denoiser

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


def build_denoising_weight(choice: config.EDMWeighting | config.ScoreWeighting) -> DenoisingWeight:
    """A weight of denoising score matching."""
    return EDMWeight(choice.sigma_data) if isinstance(choice, config.EDMWeighting) else ScoreWeight()


def build_matching_weight(name: str) -> MatchingWeight:
    """A weight of distribution matching."""
    return _MATCHING_WEIGHTS[name]


def build_optimizer(choice: config.Optimizer) -> Adam:
    """An optimizer as a value."""
    first, second = choice.betas
    return Adam(choice.lr, (first, second), weight_decay=choice.weight_decay, warmup=choice.warmup, decay=choice.decay)


def build_decay(choice: config.HalfLifeAverage | config.PowerAverage) -> Decay:
    """How the average forgets."""
    return HalfLife(choice.steps, choice.ramp) if isinstance(choice, config.HalfLifeAverage) else PowerFunction(choice.std)


def build_settings(training: config.Training) -> Settings:
    """The loop's settings."""
    return Settings(training.batch, training.seed, training.precision, training.log_every, training.checkpoint_every, training.keep)


def build_data(choice: config.DigitsData | config.MixtureData) -> Dataset:
    """The data set."""
    if isinstance(choice, config.DigitsData):
        return digits()
    # The mixture's schedule plays no part in its clean samples.
    mixture = random_mixture(KarrasVE(), choice.components, choice.half_width, choice.std, choice.seed)
    return sampled(mixture, choice.samples, choice.seed)


def build_model(model: config.DenoiserModel | config.ClassifierModel, data: Dataset, seed: int) -> nn.Module:
    """A fresh network, its initial weights a function of ``seed``; a denoiser's shape and classes are the data's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        description = {**model.network.model_dump(), "classes": data.classes}
        network = build(description)
    if isinstance(model, config.ClassifierModel):
        return network
    schedule = schedule_from(model.schedule.model_dump())
    edm = model.prediction.kind == "edm"
    prediction = prediction_from({"kind": model.prediction.kind, **({"sigma_data": model.sigma_data} if edm else {})})
    # EDM's inputs need a finite sigma / alpha, which a flow does not have at t = 1.
    finite = float(schedule.alpha(schedule.t_max)) > 0
    inputs = EDMInputs(model.sigma_data) if finite else TimestepInputs(offset=0.0)
    return NetworkDenoiser(network, schedule, prediction, inputs, data.shape, data.classes)


def build_teacher(choice: config.ShippedTeacher | config.FileTeacher, data: Dataset) -> NetworkDenoiser:
    """The frozen teacher, checked against the data."""
    if isinstance(choice, config.ShippedTeacher):
        teacher = shipped_denoiser(choice.name)
    else:
        loaded, _ = load_model(Path(choice.path))
        if not isinstance(loaded, NetworkDenoiser):
            raise UserError(f"{choice.path}: holds a generator; a teacher must be a denoiser.")
        teacher = freeze(loaded)
    if teacher.shape != data.shape or teacher.classes not in (0, data.classes):
        raise UserError(
            f"the teacher makes samples of shape {teacher.shape} in {teacher.classes} classes, the data has shape {data.shape} and {data.classes} classes; "
            "set 'teacher' or 'data' so that they agree."
        )
    return teacher


def build_distance(choice: config.DistanceChoice, features: Features, data: Dataset) -> Distance:
    """A distance between samples; ``features`` for the perceptual one."""
    if isinstance(choice, config.PseudoHuberDistance):
        return PseudoHuber(0.00054 * data.samples[0].numel() ** 0.5 if choice.c is None else choice.c)
    if isinstance(choice, config.PerceptualDistance):
        return Perceptual(features)
    return L1() if isinstance(choice, config.L1Distance) else SquaredL2()


def build_features(choice: config.FeaturesChoice, data: Dataset) -> Features:
    """The feature space in which samples are compared."""
    if isinstance(choice, config.FourierFeatures):
        return fourier_features(data.samples[0].numel(), choice.count, choice.bandwidth, choice.seed)
    if data.shape != (1, 8, 8):
        raise UserError("'evaluation.features.kind: digits-features' reads 8x8 digits; use 'fourier' for this data.")
    return digit_features().features


def build_evaluator(choice: config.Evaluation, data: Dataset) -> Evaluator:
    """What measures samples."""
    classifier = None if isinstance(choice.features, config.FourierFeatures) else digit_features()
    return Evaluator(data, build_features(choice.features, data), classifier, choice.samples, choice.seed)
