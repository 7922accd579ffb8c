"""Is a run whole? Its weights, each read through: checkpoints, path, pairs, student.

What is written besides is looked at in ``records``.

A file is checked by what reads it in earnest, so that what passes here is what a resumed run, a
sampler or an evaluation takes. What must be there follows from the recipe, built without weights,
and from how far the newest whole checkpoint is. A path is read without its teacher, which plays no
part in that and may be large or elsewhere: any denoiser stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fewstep.data import random_mixture
from fewstep.denoisers.stored_adapter import load_adapter
from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.doctor.inspect import inspect
from fewstep.doctor.provenance import check_record
from fewstep.doctor.records import check_log, check_records
from fewstep.errors import UserError
from fewstep.keeping.checkpoints import CheckpointFile, Listing, list_checkpoints
from fewstep.keeping.run_folder import RunFolder
from fewstep.planning.sketch import sketch
from fewstep.recipes import DistillRecipe, PretrainRecipe, Recipe
from fewstep.runs.loading import load
from fewstep.schedule import KarrasVE
from fewstep.states.pairs import check_pairs
from fewstep.system.files import check_finite, read_tensors
from fewstep.system.ledger import NAME, is_ledger, is_set_aside
from fewstep.system.locks import in_use
from fewstep.targets import DegradationPath
from fewstep.training.actions import MakePairs
from fewstep.training.reporting.log import read_log
from fewstep.training.saving.run_checkpoints import Why, set_aside_in

_ASIDE: dict[Why, str] = {
    "unreadable": "it could not be read",
    "another-run": "it is of a run with another recipe",
    "not-finite": "it holds, or at once led to, values that are not finite",
}
_PAIRS = "Restore it from a copy; a finished student does without it, and a new run makes the pairs again."


def check_run(path: Path) -> list[Finding]:
    """The findings of a run folder.

    Nothing is written. Raises ``UserError`` when the folder holds no run.
    """
    folder = RunFolder(path)
    listing = list_checkpoints(path, verify=True)
    recipe, found = _recipe(folder)
    resume = (
        f"fewstep {'pretrain' if isinstance(recipe, PretrainRecipe) else 'distill'} {folder.recipe} --out "
        f"{path} --resume"
    )
    newest = next((each for each in listing.checkpoints if each.state == "whole"), None)
    found += [*_in_use(path), *_ledger(path / NAME), *_checkpoints(path, listing, resume), *check_log(folder, listing)]
    found += [
        *check_path(folder.degradation, _has_recorded(recipe, newest)),
        *_pairs(folder),
        *_results(folder, recipe, resume),
    ]
    if isinstance(recipe, DistillRecipe) and newest is not None:
        found += [*_pairs_in_use(folder, recipe, newest), *_short_of_teacher(folder, recipe, resume)]
    return [*found, *check_record(folder, recipe), *check_records(folder, resume)]


def check_path(folder: Path, needed: bool = True) -> Iterator[Finding]:
    """The findings of a degradation path; ``needed``: whether there must be one."""
    manifest, nodes = (
        folder / "manifest.json",
        sorted(each for each in folder.glob("node-*.safetensors") if not is_set_aside(each)),
    )
    remedy = "Restore it from a copy; a finished student does without it, and a new run records the path again."
    if not manifest.is_file():
        if needed or nodes:
            yield problem(manifest, "there is no such file, and without it the path's nodes are not known.", remedy)
        return
    try:
        path = DegradationPath.open(folder, random_mixture(KarrasVE(), 1))
    except UserError as error:
        yield refused(manifest, error, remedy)
        return
    yield ok(
        manifest, f"names {path.last} nodes{f'; recording ended early, because {path.closed}' if path.closed else ''}."
    )
    for index, node in enumerate(path.nodes, 1):
        try:
            path.read(index)
            check_finite(folder / node["file"])
        except UserError as error:
            yield refused(folder / node["file"], error, remedy)
        else:
            yield ok(folder / node["file"], f"is node {index}, degraded for {node['step']} steps.")
    named = {node["file"] for node in path.nodes}
    for stray in (each for each in nodes if each.name not in named):
        yield note(
            stray,
            "is a node that the manifest does not name, and is not used.",
            "Nothing: a resumed run writes it again. Delete it if the run has ended.",
        )


def _has_recorded(recipe: Recipe | None, newest: CheckpointFile | None) -> bool:
    """Whether the run is past the recording of a path."""
    target = recipe.target.backtracked if isinstance(recipe, DistillRecipe) else None
    return target is not None and target.nodes > 1 and newest is not None and newest.stage != 0


def _pairs(folder: RunFolder) -> Iterator[Finding]:
    for path in sorted(each for each in folder.path.glob("pairs*.safetensors") if not is_set_aside(each)):
        yield _checked(path, lambda path: check_pairs(path, read_tensors(path)[0]), "is whole.", _PAIRS)


def _pairs_in_use(folder: RunFolder, recipe: DistillRecipe, newest: CheckpointFile) -> Iterator[Finding]:
    """The stage that a run has begun draws from the pairs that it made at its beginning."""
    if not newest.stage_step:
        return
    try:
        stages = sketch(recipe, folder.path)[1].stages
    except UserError as error:
        sentence, remedy = (
            f"the run cannot be extended as it is: {str(error).removesuffix('.')}.",
            f"'fewstep doctor {folder.recipe}' says what is missing.",
        )
        yield (
            note(folder.recipe, sentence, remedy)
            if folder.student.is_file()
            else problem(folder.recipe, sentence.replace("be extended", "go on"), remedy)
        )
        return
    for action in stages[newest.stage or 0].begin:
        if isinstance(action, MakePairs) and not action.path.is_file():
            yield problem(action.path, "there is no such file, and the run draws from it.", _PAIRS)


def _short_of_teacher(folder: RunFolder, recipe: DistillRecipe, resume: str) -> Iterator[Finding]:
    """Whether a backtracked run that has ended was ever trained against its teacher."""
    if recipe.target.backtracked is None or not folder.student.is_file():
        return
    try:
        nodes = [entry["target_node"] for entry in read_log(folder.log) if "target_node" in entry]
    except UserError:
        # Said where the log is looked at.
        return
    if nodes and nodes[-1]:
        sentence = f"the run ended with its target at node {nodes[-1]:g}, and never reached its teacher."
        yield note(
            folder.log,
            sentence,
            f"Go on with more steps: '{resume} --set training.steps=N', N above {recipe.training.steps}.",
        )


def _results(folder: RunFolder, recipe: Recipe | None, resume: str) -> Iterator[Finding]:
    """What a run leaves when it ends."""
    again = f"Make it again from the newest checkpoint: '{resume}'."
    ended = any(path.is_file() for path in (folder.student, folder.samples / "final.png", folder.evaluation))
    keeps = isinstance(recipe, DistillRecipe) and recipe.training.keep_best is not None and ended
    if folder.student.is_file():
        # By its folder, since a student of prompts needs its teacher's text encoder.
        yield _checked(folder.student, lambda _: load(folder.path), "is a student that can be sampled.", again)
    if folder.best.is_file():
        # Loading it reads of which step it is, too.
        best = "is the best student that the run kept."
        yield _checked(folder.best, lambda _: load(folder.path, which="best"), best, again)
    elif keeps:
        yield problem(folder.best, "there is no such file, though the run keeps its best student.", again)
    if folder.model.is_file():
        yield _checked(folder.model, inspect, "is a model that can be loaded.", again)
    leaves = isinstance(recipe, DistillRecipe) and recipe.student.leaves_adapter
    for adapter, there in ((folder.adapter, ended), (folder.adapter_of("best"), keeps)):
        if adapter.is_file():
            yield _checked(adapter, load_adapter, "is an adapter that can be loaded.", again)
        elif leaves and there:
            yield problem(adapter, "there is no such file, though the student is one.", again)
    result = folder.student if isinstance(recipe, DistillRecipe) else folder.model
    if recipe is None or result.is_file():
        return
    yield (
        problem(result, "there is no such file, though the run has ended.", again)
        if ended
        else note(result, "is not there yet: the run has not ended.", f"Go on: '{resume}'.")
    )


def _checked(path: Path, read: Callable[[Path], Any], sentence: str, remedy: str) -> Finding:
    try:
        with torch.random.fork_rng(devices=[]):
            read(path)
            if path.suffix == ".safetensors":
                check_finite(path)
    except UserError as error:
        return refused(path, error, remedy)
    return ok(path, sentence)


def _recipe(folder: RunFolder) -> tuple[Recipe | None, list[Finding]]:
    remedy = (
        "Restore it from a copy, or write it anew with 'fewstep recipes NAME' and the settings that the run "
        "was started with; without it the run cannot go on."
    )
    if not folder.recipe.is_file():
        return None, [problem(folder.recipe, "there is no such file.", remedy)]
    try:
        recipe = folder.read_recipe()
    except UserError as error:
        return None, [refused(folder.recipe, error, remedy)]
    return recipe, [ok(folder.recipe, f"is a valid recipe of {recipe.training.steps} steps.")]


def _in_use(path: Path) -> Iterator[Finding]:
    try:
        if in_use(path):
            yield note(
                path / "lock",
                "another process is working in this folder, so that what follows may change while it is looked at.",
                "Wait for it, or stop it.",
            )
    except UserError as error:
        yield refused(path / "lock", error)


def _ledger(path: Path) -> Iterator[Finding]:
    """The findings of what a run noted of its files; a run of an earlier version noted nothing."""
    if not is_ledger(path):
        yield problem(
            path,
            "is not what a run notes of its files.",
            "Restore it from a copy, or delete it: what is written again and differs is then kept under "
            "another name, once.",
        )
    elif path.is_file():
        yield ok(path, "notes the files that were written into the folder.")


def _checkpoints(path: Path, listing: Listing, resume: str) -> Iterator[Finding]:
    begin = f"goes on from {path / listing.resumes}" if listing.resumes else "stops, because it can go on from none"
    for each in listing.checkpoints:
        if each.state == "whole":
            yield ok(
                path / each.file,
                "is the checkpoint of step "
                f"{each.step}{', from which a resumed run goes on' if each.file == listing.resumes else ''}.",
            )
        else:
            yield refused(
                path / each.file, each.why, f"Restore it from a copy, or go on without it: '{resume}' {begin}."
            )
    if not listing.checkpoints:
        yield note(
            path / "checkpoints",
            "there are no checkpoints.",
            f"'{resume}' begins anew, unless the log has steps from after one was written.",
        )
    for why, words in _ASIDE.items():
        for aside in set_aside_in(path / "checkpoints", (why,)):
            yield note(
                aside,
                f"was set aside ({words}): no run goes on from it.",
                "Nothing needs to be done. Delete it if it is of no use.",
            )
    for aside in sorted(each for each in path.rglob("*.*") if is_set_aside(each)):
        yield note(
            aside,
            "stood where the run wrote, and was kept under this name.",
            "Nothing needs to be done. Delete it if it is of no use.",
        )
    for name in listing.leftovers:
        yield note(
            path / name,
            "is half a file that a writer left when it was killed.",
            f"'fewstep checkpoints {path} --prune 2' removes it.",
        )
