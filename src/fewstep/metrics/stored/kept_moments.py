"""Moments of a model's samples, which are computed once and kept by what decides them.

An entry is found by the digest of all that decides the samples (``Reference.made``), never by a
path: first among the moments that ship, then in the cache folder, where each entry has a folder of
its own. There a file is written while the folder is held. A writer that finds another's file takes
that one, so that all read the same bits. A file that is damaged, or of something else, is passed
over, and said; it is neither removed nor replaced, and the next one has the next number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.metrics.frechet import FeatureStatistics
from fewstep.metrics.stored.reference import Reference, load_reference, save_reference
from fewstep.system import distributed
from fewstep.system.caches import cache_folder, held_cache
from fewstep.system.files import digest_of

_NAME = re.compile(r"moments-([0-9]{4})\.safetensors")


def key_of(made: Mapping[str, Any]) -> str:
    """The name, 32 hexadecimal digits, under which moments of samples that are ``made`` so are
    kept.
    """
    return digest_of({}, dict(made))[:32]


@dataclass
class KeptMoments:
    """The moments of samples that are ``made`` so, in the feature space named ``space``.

    ``shipped``: a folder of moments that came with the package, each named by its key. ``say`` is
    told of what is passed over and not kept.
    """

    made: Mapping[str, Any]
    space: str
    shipped: Path
    say: Callable[[str], None]
    _passed_over: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Where this machine keeps them."""
        return cache_folder() / "moments" / key_of(self.made)

    @property
    def shipped_file(self) -> Path:
        """Where they are if they ship."""
        return self.shipped / f"{key_of(self.made)}.safetensors"

    def get(self, compute: Callable[[], FeatureStatistics]) -> FeatureStatistics:
        """The moments, computed only where no file holds them.

        All processes of a run call this; the first one's files count for all of them.
        """
        if (path := self.find()) is None:
            computed = compute()
            path = distributed.together(lambda: self._keep(computed))
            if path is None:
                return computed
        return _of_first(lambda: load_reference(path).statistics)

    def find(self) -> str | None:
        """The path of a file that holds them; None where there is none."""
        return distributed.together(self._find)

    def _find(self) -> str | None:
        for path in (self.shipped_file, *self._files()):
            if path.is_file() and path not in self._passed_over:
                try:
                    self._check(path)
                except UserError as error:
                    self._passed_over.add(path)
                    self.say(f"{error} It is passed over.")
                else:
                    return str(path)
        return None

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _check(self, path: Path) -> None:
        found = load_reference(path)
        if dict(found.made) != dict(self.made) or found.space != self.space:
            raise UserError(f"{path}: holds moments of other samples than its name says.")

    def _keep(self, computed: FeatureStatistics) -> str | None:
        """The file that holds the moments from now on, another's where that was first; None where
        none can be written.
        """
        try:
            with held_cache(self.folder):
                if (path := self._find()) is not None:
                    return path
                last = max((int(path.name[8:12]) for path in self._files()), default=0)
                file = self.folder / f"moments-{last + 1:04d}.safetensors"
                save_reference(file, Reference(computed, self.space, made=self.made))
                return str(file)
        except UserError as error:
            self.say(f"the moments are not kept: {error}")
            return None


def _of_first(read: Callable[[], FeatureStatistics]) -> FeatureStatistics:
    """What the first process reads, in all of them bit for bit; another machine may not have the
    file.
    """
    if distributed.size() == 1:
        return read()
    found: list[FeatureStatistics] = []

    def sizes() -> list[int | None]:
        found.append(read())
        return [len(found[0].mean), found[0].count]

    length, count = distributed.together(sizes)
    assert length is not None
    values = torch.zeros(length * (length + 1), dtype=torch.float64)
    if found:
        values = torch.cat([found[0].mean, found[0].covariance.flatten()])
    values = distributed.gathered(values)[0]
    return FeatureStatistics(values[:length], values[length:].reshape(length, length), count)
