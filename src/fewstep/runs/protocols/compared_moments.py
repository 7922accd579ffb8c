"""What Frechet distances of pictures are to: the moments of real pictures, computed once and kept
by what decides them, or those of a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.data.pixels import reading_rules
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import FeatureStatistics
from fewstep.metrics.stored.kept_moments import KeptMoments
from fewstep.metrics.stored.moments import Moments
from fewstep.metrics.stored.reference import Reference, load_reference
from fewstep.runs.protocols.picture_sets import TOGETHER, PictureSet, PictureView
from fewstep.runs.teacher_reference import shipped_moments
from fewstep.training.saving.origin_checks import DATA, Origins, difference, exchanged


def moments_of_set(
    pictures: PictureSet, view: PictureView, space: FeatureSpace, features: dict[str, Any], say: Callable[[str], None]
) -> FeatureStatistics:
    """The moments of a set, seen so, in a space; ``features``: all that decides the space. They are
    computed where they are not kept yet, which ``say`` is told.
    """
    made = {
        "pictures": pictures.digest,
        "reading": reading_rules(),
        "size": view.size,
        "patch": view.patch,
        "features": {**features, "space": space.name},
        "together": TOGETHER,
    }
    kept = KeptMoments(made, space.name, shipped_moments(), say)

    def compute() -> FeatureStatistics:
        say(f"the moments of {len(pictures):,} pictures of {pictures.source.path} are computed now, and kept.")
        return Moments.of_batches(pictures.features(view, space)).statistics()

    return kept.get(compute)


def fitting_reference(path: Path | str, space: FeatureSpace, dimensions: int, origins: Origins) -> Reference:
    """The statistics of a file, for features of ``dimensions`` in a space whose network has these
    ``origins``; their data may be any.

    Raises ``UserError`` for those of another space or network.
    """
    found = load_reference(path)
    if len(found.statistics.mean) != dimensions:
        raise UserError(
            f"{path}: holds statistics of {len(found.statistics.mean)} features, this run measures "
            f"{dimensions}; take both from one feature space."
        )
    if found.space not in (None, space.name):
        raise UserError(
            f"{path}: holds statistics in the feature space '{found.space}', this run measures in "
            f"'{space.name}'; write others by 'fewstep measure RUN --write-reference FILE'."
        )
    for key in (key for key in exchanged(found.origins, origins) if key != DATA):
        why = (
            f"holds statistics in the features of another network than '{key}' names now "
            f"({difference(key, found.origins, origins)})"
        )
        raise UserError(f"{path}: {why}; write others by 'fewstep measure RUN --write-reference FILE'.")
    return found
