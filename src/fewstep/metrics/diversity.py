r"""How different the samples of one class are: DDIL's diversity (Garrepalli et al. 2024, Sec. 5,
"LPIPS Diversity", there a prompt for a class).

For each class c, with features f of its n_c samples, which differ by their seeds,

    d_c = 1 / (n_c (n_c - 1)) sum_{i != j} |f_i - f_j|,       diversity = mean over classes of d_c.

Classes count alike, whatever their sizes; the estimate of each d_c has no bias. For Gaussian
features N(m, s^2) in one dimension d_c = 2 s / sqrt(pi). A number by itself says little, since its
unit is the feature space's, so it is reported relative to the data's own: 1 is as diverse as the
data, 0 is one sample a class.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.manifold import BLOCK, distances


def diversities(features: Tensor, labels: Tensor | None) -> dict[int, float]:
    """Class -> mean pairwise distance of its features (N, d), for classes of at least 2 samples;
    labels (N,) int64, None for one class (0).
    """
    if features.ndim != 2 or (labels is not None and labels.shape != features.shape[:1]):
        shape = None if labels is None else tuple(labels.shape)
        raise UserError(
            f"diversity is taken of features (N, d) and labels (N,), got {tuple(features.shape)} and {shape}."
        )
    if labels is None:
        labels = torch.zeros(len(features), dtype=torch.int64)
    parts = {int(label): features[labels == label] for label in labels.unique()}
    return {label: _mean_distance(part) for label, part in parts.items() if len(part) >= 2}


def class_diversity(features: Tensor, labels: Tensor | None) -> float:
    """The module's diversity, >= 0; raises ``UserError`` if no class has 2 samples."""
    return _mean(diversities(features, labels))


def relative_diversity(generated: Tensor, labels: Tensor | None, real: Tensor, real_labels: Tensor | None) -> float:
    """The diversity of generated features (M, d) divided by that of real ones (N, d), each averaged
    over the classes that both have twice; labels as in ``diversities``.

    Raises ``UserError`` if there is no such class, or if the data's samples are all equal.
    """
    ours, theirs = diversities(generated, labels), diversities(real, real_labels)
    common = ours.keys() & theirs.keys()
    own = _mean({label: theirs[label] for label in common})
    if own == 0:
        raise UserError(
            "diversity relative to the data needs data whose samples differ within a class; these are all "
            "equal in feature space."
        )
    return _mean({label: ours[label] for label in common}) / own


def _mean(by_class: dict[int, float]) -> float:
    if not by_class:
        raise UserError("diversity needs a class with at least 2 samples; give more samples.")
    # In the order of classes, so that the sum's rounding does not depend on a set's.
    return statistics.fmean(by_class[label] for label in sorted(by_class))


def _mean_distance(features: Tensor) -> float:
    total = sum(float(distances(part, features).sum()) for part in features.split(BLOCK))
    return total / (len(features) * (len(features) - 1))


def spread(samples: Tensor, labels: Tensor | None = None) -> float:
    """Root mean square distance a dimension of samples (N, *D) from the mean of their class (of
    all, without labels (N,)).
    """
    flat = samples.flatten(1).double().cpu()
    labels = torch.zeros(len(flat), dtype=torch.int64) if labels is None else labels.cpu()
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).double()
    means = torch.zeros(classes, flat.shape[1], dtype=torch.float64).index_add_(0, labels, flat) / counts[:, None]
    return float((flat - means[labels]).square().mean().sqrt())


def outside(samples: Tensor, low: float, high: float, margin: float) -> float:
    """The fraction of values below ``low`` or above ``high`` by more than ``margin`` times the
    range; a negative margin moves the bounds inwards.
    """
    slack = margin * (high - low)
    return float(((samples < low - slack) | (samples > high + slack)).double().mean())
