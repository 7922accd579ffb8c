"""The nodes of a degradation path as rows of samples (DisBack, App. A.3)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fewstep.denoisers import NetworkDenoiser
from fewstep.files import write_text
from fewstep.random import Place
from fewstep.recipes.config import Evaluation
from fewstep.runs.pictures import write_samples
from fewstep.runs.sampler import TeacherSampler, labels_for
from fewstep.targets import DegradationPath

STEPS = 18


def write_path_picture(folder: Path, path: DegradationPath, teacher: NetworkDenoiser, evaluation: Evaluation) -> None:
    """Writes ``path.png``, a row of samples a node from the same noise, and ``path.json`` with the rows' names; images only.

    The frozen ``teacher`` is every node in turn, and itself again at the end: one that is sharded cannot be copied.
    """
    if len(teacher.shape) != 3:
        return
    own = {name: value.detach().clone() for name, value in teacher.state_dict().items()}
    sampler = TeacherSampler(-1.0, 1.0, teacher, evaluation.solver.rule, evaluation.solver.grid)
    rows = []
    try:
        for node in range(path.last + 1):
            path.load(node, teacher)
            rows.append(sampler.draw(Place(0, "path"), 10, labels_for(10, None, teacher.classes) if teacher.classes else None, STEPS))
    finally:
        teacher.load_state_dict(own)
    write_samples(folder / "path.png", torch.cat(rows), -1.0, 1.0, columns=10)
    write_text(folder / "path.json", json.dumps({"rows": ["teacher", *(f"node {i}" for i in range(1, path.last + 1))]}) + "\n")
