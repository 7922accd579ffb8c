"""Raw networks: tensors in, tensors out. What their output means is the denoiser's business."""

from fewstep.networks.base import DenoisingNetwork
from fewstep.networks.build import build, describe
from fewstep.networks.classifier import DigitClassifier
from fewstep.networks.critic import FeatureHead, ProjectedCritic
from fewstep.networks.grow import grown
from fewstep.networks.lora import Adapter, adapter_of, add_adapter, apply_adapter
from fewstep.networks.mlp import LatentMLP, ResidualMLP
from fewstep.networks.unet import SmallUNet

__all__ = [
    "Adapter",
    "DenoisingNetwork",
    "DigitClassifier",
    "FeatureHead",
    "LatentMLP",
    "ProjectedCritic",
    "ResidualMLP",
    "SmallUNet",
    "adapter_of",
    "add_adapter",
    "apply_adapter",
    "build",
    "describe",
    "grown",
]
