r"""Where the files of an image set come from, and the zip that EDM keeps one in (Karras et al.
2022, ``dataset_tool.py``).

The zip that is written holds PNGs, stored and not compressed, as ``00000/img00000000.png``, and a
``dataset.json``:

    {"labels": [["00000/img00000000.png", 6], ...], "classes": ["frog", ...]}

``labels`` is null for a set without classes; the order of images is that of their names. The key
``classes`` (names of classes) is ours, and EDM's reader passes over it. A set with captions has a
``metadata.jsonl`` besides, as Hugging Face's imagefolder has it (see ``prompts.captions``).

Any other zip of images is read as the folder that it was made of (see ``tree``). Nothing is ever
extracted, yet a zip with names that leave it (``../``, absolute, links) is refused: it was not made
for this. Reading is bounded by what is asked for, not by what an entry claims. An open zip has one
position in its file, which a forked process would share; each process and thread therefore opens
its own.
"""

from __future__ import annotations

import abc
import io
import json
import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fewstep.data.pixels import encode
from fewstep.data.tree import CAPTIONS, METADATA, Tree, tree_of
from fewstep.errors import UserError
from fewstep.system.caches import content_digest
from fewstep.system.files import as_utf8, replacing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_CLASSES = 100_000
MOST_BYTES = 2**28
_MOST_JSON = 2**27


class Source(Protocol):
    """A collection of named files: ``names`` of its images in order, and any file's bytes by name.

    ``packed``: whether it is an archive.
    """

    path: Path
    names: tuple[str, ...]
    tree: Tree
    packed: bool

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file; raises ``UserError`` naming it when it cannot be read."""

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """How many bytes a file that is there has."""

    @abc.abstractmethod
    def text(self, name: str) -> Path | PackedText:
        """A file that is there, to be opened as text; a sentence calls it what ``str`` does."""

    def place(self, name: str) -> str:
        """What a sentence calls an image."""
        return f"{self.path}: '{name}'"

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 over the content of its files as they are now, 64 hexadecimal digits."""


@dataclass(frozen=True)
class PackedText:
    """A file of a ``source`` that is an archive."""

    source: Source
    name: str

    def open(self, encoding: str, errors: str) -> io.TextIOWrapper:
        """The file's text, line ends as LF; all of it is in memory."""
        return io.TextIOWrapper(io.BytesIO(self.source.read(self.name)), encoding, errors)

    def __str__(self) -> str:
        return self.source.place(self.name)


class _Opened(threading.local):
    """This thread's open zip, and the process that opened it."""

    def __init__(self) -> None:
        self.zip: zipfile.ZipFile | None = None
        self.process = -1


class Archive(Source):
    """The files of a zip.

    Raises ``UserError`` for what is no zip, is cut short, or holds names that leave it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._opened = _Opened()
        self.packed = True
        entries = self._zip().infolist()
        for entry in entries:
            _check(entry, self.path)
        self._entries = {_shown(entry): entry for entry in entries}
        if len(self._entries) < len(entries):
            raise UserError(f"{self.path}: holds two entries of one name; write the zip anew with 'fewstep data zip'.")
        files = [name for name in self._entries if not name.endswith("/")]
        self.tree = tree_of(files, _folders(self._entries), unwrap=METADATA not in self._entries)
        self.names = self.tree.names

    def __reduce__(self) -> tuple[type[Archive], tuple[Path]]:
        return Archive, (self.path,)

    def has(self, name: str) -> bool:
        return name in self._entries

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def text(self, name: str) -> PackedText:
        return PackedText(self, name)

    def digest(self) -> str:
        return content_digest(self.path)

    def read(self, name: str) -> bytes:
        entry = self._entries[name]
        if entry.file_size > MOST_BYTES:
            raise UserError(
                f"{self.path}: entry '{name}' claims {entry.file_size:,} bytes, more than a file here may "
                f"have ({MOST_BYTES:,}); leave it out."
            )
        try:
            return self._zip().read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{self.path}: entry '{name}' cannot be read ({error}); the zip is damaged or encrypted, "
                "restore it from a copy."
            ) from error

    def _zip(self) -> zipfile.ZipFile:
        opened = self._opened
        if opened.zip is None or opened.process != os.getpid():
            try:
                opened.zip, opened.process = zipfile.ZipFile(self.path), os.getpid()
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise UserError(
                    f"{self.path}: is no readable zip ({error}); it may have been cut short, restore it from a copy."
                ) from error
        return opened.zip


def _check(entry: zipfile.ZipInfo, path: Path) -> None:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename:
        raise UserError(
            f"{path}: entry '{entry.filename}' names a place outside the zip; nobody who packs images does "
            "that, get the zip from elsewhere."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{path}: entry '{entry.filename}' is a link; pack the image itself.")


def _shown(entry: zipfile.ZipInfo) -> str:
    """An entry's name.

    macOS writes UTF-8 without saying so, which the format then takes for an old code page.
    """
    if entry.flag_bits & 0x800 or entry.filename.isascii():
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _folders(names: Iterable[str]) -> set[str]:
    """The folders of the first two levels that the names name or lie in; no rule asks for more."""
    found = set()
    for name in names:
        first, slash, rest = name.partition("/")
        if slash:
            found.add(first)
            second, slash, _ = rest.partition("/")
            if slash:
                found.add(f"{first}/{second}")
    return found


def read_labels_json(source: Source, name: str) -> Any:
    """The value of a JSON file of the source, which may have a megabyte and a kilobyte an image:
    what JSON makes of a text takes many times its length in memory.
    """
    content, most = source.read(name), min(2**20 + 2**10 * len(source.names), _MOST_JSON)
    if len(content) > most:
        raise UserError(
            f"{source.path}: '{name}' has {len(content):,} bytes, more than the labels of "
            f"{len(source.names):,} images need ({most:,}); write it anew, or leave it out."
        )
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source.path}: '{name}' is not JSON ({error}); write it anew, or take it out to read the "
            "images without labels."
        ) from error


class Packed(NamedTuple):
    """A picture, RGB or grey, with its label and its caption, None for none."""

    picture: Picture
    label: int | None = None
    caption: str | None = None


def write_archive(
    path: Path,
    pictures: Iterable[Packed | tuple[Picture, int | None]],
    classes: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> int:
    """Writes pictures as an EDM zip; returns how many.

    ``more`` are further files of JSON values by name.

    Labels are kept where each picture has one. Equal pictures give equal bytes. Raises
    ``UserError`` when there is no picture, for captions of more than 256 MiB together, and when the
    disk is full; the old file is then untouched.
    """
    labels: list[tuple[str, int | None]] = []
    captions, size = list[bytes](), 0
    with replacing(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, given in enumerate(pictures):
            packed = Packed(*given)
            name = f"{number // 1000:05d}/img{number:08d}.png"
            archive.writestr(_entry(name), encode(packed.picture))
            labels.append((name, packed.label))
            if packed.caption is not None:
                row = {"file_name": name, "text": packed.caption}
                captions.append(as_utf8(json.dumps(row, ensure_ascii=False) + "\n"))
                size += len(captions[-1])
                # What is written can be read.
                if size > MOST_BYTES:
                    raise UserError(
                        f"{path}: the captions of its first {number + 1:,} images have more than {MOST_BYTES:,} "
                        "bytes, which they may have together; divide the set."
                    )
        if not labels:
            raise UserError(f"{path}: there are no images to put into it.")
        whole = all(label is not None for _, label in labels)
        metadata = {"labels": labels if whole else None, **({"classes": list(classes)} if classes and whole else {})}
        for name, value in {METADATA: metadata, **(more or {})}.items():
            # A name that is not UTF-8 has characters that only JSON's own escapes can say.
            archive.writestr(_entry(name), as_utf8(json.dumps(value, ensure_ascii=False)))
        if captions:
            archive.writestr(_entry(CAPTIONS), b"".join(captions))
    return len(labels)


def _entry(name: str) -> zipfile.ZipInfo:
    # The earliest date that a zip can say: equal content gives equal bytes.
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry
