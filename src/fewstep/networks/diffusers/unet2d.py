"""The U-Net of diffusers' unconditional and class-conditional pipelines (``UNet2DModel``), rebuilt
from its configuration; see ``backbone``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fewstep.condition import NO_CLASS, Condition
from fewstep.errors import UserError
from fewstep.networks.diffusers.backbone import DiffusersNetwork, made
from fewstep.networks.kinds.registry import register
from fewstep.values import Given


@register("diffusers-unet2d")
class DiffusersUNet(DiffusersNetwork):
    """(B, C, H, W), noise labels (B,), condition -> (B, C, H, W).

    ``config``: the arguments of ``UNet2DModel``, plain values. ``classes``: its number of class
    embeddings, or one fewer: the last embedding is then "no class", which is the label -1, and what
    samples without labels get.

    Raises ``UserError`` when diffusers is missing, for an argument that it does not know, and for
    networks with other conditions or without a middle block.
    """

    def __init__(self, config: Annotated[Mapping[str, Any], Given()], classes: int = 0):
        embeddings = config.get("num_class_embeds") or 0
        if config.get("class_embed_type") is not None or embeddings not in (classes, classes + 1 if classes else 0):
            embedded = f"{embeddings} classes of type {config.get('class_embed_type')}"
            raise UserError(f"network 'diffusers-unet2d': its configuration embeds {embedded}, not {classes} labels.")
        super().__init__(made("diffusers-unet2d", "UNet2DModel", config))
        self.classes = classes
        self.has_null = embeddings > classes

    def conditioned(self, condition: Condition, x: Tensor) -> dict[str, Any]:
        return {"class_labels": self._labels(condition, len(x))}

    def _labels(self, condition: Condition, rows: int) -> Tensor | None:
        """Class ids (B,), or None for a network without classes.

        Raises ``UserError`` for a label that it has no embedding for.
        """
        if not self.classes:
            return None
        labels = condition.labels
        if labels is None and self.has_null:
            return torch.full((rows,), self.classes, device=self.leave.weight.device)
        if labels is not None and labels.is_meta:
            # There ids have no values to be looked at, and sizes are all that is asked for.
            return torch.zeros(rows, dtype=torch.int64, device="meta")
        lowest = NO_CLASS if self.has_null else 0
        if (
            labels is None
            or labels.ndim != 1
            or labels.is_floating_point()
            or int(labels.min()) < lowest
            or int(labels.max()) >= self.classes
        ):
            null = ", or -1 for 'no class'" if self.has_null else ": it has no embedding for 'no class'"
            raise UserError(
                f"diffusers' class-conditional U-Net needs a class from 0 to {self.classes - 1} for each sample{null}."
            )
        return torch.where(labels == NO_CLASS, self.classes, labels)
