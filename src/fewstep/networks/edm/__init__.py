"""The U-Nets of NVIDIA's EDM release, with its parameter names, written anew: DDPM++, NCSN++ and
ADM.
"""

from fewstep.networks.edm.dhariwal import DhariwalUNet
from fewstep.networks.edm.released import SETTINGS
from fewstep.networks.edm.song import SongUNet

__all__ = ["SETTINGS", "DhariwalUNet", "SongUNet"]
