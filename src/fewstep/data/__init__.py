"""Data sets: shipped, made on the spot, or images from a zip or a folder."""

from fewstep.data.dataset import Dataset, Described, InMemory, SampleSpace, Subset
from fewstep.data.digits import digits
from fewstep.data.images import Images, open_images
from fewstep.data.mixture import random_mixture, ring_mixture

__all__ = [
    "Dataset",
    "Described",
    "Images",
    "InMemory",
    "SampleSpace",
    "Subset",
    "digits",
    "open_images",
    "random_mixture",
    "ring_mixture",
]
