"""What the laws are stated over: every schedule and every prediction, exact teachers, and a helper
for tiny networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.denoisers import EDMInputs, GaussianMixture, NetworkDenoiser
from fewstep.networks import build
from fewstep.prediction import EDM, X0, Epsilon, Flow, Prediction, Score, V, Velocity
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule, ShiftedFlow, ZeroSNRVP

SCHEDULES: dict[str, Schedule] = {
    "karras-ve": KarrasVE(),
    "vp-linear": DiscreteVP("linear"),
    "vp-scaled-linear": DiscreteVP("scaled_linear", beta_start=0.00085, beta_end=0.012),
    "vp-cosine": DiscreteVP("cosine"),
    "vp-zero-snr": ZeroSNRVP("scaled_linear", beta_start=0.00085, beta_end=0.012),
    "flow": RectifiedFlow(),
    "flow-shifted": ShiftedFlow(3.0),
}
PREDICTIONS: dict[str, Prediction] = {
    "x0": X0(),
    "eps": Epsilon(),
    "score": Score(),
    "v": V(),
    "velocity": Velocity(),
    "flow": Flow(),
    "edm": EDM(0.5),
    "edm-0.9": EDM(0.9),
}


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals that do not touch the global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def time(t: float) -> Tensor:
    """A scalar time in double precision."""
    return torch.tensor(t, dtype=torch.float64)


def trained_times(schedule: Schedule, count: int, least_alpha: float = 0.0) -> Tensor:
    """``count`` times from t_min to t_max, those with alpha > ``least_alpha``."""
    t = torch.linspace(schedule.t_min, schedule.t_max, count, dtype=torch.float64)
    return t[schedule.alpha(t) > least_alpha]


def one_gaussian(schedule: Schedule) -> GaussianMixture:
    """A correlated Gaussian in the plane."""
    return GaussianMixture(
        schedule, torch.ones(1), torch.tensor([[0.7, -1.2]]), torch.tensor([[[0.9, 0.4], [0.4, 0.5]]])
    )


def three_gaussians(schedule: Schedule) -> GaussianMixture:
    """Three correlated Gaussians of unequal weights, in two classes."""
    turns = normals(3, 2, 2, seed=3)
    covariances = turns @ turns.transpose(1, 2) * 0.2 + 0.05 * torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -2.0]])
    return GaussianMixture(schedule, torch.tensor([1.0, 2.0, 3.0]), means, covariances, torch.tensor([0, 1, 1]))


def randomised(model: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """The same model with normal weights, so that no output layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    return model


def tiny_denoiser(schedule: Schedule | None = None, classes: int = 0, seed: int = 0) -> NetworkDenoiser:
    """A network denoiser of points in the plane with random weights."""
    network = build({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 1, "classes": classes})
    denoiser = NetworkDenoiser(network, schedule or KarrasVE(), EDM(0.5), EDMInputs(0.5), (2,), classes)
    randomised(denoiser, seed)
    return denoiser
