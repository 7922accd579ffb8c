"""Which classes of diffusers' pipelines are read, a row each: their parts, and the classes of
these.

A class that a file names is looked up here and never imported. What a transformer is told and gives
is its family's own business (``networks.families``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign

Codecs = Literal["AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage"]

CLIP = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5 = ("T5Tokenizer", "T5TokenizerFast")
_GEMMA = ("GemmaTokenizer", "GemmaTokenizerFast")
_QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


@dataclass(frozen=True)
class PipelineKind:
    """A class of pipelines that is read.

    ``network``: the part that denoises, of the class ``network_class``, and ``kind``: the name of
    our network around it. ``codec``: the class of its VAE. ``encoders`` and ``tokenizers``: the
    other parts, with the classes that they may have; those in ``optional`` may be missing.
    ``guidance``: the scale that diffusers takes where none is given. ``alone``: the arguments of a
    call by which it samples without a second pass, and at exactly the size that is asked for.
    ``unguided``: the scale of a call up to which there is no second pass. ``own_sigmas``: whether
    the pipeline gives its scheduler 1 to 1 / n evenly where a call gives no sigmas. ``pooled``:
    whether its index says if the empty prompt is zeros. ``without``: parts that it may do without,
    and which are left out. ``tokens``: the length of a prompt's text, in its models that are
    published.
    """

    network: Literal["unet", "transformer"]
    network_class: str
    kind: str
    codec: Codecs
    encoders: Mapping[str, tuple[str, ...]]
    tokenizers: Mapping[str, tuple[str, ...]]
    guidance: float
    alone: Mapping[str, Any]
    unguided: float = 1.0
    own_sigmas: bool = False
    pooled: bool = False
    without: tuple[str, ...] = ()
    tokens: int = 77
    optional: frozenset[str] = field(default=frozenset())

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts with weights, the network first."""
        return (self.network, "vae", *self.encoders)

    @property
    def of_diffusers(self) -> tuple[str, ...]:
        """The parts whose classes are diffusers' own."""
        return (self.network, "vae", "scheduler")

    @property
    def is_told_classes(self) -> bool:
        """Whether its samples are of classes, so that it reads no prompts."""
        return not self.encoders

    @property
    def is_clip(self) -> bool:
        """Whether its prompts are read by CLIP's text encoders alone."""
        return bool(self.tokenizers) and all(classes == CLIP for classes in self.tokenizers.values())

    def classes(self, part: str) -> tuple[str, ...]:
        """The classes that a part may have."""
        if part == self.network:
            return (self.network_class,)
        if part == "vae":
            return (self.codec,)
        return self.encoders[part] if part in self.encoders else self.tokenizers[part]

    def stem(self, part: str) -> str | None:
        """How the files of a part's weights are called; None for a part without weights."""
        if part in self.encoders:
            return "model"
        return "diffusion_pytorch_model" if part in self.parts else None


_UNET: tuple[Literal["unet"], str, str, Literal["AutoencoderKL"]]
_UNET = ("unet", "UNet2DConditionModel", "diffusers-text-unet", "AutoencoderKL")


def _pixart(tokens: int) -> PipelineKind:
    return PipelineKind(
        "transformer",
        "PixArtTransformer2DModel",
        "diffusers-pixart",
        "AutoencoderKL",
        {"text_encoder": ("T5EncoderModel",)},
        {"tokenizer": _T5},
        4.5,
        {"guidance_scale": 1.0, "use_resolution_binning": False},
        tokens=tokens,
    )


KINDS: Mapping[str, PipelineKind] = {
    "StableDiffusionPipeline": PipelineKind(
        *_UNET,
        {"text_encoder": ("CLIPTextModel",)},
        {"tokenizer": CLIP},
        7.5,
        {"guidance_scale": 1.0},
        without=("safety_checker", "feature_extractor", "image_encoder"),
    ),
    "StableDiffusionXLPipeline": PipelineKind(
        *_UNET,
        {"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("CLIPTextModelWithProjection",)},
        {"tokenizer": CLIP, "tokenizer_2": CLIP},
        5.0,
        # As SDXL's scripts of few-step students say it.
        {"guidance_scale": 0.0},
        pooled=True,
        without=("feature_extractor", "image_encoder"),
    ),
    "StableDiffusion3Pipeline": PipelineKind(
        "transformer",
        "SD3Transformer2DModel",
        "diffusers-sd3",
        "AutoencoderKL",
        {
            "text_encoder": ("CLIPTextModelWithProjection",),
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "text_encoder_3": ("T5EncoderModel",),
        },
        {"tokenizer": CLIP, "tokenizer_2": CLIP, "tokenizer_3": _T5},
        7.0,
        {"guidance_scale": 1.0},
        without=("feature_extractor", "image_encoder"),
        # Those of CLIP, and behind them T5's.
        tokens=77 + 256,
        optional=frozenset(("text_encoder_3", "tokenizer_3")),
    ),
    "FluxPipeline": PipelineKind(
        "transformer",
        "FluxTransformer2DModel",
        "diffusers-flux",
        "AutoencoderKL",
        {"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("T5EncoderModel",)},
        {"tokenizer": CLIP, "tokenizer_2": _T5},
        1.0,
        {},
        own_sigmas=True,
        without=("feature_extractor", "image_encoder"),
        tokens=512,
    ),
    "PixArtAlphaPipeline": _pixart(120),
    "PixArtSigmaPipeline": _pixart(300),
    "SanaPipeline": PipelineKind(
        "transformer",
        "SanaTransformer2DModel",
        "diffusers-sana",
        "AutoencoderDC",
        {"text_encoder": ("Gemma2Model", "Gemma2ForCausalLM")},
        {"tokenizer": _GEMMA},
        4.5,
        {"guidance_scale": 1.0, "use_resolution_binning": False},
        tokens=300,
    ),
    "QwenImagePipeline": PipelineKind(
        "transformer",
        "QwenImageTransformer2DModel",
        "diffusers-qwen-image",
        "AutoencoderKLQwenImage",
        {"text_encoder": ("Qwen2_5_VLForConditionalGeneration",)},
        {"tokenizer": _QWEN},
        4.0,
        {"true_cfg_scale": 1.0},
        own_sigmas=True,
        tokens=512,
    ),
    "ZImagePipeline": PipelineKind(
        "transformer",
        "ZImageTransformer2DModel",
        "diffusers-z-image",
        "AutoencoderKL",
        {"text_encoder": ("Qwen3Model", "Qwen3ForCausalLM")},
        {"tokenizer": _QWEN},
        # Its own scale of 5 counts from the prompt's estimate on.
        6.0,
        {"guidance_scale": 0.0},
        unguided=0.0,
        own_sigmas=True,
        tokens=512,
    ),
    # Of classes: there is no text to be read.
    "DiTPipeline": PipelineKind(
        "transformer", "DiTTransformer2DModel", "diffusers-dit", "AutoencoderKL", {}, {}, 4.0, {}
    ),
}


def pipeline_kind(name: object, where: object) -> PipelineKind:
    """The kind of a pipeline by its class' name. Raises ``UserError`` for one that is not read."""
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(
            f"{where}: is of a pipeline of the class {shown_foreign(name)}, and only {', '.join(KINDS)} are read; "
            "take a text-to-image model of one of these."
        )
    return KINDS[name]


def setting_for_empty(kind: PipelineKind, zeros: bool) -> dict[str, Any]:
    """What an index says besides the parts."""
    if kind.pooled:
        return {"force_zeros_for_empty_prompt": zeros}
    return {"requires_safety_checker": False} if "safety_checker" in kind.without else {}
