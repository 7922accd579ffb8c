"""DiT (Peebles and Xie 2022): classes, and beside eps a variance, which is dropped.

It is told a timestep. The embedding after that of the last class is that of "no class".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.networks.families.transformer import DiffusersTransformer
from fewstep.networks.kinds.registry import register
from fewstep.values import Given


@register("diffusers-dit")
class DiT(DiffusersTransformer):
    """See the module's docstring; ``config``: the arguments of ``DiTTransformer2DModel``.

    Of a condition it reads ``labels`` (B,), of which -1 is none.
    """

    class_name = "DiTTransformer2DModel"
    last_layer = "proj_out_2"
    adapted_by_default = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __init__(self, config: Annotated[Mapping[str, Any], Given()]):
        super().__init__(config)
        self.classes = int(self.transformer.config.num_embeds_ada_norm)

    def _width(self) -> int:
        return int(self.transformer.inner_dim)

    def called(self, x: Tensor, noise_label: Tensor, condition: Condition) -> dict[str, Any]:
        labels = condition.labels
        if labels is None:
            labels = noise_label.new_full((len(x),), -1).long()
        if labels.is_meta:
            # Sizes alone are asked for, also by shares of classes.
            labels = torch.zeros(len(x), dtype=torch.int64, device="meta")
        # Which they are is not asked here: the answer would be waited for at each call.
        if labels.ndim != 1:
            raise UserError(
                f"this network is told one of {self.classes} classes a sample, or -1 for none, and was given labels of "
                f"shape {tuple(labels.shape)}; give a class a sample."
            )
        return {"hidden_states": x, "timestep": noise_label, "class_labels": labels.remainder(self.classes + 1)}

    def emitted(self, output: Any, x: Tensor) -> Tensor:
        found: Tensor = output[:, : x.shape[1]]
        return found

    @classmethod
    def shape_in(cls, config: Mapping[str, Any], side: int | None) -> tuple[int, int, int]:
        side = side or config.get("sample_size", 32)
        return config.get("in_channels", 4), side, side
