"""Prompts to what a text-to-image model is conditioned on, as diffusers' pipelines encode them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.system.files import digest_of
from fewstep.zoo.pipelines.encoders.tokens import contents_of


@dataclass(frozen=True, eq=False)
class Tower:
    """A tokenizer and the CLIP text model that reads its tokens; ``where``: for sentences."""

    tokenizer: Any
    model: nn.Module
    where: str


class TextEncoder(nn.Module):
    """Called as ``encoder(prompts) -> {"text": (B, length, D)}``; with two towers (SDXL) also
    ``"pooled": (B, P)``. Frozen, in float32 and without gradients.

    One tower gives the last layer's states after its norm. Of two, the states before the last layer
    are set side by side, and the second tower's projection of the whole text is the pooled one.
    Prompts of more than ``length`` tokens are cut, as diffusers cuts them; ``rows`` prompts are
    encoded at a time. ``zeros_for_empty``: whether the unconditional prompt is zeros.

    Raises ``UserError`` for a tokenizer that does not belong to its model.
    """

    rows: int = 32

    def __init__(self, towers: Sequence[Tower], zeros_for_empty: bool = False):
        super().__init__()
        self.zeros_for_empty = zeros_for_empty
        self.models = nn.ModuleList(tower.model for tower in towers)
        self.tokenizers = [tower.tokenizer for tower in towers]
        self._contents = [contents_of(tower.tokenizer, tower.where) for tower in towers]
        lengths = [length_of(tower) for tower in towers]
        if len(set(lengths)) != 1:
            raise UserError(
                f"{towers[-1].where}: takes {lengths[-1]} tokens and the first encoder {lengths[0]}; both must take as "
                "many, take encoders of one pipeline."
            )
        self._limit = lengths[0]
        self.requires_grad_(False).eval()

    @property
    def length(self) -> int:
        """How many tokens a prompt has, special ones included; longer ones are cut, shorter ones
        padded.
        """
        return self._limit

    @property
    def width(self) -> int:
        """D, the size of a token's embedding."""
        return sum(self._settings(index).hidden_size for index in range(len(self.models)))

    @property
    def pooled_width(self) -> int | None:
        """P, the size of the whole text's embedding; None where there is none."""
        return self._settings(1).projection_dim if len(self.models) == 2 else None

    @property
    def makes(self) -> Mapping[str, int]:
        """The tensors, by name with the size of their last dimension."""
        pooled = self.pooled_width
        return {"text": self.width, **({} if pooled is None else {"pooled": pooled})}

    @property
    def identity(self) -> str:
        """The SHA-256, in hexadecimal, of weights, tokenizers and lengths. Files of another form or
        floating type with equal values have one identity.
        """
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        settings = [self._settings(index) for index in range(len(self.models))]
        besides = {
            "tokenizers": self._contents,
            "length": self.length,
            "zeros": self.zeros_for_empty,
            "settings": [(each.eos_token_id, each.hidden_act, each.num_attention_heads) for each in settings],
        }
        tensors = {
            f"{index}.{name.removeprefix('text_model.')}": value
            for index, model in enumerate(self.models)
            for name, value in model.state_dict().items()
        }
        return digest_of(tensors, besides)

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has before it is cut, special ones included."""
        return max(len(tokenizer(prompt, verbose=False).input_ids) for tokenizer in self.tokenizers)

    def forward(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See the class's docstring."""
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError("a text encoder takes a list of prompts, each a text: give [prompt] for a single one.")
        if not prompts:
            raise UserError("a text encoder was given no prompts: give at least one.")
        with torch.no_grad():
            blocks = [self._block(list(prompts[at : at + self.rows])) for at in range(0, len(prompts), self.rows)]
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def null(self) -> dict[str, Tensor]:
        """What the unconditional prompt is encoded as, of one row: the empty prompt, or zeros where
        the pipeline says so.
        """
        empty = self([""])
        return {name: torch.zeros_like(value) for name, value in empty.items()} if self.zeros_for_empty else empty

    def _block(self, prompts: list[str]) -> dict[str, Tensor]:
        states, pooled = [], None
        for tokenizer, model in zip(self.tokenizers, self.models, strict=True):
            ids = tokenizer(
                prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            ).input_ids
            device = next(model.parameters()).device
            with torch.autocast(device.type, enabled=False):
                found = model(ids.to(device), output_hidden_states=True, return_dict=True)
            if len(self.models) == 1:
                return {"text": found.last_hidden_state}
            states.append(found.hidden_states[-2])
            pooled = found
        assert pooled is not None
        return {"text": torch.cat(states, dim=-1), "pooled": pooled.text_embeds}

    def _settings(self, index: int) -> Any:
        model: Any = self.models[index]
        return model.config


def length_of(tower: Tower) -> int:
    """The number of tokens that a tower takes."""
    model: Any = tower.model
    tokens, known = len(tower.tokenizer), model.config.vocab_size
    if tokens > known:
        raise UserError(
            f"{tower.where}: its tokenizer has {tokens} tokens and its text model {known}; take both from one pipeline."
        )
    if not isinstance(tower.tokenizer.model_max_length, int) or tower.tokenizer.model_max_length < 2:
        raise UserError(
            f"{tower.where}: has {tower.tokenizer.model_max_length!r:.40} for model_max_length, which must be at least "
            "2; correct tokenizer_config.json."
        )
    # A tokenizer that does not know its limit says a very large number.
    return min(tower.tokenizer.model_max_length, model.config.max_position_embeddings)
