"""Images of other libraries' sets, a record each, and the zip that is made of records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fewstep.data.archive import MOST_CLASSES, Packed, write_archive
from fewstep.data.labels import class_number
from fewstep.data.pixels import SUFFIXES, decode, squared
from fewstep.data.prompts.read import prompt_text
from fewstep.data.tree import WITHOUT_CAPTION, PassedOver
from fewstep.errors import UserError


class ImageRecord(NamedTuple):
    """An image file's bytes, its class, what to call it in errors, and its caption: "" where it
    lacks one, None where captions were not asked for.
    """

    content: bytes
    label: int | None
    where: str
    caption: str | None = None


def write_records(path: Path, records: Iterable[ImageRecord], size: int | None, classes: Sequence[str] = ()) -> int:
    """Writes records as an EDM zip, each as the centred square of ``size`` pixels, or as it is;
    returns how many.

    Raises ``UserError`` for an image that cannot be read, and, where ``size`` is None, for one of
    another size than the first.
    """
    return write_archive(path, _pictures(records, size), classes)


def _pictures(records: Iterable[ImageRecord], size: int | None) -> Iterator[Packed]:
    first: tuple[int, int] | None = None
    for record in records:
        picture = decode(record.content, record.where)
        if size is not None:
            picture = squared(picture, size)
        first = first or picture.size
        if picture.size != first:
            raise UserError(
                f"{record.where}: has {picture.width} x {picture.height} pixels, the first image {first[0]} "
                f"x {first[1]}; give a size, to which all are resized."
            )
        yield Packed(picture, record.label, record.caption)


def from_rows(
    rows: Iterable[Mapping[str, Any]], image: str, label: str | None, where: str, caption: str | None = None
) -> Iterator[ImageRecord]:
    """Records of rows whose column ``image`` holds {"bytes", "path"}, as the datasets library gives
    images undecoded, whose ``label`` is a number from 0, and whose ``caption`` is a text or null.
    """
    for number, row in enumerate(rows):
        place = f"{where}: row {number}"
        for column in (image, label, caption):
            if column is not None and column not in row:
                raise UserError(
                    f"{place} has no column '{column}'; it has {', '.join(sorted(row))}; set 'data.image', "
                    "'data.label' and 'data.caption'."
                )
        match row[image]:
            case {"bytes": bytes(content)}:
                pass
            case {"path": str(path)} if Path(path).is_file():
                content = Path(path).read_bytes()
            case _:
                raise UserError(f"{place}: column '{image}' holds no image; set 'data.image' to the column that does.")
        text = None if caption is None else prompt_text(row[caption], f"{where}: column '{caption}'", number, "row")
        yield ImageRecord(content, None if label is None else _class(row[label], place), place, text)


def from_shards(
    samples: Iterable[Mapping[str, Any]], label: str | None, where: str, caption: str | None = None
) -> Iterator[ImageRecord]:
    """Records of WebDataset's undecoded samples: bytes by extension.

    Each has one image; its class is the number in the file of extension ``label``, its caption the
    text in that of extension ``caption``, which it may lack.
    """
    for sample in samples:
        place = f"{where}: sample '{sample.get('__key__')}'"
        images = [key for key in sample if PurePosixPath(f"x.{key}").suffix.lower() in SUFFIXES]
        if len(images) != 1:
            raise UserError(f"{place} has {len(images)} images, not one; these shards cannot be read as an image set.")
        if label is not None and label not in sample:
            raise UserError(
                f"{place} has no '.{label}'; set 'data.label' to the extension that holds the class, or to null."
            )
        text = None if caption is None else _text(sample.get(caption, b""), f"{place}: '.{caption}'")
        yield ImageRecord(sample[images[0]], None if label is None else _class(sample[label], place), place, text)


def _text(content: bytes, where: str) -> str:
    """A caption in a file of its own."""
    try:
        return prompt_text(content.decode("utf-8-sig"), where, "the caption", "")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error}); save the captions as UTF-8, or leave them out.") from error


class Uncaptioned:
    """Counts the images that lack a caption, among records that pass."""

    def __init__(self, remedy: str):
        self._names: list[str] = []
        self._count = 0
        self._remedy = remedy

    def among(self, records: Iterable[ImageRecord], name: str) -> Iterator[ImageRecord]:
        """The records; raises ``UserError`` after the last of them where all lack a caption that
        was asked for.
        """
        for record in records:
            self._count += 1
            if record.caption == "":
                self._names.append(record.where)
            yield record
        if self._count and len(self._names) == self._count:
            raise UserError(f"{name}: none of {self._count:,} images has a caption; {self._remedy}.")

    @property
    def passed_over(self) -> PassedOver:
        """What lacks one."""
        return PassedOver.of({WITHOUT_CAPTION: self._names})


def _class(value: Any, where: str) -> int:
    return class_number(
        value,
        lambda: UserError(
            f"{where}: the class is {value!r:.40}, not a whole number from 0 to {MOST_CLASSES - 1}; set "
            "'data.label' to another, or to null."
        ),
    )
