"""Networks and codecs around diffusers' classes, which are imported when one is built."""

from fewstep.networks.diffusers.autoencoder import AutoencoderCodec
from fewstep.networks.diffusers.caption_unet import CaptionUNet
from fewstep.networks.diffusers.other_codecs import DeepCompressionCodec, FramedCodec
from fewstep.networks.diffusers.patch_autoencoder import PatchAutoencoder
from fewstep.networks.diffusers.text_unet import DiffusersTextUNet
from fewstep.networks.diffusers.unet2d import DiffusersUNet

__all__ = [
    "AutoencoderCodec",
    "CaptionUNet",
    "DeepCompressionCodec",
    "DiffusersTextUNet",
    "DiffusersUNet",
    "FramedCodec",
    "PatchAutoencoder",
]
