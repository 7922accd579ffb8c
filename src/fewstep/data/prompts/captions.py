"""The captions of the images of a folder or an archive, in the order of the images' names.

A set says its captions in one of two ways. ``metadata.jsonl`` or ``metadata.csv`` has a row an
image, with its ``file_name`` relative to the set and its text, as Hugging Face's imagefolder has
it. Without such a file the caption of ``NAME.png`` is ``NAME.txt`` beside it. Which files are
images is the rule of ``data.tree``.

Images and captions that lack their counterpart are passed over and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fewstep.data.archive import Source
from fewstep.data.prompts.columns import Columns, kind_of_value
from fewstep.data.prompts.formats import check_bytes, csv_rows, json_rows, lines_of
from fewstep.data.tree import CAPTIONS, WITHOUT_CAPTION, PassedOver
from fewstep.errors import UserError

FILE_NAME = "file_name"
_ROWS = {CAPTIONS: json_rows, "metadata.csv": csv_rows}
_SUFFIX = ".txt"
_MOST_BYTES = 2**30
# Of one caption in a file of its own; four bytes a character and some white space are less.
_MOST_CAPTION = 2**17


def captions_of(source: Source, columns: Columns) -> Iterator[tuple[str, Any]]:
    """The name of each image that has a caption, below the root of the set, and the caption as it
    is in its file.

    ``columns.note`` is told what was passed over, when all captions are read. Raises ``UserError``,
    naming file and line, for a source without images, for two files of metadata, for a row without
    a ``file_name``, and for two captions of one image.
    """
    where, root = source.path, source.tree.root
    images = [name.removeprefix(root) for name in source.names]
    if not images:
        raise UserError(f"{where}: holds no images, whose captions would be read; check the path.")
    described = [name for name in _ROWS if source.has(root + name)]
    if len(described) > 1:
        raise UserError(f"{where}: has both {' and '.join(_ROWS)}; leave the one that says the captions.")
    beside = {name.removeprefix(root) for name in source.tree.others if name.endswith(_SUFFIX)}
    if described:
        captions = _rows(source, described[0], columns)
        passed_over = {
            f"rows of {described[0]} without an image": sorted(captions.keys() - set(images)),
            f"text files, since {described[0]} says the captions": sorted(beside),
        }
        for name in images:
            if name in captions:
                yield name, captions[name]
        alone = [name for name in images if name not in captions]
    else:
        if columns.asked is not None:
            raise UserError(
                f"{where}: has neither {' nor '.join(_ROWS)}, so that column='{columns.asked}' cannot be read; "
                "leave it out."
            )
        alone, used = [], set()
        for name in images:
            text = str(PurePosixPath(name).with_suffix(_SUFFIX))
            if text in beside:
                used.add(text)
                yield name, _caption(source, root + text)
            else:
                alone.append(name)
        passed_over = {"text files without an image": sorted(beside - used)}
    tally = PassedOver.of({WITHOUT_CAPTION: alone, **passed_over})
    if tally:
        columns.note(tally.sentence(where))


def caption_files(source: Source) -> set[str]:
    """The names of the files that ``captions_of`` reads, or says that it passes over."""
    root = source.tree.root
    return {name for name in source.tree.others if name.endswith(_SUFFIX) or name.removeprefix(root) in _ROWS}


def _rows(source: Source, metadata: str, columns: Columns) -> dict[str, Any]:
    """The captions of a file of metadata by the names of their images."""
    name = source.tree.root + metadata
    path = source.text(name)
    check_bytes(path, source.size(name), _MOST_BYTES, "divide the folder")
    found: dict[str, Any] = {}
    reading = Columns(columns.asked, columns.note, (FILE_NAME,))
    for number, (image, caption) in _ROWS[metadata](path, reading):
        if image == "" and caption == "":
            # A line of nothing.
            continue
        if not isinstance(image, str) or not image:
            what = "empty" if image == "" else kind_of_value(image)
            raise UserError(f"{path}: line {number}: '{FILE_NAME}' is {what}, not the name of an image; correct it.")
        shown = str(PurePosixPath(image))
        if shown in found:
            raise UserError(f"{path}: line {number} is a second row of '{shown}'; leave one of them.")
        found[shown] = caption
    return found


def _caption(source: Source, name: str) -> str:
    path = source.text(name)
    check_bytes(path, source.size(name), _MOST_CAPTION, "shorten the caption")
    return "".join(line for _, line in lines_of(path))
