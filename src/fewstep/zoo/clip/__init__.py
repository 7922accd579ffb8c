"""CLIP from a local folder of transformers' form: similarities of pictures and captions."""

from fewstep.zoo.clip.clip_folder import ClipFolder
from fewstep.zoo.clip.clip_towers import ClipTowers

__all__ = ["ClipFolder", "ClipTowers"]
