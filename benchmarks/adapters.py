"""What an adapter costs in quality and saves in memory: DisBack on scenes with full copies, with an
adapter as the student, as the fake score too, and as the nodes of the path as well.

    # some ten minutes of a core a run; it says the hours before it starts
    python benchmarks/adapters.py --seeds 3 --out runs/adapters
    python benchmarks/adapters.py --only-show --out runs/adapters

All runs take the same steps, and so the same network evaluations; seeds are paired and evaluation
noise is the same for all. Copies are trained at the rates of ``scenes-disback``, adapters at those
of ``scenes-disback-lora``. Each student is measured as ``scenes_students`` measures them. Bytes are
counted, not planned: of the state, those of all networks, a target's slot, gradients and moments
after a step of each optimizer; and what autograd keeps of a student's forward pass for its
backward, a sample. Runs whose figures are
there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paired import ratio
from runner import Job, options_of, studied
from scenes_students import cells, figures, of_seeds

COPIES, ADAPTERS = "scenes-disback", "scenes-disback-lora"
STUDENT = {"kind": "lora", "rank": 16, "scale": None, "alpha": 16.0, "first_sigma": None, "first_timestep": 699}
RATE, COPIES_RATE = 1e-3, 1e-4
SHOWN = ("fd", "accuracy", "held_out", "diversity", "seconds_a_step")


def of_rank(rank: int, alpha: float = 16.0) -> dict[str, Any]:
    """The settings of a run all of whose roles are adapters of that rank.

    One alpha for all ranks, so that a step of one rate moves the weights alike (Hu et al. 2021,
    Sec. 4.1).
    """
    size = {"rank": rank, "alpha": alpha}
    return {f"{where}.{key}": value for where in ("student", "method.fake") for key, value in size.items()}


ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "copies": (COPIES, {}),
    "student 16": (COPIES, {"student": STUDENT, "method.optimizer.lr": RATE}),
    "student, fake 16": (ADAPTERS, {"target.recorded_as": "copy", "target.optimizer.lr": COPIES_RATE}),
    "all 16": (ADAPTERS, {}),
    "all 4": (ADAPTERS, of_rank(4)),
    "all 64": (ADAPTERS, of_rank(64)),
    "all 64, scale 1": (ADAPTERS, of_rank(64, 64.0)),
}


USUAL = [arm for arm in ARMS if "scale" not in arm]
"""Without the one that shows what one alpha is for, a run at a rate that is too high."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=400, help="of held-out prompts")
    parser.add_argument("--only", nargs="*", choices=tuple(ARMS), default=USUAL, help="these alone")
    parser.add_argument("--only-show", action="store_true", help="tables of the runs that are there")
    options = options_of(parser, "runs/adapters", 3)
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = {(arm, seed): job_of(arm, seed, options) for seed in range(options.seeds) for arm in options.only}
    found = studied(jobs, options, partial(figures, pictures=options.pictures), 1 / 6, pictures=options.pictures)
    rows = [
        {
            "arm": arm,
            **of_seeds(found, arm, options.seeds),
            **counted(arm, options),
        }
        for arm in options.only
    ]
    compared = compare(rows)
    show(rows, compared)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "distance over that of copies": compared}
    (options.results / "adapters.json").write_text(json.dumps(content, indent=1) + "\n")


def job_of(arm: str, seed: int, options: argparse.Namespace) -> Job:
    recipe, settings = ARMS[arm]
    more = {"training.seed": seed, "training.health_every": 100_000, "evaluation.every": 100_000}
    return Job(options.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}", recipe, {**settings, **more})


def counted(arm: str, options: argparse.Namespace, rows: int = 8) -> dict[str, int]:
    """Bytes of the run's state while it distils, and those that a sample of a student's forward
    pass keeps for the backward.
    """
    import torch

    from fewstep.networks.adapters import bases_of
    from fewstep.planning.footprint import KeptBytes
    from fewstep.random import Key
    from fewstep.recipes import DistillRecipe, load_recipe
    from fewstep.recipes.building.distillation import build_distillation
    from fewstep.states import Step
    from fewstep.training.phase import build_optimizers, named_networks

    name, settings = ARMS[arm]
    said = [f"{key}={json.dumps(value)}" for key, value in {**settings, **options.more}.items()]
    recipe = load_recipe(name, said)
    assert isinstance(recipe, DistillRecipe)
    with tempfile.TemporaryDirectory() as folder:
        parts = build_distillation(recipe, Path(folder))
        stage = parts.stages[-1]
        optimizers = build_optimizers(stage)
        for optimizer in optimizers.values():
            for parameter in (value for group in optimizer.param_groups for value in group["params"]):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        assert parts.path is not None
        networks = [parts.teacher, parts.path.blank(), *named_networks([stage]).values()]
        networks += [base for network in networks for base in bases_of(network)]
        weights = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        moments = [
            value
            for optimizer in optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        ]
        held = [*weights, *(value.grad for value in weights if value.grad is not None), *moments]
        state = sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held}.values())
        drawn = parts.prior.draw(Step(Key(0, "count"), rows))
        with KeptBytes(*networks) as kept, torch.enable_grad():
            emitted = parts.student(drawn.x, drawn.t, drawn.condition)
            kept_now = kept.now
        del emitted
    return {"state_bytes": state, "kept_bytes": kept_now // rows}


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The distance of each arm over that of copies, seed by seed."""
    by_arm = {row["arm"]: dict(zip(row["seeds"], row["figures"], strict=True)) for row in rows}
    copies, found = by_arm.get("copies", {}), {}
    for arm, own in by_arm.items():
        seeds = sorted(own.keys() & copies.keys())
        if arm != "copies" and seeds:
            found[arm] = ratio([own[seed]["fd"] for seed in seeds], [copies[seed]["fd"] for seed in seeds])
    return found


def show(rows: Sequence[Mapping[str, Any]], compared: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        f"\n{'arm':<18}{'seeds':>6}{'state MiB':>11}{'kept KiB':>10}" + "".join(f"{key:>26}" for key in SHOWN),
    )
    for row in rows:
        print(
            f"{row['arm']:<18}{len(row['seeds']):>6}{row['state_bytes'] / 2**20:>11.1f}"
            f"{row['kept_bytes'] / 2**10:>10.0f}" + cells(row, SHOWN)
        )
    for arm, each in compared.items():
        between = "" if each["low"] is None else f" ({each['low']:.2f} to {each['high']:.2f})"
        print(f"{arm}: its distance over that of copies {each['mean']:.2f}{between}, {each['pairs']} pairs")


if __name__ == "__main__":
    main()
