"""What fewstep has to work with on this machine: versions, devices, threads, extras, room.

Libraries of extras are asked for their versions, not imported.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch

from fewstep.doctor.findings import Finding, note, ok, problem
from fewstep.system.caches import cache_folder

EXTRAS = {
    "diffusers": ("diffusers", "transformers"),
    "data": ("datasets", "webdataset"),
    "metrics": ("torch-fidelity",),
    "bitsandbytes": ("bitsandbytes",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""The packages of each extra of ours."""
LITTLE_ROOM = 2**30


def version_of(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_environment() -> list[Finding]:
    """A finding a thing; nothing is written, downloaded or imported besides torch."""
    python = ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}.")
    versions = ok(
        "fewstep", f"{version_of('fewstep') or 'not installed, run from its source'}, torch {torch.__version__}."
    )
    return [
        python,
        versions,
        *_devices(),
        _threads(),
        *(_extra(name, packages) for name, packages in EXTRAS.items()),
        _cache(),
        _room(Path.cwd()),
    ]


def _devices() -> list[Finding]:
    found = [ok("cpu", f"{os.cpu_count()} cores.")]
    if not torch.cuda.is_available():
        return [
            *found,
            note(
                "cuda",
                "torch sees no CUDA device.",
                "With a GPU, install the torch that its driver needs; without one there is nothing to do.",
            ),
        ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            ok(
                f"cuda:{index}",
                f"{device.name}, {device.total_memory / 2**30:.1f} GiB, compute capability "
                f"{device.major}.{device.minor}.",
            )
        )
    return found


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads > cores:
        return note(
            "threads",
            f"torch uses {threads}, more than the {cores} cores there are, which slows it down.",
            "Set OMP_NUM_THREADS, or give --threads.",
        )
    return ok("threads", f"torch uses {threads}.")


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    versions = {package: version_of(package) for package in packages}
    listed = ", ".join(f"{package} {version}" for package, version in versions.items() if version is not None)
    missing = [package for package, version in versions.items() if version is None]
    if not missing:
        return ok(f"extra '{name}'", f"{listed}.")
    return note(
        f"extra '{name}'",
        f"{', '.join(missing)} not installed{f'; there is {listed}' if listed else ''}.",
        f"Where it is needed: pip install 'fewstep[{name}]'.",
    )


def _cache() -> Finding:
    folder = cache_folder()
    # The folder is made when it is first needed, in the nearest one that there is.
    standing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        return problem(
            "cache",
            f"nothing can be written to {standing}, where fetched weights and data go.",
            "Change its permissions, or set FEWSTEP_CACHE to another folder.",
        )
    return ok("cache", f"{folder}{'' if folder.is_dir() else ' (not made yet)'}.")


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < LITTLE_ROOM:
        return note(
            "disk",
            f"only {free / 2**20:.0f} MiB are free in the current folder, where runs go unless told otherwise.",
            "Free some space, or give --out; 'fewstep checkpoints RUN --prune 1' removes old ones.",
        )
    return ok("disk", f"{free / 2**30:.1f} GiB are free in the current folder.")
