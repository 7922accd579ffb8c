"""A folder of a CLIP model that transformers' ``save_pretrained`` wrote (OpenAI's, and OpenCLIP's
in that form): which files are read, and the model of them.

The class is ours to name: a folder of another one is refused, and nothing in a file is imported.
Only safetensors are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.inception import as_bytes
from fewstep.system.caches import content_digests
from fewstep.zoo.clip.clip_pictures import ClipPictures, processing_file
from fewstep.zoo.clip.clip_towers import ClipTowers
from fewstep.zoo.diffusers_configurations import MOST, Expected
from fewstep.zoo.diffusers_schedulers import about
from fewstep.zoo.diffusers_weights import WeightFiles, find_weights, read_configuration, read_weights
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.nvidia.modules import whole_number
from fewstep.zoo.pipelines.encoders.tokens import TOKENIZER_FILES, read_tokenizer
from fewstep.zoo.pipelines.rebuilding import check_heads, filled, text_values

CONFIGURATION, STEM = "config.json", "model"
MOST_TOKENIZER_BYTES = 2**26
"""Of each file of a tokenizer; CLIP's own has 2 MiB."""
_MOST_CONFIGURATION = 2**20
_NO_WEIGHTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_VISION = Expected(
    whole={
        "hidden_size": (1, MOST),
        "intermediate_size": (1, MOST),
        "projection_dim": (1, MOST),
        "num_hidden_layers": (1, 1000),
        "num_attention_heads": (1, MOST),
        "num_channels": (3, 3),
        "image_size": (1, 4096),
        "patch_size": (1, 4096),
    },
    reals={"layer_norm_eps": (0.0, 1.0)},
    texts=("hidden_act",),
)


@dataclass(frozen=True)
class ClipFolder:
    """The files of a CLIP model in ``root``; ``remarks``: sentences on what was chosen among
    several. Made by ``find``.
    """

    root: Path
    weights: WeightFiles
    remarks: tuple[str, ...] = ()

    @classmethod
    def find(cls, path: Path | str) -> ClipFolder:
        """The files in a local folder.

        Raises ``UserError`` naming what is missing, another class than CLIPModel, and weights that
        are pickled only.
        """
        root = Path(path).expanduser().absolute()
        if not (root / CONFIGURATION).is_file():
            raise UserError(
                f"{root / CONFIGURATION}: there is no such file; give the folder of a CLIPModel that transformers' "
                "save_pretrained wrote, with its tokenizer and preprocessor_config.json."
            )
        _check_size(root / CONFIGURATION, _MOST_CONFIGURATION)
        _check_class(read_configuration(root / CONFIGURATION), root / CONFIGURATION)
        if not processing_file(root).is_file():
            raise UserError(
                f"{processing_file(root)}: there is no such file, and it says how pictures are read; get it from the "
                "model's source."
            )
        _check_size(processing_file(root), _MOST_CONFIGURATION)
        return cls(root, *find_weights(root, STEM, None, "--clip"))

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        index = () if self.weights.index is None else (self.weights.index,)
        tokenizer = (path for name in TOKENIZER_FILES if (path := self.root / name).is_file())
        return (self.root / CONFIGURATION, processing_file(self.root), *self.weights.files, *index, *tokenizer)

    @property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, over names and content of all that is read."""
        names = sorted(str(path.relative_to(self.root)) for path in self.files)
        listed = zip(names, content_digests(self.root, names), strict=True)
        return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in listed).encode()).hexdigest()

    def open(self) -> ClipTowers:
        """The model, in float32, frozen, on the CPU.

        Raises ``UserError`` naming file and entry for what is not as it should be.
        """
        path = self.root / CONFIGURATION
        config = read_configuration(path)
        with about(path):
            text, vision, width = _arguments(config)
        for name in TOKENIZER_FILES:
            if (self.root / name).is_file():
                _check_size(self.root / name, MOST_TOKENIZER_BYTES)
        pictures, tokenizer = ClipPictures.read(self.root), read_tokenizer(self.root)
        side = vision.get("image_size", 224)
        if pictures.crop != (side, side):
            raise UserError(
                f"{processing_file(self.root)}: makes pictures of {pictures.crop or 'any'} pixels, and the model reads "
                f"{side} x {side}; take both from one source."
            )
        tensors = read_weights(self.weights, _NO_WEIGHTS)
        try:
            from transformers import CLIPConfig, CLIPModel
        except ImportError as error:
            raise UserError(f"{self.root}: needs transformers: pip install 'fewstep[diffusers]'.") from error
        made: Any = CLIPModel
        model = filled(
            lambda: made(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)),
            tensors,
            path,
            self.weights.name,
        )
        return ClipTowers(model, tokenizer, pictures, str(self.root))

    def space(self, low: float, high: float, device: torch.device | str = "cpu") -> FeatureSpace:
        """The embeddings (B, d), of length 1, of images (B, 1 or 3, H, W) in [``low``, ``high``] of
        any size, taken of 8-bit pictures; no gradient passes. ``device``: where the model is.
        """
        towers = self.open().to(device)

        def extract(samples: Tensor) -> Tensor:
            from PIL import Image

            levels = as_bytes(samples.cpu(), low, high).permute(0, 2, 3, 1).contiguous().numpy()
            return towers.of_pictures([Image.fromarray(each) for each in levels]).to(samples.device)

        return FeatureSpace(f"clip-{self.digest[:16]}", extract, resizes=True)


def _check_class(config: Mapping[str, Any], where: Path) -> None:
    names, kind = config.get("architectures", ["CLIPModel"]), config.get("model_type", "clip")
    if names != ["CLIPModel"] or kind != "clip":
        shown = names[0] if isinstance(names, list) and names and kind == "clip" else kind
        raise UserError(
            f"{where}: is of a {shown_foreign(shown)}, and only a CLIPModel is read; give the folder of a CLIP with "
            "both its encoders."
        )


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path}: has {size:,} bytes, more than such a file may have ({most:,}); it is none of a CLIP.")


def _arguments(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The checked values of both encoders, and the width of embeddings."""
    text, vision = text_values(_part(config, "text_config")), _VISION.taken(_part(config, "vision_config"))
    check_heads(vision, 768, 12)
    side, patch = vision.get("image_size", 224), vision.get("patch_size", 32)
    if patch > side:
        raise UserError(f"has patches of {patch} pixels for pictures of {side}")
    width = whole_number({"projection_dim": config.get("projection_dim", 512)}, "projection_dim", 1, MOST)
    return text, vision, width


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An encoder's values; older files say some of them a second time, which then count."""
    found: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        value = config.get(key) or {}
        if not isinstance(value, dict):
            raise UserError(f"has {shown_foreign(value)} for {key}, which must be an object")
        found |= value
    return found
