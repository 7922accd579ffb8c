"""What is wrong, where, and what to do about it: what ``fewstep doctor`` does.

An examination says what it has looked at, place by place, and does not stop at the first thing that
is wrong. Nothing is written, fetched from a network or run; files are read as ``inspect``, sampling
and resuming read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.denoisers.stored_adapter import KIND, load_adapter
from fewstep.doctor.checkup import check_path, check_run
from fewstep.doctor.environment import check_environment
from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.doctor.inspect import inspect
from fewstep.doctor.requirements import check_recipe
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import shipped_names
from fewstep.system.files import check_finite, verify_tensors
from fewstep.system.locations import is_address
from fewstep.training.saving.checkpoint import is_folder, place_of
from fewstep.training.saving.checkpoint_files import check_values, look_at
from fewstep.zoo.pipelines.facts import FACTS, changed_files, read_facts

_WEIGHTS = (".safetensors", ".pkl", ".pt")
_CHANGED = {"missing": "there is no such file.", "changed": "is not the file that was written: its SHA-256 differs."}


def examine(target: Path | str | None = None) -> list[Finding]:
    """The findings of a run folder, a path's folder, an exported folder, a file of weights, or a
    recipe (a shipped name or a YAML file); of this machine when there is none of these.
    """
    if target is None:
        return check_environment()
    path = Path(target)
    try:
        if is_folder(path):
            state = look_at(path, True)
            check_values(path)
            return [ok(path, _checkpoint(path, state))]
        if path.is_dir() and (RunFolder(path).recipe.is_file() or str(target) not in shipped_names()):
            return _folder(path)
        if path.suffix in _WEIGHTS:
            return [_weights(path, str(target))]
        return check_recipe(target)
    except UserError as error:
        return [refused(target, error)]


def _folder(path: Path) -> list[Finding]:
    """Of an exported folder, a path's, or a run's."""
    if (path / FACTS).is_file():
        return list(_export(path))
    return list(check_path(path)) if (path / "manifest.json").is_file() else check_run(path)


def _export(folder: Path) -> Iterator[Finding]:
    """Of a folder that ``fewstep export`` wrote: its files against ``fewstep.json``.

    Raises ``UserError`` for a ``fewstep.json`` that cannot be read.
    """
    facts = read_facts(folder)
    changed = changed_files(folder, facts)
    again = "Restore it from a copy, or export the run again into a new folder."
    for name, what in changed.items():
        yield problem(folder / name, _CHANGED[what], again)
    if not changed:
        yield ok(
            folder / FACTS,
            f"{len(facts['files'])} files are as they were written: a student of timesteps "
            f"{', '.join(map(str, facts.get('timesteps', [])))}, {facts.get('dtype')}, of the run {facts.get('run')}.",
        )
    parts = sorted({folder / Path(name).parts[0] for name in facts["files"] if "/" in name})
    for path in sorted(each for part in parts for each in part.rglob("*") if each.is_file()):
        if path.relative_to(folder).as_posix() not in facts["files"]:
            yield note(
                path,
                "was not exported, and diffusers may read it in the place of what was.",
                "Take it away if it is not yours.",
            )


def has_problem(findings: list[Finding]) -> bool:
    """Whether something must be mended."""
    return any(finding.level == "problem" for finding in findings)


def _weights(path: Path, name: str) -> Finding:
    if is_address(name):
        return problem(
            name,
            "is an address, and nothing is fetched here.",
            f"'fewstep inspect {name}' fetches the file and says what it holds.",
        )
    if not path.is_file():
        return problem(name, "there is no such file.", "Check the path.")
    return ok(path, _held(path))


def _held(path: Path) -> str:
    """What a file of weights is, having read it through."""
    metadata: Mapping[str, Any] = {"model": None}
    if path.suffix == ".safetensors":
        metadata = verify_tensors(path)
        check_finite(path)
    if "network" in metadata or "model" in metadata:
        found = inspect(path)
        return f"is whole: {found['kind']}, {found['parameters']:,} parameters, SHA-256 {found['sha256']}."
    if "progress" in metadata:
        return _checkpoint(path, metadata)
    if "node" in metadata:
        return f"is node {metadata['node']} of a degradation path, whole."
    return (
        f"is an adapter of rank {load_adapter(path).ranks}, whole."
        if metadata.get("kind") == KIND
        else "is whole; it holds tensors, but no model."
    )


def _checkpoint(path: Path, state: Mapping[str, Any]) -> str:
    stage, stage_step, step = place_of(path, state)
    return (
        f"is the checkpoint of step {step} ({stage_step} steps into stage {stage + 1}), whole, made by torch "
        f"{state.get('torch')}."
    )
