"""The captions of an image folder, in the order of the images' names.

A folder says its captions in one of two ways. ``metadata.jsonl`` or ``metadata.csv`` has a row an
image, with its ``file_name`` relative to the folder and its text, as Hugging Face's imagefolder has
it. Without such a file the caption of ``NAME.png`` is ``NAME.txt`` beside it. Which files are
images is the rule of ``data.tree``.

Images and captions that lack their counterpart are passed over and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.data.image_folder import Folder
from fewstep.data.prompts.columns import Columns, kind_of_value
from fewstep.data.prompts.formats import FORMATS, check_size, lines_of
from fewstep.data.tree import PassedOver, is_hidden
from fewstep.errors import UserError
from fewstep.system.files import readable

FILE_NAME = "file_name"
_ROWS = ("metadata.jsonl", "metadata.csv")
_SUFFIX = ".txt"
_MOST_BYTES = 2**30
# Of one caption in a file of its own; four bytes a character and some white space are less.
_MOST_CAPTION = 2**17


def captions_of(folder: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    """The name of each image that has a caption, and the caption as it is in its file.

    ``columns.note`` is told what was passed over, when all captions are read. Raises ``UserError``,
    naming file and line, for a folder without images, for two files of metadata, for a row without
    a ``file_name``, and for two captions of one image.
    """
    images = Folder(folder).names
    if not images:
        raise UserError(f"{folder}: holds no images, whose captions would be read; check the path.")
    described = [folder / name for name in _ROWS if (folder / name).is_file()]
    if len(described) > 1:
        raise UserError(f"{folder}: has both {' and '.join(_ROWS)}; leave the one that says the captions.")
    beside = _texts_in(folder)
    if described:
        captions = _rows(described[0], columns)
        passed_over = {
            f"rows of {described[0].name} without an image": sorted(captions.keys() - set(images)),
            f"text files, since {described[0].name} says the captions": sorted(beside),
        }
        for name in images:
            if name in captions:
                yield name, captions[name]
        alone = [name for name in images if name not in captions]
    else:
        if columns.asked is not None:
            raise UserError(
                f"{folder}: has neither {' nor '.join(_ROWS)}, so that column='{columns.asked}' cannot be read; "
                "leave it out."
            )
        alone, used = [], set()
        for name in images:
            text = str(PurePosixPath(name).with_suffix(_SUFFIX))
            if text in beside:
                used.add(text)
                yield name, _caption(folder / text)
            else:
                alone.append(name)
        passed_over = {"text files without an image": sorted(beside - used)}
    tally = PassedOver.of({"images without a caption": alone, **passed_over})
    if tally:
        columns.note(tally.sentence(folder))


def _rows(path: Path, columns: Columns) -> dict[str, Any]:
    """The captions of a file of metadata by the names of their images."""
    check_size(path, _MOST_BYTES, "divide the folder")
    found: dict[str, Any] = {}
    reading = Columns(columns.asked, columns.note, (FILE_NAME,))
    for number, (name, caption) in FORMATS[path.suffix].rows(path, reading):
        if name == "" and caption == "":
            # A line of nothing.
            continue
        if not isinstance(name, str) or not name:
            what = "empty" if name == "" else kind_of_value(name)
            raise UserError(f"{path}: line {number}: '{FILE_NAME}' is {what}, not the name of an image; correct it.")
        shown = str(PurePosixPath(name))
        if shown in found:
            raise UserError(f"{path}: line {number} is a second row of '{shown}'; leave one of them.")
        found[shown] = caption
    return found


def _texts_in(folder: Path) -> set[str]:
    """The text files of a folder and its sub-folders that are not hidden, by their names below
    it.
    """
    with readable(folder):
        found = {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{_SUFFIX}") if path.is_file()}
    return {name for name in found if not is_hidden(name, set())}


def _caption(path: Path) -> str:
    check_size(path, _MOST_CAPTION, "shorten the caption")
    return "".join(line for _, line in lines_of(path))
