"""Data sets: shipped, made on the spot, or images from a zip or a folder; and prompts."""

from fewstep.data.caption_numbers import Captioned, captioned
from fewstep.data.dataset import Conditioned, Dataset, Described, InMemory, SampleSpace, Subset
from fewstep.data.digits import digit_images
from fewstep.data.images import Images, open_images
from fewstep.data.prompts import Prompts, read_prompts
from fewstep.data.synthetic import random_mixture, ring_mixture

__all__ = [
    "Captioned",
    "Conditioned",
    "Dataset",
    "Described",
    "Images",
    "InMemory",
    "Prompts",
    "SampleSpace",
    "Subset",
    "captioned",
    "digit_images",
    "open_images",
    "random_mixture",
    "read_prompts",
    "ring_mixture",
]
