"""Image sets of other libraries, turned once into an EDM zip on this machine.

A draw is a function of an index, so a sample must be found by its index; a stream of shards has none. Everything is therefore read through once, decoded, brought to one size, and
written as a zip in a cache folder, under a name that is a hash of what was asked for; from then on it is a set of images like any other. To make a set anew (its source has changed),
delete that file.

WebDataset opens some addresses by running a program (``pipe:``, ``gs:``, ...), which a recipe must not be able to ask for: only paths and http addresses are let through.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep import distributed
from fewstep.data.archive import MOST_CLASSES, write_archive
from fewstep.data.labels import class_number
from fewstep.data.pixels import SUFFIXES, decode, squared
from fewstep.errors import UserError
from fewstep.files import locked

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_SHARDS = re.compile(r"\.(tar|tgz|tar\.gz)$")
_ADDRESS = re.compile(r"https?://[^\s'\"`$|;<>\\]+\.(tar|tgz|tar\.gz)")


class Record(NamedTuple):
    """An image file's bytes, its class, and what to call it in errors."""

    content: bytes
    label: int | None
    where: str


def write_records(path: Path, records: Iterable[Record], size: int | None, classes: Sequence[str] = ()) -> int:
    """Writes records as an EDM zip, each as the centred square of ``size`` pixels, or as it is; returns how many.

    Raises ``UserError`` for an image that cannot be read, and, where ``size`` is None, for one of another size than the first.
    """
    return write_archive(path, _pictures(records, size), classes)


def _pictures(records: Iterable[Record], size: int | None) -> Iterator[tuple[Picture, int | None]]:
    first: tuple[int, int] | None = None
    for record in records:
        picture = decode(record.content, record.where)
        if size is not None:
            picture = squared(picture, size)
        first = first or picture.size
        if picture.size != first:
            raise UserError(f"{record.where}: has {picture.width} x {picture.height} pixels, the first image {first[0]} x {first[1]}; give a size, to which all are resized.")
        yield picture, record.label


def cached(folder: Path, asked: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
    """The zip in ``folder`` for what was ``asked``, JSON values; written by ``write(path)`` where there is none yet, by one process at a time."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / digest / "images.zip"

    def write_once() -> None:
        if not path.is_file():
            with locked(path.parent):
                write(path)

    distributed.together(write_once)
    return path


def from_rows(rows: Iterable[Mapping[str, Any]], image: str, label: str | None, where: str) -> Iterator[Record]:
    """Records of rows whose column ``image`` holds {"bytes", "path"}, as the datasets library gives images undecoded, and whose ``label`` is a number from 0."""
    for number, row in enumerate(rows):
        place = f"{where}: row {number}"
        for column in (image, label):
            if column is not None and column not in row:
                raise UserError(f"{place} has no column '{column}'; it has {', '.join(sorted(row))}; set 'data.image' and 'data.label'.")
        match row[image]:
            case {"bytes": bytes(content)}:
                pass
            case {"path": str(path)} if Path(path).is_file():
                content = Path(path).read_bytes()
            case _:
                raise UserError(f"{place}: column '{image}' holds no image; set 'data.image' to the column that does.")
        yield Record(content, None if label is None else _class(row[label], place), place)


def from_shards(samples: Iterable[Mapping[str, Any]], label: str | None, where: str) -> Iterator[Record]:
    """Records of WebDataset's undecoded samples: bytes by extension. Each has one image; its class is the number in the file of extension ``label``."""
    for sample in samples:
        place = f"{where}: sample '{sample.get('__key__')}'"
        images = [key for key in sample if PurePosixPath(f"x.{key}").suffix.lower() in SUFFIXES]
        if len(images) != 1:
            raise UserError(f"{place} has {len(images)} images, not one; these shards cannot be read as an image set.")
        if label is not None and label not in sample:
            raise UserError(f"{place} has no '.{label}'; set 'data.label' to the extension that holds the class, or to null.")
        yield Record(sample[images[0]], None if label is None else _class(sample[label], place), place)


def _class(value: Any, where: str) -> int:
    return class_number(value, lambda: UserError(f"{where}: the class is {value!r:.40}, not a whole number from 0 to {MOST_CLASSES - 1}; set 'data.label' to another, or to null."))


def huggingface(folder: Path, name: str, split: str, image: str, label: str | None, revision: str | None, size: int | None) -> Path:
    """The zip of an image set of the Hugging Face hub, or of a folder that its library reads. Needs the extra ``data``."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("'data.kind: huggingface' needs the datasets library: pip install 'fewstep[data]'.") from error
    asked = {"kind": "huggingface", "name": name, "split": split, "image": image, "label": label, "revision": revision, "size": size}

    def write(path: Path) -> None:
        try:
            rows = datasets.load_dataset(name, split=split, revision=revision)
        except (OSError, ValueError) as error:
            raise UserError(f"data set '{name}', split '{split}': cannot be loaded ({error}); check 'data.name', 'data.split' and 'data.revision'.") from error
        if image not in rows.column_names:
            raise UserError(f"data set '{name}' has no column '{image}'; it has {', '.join(rows.column_names)}; set 'data.image'.")
        feature = None if label is None else rows.features.get(label)
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else ()
        write_records(path, from_rows(rows.cast_column(image, datasets.Image(decode=False)), image, label, name), size, classes)

    return cached(folder, asked, write)


def _opened(samples: Iterable[Mapping[str, Any]], urls: str) -> Iterator[Mapping[str, Any]]:
    # Where the stream is read, so that a missing shard is not taken for a zip that cannot be written.
    try:
        yield from samples
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"shards '{urls}': cannot be read ({error}); check 'data.urls' and that the files are whole.") from error


def webdataset(folder: Path, urls: str, label: str | None, size: int | None) -> Path:
    """The zip of the images in WebDataset shards at ``urls`` (paths or http addresses, with braces). Needs the extra ``data``."""
    # The library splits at "::", and reads lists of further addresses from YAML.
    local = ":" not in urls and _SHARDS.search(urls)
    if not local and ("::" in urls or not _ADDRESS.fullmatch(urls)):
        raise UserError(f"'data.urls' is '{urls}', neither a path of .tar files nor an http address without quotes and spaces; addresses that run programs are not opened.")
    try:
        import webdataset as library
    except ImportError as error:
        raise UserError("'data.kind: webdataset' needs the webdataset library: pip install 'fewstep[data]'.") from error
    asked = {"kind": "webdataset", "urls": urls, "label": label, "size": size}

    def write(path: Path) -> None:
        write_records(path, from_shards(_opened(library.WebDataset(urls, shardshuffle=False), urls), label, urls), size)

    return cached(folder, asked, write)
