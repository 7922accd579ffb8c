"""From sections of a recipe to the parts they name: the pieces that several builders share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.data import Dataset, digits, random_mixture
from fewstep.data.mixture import sampled
from fewstep.denoisers import EDMInputs, Generator, HalfLife, NetworkDenoiser, PowerFunction, TimestepInputs, copy_of, freeze, load_model
from fewstep.denoisers.average import Decay
from fewstep.errors import UserError
from fewstep.metrics.features import fourier_features
from fewstep.metrics.quality import Evaluator
from fewstep.networks import build
from fewstep.objectives import DenoisingWeight, DiffInstructWeight, DMDWeight, EDMWeight, MatchingWeight, PlainWeight, ScoreWeight
from fewstep.prediction import prediction_from
from fewstep.recipes import config
from fewstep.schedule import KarrasVE, schedule_from
from fewstep.states import Prior
from fewstep.times import Grid, LogNormalTimes, LogSNRGrid, RhoGrid, RhoTimes, TimeDistribution, UniformGrid, UniformTimes
from fewstep.training import Adam
from fewstep.training.settings import Settings
from fewstep.zoo import digit_features, shipped_denoiser

_MATCHING_WEIGHTS: Mapping[str, MatchingWeight] = {"dmd": DMDWeight(), "diff-instruct": DiffInstructWeight(), "plain": PlainWeight()}
_GRIDS: Mapping[str, Grid] = {"rho": RhoGrid(), "log-snr": LogSNRGrid(), "uniform": UniformGrid()}


def build_times(choice: config.LogNormal | config.Uniform | config.RhoUniform) -> TimeDistribution:
    """A distribution of training times."""
    if isinstance(choice, config.LogNormal):
        return LogNormalTimes(choice.mean, choice.std)
    if isinstance(choice, config.Uniform):
        return UniformTimes(choice.low, choice.high)
    return RhoTimes(choice.exponent, choice.low, choice.high)


def build_grid(name: str) -> Grid:
    """A time grid for sampling."""
    return _GRIDS[name]


def build_denoising_weight(choice: config.EDMWeighting | config.ScoreWeighting) -> DenoisingWeight:
    """A weight of denoising score matching."""
    return EDMWeight(choice.sigma_data) if isinstance(choice, config.EDMWeighting) else ScoreWeight()


def build_matching_weight(choice: config.MatchingWeighting) -> MatchingWeight:
    """A weight of distribution matching."""
    return _MATCHING_WEIGHTS[choice.kind]


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


def build_student(choice: config.CopyStudent | config.LatentStudent, teacher: NetworkDenoiser) -> tuple[NetworkDenoiser | Generator, Prior]:
    """The student and the prior it starts from."""
    schedule = teacher.schedule
    if isinstance(choice, config.CopyStudent):
        time = float(schedule.time_at_sigma(choice.first_sigma))
        if not schedule.t_min <= time <= schedule.t_max:
            raise UserError(f"'student.first_sigma' is {choice.first_sigma}, outside the noise levels that the teacher was trained for.")
        return copy_of(teacher), Prior(schedule, teacher.shape, time, classes=teacher.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        network = build(
            {
                "kind": "latent-mlp",
                "latent": choice.latent,
                "dim": teacher.shape[0],
                "width": choice.width,
                "depth": choice.depth,
                "classes": teacher.classes,
            }
        )
    if len(teacher.shape) != 1:
        raise UserError("'student.kind: latent-mlp' makes points; this teacher makes images: use 'copy'.")
    generator = Generator(network, (choice.latent,), teacher.shape, teacher.classes)
    return generator, Prior(schedule, (choice.latent,), schedule.t_max, scale=1.0, classes=teacher.classes)


def build_evaluator(choice: config.Evaluation, data: Dataset) -> Evaluator:
    """What measures samples."""
    if isinstance(choice.features, config.FourierFeatures):
        features = fourier_features(data.samples[0].numel(), choice.features.count, choice.features.bandwidth, choice.features.seed)
        return Evaluator(data, features, None, choice.samples, choice.seed)
    if data.shape != (1, 8, 8):
        raise UserError("'evaluation.features.kind: digits-features' reads 8x8 digits; use 'fourier' for this data.")
    network = digit_features()
    return Evaluator(data, network.features, network, choice.samples, choice.seed)
