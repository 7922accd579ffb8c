"""A picture of a student's worst samples: what a distance over thousands of samples does not
show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.condition import Conditions
from fewstep.data import Dataset
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.metrics.features import Features
from fewstep.metrics.frechet import features_of
from fewstep.metrics.manifold import farthest
from fewstep.metrics.quality import labels_of
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.recipes.config import Evaluation
from fewstep.runs.pictures.sample_files import captions_below, write_captions, write_samples
from fewstep.runs.sampler import StudentSampler, TeacherSampler, labels_for
from fewstep.system.files import write_text
from fewstep.system.ledger import keeping
from fewstep.targets import DegradationPath

SHOWN = 40
ROWS = 1000
"""Samples among which the worst are looked for."""
MOST_DATA = 5000


@torch.no_grad()
def write_worst(
    folder: RunFolder,
    student: StudentSampler,
    data: Dataset,
    features: Features,
    seed: int,
    say: Callable[[str], None],
    which: Which = "last",
) -> dict[str, Any]:
    """Writes ``samples/worst.png``, of the best student ``samples/worst-best.png``: of ``ROWS``
    samples the ``SHOWN`` farthest from all of at most ``MOST_DATA`` samples of the data, the
    farthest first; images with their captions.

    Returns their indices among the samples of ``Key(seed, "worst")``, classes and distances.
    """
    labels = labels_of(data, ROWS, student.classes) if student.classes else None
    shown_by = student.pictured
    samples = shown_by.draw(Key(seed, "worst"), ROWS, labels, student.usual_steps).clamp(shown_by.low, shown_by.high)
    some = data.subset(torch.arange(min(len(data), MOST_DATA)) * len(data) // min(len(data), MOST_DATA))
    real = torch.cat([features(block).cpu() for block in some.blocks()])
    found = farthest(real, features_of(samples, features).cpu(), SHOWN)
    shown = samples[found.indices]
    picture = folder.samples / ("worst-best.png" if which == "best" else "worst.png")
    with keeping(folder.path, say):
        write_samples(
            picture,
            shown,
            shown_by.low,
            shown_by.high,
            data=some.take(torch.arange(len(some))) if shown.ndim == 2 else None,
        )
        if shown.ndim == 4:
            numbers = None if labels is None else labels[found.indices]
            write_captions(picture, captions_below(student.owner, numbers, data.names))
    return {
        "samples": ROWS,
        "indices": found.indices.tolist(),
        "classes": None if labels is None else labels[found.indices].tolist(),
        "distances": found.distances.tolist(),
        "median": found.usual,
    }


STEPS = 18


def write_path_picture(
    folder: Path,
    path: DegradationPath,
    conditions: Conditions,
    codec: Codec | None,
    evaluation: Evaluation,
) -> None:
    """Writes ``path.png``, a row of samples a node from the same noise, and ``path.json`` with the
    rows' names; images only. ``codec``: makes pictures of latents, None where samples are pictures.

    A model of the nodes' kind, the frozen teacher where they are copies of it, is every node in
    turn, and itself again at the end: one that is sharded cannot be copied.
    """
    if len(path.teacher.shape) != 3:
        return
    carrier = path.carrier
    own = {name: value.detach().clone() for name, value in carrier.state_dict().items()}
    solver, batch = evaluation.solver, evaluation.batch
    sampler = TeacherSampler(
        -1.0, 1.0, carrier, solver.rule, solver.grid, conditions, codec=codec, batch=batch
    ).pictured
    labels = labels_for(10, None, sampler.classes)
    rows = []
    try:
        for node in range(path.last + 1):
            path.load(node, carrier)
            rows.append(sampler.draw(Key(0, "path"), 10, labels, STEPS))
    finally:
        carrier.load_state_dict(own)
    write_samples(folder / "path.png", torch.cat(rows), -1.0, 1.0, columns=10)
    write_text(
        folder / "path.json", json.dumps({"rows": ["teacher", *(f"node {i}" for i in range(1, path.last + 1))]}) + "\n"
    )
