"""The latents of a picture data set, made once and kept on disk.

Latents are samples of the codec's posterior, as latent diffusion models are trained on (Rombach et
al. 2022, Sec. 3.1): mean + deviation noise. The noise is a function of the sample's index, so that
a sample has the same latents in any order, process and machine, but for the last bits, which depend
on the batch; what was written first counts (see ``data.cached``).

Beside the latents a row holds the picture's sizes (``Dataset.sizes``), which are then known without
the picture.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.cached.filling import blocks_missing, fill, found_rows
from fewstep.data.cached.packs import Header, Index, PackedRows, RowsLayout
from fewstep.data.cached.rows import CachedRows
from fewstep.data.dataset import Dataset, Derived
from fewstep.errors import UserError
from fewstep.networks import Codec
from fewstep.random import Key
from fewstep.system.files import digest_of
from fewstep.system.ledger import print_sentence

RULES = 1
"""The number of the rules by which a picture becomes latents, the noise among them. Other rules
make other latents, and have another number.
"""
MOST_ROWS = 2**16
_LATENTS, _SIZES = "latents", "time_ids"
# A pack's bytes, and the values that bounds are taken of, at most.
_PACK_BYTES = 2**24
_MOST_VALUES = 2**24


@dataclass(frozen=True, eq=False)
class Latents(Derived):
    """The latents of ``data``, a sample each, float32, with its labels and conditions; made by
    ``latents_of``.

    ``codec``: the identity of what made them. ``kept``: the rows on disk. Latents have no range:
    see ``bounds_of``. Objects may be pickled, and read by several threads.
    """

    data: Dataset
    codec: str
    kept: CachedRows
    labels: Tensor | None
    classes: int
    names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    low = -math.inf
    high = math.inf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kept.shapes[_LATENTS]

    def take(self, index: Tensor) -> Tensor:
        return self.kept.take(index, [_LATENTS])[_LATENTS]

    def sizes(self, index: Tensor) -> Tensor:
        return self.kept.take(index, [_SIZES])[_SIZES]

    @cached_property
    def identity(self) -> str:
        return digest_of({}, {"kind": "latents", **_made(self.data, self.codec)})


def latents_of(
    data: Dataset,
    codec: Codec,
    folder: Path | None = None,
    *,
    rows: int | None = None,
    device: torch.device | str | None = None,
    say: Callable[[str], None] = print_sentence,
) -> Latents:
    """The latents of pictures (N, 3, H, W) in [-1, 1], from the cache or made.

    They are found by the identities of ``data`` and ``codec``. ``folder``: the cache, None for that
    of the machine. ``rows``: samples of a pack, from 1 to 65,536, unless given as many as have 16
    MiB; a process that is killed loses one pack. ``device``: where the codec works meanwhile, None
    for where it is. ``say`` is told what is worth a line.

    Of several processes of one run the first makes what is missing. A pack that is damaged is
    passed over and said, and its latents are made again.

    Raises ``UserError`` for samples that the codec does not take, such as pictures with a side that
    is no multiple of its factor, and where nothing can be written; for a picture that cannot be
    read, and for latents with values that are not finite, naming the picture.
    """
    shape = _shape(data, codec)
    if rows is None:
        rows = max(1, min(MOST_ROWS, _PACK_BYTES // (4 * math.prod(shape))))
    if not 1 <= rows <= MOST_ROWS:
        raise UserError(f"latents are kept in packs of 1 to {MOST_ROWS:,}, not of {rows:,}.")
    packed = PackedRows("latents", _made(data, codec.identity), "latents of this data and codec", "the codec")
    keys = [str(number) for number in range(len(data))]
    index = Index(packed.folder("latents", folder), packed, set(keys), say)
    names = fill(index, _Job(data, codec, shape, keys, index, rows, device).steps)
    kept, _ = found_rows(index, names, keys)
    return Latents(data, codec.identity, kept, data.labels, data.classes, data.names, data.remarks)


def bounds_of(latents: Dataset, share: float = 0.999) -> tuple[float, float]:
    """The range that holds a ``share`` in (0, 1] of the values of the data, as many being below it
    as above: what stands for the ends of a range where there is none.

    It is taken of evenly spaced samples that have 2^24 values together, or of all where they have
    less. Raises ``UserError`` for another share.
    """
    if not 0 < share <= 1:
        raise UserError(f"bounds hold a share of the values in (0, 1], got {share:g}.")
    count = max(1, min(len(latents), _MOST_VALUES // math.prod(latents.shape)))
    index = torch.arange(count) * len(latents) // count
    values = torch.cat([latents.take(part).flatten() for part in index.split(256)])
    low, high = np.quantile(values.numpy(), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def posterior_noise(index: Tensor, shape: Sequence[int]) -> Tensor:
    """The standard normals (n, *shape) that are added to the means of the samples at ``index``
    (n,): a function of each sample's index.
    """
    rows = [Key(0, "latents").lasting("posterior", (1, *shape), number) for number in index.tolist()]
    return torch.cat(rows)


@dataclass
class _Job:
    data: Dataset
    codec: Codec
    shape: tuple[int, ...]
    keys: Sequence[str]
    index: Index
    rows: int
    device: torch.device | str | None

    def steps(self) -> Iterator[None]:
        """Makes what is missing, a pack at each step."""
        missing = [key for key in self.keys if key not in self.index.found]
        if not missing:
            return
        self.index.say(
            f"latents: {len(missing):,} of {len(self.keys):,} samples of the data are not in the cache; their latents "
            f"are made now, and kept in {self.index.folder}."
        )
        with _placed(self.codec, self.device) as device:
            for block in blocks_missing(self.index, missing, self.rows):
                numbers = torch.tensor([int(key) for key in block])
                # As many pictures are in memory as the codec works on together.
                latents = torch.cat([self._latents(part, device) for part in numbers.split(self.codec.rows)])
                rows = {_LATENTS: latents, _SIZES: self.data.sizes(numbers)}
                self.index.write(Header(block, RowsLayout.of(rows)), rows)
                yield

    def _latents(self, numbers: Tensor, device: torch.device) -> Tensor:
        pictures = self.data.take(numbers).to(device)
        noise = posterior_noise(numbers, self.shape)
        with torch.no_grad():
            found = self.codec.encode_sample(pictures, noise, lambda row: self.data.where(int(numbers[row])))
        return found.float().cpu()


@contextlib.contextmanager
def _placed(codec: Codec, device: torch.device | str | None) -> Iterator[torch.device]:
    """The codec on a device, and then where it was; gives the device."""
    before = next(codec.parameters()).device
    try:
        codec.to(device or before)
        yield next(codec.parameters()).device
    finally:
        codec.to(before)


def _made(data: Dataset, codec: str) -> dict[str, str | int]:
    """What decides latents."""
    return {"data": data.identity, "codec": codec, "rules": RULES}


def _shape(data: Dataset, codec: Codec) -> tuple[int, int, int]:
    """The shape of one sample's latents; raises ``UserError`` for what the codec does not take."""
    if len(data.shape) != 3 or data.shape[0] != 3 or (data.low, data.high) != (-1.0, 1.0):
        raise UserError(
            f"latents: a codec takes pictures of shape (3, height, width) in [-1, 1], and samples of the data are of "
            f"shape {tuple(data.shape)} in [{data.low:g}, {data.high:g}]; use a set of colour pictures."
        )
    return codec.latent_shape(*data.shape[1:])
