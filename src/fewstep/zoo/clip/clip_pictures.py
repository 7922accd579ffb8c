"""How a CLIP folder says that pictures become its network's input: ``preprocessor_config.json``, or
the ``image_processor`` of ``processor_config.json``, as transformers writes it since version 5.

A picture's shorter side is resized to a size, the centre is cut out, and each channel is normalised
in float32. Pictures are resized by Pillow, antialiased, in 8 bits, as CLIP's own code, OpenCLIP and
transformers resize them: on the same picture the values are transformers' to the last bits of
float32. Resizing in floats would move a similarity of a small network by 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.diffusers_schedulers import about
from fewstep.zoo.diffusers_weights import read_configuration
from fewstep.zoo.nvidia.modules import flag, real, whole_number, word

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LARGEST_SIDE = 4096
LONGEST_SIDE = 2**16
"""Of a picture that was resized by its shorter side: a line of pixels would take all memory."""
_FILE, _WHOLE = "preprocessor_config.json", "processor_config.json"
_CLASSES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_BILINEAR, _BICUBIC = 2, 3
# OpenAI's, which the class has where a file does not say them.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def processing_file(folder: Path) -> Path:
    """The file that says how pictures are read; it need not be there."""
    return folder / (_FILE if (folder / _FILE).is_file() or not (folder / _WHOLE).is_file() else _WHOLE)


@dataclass(frozen=True)
class ClipPictures:
    """Called as ``pictures(picture) -> (3, h, w)`` float32, of a picture in RGB.

    ``size``: the shorter side in pixels, or height and width, None for no resizing by the Pillow
    ``filter``; ``crop``: height and width of what is cut out of the centre, None for all of it.
    Levels in [0, 255] times ``scale`` are normalised by ``mean`` and ``deviation`` a channel.
    """

    size: int | tuple[int, int] | None
    filter: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> ClipPictures:
        """Of a CLIP folder. Raises ``UserError`` naming file and entry for what is not read."""
        path = processing_file(folder)
        config = read_configuration(path)
        with about(path):
            if path.name == _WHOLE:
                config = _inner(config)
            return cls.of(config)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ClipPictures:
        """Of the values of a configuration; raises ``UserError`` for those that are not read."""
        values = dict(config)
        name = values.get("image_processor_type", values.get("feature_extractor_type", _CLASSES[0]))
        if name not in _CLASSES:
            raise UserError(f"is of a {word({'name': name}, 'name'):.80}, and only {_CLASSES[0]} is read.")
        if not flag(values, "do_rescale", True) or not flag(values, "do_normalize", True):
            raise UserError("has false for do_rescale or do_normalize, and pictures are always scaled and normalised.")
        resized, cropped = flag(values, "do_resize", True), flag(values, "do_center_crop", True)
        size = _size(values.get("size", 224)) if resized else None
        crop = _sides(values.get("crop_size", 224), "crop_size") if cropped else None
        if crop is not None and size is not None and max(crop) > (size if isinstance(size, int) else min(size)):
            raise UserError(f"has {crop[0]} x {crop[1]} for crop_size, more than the size that pictures have then.")
        kind = whole_number({"resample": values.get("resample", _BICUBIC)}, "resample", 0, 5)
        if kind not in (_BILINEAR, _BICUBIC):
            raise UserError(f"has {kind} for resample, which must be {_BICUBIC} (bicubic) or {_BILINEAR} (bilinear).")
        mean, deviation = (
            _channels(values.get(name, usual), name, bounds)
            for name, usual, bounds in (
                ("image_mean", _MEAN, (-10.0, 10.0)),
                ("image_std", _DEVIATION, (1e-6, 10.0)),
            )
        )
        scale = real({"rescale_factor": values.get("rescale_factor", 1 / 255)}, "rescale_factor", 1e-9, 1.0)
        return cls(size, kind, crop, scale, mean, deviation)

    def __call__(self, picture: Picture) -> Tensor:
        from PIL import Image

        self.check(picture, "a picture")
        if self.size is not None:
            picture = picture.resize(self._resized(*picture.size), Image.Resampling(self.filter))
        levels = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)
        if self.crop is not None:
            levels = _centre(levels, *self.crop)
        mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.deviation))
        return (levels.float() * self.scale - mean) / deviation

    def check(self, picture: Picture, where: str) -> None:
        """Raises ``UserError`` for a picture, which ``where`` names, that is too long for its
        shorter side.
        """
        longer = 0 if self.size is None else max(self._resized(*picture.size))
        if longer > LONGEST_SIDE:
            raise UserError(
                f"{where}: has {picture.width} x {picture.height} pixels, and {longer:,} at its longer side when its "
                f"shorter one is as CLIP reads it, more than {LONGEST_SIDE:,}; leave it out, or give --clip-size."
            )

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the resized picture."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        assert self.size is not None
        longer = int(self.size * max(width, height) / min(width, height))
        return (self.size, longer) if width <= height else (longer, self.size)


def _centre(levels: Tensor, height: int, width: int) -> Tensor:
    """The centre of a picture, which is black where it is beyond the picture."""
    tall, wide = levels.shape[1:]
    if height > tall or width > wide:
        canvas = levels.new_zeros(3, max(height, tall), max(width, wide))
        top, left = -(-(canvas.shape[1] - tall) // 2), -(-(canvas.shape[2] - wide) // 2)
        canvas[:, top : top + tall, left : left + wide] = levels
        return _centre(canvas, height, width)
    top, left = (tall - height) // 2, (wide - width) // 2
    return levels[:, top : top + height, left : left + width]


def _inner(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("image_processor")
    if not isinstance(inner, dict):
        raise UserError("has no image_processor, which says how pictures are read.")
    return inner


def _size(value: Any) -> int | tuple[int, int]:
    """A shorter side, or height and width."""
    if isinstance(value, Mapping) and "shortest_edge" in value:
        if "longest_edge" in value:
            raise UserError("has a longest_edge beside shortest_edge for size, which is not read.")
        value = value["shortest_edge"]
    return _sides(value, "size") if isinstance(value, Mapping) else _side(value, "size")


def _sides(value: Any, name: str) -> tuple[int, int]:
    """Height and width."""
    if not isinstance(value, Mapping):
        return _side(value, name), _side(value, name)
    return _side(value.get("height"), f"the height of {name}"), _side(value.get("width"), f"the width of {name}")


def _side(value: Any, name: str) -> int:
    return whole_number({name: value}, name, 1, LARGEST_SIDE)


def _channels(value: Any, name: str, bounds: tuple[float, float]) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise UserError(f"has no list of three numbers for {name}.")
    return tuple(real({name: each}, name, *bounds) for each in value)
