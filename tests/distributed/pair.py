"""One of two processes that run all cases of ``test_two_processes`` one after another, over gloo
and a store in a file; or, alone, one run.

    python pair.py FOLDER RANK STORE        python pair.py FOLDER alone CASE...

Each case leaves the weights of all its networks, gathered, in ``FOLDER/NAME.safetensors``.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import distributed as dist
from torch import nn

from fewstep.cost import metered
from fewstep.denoisers import load_model
from fewstep.errors import SharedError, UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.objectives import Loss, Objective
from fewstep.recipes import load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.runs import distill, evaluate
from fewstep.runs.sampler import StudentSampler
from fewstep.system import distributed
from fewstep.system.files import write_text
from fewstep.system.locks import locked
from fewstep.targets import RecordByDistance, SwitchAtPlateau
from fewstep.training import Trainer
from fewstep.training.dealing import deal
from fewstep.training.reporting.log import read_log
from fewstep.training.saving.run_checkpoints import Checkpoints
from fewstep.training.settings import Settings
from interrupt_kit import Interrupted, Interrupter

STEPS = 20
CTM = "method.adversarial={kind: teacher-trunk, weight: 0.1, loss: hinge, r1: 1.0e-3, width: 16}"
RECIPES: dict[str, tuple[str, ...]] = {
    "mixture2d-diff-instruct": (),
    "mixture2d-dmd2-4step": (),
    "mixture2d-disback": (
        "target.record={kind: distance, distance: 0.01, max_steps: 6}",
        "target.switch={kind: plateau, window: 2, min_steps: 4, max_steps: 6}",
        "target.nodes=3",
    ),
    # One base with the adapters of student, fake score, average and nodes.
    "mixture2d-disback-lora": (
        "target.record={kind: every, steps: 3}",
        "target.switch={kind: every, steps: 4}",
        "target.nodes=3",
    ),
    "mixture2d-ctm": (CTM, "method.adversarial_after=4"),
    "mixture2d-pd": (),
    "mixture2d-kd": ("method.pairs.count=1100",),
    # A weight that is a mean over the batch of all processes, and a weight that an objective learns
    # and owns.
    "digits-f-distill": ("training.steps=4", "training.batch=8", "evaluation.samples=40"),
    "digits-scm": ("training.steps=4", "training.batch=8", "evaluation.samples=40"),
    "digits-vsd": ("training.steps=4", "training.batch=8", "evaluation.samples=40"),
}
# Three blocks of samples a draw: of two processes one takes two of them, of three each takes one.
EVALUATED = (
    "training.steps=2",
    "training.batch=8",
    "evaluation.samples=1200",
    "evaluation.draws=1",
    "evaluation.every=1000",
    "training.health_every=1000",
    "evaluation.teacher_steps=[2]",
)
# Of DisBack in the plane: a path that takes six steps.
SLOWLY = ("target.record={kind: every, steps: 3}",)
MODES: dict[str, dict[str, Any]] = {"ddp": {"mode": "ddp"}, "fsdp": {"mode": "fsdp"}}


def run(
    folder: Path,
    name: str,
    leave: int = 0,
    resume: bool = False,
    eps: float = 1e-2,
    more: tuple[str, ...] = (),
    **changes: Any,
) -> Trainer:
    """A recipe's run, cut short where ``leave`` says; Adam's epsilon is large, since the ratio of
    two rounding errors is not a small number.
    """
    batch = [
        "training.batch=16",
        f"training.steps={STEPS}",
        "training.health_every=1000",
        "training.log_every=5",
        "training.checkpoint_every=5",
    ]
    recipe = load_recipe(name, [*batch, *RECIPES[name], *more])
    parts = build_distillation(recipe, folder)
    for phase in (phase for stage in parts.stages for phase in stage.phases):
        object.__setattr__(phase, "optimizer", replace(phase.optimizer, eps=eps))
    settings: Settings = replace(build_settings(recipe.training, recipe.distributed), **changes)
    trainer = Trainer(folder, parts.stages, parts.average, settings, listeners=[Interrupter(leave)] if leave else [])
    try:
        trainer.fit(resume)
    except Interrupted:
        gc.collect()
    return trainer


def untimed(found: Any) -> Any:
    """An evaluation, all but what a clock says."""
    return (
        {key: untimed(value) for key, value in found.items() if key != "ms_per_image"}
        if isinstance(found, dict)
        else found
    )


def keep(folder: Path, name: str, trainer: Trainer) -> None:
    """All that the run has trained, gathered, in a file."""
    held = {
        f"{owner}.{key}": value
        for owner, network in trainer.networks.items()
        for key, value in network.state_dict().items()
    }
    whole = {key: distributed.whole(value.detach()).clone().contiguous() for key, value in held.items()}
    # Every process has the same, averages too, with which each draws its part of the samples.
    assert len(set(distributed.everyones(hashlib.sha256(save(whole)).hexdigest()))) == 1, name
    if distributed.first():
        save_file(whole, folder / f"{name}.safetensors")


def equal_runs(folder: Path) -> None:
    for name in RECIPES:
        for mode, how in MODES.items():
            keep(folder, f"{name}-{mode}", run(folder / f"{name}-{mode}", name, **how))
    first = "mixture2d-diff-instruct"
    for name, how in {
        "replicas": {"mode": "fsdp", "replicas": 2},
        "portions": {"mode": "fsdp", "accumulate": 2},
        "portions-ddp": {"mode": "ddp", "accumulate": 2},
        "usual-eps": {"mode": "ddp", "eps": 1e-8},
        "short": {"mode": "fsdp", "precision": "bf16"},
    }.items():
        keep(folder, name, run(folder / name, first, **how))
    keep(folder, "in-full", run(folder / "in-full", "digits-scm", mode="fsdp", precision="bf16"))
    keep(folder, "owned-portions", run(folder / "owned-portions", "digits-scm", mode="fsdp", accumulate=2))


def resumed_runs(folder: Path) -> None:
    """Of one run, parts by two processes and by one, in every kind of checkpoint."""
    name = "mixture2d-disback"
    for case, before, after in (
        ("two-one-two", {"mode": "fsdp"}, {"mode": "fsdp"}),
        ("background-one-ddp", {"mode": "fsdp", "checkpoints": "background"}, {"mode": "ddp"}),
    ):
        run(folder / case, name, leave=12, **before)
        found = Checkpoints(folder / case / "checkpoints").newest(print)
        assert found is not None
        assert found.state["progress"]["step"] == 10
        # One process, which must not be of this group.
        distributed.together(lambda case=case: _alone(folder, case, name))
        keep(folder, case, run(folder / case, name, resume=True, **after))
    # Left while its path is recorded, when its target has not been entered.
    run(folder / "early", name, leave=6, mode="fsdp", more=SLOWLY)
    keep(folder, "early", run(folder / "early", name, resume=True, mode="fsdp", more=SLOWLY))
    run(folder / "again", name, leave=8, mode="fsdp")
    run(folder / "again", name, leave=7, resume=True, mode="fsdp")
    keep(folder, "again", run(folder / "again", name, resume=True, mode="fsdp"))


def _alone(folder: Path, case: str, name: str) -> None:
    subprocess.run([sys.executable, __file__, str(folder), "alone", case, name, "7"], check=True, timeout=120)


@dataclass(frozen=True, eq=False)
class BadGradient(Objective):
    """The loss of ``inner``, whose gradient is no number at step 2 of its stage in the second
    process.
    """

    inner: Objective
    network: nn.Module

    def __call__(self, step: Any, state: Any) -> Loss:
        loss, output = self.inner(step, state), self.network(state.x, state.t, state.condition)
        # sqrt has no slope at 0.
        off = (output - output.detach()).square().sum()
        return Loss(loss.total + (off.sqrt() if step.key.step == 2 and distributed.rank() == 1 else off))


def diverged(folder: Path, mode: str) -> str:
    """How a run ends whose gradient is no number in one process, of one of two terms."""
    recipe = load_recipe(
        "mixture2d-diff-instruct",
        ["training.batch=16", "training.steps=6", "training.health_every=1000", "training.checkpoint_every=1"],
    )
    parts = build_distillation(recipe, folder)
    student, *others = parts.stages[0].phases
    (term,) = student.terms
    terms = [
        replace(term, name="fine"),
        replace(term, objective=BadGradient(term.objective, parts.student), name="broken"),
    ]
    stages = [replace(parts.stages[0], phases=[replace(student, terms=terms), *others])]
    (answer,) = _said(
        Trainer(
            folder, stages, parts.average, replace(build_settings(recipe.training, recipe.distributed), mode=mode)
        ).fit
    )[1:]
    return answer


def small_things(folder: Path) -> dict[str, Any]:
    """What the processes say of ``fewstep.system.distributed``, in one answer each."""
    rank = distributed.rank()
    answers: dict[str, Any] = {
        "share": distributed.share(6),
        "total": distributed.total(torch.tensor([rank + 1.0, 0.5])).tolist(),
        "largest": distributed.largest(3 - rank),
    }
    answers["agreed"] = distributed.agreed({"from": rank})
    answers["everyones"] = distributed.everyones("x" * (rank + 1))
    answers["spread"] = torch.cat(deal(range(5), lambda job: torch.full((job + 1,), float(job)))).tolist()
    answers["mean"] = distributed.mean_of(torch.tensor([float(rank)])).tolist()
    answers |= rules(rank)
    answers["diverged"] = [diverged(folder / f"diverged-{mode}", mode) for mode in MODES]
    answers["errors"] = [
        _said(lambda: distributed.together(_refuse)),
        _said(lambda: distributed.in_step(_refuse if rank == 1 else list)),
        _said(lambda: distributed.share(3)),
    ]
    with locked(folder / "held"):
        answers["held"] = _said(lambda: distributed.together(lambda: _other_process(folder / "held")))
    answers["unwritable"] = _said(lambda: write_text(Path("/proc/nothing"), "x"))
    trainer = run(folder / "sampled", "mixture2d-diff-instruct", mode="ddp")
    parts = build_distillation(load_recipe("mixture2d-diff-instruct"), folder)
    sampler = StudentSampler(parts.data.low, parts.data.high, trainer.average.average, parts.prior, parts.sampling)
    with metered() as meter:
        answers["samples"] = sampler(1300, seed=3).double().sum().item()
    answers["evaluations"] = meter.evaluations
    distill("mixture2d-diff-instruct", EVALUATED, folder / "evaluated")
    answers["evaluation"] = evaluate(folder / "evaluated")
    answers["best"] = [kept_best(folder / f"best-{mode}", mode) for mode in MODES]
    settings = (
        "training.steps=2",
        "training.batch=8",
        "evaluation.samples=20",
        "target.nodes=2",
        "target.record.steps=1",
        "distributed.mode=fsdp",
    )
    distill("digits-disback", settings, folder / "images")
    answers["images"] = (folder / "images" / "samples" / "path.png").is_file() and (
        folder / "images" / "student.safetensors"
    ).is_file()
    answers["samples of one"] = distributed.together(lambda: sampler(1300, seed=3).double().sum().item())
    return answers


def kept_best(folder: Path, mode: str) -> dict[str, Any]:
    """The best student of a short run, and how long the run was, which its patience ends."""
    settings = (
        "training.steps=24",
        "training.batch=16",
        "training.health_every=1000",
        "training.checkpoint_every=7",
        "evaluation.samples=600",
        "evaluation.every=3",
        "method.optimizer.lr=0.3",
        "training.keep_best={measure: fd, patience: 2}",
        f"distributed.mode={mode}",
    )
    distill("mixture2d-diff-instruct", settings, folder)
    model, extra = load_model(RunFolder(folder).best)
    weights = sum(float(value.double().sum()) for value in model.state_dict().values())
    steps = [entry["step"] for entry in read_log(RunFolder(folder).log) if "stage" in entry]
    return {**extra["best"], "weights": weights, "measured": RunFolder(folder).read_best()["step"], "lines": steps}


def rules(rank: int) -> dict[str, Any]:
    """What rules decide on where the processes see unlike things: a gap that falls in the second
    process only, a model that moves in the first only.
    """
    plateau, flat = SwitchAtPlateau(window=1, min_steps=1, max_steps=9).rule(), []
    for gap in (1.0, 0.1 if rank == 1 else 1.0):
        plateau.observe(torch.zeros(3, dtype=torch.float64), torch.full((3,), gap))
        flat.append(plateau.done(0, 1))
    still = torch.tensor([[-1.0], [1.0]])
    distance = RecordByDistance(0.1).rule(lambda model: model, still)
    return {
        "plateau": [plateau.ratio(), *flat],
        "distance": [distance.decide(1, still if rank == 1 else 1.5 * still).record, distance.travelled],
    }


def _refuse() -> None:
    raise UserError(f"refused in process {dist.get_rank()}.")


def _other_process(folder: Path) -> None:
    script = (
        f"from fewstep.system.locks import locked\nfrom pathlib import Path\nwith locked(Path({str(folder)!r})): pass"
    )
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    raise UserError(failed.stderr.strip().splitlines()[-1])


def _said(action: Any) -> list[str]:
    try:
        action()
    except UserError as error:
        return [(type(error) is SharedError and "shared") or "own", str(error)]
    return []


def main() -> None:
    torch.set_num_threads(1)
    folder, who, *rest = Path(sys.argv[1]), *sys.argv[2:]
    if who == "alone":
        case, name, leave = rest
        run(folder / case, name, leave=int(leave), resume=True)
        return
    dist.init_process_group(
        "gloo", init_method=f"file://{rest[0]}", rank=int(who), world_size=2, timeout=datetime.timedelta(seconds=120)
    )
    equal_runs(folder)
    resumed_runs(folder)
    (folder / f"answers-{who}.json").write_text(json.dumps(small_things(folder)))
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
