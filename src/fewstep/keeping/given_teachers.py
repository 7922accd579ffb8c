"""Teachers that a caller hands over, kept in the run's folder: a denoiser as a model file, a
pipeline of diffusers' as the folder that it saves.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers import NetworkDenoiser, load_model, save_model
from fewstep.denoisers.model_files import describe_model
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes.config.section import first_difference
from fewstep.system import distributed
from fewstep.system.files import replacing, why_not_written, write_alone
from fewstep.system.ledger import noted_in
from fewstep.zoo.pipelines import TextPipeline, from_pipeline, load_pipeline
from fewstep.zoo.pipelines.index import INDEX

_BEGUN = "begun"
"""The file by which a folder that is made aside is in the ledger before anything else is in it."""


def check_teacher(teacher: Any) -> None:
    """Raises ``UserError`` for an object that is no teacher, or that no file could hold."""
    if isinstance(teacher, NetworkDenoiser):
        describe_model(teacher)
    elif isinstance(teacher, nn.Module) or not is_pipeline(teacher):
        raise UserError(
            f"teacher: is a {type(teacher).__name__}; wrap your network as "
            "fewstep.denoisers.NetworkDenoiser(network, schedule, prediction, inputs, shape, "
            "classes), or give a pipeline of diffusers'."
        )


def is_pipeline(teacher: Any) -> bool:
    """Whether an object is a pipeline of diffusers', which need not be installed."""
    return any(base.__module__.split(".")[0] == "diffusers" for base in type(teacher).__mro__)


def keep_teacher(folder: RunFolder, teacher: Any, space: Mapping[str, Any]) -> None:
    """Writes the teacher into the folder; ``space``: what a model file says of its samples.

    Raises ``UserError`` where another teacher is there already, and for a pipeline of a class that
    is not read.
    """
    if isinstance(teacher, NetworkDenoiser):
        _keep_denoiser(folder, teacher, space)
    else:
        _keep_pipeline(folder, teacher)


def _keep_denoiser(folder: RunFolder, teacher: NetworkDenoiser, space: Mapping[str, Any]) -> None:
    if not folder.teacher.is_file():
        save_model(folder.teacher, teacher, dict(space))
        return
    kept, _ = load_model(folder.teacher)
    same = first_difference(describe_model(kept), describe_model(teacher)) is None
    if not same or not _equal(kept, teacher):
        raise _another(folder, folder.teacher)


def _keep_pipeline(folder: RunFolder, pipe: Any) -> None:
    # Whether its class is read is said before anything is written.
    given = from_pipeline(pipe)
    # The index is written last, so that where it is all is.
    if not (folder.pipeline / INDEX).is_file():
        distributed.together(lambda: _save(pipe, folder))
        return
    if not _alike(load_pipeline(folder.pipeline), given):
        raise _another(folder, folder.pipeline)


def _save(pipe: Any, folder: RunFolder) -> None:
    """The folder that diffusers writes, file by file, as a run's other files are written."""
    into = folder.pipeline
    # A start that finds the name goes on (see ``settling``), and removes the folder.
    aside = into.with_name(f".{into.name}.{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.aside")
    try:
        _remove_left(folder)
        write_alone(aside / _BEGUN, b"")
        try:
            pipe.save_pretrained(aside, safe_serialization=True)
            files = sorted(path for path in aside.rglob("*") if path.is_file() and path != aside / _BEGUN)
            for path in sorted(files, key=lambda path: path.name == INDEX):
                with open(path, "rb") as read, replacing(into / path.relative_to(aside)) as write:
                    shutil.copyfileobj(read, write, 1 << 20)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(why_not_written(into, error)) from error


def _remove_left(folder: RunFolder) -> None:
    """Removes what a start that was killed while it saved a teacher left: no other folder than one
    that the ledger knows.
    """
    left = re.compile(rf"\.{folder.pipeline.name}\.\d+-\d+-\d+\.aside")
    for name in sorted(filter(left.fullmatch, noted_in(folder.path))):
        path = folder.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _alike(kept: TextPipeline, given: TextPipeline) -> bool:
    described = first_difference(describe_model(kept.denoiser), describe_model(given.denoiser)) is None
    identities = (kept.codec.identity, kept.encoder.identity) == (given.codec.identity, given.encoder.identity)
    return described and identities and _equal(kept.denoiser, given.denoiser)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    weights: Mapping[str, Tensor] = other.state_dict()
    return all(bool((value == weights[name].to(value)).all()) for name, value in one.state_dict().items())


def _another(folder: RunFolder, kept: Path) -> UserError:
    return UserError(
        f"teacher: is another one than the run in {folder.path} began with, which is kept in {kept.name}; give that "
        "one, or use another folder."
    )
