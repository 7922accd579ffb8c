"""The shipped text-to-image model of scenes, as parts: what data is made with before its denoiser
is trained, and how the folder is put together from what the recipes trained.

``scenes-codec`` and ``scenes-words`` come first; ``scenes-teacher`` is trained on the latents and
embeddings that both make *as they ship*, in float16. The folder is one that diffusers'
``StableDiffusionPipeline`` opens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fewstep.data import Prompts
from fewstep.data.prompts.embeddings import EmbeddedPrompts
from fewstep.data.prompts.fill import embed
from fewstep.data.scenes import Scenes
from fewstep.data.scenes.scene_latents import SceneLatents
from fewstep.data.scenes.tokenizer import write_tokenizer
from fewstep.denoisers import NetworkDenoiser, load_model
from fewstep.errors import UserError
from fewstep.networks import CaptionReader, CaptionUNet, Codec, PatchAutoencoder
from fewstep.networks.kinds.network_files import load_network
from fewstep.schedule import DiscreteVP
from fewstep.system.files import write_bytes, write_text
from fewstep.zoo.diffusers_weights import find_weights, read_configuration, read_weights
from fewstep.zoo.pipelines.encoders.text_encoder import TextEncoder, Tower
from fewstep.zoo.pipelines.encoders.tokens import read_tokenizer
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER
from fewstep.zoo.pipelines.rebuilding import NO_WEIGHTS, codec, text_model
from fewstep.zoo.shipped import shipped_pipeline

NAME = "scenes"
SCHEDULE = DiscreteVP("scaled_linear", 1000, 0.00085, 0.012)
"""Stable Diffusion's."""

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"


def scene_latents(scenes: Scenes) -> SceneLatents:
    """Scenes by the codec and the text encoder that ship.

    Raises ``UserError`` when diffusers or transformers is missing.
    """
    encoder = scene_encoder()

    def embedded(captions: Sequence[str]) -> EmbeddedPrompts:
        return embed(Prompts(tuple(captions)), lambda: encoder, encoder.identity)

    return SceneLatents(scenes, scene_codec(), embedded, encoder.identity)


def scene_codec() -> Codec:
    """The shipped codec, (3, 32, 32) in [-1, 1] to (16, 8, 8) and back; made by
    ``scenes-codec``.
    """
    config, tensors, where, source = _part("vae", _DIFFUSERS)
    made = codec("AutoencoderKL", config, lambda: tensors, where, source)
    made.rows = 100
    return made


def scene_encoder() -> TextEncoder:
    """The shipped text encoder of captions; made by ``scenes-words``."""
    config, tensors, where, source = _part("text_encoder", _TRANSFORMERS)
    model = text_model(False, config, lambda: tensors, where, source)
    return TextEncoder([Tower(read_tokenizer(shipped_pipeline(NAME) / "tokenizer"), model, str(where))])


def write_parts(codec_file: Path, words_file: Path, folder: Path) -> None:
    """Writes codec, text encoder, tokenizer and scheduler of a pipeline's ``folder`` from the
    ``model.safetensors`` of runs of ``scenes-codec`` and ``scenes-words``.

    Raises ``UserError`` for files of other networks.
    """
    import diffusers

    autoencoder, words = load_network(codec_file), load_network(words_file)
    if not isinstance(autoencoder, PatchAutoencoder):
        raise UserError(f"{codec_file}: is no codec of patches; give the model of a run of 'scenes-codec'.")
    if not isinstance(words, CaptionReader):
        raise UserError(f"{words_file}: is no reader of captions; give the model of a run of 'scenes-words'.")
    vae = autoencoder.codec.vae
    _write(folder / "vae", _DIFFUSERS, vae.state_dict(), {**vae.config, "_class_name": "AutoencoderKL"})
    # Files of version 4 of transformers have this before the names, which version 5 reads as well.
    tensors = {f"text_model.{_bare(name)}": value for name, value in words.model.state_dict().items()}
    config = {**words.model.config.to_dict(), "architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    # Its file is half as large as what is computed with: both names, since versions differ.
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    _write(folder / "text_encoder", _TRANSFORMERS, tensors, config)
    write_tokenizer(folder / "tokenizer")
    scheduler: Any = diffusers.DDIMScheduler(
        num_train_timesteps=SCHEDULE.steps,
        beta_start=SCHEDULE.beta_start,
        beta_end=SCHEDULE.beta_end,
        beta_schedule=SCHEDULE.betas,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    (folder / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
    _write_json(folder / SCHEDULER, {**scheduler.config, "_class_name": "DDIMScheduler"})


def write_denoiser(teacher_file: Path, folder: Path) -> None:
    """Writes the U-Net and the index of a pipeline's ``folder`` from the ``model.safetensors`` of a
    run of ``scenes-teacher``.

    Raises ``UserError`` for a file of another model.
    """
    teacher, _ = load_model(teacher_file)
    if not isinstance(teacher, NetworkDenoiser) or not isinstance(teacher.network, CaptionUNet):
        raise UserError(f"{teacher_file}: is no U-Net with captions; give the model of a run of 'scenes-teacher'.")
    if teacher.schedule != SCHEDULE:
        raise UserError(f"{teacher_file}: was trained with another schedule; give the model of 'scenes-teacher'.")
    unet = teacher.network.unet
    _write(folder / "unet", _DIFFUSERS, unet.state_dict(), {**unet.config, "_class_name": "UNet2DConditionModel"})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / INDEX, index)


def _part(name: str, stem: str) -> tuple[dict[str, Any], Mapping[str, Tensor], Path, str]:
    """A part's configuration and tensors, and where both are, for sentences."""
    folder = shipped_pipeline(NAME) / name
    files, _ = find_weights(folder, stem, None, "variant")
    return read_configuration(folder / "config.json"), read_weights(files, NO_WEIGHTS), folder, files.name


def _write(folder: Path, stem: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: value.detach().half().contiguous().clone() for name, value in sorted(tensors.items())}
    write_bytes(folder / f"{stem}.safetensors", save(halves, metadata={"format": "pt"}))
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    # What begins so is where and by which version it was written, but for the class.
    plain = {key: value for key, value in content.items() if not key.startswith("_") or key == "_class_name"}
    write_text(path, json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")
