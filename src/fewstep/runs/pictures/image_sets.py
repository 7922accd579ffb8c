"""Image sets as files: what ``fewstep data`` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from fewstep.data import Dataset, Images, open_images
from fewstep.data.conversion.image_records import ImageRecord, write_records
from fewstep.data.emoji import FONT, NAMES, drawn_by, read_emoji, write_emoji
from fewstep.data.images import open_source
from fewstep.data.labels import read_labels
from fewstep.data.scenes import Scenes
from fewstep.data.scenes.placing import Combinations, Part
from fewstep.data.tree import PassedOver
from fewstep.errors import UserError
from fewstep.runs.pictures.sample_files import check_picture, write_captioned, write_samples
from fewstep.system.caches import output
from fewstep.system.files import write_text
from fewstep.training import Listener

SHEET_ROWS = 200


def make_zip(source: Path | str, out: Path | str, size: int | None = None) -> dict[str, Any]:
    """Packs a folder of images (or another zip) into an EDM zip, each image as the centred square
    of ``size`` pixels, or as it is; returns what ``describe_images`` does.
    """
    out = _zip_path(out)
    files = open_source(Path(source))
    found = read_labels(files)

    def records() -> Iterator[ImageRecord]:
        for index, name in enumerate(files.names):
            yield ImageRecord(
                files.read(name), None if found.numbers is None else found.numbers[index], f"{files.path}: '{name}'"
            )

    with output(out):
        write_records(out, records(), size, found.names)
    described = describe_images(out)
    passed_over = files.tree.passed_over + found.passed_over
    remarks = (*([passed_over.sentence(files.path)] if passed_over else []), *found.remarks)
    return {**described, **_said(passed_over, remarks)}


def make_emoji(out: Path | str, size: int = 32, font: Path | None = None, names: Path | None = None) -> dict[str, Any]:
    """Draws the colour emoji into an EDM zip of ``size`` x ``size`` images, with the files at
    Debian's places unless given; returns what ``describe_images`` does.
    """
    out = _zip_path(out)
    emoji = read_emoji(names or NAMES)
    with output(out):
        write_emoji(out, size, emoji, drawn_by(font or FONT))
    return describe_images(out)


def describe_images(path: Path | str, sheet: Path | None = None) -> dict[str, Any]:
    """The number of images, their shape, and how many there are of each class; with ``sheet`` also
    a contact sheet of at most ``SHEET_ROWS`` images, evenly spaced.
    """
    if sheet is not None:
        check_picture(sheet)
    images = open_images(path)
    described: dict[str, Any] = {"path": str(path), "images": len(images), "shape": list(images.shape), "classes": []}
    if images.labels is not None:
        names = images.names or tuple(str(number) for number in range(images.classes))
        counts = torch.bincount(images.labels, minlength=images.classes).tolist()
        # A list, since two classes may have one name.
        described["classes"] = [{"name": name, "images": count} for name, count in zip(names, counts, strict=True)]
    if sheet is not None:
        with output(sheet):
            write_samples(sheet, images.take(images.head(SHEET_ROWS)), images.low, images.high, columns=20)
        described["sheet"] = str(sheet)
    return {**described, **said_of(images)}


def show_scenes(
    out: Path | str,
    digits: int = 1,
    part: str = "train",
    combinations: str = "seen",
    count: int = 48,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes a sheet of the first ``count`` scenes with their captions as a picture; returns what
    they are and their captions.

    Raises ``UserError`` for a name that is no picture's, for more than ``SHEET_ROWS`` scenes, and
    for what ``Scenes`` refuses.
    """
    out = Path(out)
    check_picture(out)
    if count > SHEET_ROWS:
        raise UserError(f"scenes: a sheet has at most {SHEET_ROWS} scenes, got {count}; ask for fewer.")
    # ``Scenes`` refuses any other text.
    data = Scenes(count, digits, cast(Part, part), cast(Combinations, combinations), seed)
    captions = data.captions(torch.arange(count))
    with output(out):
        write_captioned(out, data.take(torch.arange(count)), captions, data.low, data.high)
    said = {"digits": digits, "part": part, "combinations": combinations, "seed": seed}
    return {"sheet": str(out), "scenes": count, "shape": list(data.shape), **said, "captions": captions}


def announce(data: Dataset | None, listener: Listener, record: Path | None = None) -> None:
    """Says what is worth a line of a run's data, and writes it as JSON into ``record`` where that
    is given.
    """
    if data is None:
        return
    for sentence in data.remarks:
        listener.say(sentence)
    if record is not None and data.remarks:
        write_text(record, json.dumps(said_of(data), indent=2) + "\n")


def said_of(data: Dataset | None) -> dict[str, Any]:
    """What is worth a line of a run's data, as JSON has it; nothing where nothing is."""
    return {} if data is None else _said(data.passed_over if isinstance(data, Images) else PassedOver(), data.remarks)


def _said(passed_over: PassedOver, remarks: tuple[str, ...]) -> dict[str, Any]:
    """What was passed over and what is worth a line, where there is such a thing."""
    return {"passed_over": passed_over.as_json(), "remarks": list(remarks)} if remarks else {}


def _zip_path(out: Path | str) -> Path:
    if Path(out).suffix.lower() != ".zip":
        raise UserError(f"{out}: an image set is written as a zip; give a name that ends in .zip.")
    return Path(out)
