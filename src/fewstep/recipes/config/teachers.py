"""Teachers a recipe may name: shipped, made by ``fewstep pretrain``, or published by others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fewstep.data.archive import MOST_CLASSES
from fewstep.networks.edm import SETTINGS
from fewstep.recipes.config.models import DenoiserModel
from fewstep.recipes.config.section import Names, Section, Seed, WeightsPath


class ShippedTeacher(Section):
    kind: Literal["shipped"]
    name: Annotated[Literal["digits", "mixture2d"], Names("shipped")]


class FileTeacher(Section):
    """A model file that ``fewstep pretrain`` wrote; ``recipe``: the one that makes it, so that a
    run can be planned without the file.
    """

    kind: Literal["file"]
    path: WeightsPath
    recipe: Annotated[str, Names("recipe")] | None = None


class UntrainedTeacher(Section):
    """A network with random weights, a function of ``seed``: for rehearsals and for counting what a
    run takes.
    """

    kind: Literal["untrained"]
    model: DenoiserModel
    seed: Seed = 0


class _Published(Section):
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


class NvidiaTeacher(_Published):
    """A network of NVIDIA's EDM release (Karras et al. 2022), a ``.pkl``."""

    kind: Literal["nvidia"]


class ConsistencyModelsTeacher(_Published):
    """An EDM network of the consistency models' release (Song et al. 2023), a ``.pt``."""

    kind: Literal["consistency-models"]


class DiffusersTeacher(Section):
    """A ``UNet2DModel`` with its scheduler, as diffusers saves them: a folder, or an id of the hub
    at a ``revision``.

    ``variant``: of the weights, such as ``fp16``; null for the usual ones, or the only one there.
    ``subfolder``: of the network, null for ``unet``, and for ``unet_ema`` where that is all there
    is. ``classes``: null for as many as the network has embeddings; one fewer makes the last
    embedding that of "no class".
    """

    kind: Literal["diffusers"]
    path: Annotated[str, Names("weights", hub="models")]
    revision: str | None = None
    variant: str | None = Field(None, pattern="^[A-Za-z0-9_-]+$")
    subfolder: str | None = Field(None, pattern="^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    classes: int | None = Field(None, ge=1, le=MOST_CLASSES)


TeacherChoice = Annotated[
    ShippedTeacher | FileTeacher | UntrainedTeacher | NvidiaTeacher | ConsistencyModelsTeacher | DiffusersTeacher,
    Field(discriminator="kind"),
]
