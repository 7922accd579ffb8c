"""A reader of captions: CLIP's text model that learns to tell what a caption says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import annotated_types as at
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.critics.reader import Reader
from fewstep.networks.kinds.registry import register
from fewstep.values import Few


@register("caption-reader")
class CaptionReader(Reader):
    """(B, length) numbers of tokens -> logits by attribute: transformers' ``CLIPTextModel``, and a
    linear head for each of ``attributes`` on the mean of its tokens' states.

    So trained, what a caption says is in the states as a sum of what its words say, in which a
    network that attends to them finds it at once. ``model``: the text model, a pipeline's encoder;
    the first and last tokens are the last two of ``vocabulary``, and captions are filled up with
    the last.

    Raises ``UserError`` for an attribute of fewer than two values or none, for a width that the
    heads of attention do not share, and when transformers is missing.
    """

    def __init__(
        self,
        attributes: Mapping[str, int],
        vocabulary: Annotated[int, at.Interval(ge=4, le=1_000_000)] = 166,
        length: Annotated[int, at.Interval(ge=2, le=1000)] = 16,
        width: Few = 64,
        layers: Annotated[int, at.Interval(ge=1, le=100)] = 2,
        heads: Few = 4,
    ):
        super().__init__()
        if not attributes or any(values < 2 for values in attributes.values()):
            raise UserError(f"caption reader: 'attributes' must have at least 2 values each, got {dict(attributes)}.")
        if width % heads:
            raise UserError(f"caption reader: 'heads' ({heads}) must divide 'width' ({width}).")
        try:
            from transformers import CLIPTextConfig, CLIPTextModel
        except ImportError as error:
            raise UserError("caption reader: needs transformers: pip install 'fewstep[diffusers]'.") from error
        self.shape: tuple[int, ...] = (length,)
        self.model: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=length,
                projection_dim=width,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        )
        self.heads = nn.ModuleDict({name: nn.Linear(width, values) for name, values in attributes.items()})

    def features(self, x: Tensor) -> Tensor:
        states: Tensor = self.model(x.long()).last_hidden_state
        return states.mean(dim=1)
