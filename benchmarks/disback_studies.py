"""The studies of DisBack's path: their cells, arms, students and teachers (see ``disback.py``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A step of recording: the student's sample 1, the degrading teacher's forward and backward 3.
RECORDING = 4
FIXED = {"target": {"kind": "fixed"}}
DIFF_INSTRUCT = "diff-instruct"


@dataclass(frozen=True)
class Arm:
    """``recorded``: the steps of recording that are paid from the budget (for measured rules a
    bound).
    """

    name: str
    target: Mapping[str, Any]
    recorded: int = 0


@dataclass(frozen=True)
class Cell:
    """Overrides that all arms of a comparison share."""

    name: str
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Study:
    """``steps`` of Diff-Instruct are the budget, each of ``cost`` evaluations of one sample.

    ``levels``: fixed distances.

    ``seconds``: of one run on one idle core of the machine that docs/benchmarks.md names.
    """

    recipe: str
    cells: tuple[Cell, ...]
    first_seed: int
    seeds: int
    steps: int
    cost: float
    levels: tuple[float, ...]
    seconds: float
    shared: Mapping[str, Any] = field(default_factory=dict)


def times(mean: float, std: float) -> dict[str, Any]:
    """The noise levels at which both scores are compared, and at which the fake score learns."""
    values = {"mean": mean, "std": std}
    return {f"{section}.times.{key}": value for section in ("method", "method.fake") for key, value in values.items()}


def path(nodes: int, record: int, switch: int | Sequence[int]) -> dict[str, Any]:
    """A path of fixed rules."""
    return {"target.nodes": nodes, "target.record.steps": record, "target.switch.steps": switch}


def plane_arms(record: int = 20) -> tuple[Arm, ...]:
    warm = path(2, 4 * record, 1)
    return (
        Arm(DIFF_INSTRUCT, FIXED),
        Arm("disback", path(5, record, 50), 4 * record),
        Arm("warm", warm, 4 * record),
    )


def plane_cell(mean: float, decay: float, std: float = 0.8, record: int = 20, suffix: str = "") -> Cell:
    name = f"mean {mean:g}, {'decay' if decay else 'constant rate'}{suffix}"
    return Cell(name, {**times(mean, std), "method.optimizer.decay": decay}, plane_arms(record))


# The recipe's own decay is over the last half.
PLANE = (
    plane_cell(-1.2, 0.0),
    plane_cell(-0.6, 0.0),
    plane_cell(0.0, 0.0),
    plane_cell(-1.2, 0.5),
    plane_cell(-0.6, 0.5),
    plane_cell(0.0, 0.5),
    plane_cell(-1.2, 0.0, record=50, suffix=", a node every 50"),
    plane_cell(-1.2, 0.0, std=1.2, suffix=", std 1.2"),
)
MEASURED_RULES = {
    "target.nodes": 5,
    "target.record": {"kind": "distance", "distance": 0.25, "floor": 0.05, "max_steps": 100},
    "target.switch": {"kind": "plateau", "window": 10, "improvement": 0.02, "min_steps": 20, "max_steps": 80},
}
FASTGAN = (
    Cell(
        "mean -1.6, constant rate",
        {**times(-1.6, 0.8), "method.optimizer.decay": 0.0},
        # What is recorded is not known beforehand: its evaluations are left unspent, which favours
        # Diff-Instruct.
        (Arm(DIFF_INSTRUCT, FIXED), Arm("disback", MEASURED_RULES, 0)),
    ),
)


def foreign_cell(name: str, out: Path, steps: int) -> Cell:
    """40 % of the student's updates on the three nodes between the last one and the teacher."""
    student = {"kind": "network", "start": str(foreign_teacher(name, out)), "network": NETWORK}
    arms = (Arm(DIFF_INSTRUCT, FIXED), Arm("disback", path(5, 10, round(0.4 * steps / 3)), 40))
    return Cell(name, {"student": student, "method.optimizer.decay": 0.0}, arms)


NETWORK: dict[str, Any] = {}


def study_of(name: str, options: argparse.Namespace) -> Study:
    if name == "plane":
        batch = {"training.batch": 256}
        return Study("mixture2d-disback", PLANE, 201, 20, 1400, 6, (8, 4, 2), 20, batch)
    if name == "fastgan":
        return Study("digits-fastgan-disback", FASTGAN, 201, 5, 2000, 6, (40, 20, 10), 480)
    steps = options.steps or 700
    NETWORK.update(teacher_network())
    cells = tuple(foreign_cell(each, options.out, steps) for each in ("inverted", "rotated"))
    return Study("digits-disback", cells, 201, 10, 700, 8, (40, 20, 10, 5), 110)


def teacher_network() -> dict[str, Any]:
    """The recipe's word for the shipped digits teacher's network."""
    from fewstep.networks import describe_network
    from fewstep.zoo import shipped_denoiser

    described = describe_network(shipped_denoiser("digits").network)
    return {key: described[key] for key in ("kind", "channels", "width", "depth", "embedding", "patch")}


def foreign_teacher(name: str, out: Path) -> Path:
    """A file of the exact teacher of other digits: D(x) = -D0(-x) of inverted, or D(R x) = R D0(x)
    of turned ones.

    Every layer of the network commutes with a half turn once its kernels are turned; a change of
    sign goes into the first and the last convolution. So that no training, and no second teacher's
    error, comes between.
    """
    import torch

    from fewstep.condition import Condition
    from fewstep.denoisers import copy_of, save_model
    from fewstep.networks.small_unet import SmallUNet
    from fewstep.zoo import shipped_denoiser

    original = shipped_denoiser("digits")
    other = copy_of(original)
    network = other.network
    assert isinstance(network, SmallUNet)
    assert network.leave.bias is not None
    with torch.no_grad():
        if name == "inverted":
            for tensor in (network.enter.weight, network.leave.weight, network.leave.bias):
                tensor.neg_()
        else:
            for tensor in network.parameters():
                if tensor.ndim == 4:
                    tensor.copy_(tensor.rot90(2, (2, 3)))
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        t, condition = original.schedule.time_at_sigma(1.0).expand(4), Condition(labels=torch.arange(4))
        turned = (lambda value: -value) if name == "inverted" else (lambda value: value.rot90(2, (2, 3)))
        worst = float((other(turned(x), t, condition) - turned(original(x, t, condition))).abs().max())
    if worst > 1e-4:
        sys.exit(f"the teacher of {name} digits is off by {worst:.1e}")
    file = out.absolute() / f"{name}.safetensors"
    if not file.is_file():
        save_model(file, other)
    return file


@dataclass(frozen=True)
class Run:
    """A run of one arm with one seed."""

    cell: Cell
    arm: Arm
    seed: int
    folder: Path
    settings: Mapping[str, Any]

    @property
    def done(self) -> bool:
        return (self.folder / "student.safetensors").is_file()
