"""Runs on teachers of each family: whole copies and adapters, left and gone on with, planned,
sampled and exported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from family_folder_kit import NAMES, PROMPTS, family_pipeline, size_of
from family_kit import CASES
from fewstep.errors import UserError
from fewstep.runs import distill, export, load
from fewstep.training import Listener

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

# One family always, the others where time does not matter.
families = pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each == "sd3" else pytest.mark.slow) for each in NAMES]
)


class Leaves(Listener):
    """Interrupts a run at a step."""

    def __init__(self, at: int):
        self.at = at

    def step(self, step: int, note: str) -> None:
        if step == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            folder = tmp_path_factory.mktemp("teacher") / name
            family_pipeline(name, tmp_path_factory.mktemp("tokenizers")).save_pretrained(folder)
            self[name] = folder
            return folder

    return Made(made)


def recipe_of(name: str, folder: Path, adapters: bool) -> dict[str, Any]:
    """DisBack in 20 steps: 6 to record two nodes, 14 along the path."""
    network: dict[str, Any] = {"kind": "lora", "rank": 2, "alpha": 4.0} if adapters else {}
    optimizer = {"lr": 1e-3}
    return {
        "task": "distill",
        "teacher": {"kind": "pipeline", "path": str(folder), "size": size_of(name)},
        "prompts": {"kind": "list", "texts": PROMPTS},
        "student": {**(network or {"kind": "copy"}), **({"first_timestep": 399} if name == "pixart" else {})},
        "method": {
            "kind": "distribution-matching",
            "weighting": {"kind": "dmd"},
            "optimizer": optimizer,
            "fake": {
                **(network or {"kind": "learned"}),
                "weighting": {"kind": "eps"},
                "optimizer": optimizer,
                "updates": 1,
                "times": {"kind": "uniform", "low": 0.02, "high": 0.98},
            },
            "times": {"kind": "uniform", "low": 0.02, "high": 0.98},
        },
        "target": {
            "kind": "backtracked",
            "nodes": 3,
            "record": {"kind": "every", "steps": 3},
            "switch": {"kind": "every", "steps": 4},
            "optimizer": optimizer,
            "guidance": {"kind": "constant", "scale": 3.0},
            **({"recorded_as": "lora"} if adapters else {}),
        },
        "states": {"kind": "usual"},
        "reflected": {"kind": "none"},
        "data": None,
        "training": {"steps": 20, "batch": 2, "seed": 0, "log_every": 5, "checkpoint_every": 4, "health_every": 10},
        "evaluation": {
            "features": {"kind": "fourier"},
            "samples": 8,
            "draws": 1,
            "every": 20,
            "teacher_steps": [4],
            "student_steps": [1],
            "solver": {"rule": "euler", "grid": {"kind": "uniform"}},
            "batch": 4,
            "pictures": 2,
            "guidance": 3.0,
        },
    }


def written(path: Path, values: dict[str, Any]) -> Path:
    # As JSON, since a recipe has no aliases.
    path.write_text(json.dumps(values))
    return path


@families
@pytest.mark.parametrize(
    "adapters", [pytest.param(False, id="copies"), pytest.param(True, id="adapters", marks=pytest.mark.slow)]
)
def test_a_run_that_was_left_is_the_whole_run(name: str, adapters: bool, folders, tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", recipe_of(name, folders[name], adapters))
    whole = distill(file, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(file, out=tmp_path / "left", listeners=[Leaves(11)])
    again = distill(file, out=tmp_path / "left", resume=True)
    result = "adapter.safetensors" if adapters else "student.safetensors"
    assert (whole / result).read_bytes() == (again / result).read_bytes()
    assert (whole / "samples" / "final.png").read_bytes() == (again / "samples" / "final.png").read_bytes()
    latents = load(whole)(2, classes=0)
    assert latents.shape == (2, *CASES[name].shape)
    assert bool(latents.isfinite().all())
    if not adapters:
        out = export(whole, tmp_path / "out")
        assert (out / "transformer" / "config.json").is_file()


def test_a_grid_that_a_flow_has_not_is_one_sentence(folders, tmp_path: Path) -> None:
    values = recipe_of("sd3", folders["sd3"], adapters=False)
    values["evaluation"]["solver"] = {"rule": "euler", "grid": {"kind": "leading", "offset": 1}}
    with pytest.raises(UserError, match="which a 'shifted-flow' schedule has not; use another grid, such as 'uniform'"):
        distill(written(tmp_path / "r.yaml", values), out=tmp_path / "run")
    values = recipe_of("sd3", folders["sd3"], adapters=False)
    values["student"]["first_timestep"] = 399
    with pytest.raises(UserError, match="'shifted-flow' schedule has no timesteps"):
        distill(written(tmp_path / "s.yaml", values), out=tmp_path / "run")
