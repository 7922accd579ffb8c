"""Denoisers, E[x_0 given x_t]: networks, analytic ones, and wrappers that keep the type; and generators, which know no noise level."""

from fewstep.denoisers.average import Averaged, HalfLife, PowerFunction
from fewstep.denoisers.base import Denoiser, copy_of, freeze
from fewstep.denoisers.field import StableTargetField
from fewstep.denoisers.generator import Generator
from fewstep.denoisers.mixture import GaussianMixture
from fewstep.denoisers.network import EDMInputs, NetworkDenoiser, TimestepInputs
from fewstep.denoisers.store import load_model, save_model
from fewstep.denoisers.wrappers import Guided, Rescheduled

__all__ = [
    "Averaged",
    "Denoiser",
    "EDMInputs",
    "GaussianMixture",
    "Generator",
    "Guided",
    "HalfLife",
    "NetworkDenoiser",
    "PowerFunction",
    "Rescheduled",
    "StableTargetField",
    "TimestepInputs",
    "copy_of",
    "freeze",
    "load_model",
    "save_model",
]
