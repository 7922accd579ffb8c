"""Data sets a recipe may name: shipped, made on the spot, images on disk, or sets of others that
are turned into images on disk once.
"""

from __future__ import annotations

import abc
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.data import Dataset, digit_images, open_images, random_mixture
from fewstep.data.archive import MOST_CLASSES
from fewstep.data.conversion.convert import huggingface, webdataset
from fewstep.data.scenes import Scenes
from fewstep.data.scenes.placing import Combinations, Part
from fewstep.data.scenes.scene_captions import SceneCaptions
from fewstep.data.synthetic import sampled, waves
from fewstep.errors import UserError
from fewstep.recipes.config.section import Names, Section, Seed
from fewstep.recipes.given import given_data
from fewstep.schedule import KarrasVE
from fewstep.system.caches import cache_folder
from fewstep.system.locations import absolute, folder_or_id
from fewstep.values import Few, Later
from fewstep.zoo.scenes_pipeline import scene_latents

_MOST_VALUES = 2**24


class _Data(Section, abc.ABC):
    at_hand: ClassVar[bool] = False
    """Whether it ships or is made on the spot, so that opening it needs nothing."""
    is_local: ClassVar[bool] = False
    """Whether opening it fetches and writes nothing."""
    is_small: ClassVar[bool] = False
    """Whether networks for it are as small as a rehearsal wants them."""

    @abc.abstractmethod
    def open(self) -> Dataset:
        """The data set; one of another library is turned into a zip in the cache folder first,
        once.
        """

    def announced(self) -> tuple[tuple[int, ...], int]:
        """Shape and classes, read from the section where it says them, from the data where not."""
        found = self.open()
        return found.shape, found.classes

    @property
    def may_have_classes(self) -> bool:
        """Whether nothing in the section says that there are none."""
        return True


class _AtHand(_Data, abc.ABC):
    at_hand: ClassVar[bool] = True
    is_local: ClassVar[bool] = True


class DigitsData(_AtHand):
    is_small: ClassVar[bool] = True

    kind: Literal["digits"]

    def open(self) -> Dataset:
        return digit_images()


class MixtureData(_AtHand):
    """``components`` round Gaussians with means uniform in a square (App.

    E.2); ``samples`` of them stand for the data set.
    """

    is_small: ClassVar[bool] = True

    kind: Literal["random-mixture"]
    components: Few = 10
    half_width: float = Field(4.0, gt=0, le=1e6)
    std: float = Field(0.3, gt=0, le=1e6)
    samples: int = Field(10_000, ge=2, le=10_000_000)
    seed: Seed = 0

    def open(self) -> Dataset:
        # The mixture's schedule plays no part in its clean samples.
        mixture = random_mixture(KarrasVE(), self.components, self.half_width, self.std, self.seed)
        return sampled(mixture, self.samples, self.seed)


class ScenesData(_AtHand):
    """``count`` scenes of one or two handwritten ``digits`` in colour, 32 x 32 RGB, with captions;
    see ``fewstep.data.scenes``.

    ``part``: whose handwriting it is. ``combinations``: scenes without a held-out digit (``seen``),
    those with one (``held-out``), or both (``all``).
    """

    is_small: ClassVar[bool] = True

    kind: Literal["scenes"]
    digits: Literal[1, 2] = 1
    count: int = Field(100_000, ge=2, le=10_000_000)
    part: Part = "train"
    combinations: Combinations = "seen"
    seed: Seed = 0

    def open(self) -> Dataset:
        return Scenes(self.count, self.digits, self.part, self.combinations, self.seed)


class SceneCaptionsData(_AtHand):
    """The captions of such scenes as numbers of tokens, and what they say: for a text encoder."""

    is_small: ClassVar[bool] = True

    kind: Literal["scene-captions"]
    digits: Literal[1, 2] = 1
    count: int = Field(20_000, ge=2, le=1_000_000)
    combinations: Combinations = "seen"
    seed: Seed = 0

    def open(self) -> Dataset:
        return SceneCaptions(Scenes(self.count, self.digits, combinations=self.combinations, seed=self.seed))


class SceneLatentsData(_AtHand):
    """Such scenes as the latents of a codec, with their captions as conditions.

    Both are made by the codec and the text encoder that ship. All latents are kept in memory.
    """

    is_small: ClassVar[bool] = True

    kind: Literal["scene-latents"]
    digits: Literal[1, 2] = 1
    count: int = Field(50_000, ge=2, le=1_000_000)
    part: Part = "train"
    combinations: Combinations = "seen"
    seed: Seed = 0

    def open(self) -> Dataset:
        scenes = Scenes(self.count, self.digits, self.part, self.combinations, self.seed)
        return scene_latents(scenes)


class _ImageSet(_Data, abc.ABC):
    """``size``: pixels a side of the centred square that each image is resized to, null to take
    them as they are; values are always in [-1, 1].
    """

    size: Few | None = None


class ImagesData(_ImageSet):
    """Images of an EDM zip or a folder at ``path``.

    ``labels``: whether the classes it names, if any, are used. ``captions``: whether its captions
    are read, for ``prompts.kind: captions``. ``channels``: 3, or 1 for the luma.
    ``classes``: how many it must have, null for any number; with it and ``size`` a run can be
    planned without the images.
    """

    is_local: ClassVar[bool] = True

    kind: Literal["images"]
    path: Annotated[str, Names("data")]
    labels: bool = True
    channels: Literal[1, 3] = 3
    classes: int | None = Field(None, ge=0, le=MOST_CLASSES)
    captions: Annotated[bool, Later()] = False

    def open(self) -> Dataset:
        images = open_images(absolute(self.path), self.size, self.labels, self.channels, captions=self.captions)
        if self.classes is not None and images.classes != self.classes:
            remedy = "use the set that the recipe is for, or correct 'data.classes'."
            raise UserError(f"{self.path}: has {images.classes} classes, 'data.classes' says {self.classes}; {remedy}")
        return images

    def announced(self) -> tuple[tuple[int, ...], int]:
        if self.size is None or self.classes is None:
            return super().announced()
        return (self.channels, self.size, self.size), self.classes

    @property
    def may_have_classes(self) -> bool:
        return self.labels and self.classes != 0


class HuggingFaceData(_ImageSet):
    """An image set of the Hugging Face hub or a local folder of one, by the columns ``image``,
    ``label`` (null for no classes) and ``caption`` (for ``prompts.kind: captions``, null for none).
    ``revision``: of the set, null for the newest.
    """

    kind: Literal["huggingface"]
    name: Annotated[str, Names("data", hub="data sets")]
    split: str = "train"
    image: str = "image"
    label: str | None = None
    revision: str | None = None
    caption: Annotated[str | None, Later()] = None

    def open(self) -> Dataset:
        name, folder = folder_or_id(self.name, "data sets"), cache_folder() / "data"
        made = huggingface(folder, name, self.split, self.image, self.label, self.revision, self.size, self.caption)
        return open_images(made, captions=self.caption is not None)


class WebDatasetData(_ImageSet):
    """WebDataset shards at ``urls``, paths or http addresses with braces
    (``train-{000..099}.tar``). ``label``: extension of the file with the class's number (``cls``),
    null for none; ``caption``: that of the file with the caption (``txt``), likewise.
    """

    kind: Literal["webdataset"]
    urls: Annotated[str, Names("data")]
    label: str | None = None
    caption: Annotated[str | None, Later()] = None

    def open(self) -> Dataset:
        made = webdataset(cache_folder() / "data", self.urls, self.label, self.size, self.caption)
        return open_images(made, captions=self.caption is not None)


class GivenData(_Data):
    """A data set of the caller's own, by the name under which Python has it (``recipes.given``)."""

    kind: Literal["given"]
    name: str = Field(min_length=1)

    def open(self) -> Dataset:
        return given_data(self.name)


class WavesData(_AtHand):
    """Made-up images (channels, height, width), for rehearsals; see ``fewstep.data.synthetic``."""

    kind: Literal["waves"]
    shape: list[Few] = Field(min_length=3, max_length=3)
    classes: int = Field(0, ge=0, le=MOST_CLASSES)
    samples: int = Field(64, ge=2, le=10_000_000)
    seed: Seed = 0

    def open(self) -> Dataset:
        channels, height, width = self.shape
        return waves((channels, height, width), self.classes, self.samples, self.seed)

    @model_validator(mode="after")
    def _fits_in_memory(self) -> WavesData:
        if self.samples * prod(self.shape) > _MOST_VALUES:
            raise ValueError(
                f"'samples' ({self.samples}) images of 'shape' {self.shape} have more than {_MOST_VALUES:,} "
                "values, which made-up images may have together"
            )
        return self


DataChoice = Annotated[
    DigitsData
    | MixtureData
    | WavesData
    | ScenesData
    | SceneCaptionsData
    | SceneLatentsData
    | ImagesData
    | HuggingFaceData
    | WebDatasetData
    | GivenData,
    Field(discriminator="kind"),
]
