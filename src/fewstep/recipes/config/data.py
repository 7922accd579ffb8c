"""Data sets a recipe may name: shipped, made on the spot, images on disk, or sets of others that are turned into images on disk once."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fewstep.data.archive import MOST_CLASSES
from fewstep.recipes.config.base import Few, Names, Section, Seed

_MOST_VALUES = 2**24


class DigitsData(Section):
    kind: Literal["digits"]


class MixtureData(Section):
    """``components`` round Gaussians with means uniform in a square (App. E.2); ``samples`` of them stand for the data set."""

    kind: Literal["random-mixture"]
    components: Few = 10
    half_width: float = Field(4.0, gt=0, le=1e6)
    std: float = Field(0.3, gt=0, le=1e6)
    samples: int = Field(10_000, ge=2, le=10_000_000)
    seed: Seed = 0


class _ImageSet(Section):
    """``size``: pixels a side of the centred square that each image is resized to, null to take them as they are; values are always in [-1, 1]."""

    size: Few | None = None


class ImagesData(_ImageSet):
    """Images of an EDM zip or a folder at ``path``. ``labels``: whether the classes it names, if any, are used. ``channels``: 3, or 1 for the luma. ``classes``: how many it must have,
    null for any number; with it and ``size`` a run can be planned without the images.
    """

    kind: Literal["images"]
    path: Annotated[str, Names("data")]
    labels: bool = True
    channels: Literal[1, 3] = 3
    classes: int | None = Field(None, ge=0, le=MOST_CLASSES)


class HuggingFaceData(_ImageSet):
    """An image set of the Hugging Face hub or a local folder of one, by the columns ``image`` and ``label`` (null for no classes). ``revision``: of the set, null for the newest."""

    kind: Literal["huggingface"]
    name: Annotated[str, Names("data", hub="data sets")]
    split: str = "train"
    image: str = "image"
    label: str | None = None
    revision: str | None = None


class WebDatasetData(_ImageSet):
    """WebDataset shards at ``urls``, paths or http addresses with braces (``train-{000..099}.tar``). ``label``: extension of the file with the class's number (``cls``), null for none."""

    kind: Literal["webdataset"]
    urls: Annotated[str, Names("data")]
    label: str | None = None


class WavesData(Section):
    """Made-up images (channels, height, width), for rehearsals; see ``fewstep.data.synthetic``."""

    kind: Literal["waves"]
    shape: list[Few] = Field(min_length=3, max_length=3)
    classes: int = Field(0, ge=0, le=MOST_CLASSES)
    samples: int = Field(64, ge=2, le=10_000_000)
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_in_memory(self) -> WavesData:
        if self.samples * prod(self.shape) > _MOST_VALUES:
            raise ValueError(f"'samples' ({self.samples}) images of 'shape' {self.shape} have more than {_MOST_VALUES:,} values, which made-up images may have together")
        return self


DataChoice = Annotated[DigitsData | MixtureData | WavesData | ImagesData | HuggingFaceData | WebDatasetData, Field(discriminator="kind")]
