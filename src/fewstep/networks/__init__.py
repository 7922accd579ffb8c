"""Raw networks: tensors in, tensors out. What their output means is the denoiser's business."""

from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Adapter, Form
from fewstep.networks.codec import Codec
from fewstep.networks.critics.caption_reader import CaptionReader
from fewstep.networks.critics.classifier import Classifier, DigitClassifier, ImageClassifier
from fewstep.networks.critics.critic import FeatureHead, ProjectedCritic
from fewstep.networks.critics.image_critic import ImageCritic
from fewstep.networks.critics.reader import ImageReader, Reader
from fewstep.networks.diffusers import AutoencoderCodec, CaptionUNet, DiffusersTextUNet, DiffusersUNet, PatchAutoencoder
from fewstep.networks.edm import DhariwalUNet, SongUNet
from fewstep.networks.fastgan import FastGAN, SkipExcitation
from fewstep.networks.grow import grown
from fewstep.networks.interfaces import DenoisingNetwork, FeatureNetwork, GeneratorNetwork
from fewstep.networks.kinds.build import build, describe_network
from fewstep.networks.kinds.registry import find_kind, register
from fewstep.networks.kinds.registry import register as register_network
from fewstep.networks.mlp import LatentMLP, ResidualMLP
from fewstep.networks.small_unet import SmallUNet

__all__ = [
    "AdaptedBase",
    "AdaptedNetwork",
    "Adapter",
    "AutoencoderCodec",
    "CaptionReader",
    "CaptionUNet",
    "Classifier",
    "Codec",
    "DenoisingNetwork",
    "DhariwalUNet",
    "DiffusersTextUNet",
    "DiffusersUNet",
    "DigitClassifier",
    "FastGAN",
    "FeatureHead",
    "FeatureNetwork",
    "Form",
    "GeneratorNetwork",
    "ImageClassifier",
    "ImageCritic",
    "ImageReader",
    "LatentMLP",
    "PatchAutoencoder",
    "ProjectedCritic",
    "Reader",
    "ResidualMLP",
    "SkipExcitation",
    "SmallUNet",
    "SongUNet",
    "build",
    "describe_network",
    "find_kind",
    "grown",
    "register",
    "register_network",
]
