r"""How well pictures fit their captions: the CLIP score (Hessel et al. 2021), as papers on
distillation print it.

With embeddings v of a picture and c of its caption, the score of the picture is the cosine

    v . c / (|v| |c|),

in [-1, 1], and the figure is the mean over pictures. Papers print it plain (0.3 and some). Some
programs print 100 times the cosine, also cut off at 0; Hessel et al. have 2.5 times it, cut off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import UserError


def similarities(pictures: Tensor, captions: Tensor) -> Tensor:
    """The cosines (N,), float64, of embeddings (N, d) of pictures and of their captions.

    Raises ``UserError`` for other shapes, and for embeddings without a direction.
    """
    if pictures.ndim != 2 or pictures.shape != captions.shape or not len(pictures):
        raise UserError(
            f"a CLIP score is taken of embeddings (N, d) of pictures and captions, got {tuple(pictures.shape)} and "
            f"{tuple(captions.shape)}; give each picture one caption."
        )
    one, other = pictures.double(), captions.double()
    lengths = one.norm(dim=1) * other.norm(dim=1)
    if not bool(((lengths > 0) & torch.isfinite(lengths)).all()):
        raise UserError("a CLIP score is taken of embeddings with a direction; one is 0, or not finite.")
    return (one * other).sum(1) / lengths
