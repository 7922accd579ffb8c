"""The images of a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fewstep.data.archive import MOST_BYTES, Source
from fewstep.data.tree import tree_of
from fewstep.errors import UserError
from fewstep.system.caches import content_digests
from fewstep.system.files import readable


class Folder(Source):
    """The images of a folder and its sub-folders, by their paths relative to it (see ``tree``).

    Links to files are followed, links to folders are not.

    Raises ``UserError`` for a folder that cannot be read: its images would be missing in silence.
    """

    def __init__(self, path: Path):
        self.path, self.packed = Path(path), False
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        nowhere: list[str] = []

        def unreadable(error: OSError) -> None:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror or error}); make it readable, or take "
                "it out of the image set."
            ) from error

        for place, inner, found in os.walk(self.path, onerror=unreadable):
            below = Path(place).relative_to(self.path)
            hidden = [name for name in inner if name.startswith(".") or name == "__MACOSX"]
            for name in inner:
                (links if (Path(place) / name).is_symlink() else folders).append((below / name).as_posix())
            # What is hidden is not looked into: it may be a repository of any size.
            inner[:] = [name for name in inner if name not in hidden]
            for name in found:
                (files if (Path(place) / name).is_file() else nowhere).append((below / name).as_posix())
        self.tree = tree_of(files, folders, links, nowhere)
        self.names = self.tree.names

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        with readable(self.path / name):
            return (self.path / name).stat().st_size

    def text(self, name: str) -> Path:
        return self.path / name

    def digest(self) -> str:
        sha = hashlib.sha256(b"images\n")
        for name, digest in zip(self.names, content_digests(self.path, self.names), strict=True):
            sha.update(os.fsencode(name) + b"\0" + digest.encode() + b"\n")
        return sha.hexdigest()

    def read(self, name: str) -> bytes:
        try:
            size = (self.path / name).stat().st_size
            if size > MOST_BYTES:
                raise UserError(
                    f"{self.path / name}: has {size:,} bytes, more than a file here may have "
                    f"({MOST_BYTES:,}); leave it out."
                )
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path / name}: cannot be read ({error.strerror or error}); the image was there when "
                "the folder was listed, put it back."
            ) from error
