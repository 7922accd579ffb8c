"""Prompts that a recipe may name: what a text-to-image student is trained to draw."""

from __future__ import annotations

import abc
from typing import Annotated, Literal

from pydantic import Field

from fewstep.data import Dataset
from fewstep.data.caption_numbers import captioned
from fewstep.data.prompts import Prompts, read_hub_prompts, read_prompts
from fewstep.data.prompts.fill import TooLong
from fewstep.data.scenes import scene_prompts
from fewstep.errors import UserError
from fewstep.recipes.config.data_sets import DataChoice
from fewstep.recipes.config.section import Names, Section
from fewstep.system.locations import absolute

MOST_LISTED = 10_000


class _Prompts(Section, abc.ABC):
    """``too_long``: whether prompts of more tokens than the text encoder reads are cut, or
    refused.
    """

    too_long: TooLong = "cut"

    @abc.abstractmethod
    def read(self) -> Prompts:
        """The prompts in their order.

        Raises ``UserError``, naming the place, for what is no prompt, and where there is none.
        """

    def beside(self, data: Dataset | None) -> tuple[Prompts, Dataset | None]:
        """The prompts, and the recipe's data as it is trained on beside them.

        Raises what ``read`` raises.
        """
        return self.read(), data

    def alone(self, data: DataChoice | None) -> Prompts:
        """The prompts of a recipe with that section ``data``, which is opened only for its
        captions.

        Raises what ``read`` raises.
        """
        return self.read()

    def digest(self) -> str | None:
        """The identity of the prompts, None where it is that of the data."""
        return self.read().identity


class ListedPrompts(_Prompts):
    """``texts``: the prompts themselves."""

    kind: Literal["list"]
    texts: list[str] = Field(min_length=1, max_length=MOST_LISTED)

    def read(self) -> Prompts:
        return read_prompts(self.texts)


class FilePrompts(_Prompts):
    """A file at ``path`` (.txt, .csv, .jsonl, .json or .parquet), or a folder of images with
    captions.

    ``column``: the column, or key, of the prompts; null for the first of ``prompt``, ``caption``
    and ``text`` that is there.
    """

    kind: Literal["file"]
    path: Annotated[str, Names("data")]
    column: str | None = Field(None, min_length=1)

    def read(self) -> Prompts:
        return read_prompts(absolute(self.path), self.column)


class HuggingFacePrompts(_Prompts):
    """A data set ``name`` of the Hugging Face hub, or a folder that its library reads, by its
    ``split`` and ``column`` (null for the first of ``prompt``, ``caption`` and ``text`` that is
    there). ``revision``: of the hub's set, null for the newest.
    """

    kind: Literal["huggingface"]
    name: Annotated[str, Names("data", hub="data sets")]
    split: str = "train"
    column: str | None = Field(None, min_length=1)
    revision: str | None = None

    def read(self) -> Prompts:
        return read_hub_prompts(self.name, self.split, self.column, self.revision)


class ScenePrompts(_Prompts):
    """A prompt for each combination of one or two ``digits`` of the scenes, in the shortest
    phrasing that says all of it: those that are held out, or those that are not.
    """

    kind: Literal["scenes"]
    digits: Literal[1, 2] = 1
    held_out: bool = False

    def read(self) -> Prompts:
        return read_prompts(scene_prompts(self.digits, self.held_out))


class CaptionPrompts(_Prompts):
    """The captions of the recipe's data, each sample of which is then conditioned on its own."""

    kind: Literal["captions"]

    def read(self) -> Prompts:
        raise UserError(
            "'prompts.kind: captions' takes the captions of the recipe's data, and there is no data; add a 'data' "
            "section, or give prompts of another kind."
        )

    def beside(self, data: Dataset | None) -> tuple[Prompts, Dataset | None]:
        return (self.read(), None) if data is None else captioned(data)

    def alone(self, data: DataChoice | None) -> Prompts:
        return self.beside(None if data is None else data.open())[0]

    def digest(self) -> None:
        return None


PromptsChoice = Annotated[
    ListedPrompts | FilePrompts | HuggingFacePrompts | ScenePrompts | CaptionPrompts,
    Field(discriminator="kind"),
]
