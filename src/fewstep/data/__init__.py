"""Data sets that fit in memory, shipped or made on the spot."""

from fewstep.data.dataset import Dataset
from fewstep.data.digits import digits
from fewstep.data.mixture import random_mixture, ring_mixture

__all__ = ["Dataset", "digits", "random_mixture", "ring_mixture"]
