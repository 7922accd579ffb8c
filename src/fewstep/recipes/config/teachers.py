"""Teachers a recipe may name: shipped, made by ``fewstep pretrain``, or published by others; each
makes its own frozen denoiser.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from fewstep.data import Dataset
from fewstep.data.archive import MOST_CLASSES
from fewstep.denoisers import EDMInputs, NetworkDenoiser, freeze, load_model
from fewstep.denoisers.stored_adapter import adapter_in
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.edm import SETTINGS
from fewstep.prediction import EDM
from fewstep.recipes.config.adapter_sections import AdapterPath
from fewstep.recipes.config.models import DenoiserModel
from fewstep.recipes.config.section import Names, Section, Seed, WeightsPath, kind_of_section
from fewstep.schedule import KarrasVE
from fewstep.system.files import read_tensors
from fewstep.system.locations import absolute
from fewstep.values import Later
from fewstep.zoo import consistency_models, diffusers_models, nvidia, shipped_denoiser
from fewstep.zoo.adapter_files import AddedAdapter, read_adapter
from fewstep.zoo.pipelines import OpenedPipeline, PipelinePlace, open_pipeline
from fewstep.zoo.pipelines.published import published
from fewstep.zoo.shipped import SHIPPED_PIPELINES, SHIPPED_RANGES, shipped_pipeline

SIGMA_DATA = 0.5
"""Of every published EDM network."""


class TeacherSection(Section, abc.ABC):
    is_small: ClassVar[bool] = False
    """Whether its network is as small as a rehearsal wants it."""
    last_may_be_none: ClassVar[bool] = False
    """Whether its last class may be meant as "no class"."""
    always_told: ClassVar[bool] = False
    """Whether it was told the class of every sample that it was trained on, so that it has no
    unconditional estimate to guide away from.
    """

    @abc.abstractmethod
    def load(self, data: Dataset | None) -> NetworkDenoiser:
        """The frozen denoiser; ``data`` gives shape and classes to one that has none of its own."""

    def sketch(self) -> NetworkDenoiser | None:
        """The same on the meta device, where the section says enough for it; None for others."""
        return None

    @property
    def pipeline(self) -> PipelinePlace | None:
        """Where the text-to-image model is that the teacher is a part of; None for others."""
        return None

    def text_model(self) -> OpenedPipeline | None:
        """That model; None for others."""
        place = self.pipeline
        return None if place is None else open_pipeline(place.source, place.revision, place.variant)

    def text_sketch(self) -> OpenedPipeline | None:
        """The same for its sizes alone: a published one is known by its name."""
        return self.text_model()

    @property
    def published(self) -> Mapping[str, Any] | None:
        """The description of a published network, by its name; None for others."""
        return None

    @property
    def edm_network(self) -> str | None:
        """The name of its network in EDM's release (Karras et al. 2022); None for others."""
        return None

    @property
    def random_model(self) -> DenoiserModel | None:
        """The model of a network with random weights; None for others."""
        return None

    @property
    def maker(self) -> str | None:
        """The recipe that makes its file, where that is not there; None for others."""
        return None

    def sample_range(self) -> tuple[float, float]:
        """The range of its samples, for those that are no images.

        Raises ``UserError`` where nothing says it.
        """
        raise UserError(
            f"'teacher.kind: {kind_of_section(type(self))}' does not say in which range its samples are, and "
            "the recipe has no 'data' section; add one."
        )

    def remarks(self) -> tuple[str, ...]:
        """Sentences on what was chosen among its files, and on what of them is left out."""
        return ()

    def files(self) -> Mapping[str, Path]:
        """What is read of a folder, by names that do not say where the folder is; nothing of a
        single file.
        """
        return {}


class ShippedTeacher(TeacherSection):
    """``digits`` and ``mixture2d``, or ``scenes``, a text-to-image model."""

    is_small: ClassVar[bool] = True

    kind: Literal["shipped"]
    name: Annotated[Literal["digits", "mixture2d", "scenes"], Names("shipped")]

    @property
    def pipeline(self) -> PipelinePlace | None:
        return PipelinePlace(str(shipped_pipeline(self.name))) if self.name in SHIPPED_PIPELINES else None

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        text = self.text_model()
        return shipped_denoiser(self.name) if text is None else text.denoiser()

    def sketch(self) -> NetworkDenoiser | None:
        text = self.text_model()
        return None if text is None else text.sketch()

    def files(self) -> Mapping[str, Path]:
        text = self.text_model()
        return {} if text is None else text.files

    def sample_range(self) -> tuple[float, float]:
        return SHIPPED_RANGES[self.name]


class FileTeacher(TeacherSection):
    """A model file that ``fewstep pretrain`` wrote; ``recipe``: the one that makes it, so that a
    run can be planned without the file.
    """

    kind: Literal["file"]
    path: WeightsPath
    recipe: Annotated[str, Names("recipe")] | None = None

    @property
    def maker(self) -> str | None:
        return None if Path(absolute(self.path)).is_file() else self.recipe

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        path = Path(absolute(self.path))
        if self.maker is not None:
            raise UserError(
                f"{path}: there is no such file; make it by 'fewstep pretrain {self.recipe}', or correct "
                "'teacher.path'."
            )
        loaded, _ = load_model(path)
        if not isinstance(loaded, NetworkDenoiser):
            raise UserError(
                f"{self.path}: holds a {type(loaded).__name__.lower()}; a teacher must be a denoiser around one "
                "network."
            )
        return freeze(loaded)

    def sample_range(self) -> tuple[float, float]:
        if not Path(self.path).is_file():
            return super().sample_range()
        stated = read_tensors(Path(self.path))[1].get("range")
        if (
            isinstance(stated, list)
            and len(stated) == 2
            and all(isinstance(value, int | float) for value in stated)
            and stated[0] < stated[1]
        ):
            return float(stated[0]), float(stated[1])
        raise UserError(
            f"{self.path}: does not say in which range its samples are, and the recipe has no 'data' section; add one."
        )


class UntrainedTeacher(TeacherSection):
    """A network with random weights, a function of ``seed``: for rehearsals and for counting what a
    run takes.
    """

    kind: Literal["untrained"]
    model: DenoiserModel
    seed: Seed = 0

    @property
    def random_model(self) -> DenoiserModel | None:
        return self.model

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        if data is None:
            raise shapeless()
        return freeze(self.model.denoiser(data.shape, data.classes, self.seed))


class _Published(TeacherSection, abc.ABC):
    """``path``: a file, or an https address to be kept in the cache folder, whose content must have
    the SHA-256 ``sha256`` if one is given. ``network``: which of the published networks it holds,
    and ``classes`` how many classes it knows: so that a run can be planned without the file, which
    is checked against them.
    """

    path: WeightsPath
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    network: str
    classes: int = Field(0, ge=0, le=MOST_CLASSES)

    @field_validator("network")
    @classmethod
    def _is_published(cls, name: str) -> str:
        if name not in SETTINGS:
            raise ValueError(
                f"'{name}' is no published network that is known here; it must be one of {', '.join(SETTINGS)}"
            )
        return name

    @property
    def description(self) -> dict[str, Any]:
        """What ``networks.kinds.build`` makes the network of."""
        return {**SETTINGS[self.network], "classes": self.classes}

    @property
    def published(self) -> Mapping[str, Any] | None:
        return self.description

    def sketch(self) -> NetworkDenoiser | None:
        with torch.device("meta"):
            network = build(self.description)
        side = self.description["img_resolution"]
        return freeze(
            NetworkDenoiser(network, KarrasVE(), EDM(SIGMA_DATA), EDMInputs(SIGMA_DATA), (3, side, side), self.classes)
        )


class NvidiaTeacher(_Published):
    """A network of NVIDIA's EDM release (Karras et al. 2022), a ``.pkl``."""

    always_told: ClassVar[bool] = True

    kind: Literal["nvidia"]

    @property
    def edm_network(self) -> str | None:
        return self.network

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        teacher = nvidia.load(self.path, sha256=self.sha256)
        self._check(teacher)
        return teacher

    def _check(self, teacher: NetworkDenoiser) -> None:
        """A file that holds another network than the recipe says would make its plan wrong."""
        with torch.device("meta"):
            expected = {name: value.shape for name, value in build(self.description).state_dict().items()}
        found = {name: value.shape for name, value in teacher.network.state_dict().items()}
        different = next(
            (name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)), None
        )
        if different is not None:
            raise UserError(
                f"{self.path}: is not the network '{self.network}' with {self.classes} classes "
                f"('{different}' differs); set 'teacher.network' and 'teacher.classes' to what the file holds."
            )


class ConsistencyModelsTeacher(_Published):
    """An EDM network of the consistency models' release (Song et al. 2023), a ``.pt``."""

    always_told: ClassVar[bool] = True

    kind: Literal["consistency-models"]

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        # A state dict tells nothing of its network: it is read as the one that the recipe names,
        # strictly.
        return consistency_models.load_as(self.path, self.description, EDM(SIGMA_DATA), self.sha256)


class DiffusersTeacher(TeacherSection):
    """A ``UNet2DModel`` with its scheduler, as diffusers saves them: a folder, or an id of the hub
    at a ``revision``.

    ``variant``: of the weights, such as ``fp16``; null for the usual ones, or the only one there.
    ``subfolder``: of the network, null for ``unet``, and for ``unet_ema`` where that is all there
    is. ``classes``: null for as many as the network has embeddings; one fewer makes the last
    embedding that of "no class".
    """

    last_may_be_none: ClassVar[bool] = True

    kind: Literal["diffusers"]
    path: Annotated[str, Names("weights", hub="models")]
    revision: str | None = None
    variant: str | None = Field(None, pattern="^[A-Za-z0-9_-]+$")
    subfolder: str | None = Field(None, pattern="^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    classes: int | None = Field(None, ge=1, le=MOST_CLASSES)

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        return diffusers_models.load(self.path, self.revision, self.variant, self.subfolder, self.classes)

    def files(self) -> Mapping[str, Path]:
        return diffusers_models.files_of(self.path, self.revision, self.variant, self.subfolder)

    def remarks(self) -> tuple[str, ...]:
        return diffusers_models.remarks_of(self.path, self.revision, self.variant, self.subfolder, self.classes)


class TeacherLora(Section):
    """An adapter that is added to a teacher's weights: a file, or the folder of a run whose student
    is an adapter. ``weight``: how much of it, 1 for as much as it was trained with.
    """

    path: AdapterPath
    weight: float = Field(1.0, ge=-100.0, le=100.0)


class PipelineTeacher(TeacherSection):
    """A text-to-image model, as diffusers saves a pipeline: a folder, or an id of the hub at a
    ``revision``. Stable Diffusion 1, 2, XL, 3 and 3.5, Flux, PixArt, Sana, Qwen-Image and Z-Image
    are read (``zoo/pipelines/pipeline_kinds.py``).

    ``variant``: of the weights, such as ``fp16``; a part that has none of it is read from its usual
    ones. ``loras``: adapters that are added to its network. ``size``: the side of its pictures in
    pixels, null for the model's own; where a flow shifts its times by the number of tokens, it does
    so by those of that size.
    """

    kind: Literal["pipeline"]
    path: Annotated[str, Names("weights", hub="models")]
    revision: str | None = None
    variant: str | None = Field(None, pattern="^[A-Za-z0-9_-]+$")
    loras: Annotated[list[TeacherLora], Later()] = Field([], max_length=100)
    size: Annotated[int | None, Field(ge=8, le=8192), Later()] = None

    def _opened(self) -> OpenedPipeline:
        opened = open_pipeline(self.path, self.revision, self.variant)
        added = [AddedAdapter(adapter_in(Path(absolute(each.path))), each.weight) for each in self.loras]
        return replace(opened, adapters=tuple(added), size=self.size)

    def text_model(self) -> OpenedPipeline:
        return self._opened()

    def load(self, data: Dataset | None) -> NetworkDenoiser:
        return self._opened().denoiser()

    def sketch(self) -> NetworkDenoiser:
        return self.text_sketch().sketch()

    def text_sketch(self) -> OpenedPipeline:
        known = published(self.path)
        return self._opened() if known is None else replace(known, size=self.size)

    @property
    def pipeline(self) -> PipelinePlace:
        return PipelinePlace(self.path, self.revision, self.variant)

    def files(self) -> Mapping[str, Path]:
        return self._opened().files

    def remarks(self) -> tuple[str, ...]:
        opened = self._opened()
        if not opened.adapters:
            return opened.remarks
        network = opened.sketch().network
        return (*opened.remarks, *(note for each in opened.adapters for note in read_adapter(each.path, network).notes))


TeacherChoice = Annotated[
    ShippedTeacher
    | FileTeacher
    | UntrainedTeacher
    | NvidiaTeacher
    | ConsistencyModelsTeacher
    | DiffusersTeacher
    | PipelineTeacher,
    Field(discriminator="kind"),
]


def shapeless() -> UserError:
    """The error of an untrained teacher in a recipe without data."""
    return UserError(
        "'teacher.kind: untrained' takes its shape and classes from data, and the recipe has no 'data' "
        "section; add one, or use another teacher."
    )
