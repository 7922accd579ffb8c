"""Feature statistics on disk: a data set's, taken once, against which many models are measured.

Ours is a checksummed safetensors file with the count and the name of the feature space, so that
statistics of another space are refused. Published ones come as ``.npz`` with ``mu`` and ``sigma``
(EDM's ``fid-refs``, and others'); their count and space are unknown. Nothing in either is executed.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.frechet import FeatureStatistics
from fewstep.system.files import read_tensors, write_tensors
from fewstep.system.locations import absolute

FORMAT = 1
# What the entries of an .npz may claim together: 8,192 features in float64, twice over.
_LARGEST = 2**30


@dataclass(frozen=True, eq=False)
class Reference:
    """``statistics`` of data in the feature space named ``space``; None where the file does not say
    which.

    ``origins``: checksums of the data and of the space's network by the keys of a recipe, as far as
    the file has them. ``made``: of samples of a model, all that decides them, JSON values; empty
    for data. ``command``: what made the file, where it says so.
    """

    statistics: FeatureStatistics
    space: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


def save_reference(path: Path, reference: Reference) -> str:
    """Writes the statistics as safetensors, atomically; returns the file's digest."""
    tensors = {"mean": reference.statistics.mean, "covariance": reference.statistics.covariance}
    described = {
        "format": FORMAT,
        "kind": "feature-statistics",
        "count": reference.statistics.count,
        "space": reference.space,
    }
    said = {"made": dict(reference.made), "command": reference.command}
    later = {name: value for name, value in said.items() if value}
    return write_tensors(path, tensors, {**described, "origins": dict(reference.origins), **later})


def load_reference(path: Path | str) -> Reference:
    """Reads what ``save_reference`` wrote, or an ``.npz`` with ``mu`` (d,) and ``sigma`` (d, d).

    Raises ``UserError`` naming the file where it is missing, of another kind, damaged, or where its
    arrays are no mean and covariance.
    """
    path = Path(absolute(str(path)))
    if path.suffix == ".npz":
        return Reference(_checked(path, *_read_npz(path), None))
    tensors, metadata = read_tensors(path)
    count, space, origins = metadata.get("count"), metadata.get("space"), metadata.get("origins", {})
    made, command = metadata.get("made", {}), metadata.get("command", "")
    known = (
        metadata.get("kind") == "feature-statistics"
        and metadata.get("format") == FORMAT
        and set(tensors) == {"mean", "covariance"}
    )
    if (
        not known
        or not isinstance(count, int | None)
        or not isinstance(space, str | None)
        or not isinstance(origins, dict)
        or not isinstance(made, dict)
        or not isinstance(command, str)
    ):
        raise UserError(
            f"{path}: holds no feature statistics of format {FORMAT}; write them by 'fewstep measure RUN "
            "--write-reference FILE', or give an .npz with 'mu' and 'sigma'."
        )
    return Reference(
        _checked(path, tensors["mean"], tensors["covariance"], count),
        space,
        {str(key): str(value) for key, value in origins.items()},
        made,
        command,
    )


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            _check_sizes(path, archive, sizes)
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(np.asarray(arrays["mu"], np.float64)), torch.from_numpy(
                np.asarray(arrays["sigma"], np.float64)
            )
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: is not an .npz with arrays of numbers 'mu' and 'sigma' ({error}); give reference "
            "statistics as EDM's fid-refs have them."
        ) from error


def _check_sizes(path: Path, archive: zipfile.ZipFile, sizes: dict[str, int]) -> None:
    """An array is allocated as its header claims before its content is read: each must be as large
    as its entry, and both of a possible size.
    """
    if sizes["mu.npy"] + sizes["sigma.npy"] > _LARGEST:
        raise UserError(
            f"{path}: claims {sizes['mu.npy'] + sizes['sigma.npy']} bytes of statistics, more than any "
            "feature space has; it is damaged or no such file."
        )
    for name in ("mu.npy", "sigma.npy"):
        with archive.open(name) as stream:
            # Only versions 1 and 2 differ in what is read here, the header's length; numpy writes
            # others for names that plain arrays do not have.
            read = (
                np.lib.format.read_array_header_1_0
                if np.lib.format.read_magic(stream) == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(stream)
            claimed = dtype.itemsize
            for length in shape:
                claimed *= length
            if dtype.hasobject or claimed != sizes[name] - stream.tell():
                raise UserError(
                    f"{path}: '{name}' does not hold the {tuple(shape)} numbers that its header claims; it "
                    "is damaged or no plain array."
                )


def _checked(path: Path, mean: Tensor, covariance: Tensor, count: int | None) -> FeatureStatistics:
    mean, covariance = mean.double(), covariance.double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise UserError(
            f"{path}: a mean of shape {tuple(mean.shape)} and a covariance of shape "
            f"{tuple(covariance.shape)} do not belong together; they must be (d,) and (d, d)."
        )
    if not bool(torch.isfinite(mean).all() & torch.isfinite(covariance).all()):
        raise UserError(f"{path}: its mean or covariance is not finite; make the statistics anew.")
    # Rounding of a float32 sum leaves less than this; a matrix that is off by more is no
    # covariance.
    if (
        float((covariance - covariance.T).abs().max()) > 1e-4 * float(covariance.abs().max())
        or float(covariance.diagonal().min()) < 0
    ):
        raise UserError(f"{path}: its covariance is not symmetric with a diagonal of at least 0; it is no covariance.")
    return FeatureStatistics(mean, (covariance + covariance.T) / 2, count)
