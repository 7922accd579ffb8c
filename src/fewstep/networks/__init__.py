"""Raw networks: tensors in, tensors out. What their output means is the denoiser's business."""

from fewstep.networks.build import build, describe
from fewstep.networks.classifier import DigitClassifier
from fewstep.networks.mlp import LatentMLP, ResidualMLP
from fewstep.networks.unet import SmallUNet

__all__ = ["DigitClassifier", "LatentMLP", "ResidualMLP", "SmallUNet", "build", "describe"]
