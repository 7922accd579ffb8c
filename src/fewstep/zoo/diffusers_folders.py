"""The files of a diffusers pipeline: which of them hold the network, and which says what the
network emits.

- the network's folder: where it is looked for, the first that is there ``subfolder`` if it is
  given; ``unet``; ``unet_ema``; the folder itself.
- its configuration: where it is looked for, the first that is there ``config.json`` in the
  network's folder.
- its weights: see ``diffusers_weights``.
- the scheduler: where it is looked for, the first that is there
  ``scheduler/scheduler_config.json``; ``scheduler_config.json``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.system.locations import folder_or_id
from fewstep.zoo.diffusers_weights import WeightFiles, find_weights, has_weights

NETWORK, EMA = "unet", "unet_ema"
"""The usual sub-folder of the network, and that of its average in older repositories."""

_STEM = "diffusion_pytorch_model"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Pipeline:
    """The files that are read, and ``remarks``: sentences on what was chosen among several."""

    config: Path
    weights: WeightFiles
    scheduler: Path
    remarks: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by names that do not say where the folder is."""
        index = () if self.weights.index is None else (self.weights.index,)
        listed = {path.name: path for path in (self.config, *self.weights.files, *index)}
        return {**listed, "scheduler": self.scheduler}


def find_pipeline(
    source: str | Path, revision: str | None = None, variant: str | None = None, subfolder: str | None = None
) -> Pipeline:
    """The files in a local folder, or under an id of the hub, from where what is read alone is
    fetched.

    Raises ``UserError`` naming what is missing.
    """
    root = _root(str(source), revision, variant, subfolder)
    inner, chosen = _network_folder(root, subfolder)
    config, scheduler = inner / "config.json", _scheduler(root)
    if not config.is_file():
        raise UserError(
            f"{config}: is missing; the folder must hold a pipeline that diffusers saved, or 'teacher.path' "
            "must name another."
        )
    weights, remarks = find_weights(inner, _STEM, variant, "teacher.variant")
    return Pipeline(config, weights, scheduler, (*chosen, *remarks))


def _root(source: str, revision: str | None, variant: str | None, subfolder: str | None) -> Path:
    """A local folder, or the hub's snapshot."""
    found = folder_or_id(source, "models")
    if os.path.isabs(found):
        return Path(found)
    root = snapshot(source, revision, "*.json")
    revision = snapshot_commit(root) or revision
    inner, _ = _network_folder(root, subfolder)
    prefix = f"{'' if inner == root else inner.relative_to(root).as_posix() + '/'}{_STEM}"
    if variant is not None:
        return snapshot(source, revision, f"{prefix}*.{variant}*.safetensors")
    root = snapshot(source, revision, f"{prefix}.safetensors", f"{prefix}-?????-of-?????.safetensors")
    return root if has_weights(inner, _STEM, None) else snapshot(source, revision, f"{prefix}*.safetensors")


def snapshot(source: str, revision: str | None, *patterns: str) -> Path:
    """The folder of an id of the hub, in which at least the files of these patterns are.

    Raises ``UserError`` when it cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{source}: fetching from the hub needs diffusers: pip install 'fewstep[diffusers]'."
        ) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    # The hub's own exceptions derive from these.
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: could not be fetched from the hub ({reason}); check the id and the revision, or "
            "give a local folder."
        ) from error


def snapshot_commit(root: Path) -> str | None:
    """The commit of a snapshot, by which what is fetched next is of the same one, also if another
    becomes the newest meanwhile; None where the folder's name does not say it.
    """
    return root.name if _COMMIT.fullmatch(root.name) else None


def _network_folder(root: Path, subfolder: str | None) -> tuple[Path, tuple[str, ...]]:
    """The folder of ``config.json``, and what is to be said of the choice."""
    if subfolder is not None:
        inner = root / subfolder
        if not inner.is_dir():
            there = (
                ", ".join(sorted(path.name for path in root.iterdir() if (path / "config.json").is_file()))
                or "no other"
            )
            raise UserError(
                f"{inner}: there is no such folder; set 'teacher.subfolder' to that of the network ({there} "
                "is there), or leave it out."
            )
        return inner, ()
    usual, average = root / NETWORK, root / EMA
    if usual.is_dir():
        said = (
            f"{root}: the network of '{NETWORK}' is taken; its average is in '{EMA}', which 'teacher.subfolder: "
            f"{EMA}' takes."
        )
        return usual, (said,) if average.is_dir() else ()
    if average.is_dir():
        return average, (f"{root}: has no '{NETWORK}'; the network of '{EMA}', an average over training, is taken.",)
    return root, ()


def _scheduler(root: Path) -> Path:
    places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{root}: has neither scheduler/scheduler_config.json nor scheduler_config.json, which says "
            "what the network emits; "
            "give the whole pipeline's folder, or add the scheduler that the network was trained with."
        )
    return found
