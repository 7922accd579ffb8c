"""Text encoders of the newer pipelines, asked by diffusers' own code: T5, Gemma and Qwen beside
CLIP.

Each pipeline has its templates, its cuts and its masks. Its own ``encode_prompt`` knows them, and
is called on a pipeline that has text encoders and tokenizers and nothing else. What it gives is
padded to one length, so that all prompts have one shape.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.system.files import digest_of
from fewstep.zoo.pipelines.encoders.text_models import quietly
from fewstep.zoo.pipelines.pipeline_kinds import PipelineKind

Rows = dict[str, Tensor]


@dataclass(frozen=True)
class _Asked:
    """How a pipeline is asked: ``encode`` gives the tensors of prompts, each cut at a ``length`` of
    tokens; ``empty``: the unconditional prompt; ``told``: what a prompt becomes before it is read.
    """

    encode: Callable[[Any, list[str], int, bool], Rows]
    length: int
    empty: str = ""
    told: Callable[[Any, str], str] = lambda tokenizer, prompt: prompt


class PipelineEncoder(nn.Module):
    """Called as ``encoder(prompts) -> {"text": (B, length, D), ...}``, with ``"pooled": (B, P)`` or
    ``"mask": (B, length)`` where the pipeline has such. Frozen, in float32 and without gradients.

    ``name``: the class of the pipeline, of the ``kind`` that is read. ``network``: its network's
    configuration, which says how wide a text is that no model reads. ``models`` and
    ``tokenizers``: its parts by name. ``rows`` prompts are encoded at a time.

    Raises ``UserError`` for a tokenizer that cannot say what it is made of.
    """

    rows: int = 8
    zeros_for_empty = False

    def __init__(
        self,
        name: str,
        kind: PipelineKind,
        network: Mapping[str, Any],
        models: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
    ):
        import diffusers

        super().__init__()
        self.asked = _ASKED[name]
        self.models = nn.ModuleDict(models)
        self.tokenizers = dict(tokenizers)
        for part, tokenizer in tokenizers.items():
            if not tokenizer.is_fast:
                raise UserError(
                    f"{part}: is a {type(tokenizer).__name__} without tokenizer.json, by which prompts are known; save "
                    "it with a newer transformers."
                )
        with quietly():
            # Parts of it that are not used here would be spoken of when it is imported.
            cls: Any = getattr(diffusers, name)
        parts = (each for each in inspect.signature(cls.__init__).parameters if each != "self")
        lacking = {each: None for each in parts if each in (*kind.parts, *kind.tokenizers, *kind.without, "scheduler")}
        # In a tuple, where nn.Module does not look: its models are ours.
        self._pipeline = (cls(**{**lacking, **models, **tokenizers}),)
        vars(self._pipeline[0])[kind.network] = SimpleNamespace(config=SimpleNamespace(**network))
        self._name = name
        self.requires_grad_(False).eval()

    @property
    def length(self) -> int:
        """How many tokens a prompt has; longer ones are cut, shorter ones padded."""
        return self.asked.length

    @property
    def makes(self) -> Mapping[str, int]:
        """The tensors, by name with the size of their last dimension."""
        return {name: value.shape[-1] for name, value in self.null().items() if name != "mask"}

    @property
    def identity(self) -> str:
        """The SHA-256, in hexadecimal, of weights, tokenizers, the class and the length."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        besides = {
            "class": self._name,
            "length": self.length,
            "tokenizers": {part: _contents(each) for part, each in self.tokenizers.items()},
            "settings": {part: _settings(model) for part, model in self.models.items()},
        }
        tensors = {
            f"{part}.{name}": value for part, model in self.models.items() for name, value in model.state_dict().items()
        }
        return digest_of(tensors, besides)

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has before it is cut, special ones and the pipeline's own words
        included.
        """
        tokenizer = list(self.tokenizers.values())[-1]
        return len(tokenizer(self.asked.told(tokenizer, prompt), verbose=False).input_ids)

    def forward(self, prompts: Sequence[str]) -> Rows:
        """See the class's docstring."""
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError("a text encoder takes a list of prompts, each a text: give [prompt] for a single one.")
        if not prompts:
            raise UserError("a text encoder was given no prompts: give at least one.")
        blocks = [self._block(list(prompts[at : at + self.rows]), True) for at in range(0, len(prompts), self.rows)]
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def null(self) -> Rows:
        """What the unconditional prompt is encoded as, of one row."""
        return self._block([self.asked.empty], False)

    def _block(self, prompts: list[str], instructed: bool) -> Rows:
        device = next(self.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            (pipeline,) = self._pipeline
            return self.asked.encode(pipeline, prompts, self.length, instructed)


def _stable_diffusion_3(pipeline: Any, prompts: list[str], length: int, instructed: bool) -> Rows:
    found = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length, device=_device(pipeline)
    )
    return {"text": found[0], "pooled": found[2]}


def _flux(pipeline: Any, prompts: list[str], length: int, instructed: bool) -> Rows:
    text, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=length, device=_device(pipeline))
    return {"text": text, "pooled": pooled}


def _masked(pipeline: Any, prompts: list[str], length: int, instructed: bool) -> Rows:
    """PixArt's and Sana's; Sana's calls put an instruction before a prompt, and none before what
    guidance goes away from.
    """
    asked = inspect.signature(type(pipeline).__call__).parameters.get("complex_human_instruction")
    instruction = {} if asked is None or not instructed else {"complex_human_instruction": asked.default}
    text, mask, *_ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=length, device=_device(pipeline), **instruction
    )
    return {"text": text, "mask": mask.to(text.dtype)}


def _qwen_image(pipeline: Any, prompts: list[str], length: int, instructed: bool) -> Rows:
    text, mask = pipeline.encode_prompt(prompts, max_sequence_length=length, device=_device(pipeline))
    kept = torch.ones(text.shape[:2]) if mask is None else mask
    return _padded([row[here.bool()] for row, here in zip(text, kept, strict=True)], length)


def _z_image(pipeline: Any, prompts: list[str], length: int, instructed: bool) -> Rows:
    found, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=length, device=_device(pipeline)
    )
    return _padded(found, length)


def _padded(rows: Sequence[Tensor], length: int) -> Rows:
    """Rows of tokens (L_i, D), L_i at most ``length``, with zeros behind and a mask."""
    text = torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
    counts = torch.tensor([len(row) for row in rows], device=text.device)
    mask = torch.arange(length, device=text.device) < counts[:, None]
    return {"text": text, "mask": mask.to(text.dtype)}


def _chat(tokenizer: Any, prompt: str) -> str:
    said: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return said


def _device(pipeline: Any) -> torch.device:
    models = (each for each in pipeline.components.values() if isinstance(each, nn.Module))
    return next(next(models).parameters()).device


_ASKED: Mapping[str, _Asked] = {
    "StableDiffusion3Pipeline": _Asked(_stable_diffusion_3, 256),
    "FluxPipeline": _Asked(_flux, 512),
    "PixArtAlphaPipeline": _Asked(_masked, 120),
    "PixArtSigmaPipeline": _Asked(_masked, 300),
    "SanaPipeline": _Asked(_masked, 300),
    # Its empty prompt is a blank: of nothing its template leaves no token.
    "QwenImagePipeline": _Asked(_qwen_image, 512, " "),
    "ZImagePipeline": _Asked(_z_image, 512, "", _chat),
}


_PASSING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


def _contents(tokenizer: Any) -> dict[str, Any]:
    """What decides the tokens of a text, but for how a call asks them to be cut and padded."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        **{name: value for name, value in told.items() if name not in ("truncation", "padding")},
        "template": tokenizer.chat_template,
        "side": tokenizer.padding_side,
        "pad": tokenizer.pad_token_id,
    }


def _settings(model: Any) -> dict[str, Any]:
    """The plain values of a model's configuration that may change what it computes."""
    plain: dict[str, Any] = json.loads(json.dumps(model.config.to_dict(), default=str, sort_keys=True))
    return _lasting(plain)


def _lasting(plain: dict[str, Any]) -> dict[str, Any]:
    """Without what a file says of itself, and of how it is to be computed."""
    return {
        name: _lasting(value) if isinstance(value, dict) else value
        for name, value in plain.items()
        if name not in _PASSING
    }
