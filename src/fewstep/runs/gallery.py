"""A picture of a student's worst samples: what a distance over thousands of samples does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fewstep.data import Dataset
from fewstep.ledger import keeping
from fewstep.metrics.features import Features
from fewstep.metrics.frechet import features_of
from fewstep.metrics.worst import farthest
from fewstep.random import Place
from fewstep.runs.folder import RunFolder
from fewstep.runs.pictures import write_samples
from fewstep.runs.sampler import StudentSampler

SHOWN = 40
ROWS = 1000
"""Samples among which the worst are looked for."""
MOST_DATA = 5000


@torch.no_grad()
def write_worst(folder: RunFolder, student: StudentSampler, data: Dataset, features: Features, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Writes ``samples/worst.png``: of ``ROWS`` samples the ``SHOWN`` farthest from all of at most ``MOST_DATA`` samples of the data, the farthest first.

    Returns their indices among the samples of ``Place(seed, "worst")``, classes and distances.
    """
    labels = data.proportional_labels(ROWS) if student.classes else None
    samples = student.draw(Place(seed, "worst"), ROWS, labels, student.usual_steps).clamp(student.low, student.high)
    some = data.subset(torch.arange(min(len(data), MOST_DATA)) * len(data) // min(len(data), MOST_DATA))
    real = torch.cat([features(block).cpu() for block in some.blocks()])
    found = farthest(real, features_of(samples, features).cpu(), SHOWN)
    shown = samples[found.indices]
    with keeping(folder.path, say):
        write_samples(folder.samples / "worst.png", shown, student.low, student.high, data=some.take(torch.arange(len(some))) if shown.ndim == 2 else None)
    return {
        "samples": ROWS,
        "indices": found.indices.tolist(),
        "classes": None if labels is None else labels[found.indices].tolist(),
        "distances": found.distances.tolist(),
        "median": found.usual,
    }
