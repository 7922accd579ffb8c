"""Stand-ins for the libraries of other image sets, and tiny sets for them and for the libraries
themselves.
"""

from __future__ import annotations

import io
import tarfile
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    """A shard of the files, in the order of their names."""
    with tarfile.open(path, "w") as shard:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            shard.addfile(entry, io.BytesIO(content))


def read_shards(
    urls: Sequence[str], shardshuffle: Any, nodesplitter: Any, workersplitter: Any, select_files: Any
) -> Iterator[dict[str, Any]]:
    """What WebDataset does: samples of files that have a name up to the first dot."""
    assert (shardshuffle, nodesplitter, workersplitter) == (False, None, None)
    for url in urls:
        samples: dict[str, dict[str, Any]] = {}
        with tarfile.open(url) as shard:
            for entry in shard:
                if select_files(entry.name):
                    key, _, extension = entry.name.partition(".")
                    content = shard.extractfile(entry)
                    assert content is not None
                    samples.setdefault(key, {"__key__": key})[extension] = content.read()
        yield from samples.values()


def webdataset_library() -> types.ModuleType:
    """WebDataset, as far as it is asked."""
    library = types.ModuleType("webdataset")
    library.WebDataset = read_shards  # type: ignore[attr-defined]
    return library


class Rows(list[dict[str, Any]]):
    """What the datasets library gives, as far as it is asked."""

    features: ClassVar[dict[str, object]] = {}

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(self[0])

    def cast_column(self, name: str, kind: object) -> Rows:
        return self


def datasets_library(load: Any) -> types.ModuleType:
    """The datasets library with another ``load_dataset``."""
    library = types.ModuleType("datasets")
    library.ClassLabel, library.Image = type("ClassLabel", (), {}), lambda decode: None  # type: ignore[attr-defined]
    library.load_dataset = load  # type: ignore[attr-defined]
    return library
