"""What is wrong, where, and what to do about it: what ``fewstep doctor`` does.

An examination says what it has looked at, place by place, and does not stop at the first thing that
is wrong. Nothing is written, fetched from a network or run but the networks of a pipeline's folder,
for one picture; files are read as ``inspect``, sampling and resuming read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.denoisers.stored_adapter import KIND, load_adapter
from fewstep.doctor.checkup import check_path, check_run
from fewstep.doctor.environment import check_environment
from fewstep.doctor.findings import Finding, ok, problem, refused
from fewstep.doctor.inspect import inspect
from fewstep.doctor.requirements import check_recipe
from fewstep.doctor.student_folders import check_student_folder, is_pipeline_folder
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import shipped_names
from fewstep.system.files import check_finite, verify_tensors
from fewstep.system.locations import is_address
from fewstep.training.saving.checkpoint import is_folder, place_of
from fewstep.training.saving.checkpoint_files import check_values, look_at

_WEIGHTS = (".safetensors", ".pkl", ".pt")


def examine(target: Path | str | None = None, attempt: bool = False) -> list[Finding]:
    """The findings of a run folder, a path's folder, a text-to-image pipeline's (exported or
    downloaded), a file of weights, or a recipe (a shipped name or a YAML file); of this machine
    when there is none of these. ``attempt``: a picture is tried also of a pipeline that is not
    small.

    Raises ``UserError`` for ``attempt`` of anything else.
    """
    if attempt and (target is None or not is_pipeline_folder(Path(target))):
        raise UserError("--try: draws a picture of the folder of a text-to-image pipeline; name one, or leave it out.")
    if target is None:
        return check_environment()
    path = Path(target)
    try:
        if is_folder(path):
            state = look_at(path, True)
            check_values(path)
            return [ok(path, _checkpoint(path, state))]
        if path.is_dir() and (RunFolder(path).recipe.is_file() or str(target) not in shipped_names()):
            return _folder(path, attempt)
        if path.suffix in _WEIGHTS:
            return [_weights(path, str(target))]
        return check_recipe(target)
    except UserError as error:
        return [refused(target, error)]


def _folder(path: Path, attempt: bool) -> list[Finding]:
    """Of a pipeline's folder, a path's, or a run's."""
    if is_pipeline_folder(path):
        return list(check_student_folder(path, attempt))
    return list(check_path(path)) if (path / "manifest.json").is_file() else check_run(path)


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
