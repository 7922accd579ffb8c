"""Networks around diffusers' classes, which are imported when such a network is built."""

from fewstep.networks.diffusers.text_unet import DiffusersTextUNet
from fewstep.networks.diffusers.unet2d import DiffusersUNet

__all__ = ["DiffusersTextUNet", "DiffusersUNet"]
