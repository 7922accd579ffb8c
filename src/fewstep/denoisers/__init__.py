"""Denoisers, E[x_0 given x_t]: networks, analytic ones, and wrappers that keep the type; and
generators, which know no noise level.
"""

from fewstep.denoisers.average import Averaged, HalfLife, PowerFunction
from fewstep.denoisers.denoiser import Denoiser, copy_of, device_of, freeze
from fewstep.denoisers.exact.field import StableTargetField
from fewstep.denoisers.exact.gaussian_mixture import GaussianMixture
from fewstep.denoisers.guided import Guided, GuidedPatchwise, GuidedRescaled, GuidedWithin
from fewstep.denoisers.headed import FrozenTrunk, Headed
from fewstep.denoisers.inputs import EDMInputs, FlowInputs, IDDPMInputs, TimestepInputs, VEInputs, VPInputs
from fewstep.denoisers.jumps import EndJump, TrajectoryDenoiser, trajectory_of
from fewstep.denoisers.model_files import load_model, save_model
from fewstep.denoisers.network import Generator, NetworkDenoiser, grown_denoiser, in_network
from fewstep.denoisers.stored_adapter import adapter_of, load_adapter, merged, save_adapter
from fewstep.denoisers.threshold import DynamicThreshold, StaticThreshold, StraightThrough
from fewstep.denoisers.wrappers import Boundary, Reflected, Rescheduled, Truncated

__all__ = [
    "Averaged",
    "Boundary",
    "Denoiser",
    "DynamicThreshold",
    "EDMInputs",
    "EndJump",
    "FlowInputs",
    "FrozenTrunk",
    "GaussianMixture",
    "Generator",
    "Guided",
    "GuidedPatchwise",
    "GuidedRescaled",
    "GuidedWithin",
    "HalfLife",
    "Headed",
    "IDDPMInputs",
    "NetworkDenoiser",
    "PowerFunction",
    "Reflected",
    "Rescheduled",
    "StableTargetField",
    "StaticThreshold",
    "StraightThrough",
    "TimestepInputs",
    "TrajectoryDenoiser",
    "Truncated",
    "VEInputs",
    "VPInputs",
    "adapter_of",
    "copy_of",
    "device_of",
    "freeze",
    "grown_denoiser",
    "in_network",
    "load_adapter",
    "load_model",
    "merged",
    "save_adapter",
    "save_model",
    "trajectory_of",
]
