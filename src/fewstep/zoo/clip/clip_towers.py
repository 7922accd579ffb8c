"""Both encoders of a CLIP model: pictures and captions as vectors of length 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.zoo.clip.clip_pictures import ClipPictures
from fewstep.zoo.pipelines.encoders.text_encoder import Tower, length_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class ClipTowers(nn.Module):
    """``of_pictures`` and ``of_texts`` give embeddings (N, d) of length 1, on the CPU; frozen, in
    float32 and without gradients.

    ``pictures``: how pictures are read; ``where``: for sentences. A caption of more tokens than
    the model reads is cut, as transformers cuts it. ``rows``: how many are embedded at a time, on
    which the last bits depend. Raises ``UserError`` for a tokenizer of another model.
    """

    rows: int = 32

    def __init__(self, model: nn.Module, tokenizer: Any, pictures: ClipPictures, where: str):
        super().__init__()
        self.model, self.tokenizer, self.pictures, self.where = model, tokenizer, pictures, where
        text: Any = model.text_model
        self._length = length_of(Tower(tokenizer, text, where))
        self.requires_grad_(False).eval()

    @property
    def length(self) -> int:
        """How many tokens of a caption are read, special ones included."""
        return self._length

    def tokens(self, text: str) -> int:
        """How many tokens a caption has before it is cut, special ones included."""
        return len(self.tokenizer(text, verbose=False).input_ids)

    def of_pictures(self, pictures: Sequence[Picture]) -> Tensor:
        """Of pictures in RGB, of any sizes."""
        return torch.cat(list(self._embedded_pictures(pictures)))

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Of captions; an empty one has an embedding too."""
        return torch.cat(list(self._embedded_texts(texts)))

    def _embedded_pictures(self, pictures: Sequence[Picture]) -> Iterator[Tensor]:
        model: Any = self.model
        for start in range(0, len(pictures), self.rows):
            read = torch.stack([self.pictures(each) for each in pictures[start : start + self.rows]])
            with torch.no_grad():
                pooled = model.vision_model(read.to(self._device), return_dict=True).pooler_output
                yield self._of_length_1(model.visual_projection(pooled), "a picture")

    def _embedded_texts(self, texts: Sequence[str]) -> Iterator[Tensor]:
        model: Any = self.model
        for start in range(0, len(texts), self.rows):
            ids = self.tokenizer(
                list(texts[start : start + self.rows]),
                padding="max_length",
                max_length=self.length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            with torch.no_grad():
                pooled = model.text_model(ids.to(self._device), return_dict=True).pooler_output
                yield self._of_length_1(model.text_projection(pooled), "a caption")

    def _of_length_1(self, embeddings: Tensor, of: str) -> Tensor:
        lengths = embeddings.norm(dim=1, keepdim=True)
        if not bool((lengths > 0).all() & lengths.isfinite().all()):
            raise UserError(
                f"{self.where}: embeds {of} as a vector of length 0 or without end, which has no direction; the "
                "weights are no trained CLIP's."
            )
        return (embeddings / lengths).cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
