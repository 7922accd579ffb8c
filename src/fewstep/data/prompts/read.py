"""Prompts from a list, a file or the captions of an image folder.

One rule holds for all sources. White space around a prompt is taken off; what is left is the
prompt, as it is. A prompt of nothing is passed over, and a prompt that is there twice is kept
twice: both are counted. Nothing is cut and nothing is guessed: what is no text, or a text that no
tokenizer should meet, is refused with its place.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.data.archive import Archive, Source
from fewstep.data.image_folder import Folder
from fewstep.data.prompts.captions import captions_of
from fewstep.data.prompts.columns import Columns, kind_of_value
from fewstep.data.prompts.formats import FORMATS, check_size
from fewstep.data.tree import PassedOver
from fewstep.errors import UserError
from fewstep.resumable import Inert

MOST_PROMPTS = 10_000_000
MOST_CHARACTERS = 10_000
"""Characters of one prompt."""
MOST_BYTES = 2**30
"""Bytes of a file, and characters of all its prompts: a small parquet file can hold many times its
size.
"""
_LISTED = "the list of prompts"
# All control characters but tab and line breaks, and halves of characters, which no UTF-8 has.
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Prompts(Inert):
    """``texts`` in their order, N of them; read by ``read_prompts``.

    ``remarks``: sentences of what was passed over, and of prompts that are there more than once.
    ``source``: what to call the prompts in a sentence. ``places``: where each text is, its number
    in ``unit``s (lines, rows) from 1 or the name of its image; empty where that is its index. Where
    ``unit`` is empty, a place says itself what it is.
    """

    texts: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    source: str = _LISTED
    unit: str = "prompt"
    places: Sequence[int] | Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def identity(self) -> str:
        """SHA-256, 64 hexadecimal digits, over the texts in their order, wherever they are from."""
        sha = hashlib.sha256(b"prompts\n")
        for text in self.texts:
            sha.update(hashlib.sha256(text.encode()).digest())
        return sha.hexdigest()

    def where(self, index: int) -> str:
        """Where the text at ``index`` in [0, N) is, for a sentence: ``line 7``."""
        return _place(self.places[index] if self.places else index + 1, self.unit)


def read_prompts(source: str | Path | Sequence[str], column: str | None = None) -> Prompts:
    """The prompts of a source, in its order.

    ``source``: a list of texts, or the path of

    - a text file (.txt, or no suffix), a prompt a line;
    - .csv, .jsonl (objects or texts), .json (a list of these) or .parquet (the extra ``data``);
    - an image folder, or a zip of one: ``metadata.jsonl`` or ``metadata.csv`` with ``file_name``
      and a text, else ``NAME.txt`` beside ``NAME.png``; captions are in the order of the images'
      names.

    ``column``: the column, or key, that holds the prompts; None for the first of ``prompt``,
    ``caption`` and ``text`` that is there. Text is UTF-8.

    Raises ``UserError``, naming file and line, for a source without a prompt; a file of more than
    1 GiB; more than 10,000,000 prompts; a prompt of more than 10,000 characters or with control
    characters other than tabs and line breaks; what is no text; what is no UTF-8, CSV or JSON; and
    a column that is not there.
    """
    if not isinstance(source, (str, Path)):
        _without_columns(_LISTED, column)
        return collected(enumerate(source, 1), _LISTED, "prompt", [])
    path, remarks = Path(source).expanduser(), list[str]()
    columns = Columns(column, remarks.append)
    if os.path.isdir(path):
        return collected(captions_of(Folder(path), columns), str(path), "image", remarks)
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: there is no such file or folder; check the path, or give prompts themselves as a list: "
            "['a red fox']."
        )
    if path.suffix.lower() == ".zip":
        return collected(captions_of(Archive(path), columns), str(path), "image", remarks)
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        suffixes = ", ".join(suffix for suffix in FORMATS if suffix)
        raise UserError(f"{path}: is none of {suffixes}; give the file the suffix of what it holds.")
    if not found.columns:
        _without_columns(str(path), column)
    check_size(path, MOST_BYTES, "divide it")
    texts = ((number, values[0]) for number, values in found.rows(path, columns))
    return collected(texts, str(path), found.unit, remarks)


def captions_by_image(source: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The caption of each image of a set, in the order of their names and "" for one without, and
    the sentences of what was passed over. Captions are read as prompts of an image folder are.

    Raises ``UserError``, naming the file, for a set without captions, and for what is no prompt.
    """
    remarks, found, characters = list[str](), dict[str, str](), 0
    for name, value in captions_of(source, Columns(None, remarks.append)):
        text = prompt_text(value, str(source.path), name, "image")
        found[source.tree.root + name] = text
        characters = _bounded(characters + len(text), str(source.path))
    if not any(found.values()):
        raise UserError(
            f"{source.path}: holds no captions; write metadata.jsonl or metadata.csv, or NAME.txt beside NAME.png, or "
            "use the images without captions." + _after(remarks)
        )
    return tuple(found.get(name, "") for name in source.names), tuple(remarks)


def collected(found: Iterable[tuple[int | str, Any]], source: str, unit: str, remarks: list[str]) -> Prompts:
    """The prompts among values with their places, each a number in ``unit``s of ``source`` or a
    name; ``remarks`` are complete when all are read.

    Raises ``UserError`` for a value that is no prompt, and where there is none.
    """
    texts: list[str] = []
    numbers, names = array("q"), list[str]()
    first: dict[str, int | str] = {}
    empty, again, characters = 0, 0, 0
    example, repeated = "", ""
    for place, value in found:
        text = prompt_text(value, source, place, unit)
        if not text:
            empty, example = empty + 1, example or _place(place, unit)
            continue
        if len(texts) == MOST_PROMPTS:
            raise UserError(f"{source}: has more than {MOST_PROMPTS:,} prompts; divide it.")
        characters = _bounded(characters + len(text), source)
        before = first.setdefault(text, place)
        if before != place:
            again += 1
            repeated = repeated or f"{_place(place, unit)} says what {_place(before, unit)} does"
        texts.append(text)
        if isinstance(place, int):
            numbers.append(place)
        else:
            names.append(place)
    if empty:
        remarks.append(PassedOver({"empty prompts": (empty, example)}).sentence(source))
    if not texts:
        raise UserError(f"{source}: holds no prompts; write one a line, or check the path." + _after(remarks))
    if again:
        remarks.append(
            f"{source}: {again:,} of {len(texts):,} prompts are there before (such as {repeated}); all are kept."
        )
    return Prompts(tuple(texts), tuple(remarks), source, unit, names or numbers)


def _bounded(characters: int, source: str) -> int:
    """The number of characters; raises ``UserError`` for more than prompts may have together."""
    if characters > MOST_BYTES:
        raise UserError(f"{source}: has prompts of more than {MOST_BYTES:,} characters together; divide it.")
    return characters


def prompt_text(value: Any, source: str, place: int | str, unit: str) -> str:
    """The text of a value without white space around it; a null is an empty text.

    Raises ``UserError``, naming the place in ``unit``s of the source, for what is no prompt.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{source}: {_place(place, unit)} is {kind_of_value(value)} ({str(value)[:40]}), where a text should be; "
            "write it as a text, or take it out."
        )
    wrong = _REFUSED.search(value)
    if wrong is not None:
        what = "half a character" if wrong[0] >= "\ud800" else "the control character"
        raise UserError(
            f"{source}: {_place(place, unit)} has {what} U+{ord(wrong[0]):04X} at character {wrong.start() + 1}; "
            "take it out."
        )
    text = value.strip()
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{source}: {_place(place, unit)} has {len(text):,} characters, more than a prompt may have "
            f"({MOST_CHARACTERS:,}); shorten it, or take it out."
        )
    return text


def _place(place: int | str, unit: str) -> str:
    if not unit:
        return str(place)
    return f"{unit} {place}" if isinstance(place, int) else f"{unit} '{place}'"


def _without_columns(source: str, column: str | None) -> None:
    if column is not None:
        raise UserError(f"{source}: has no columns, so that column='{column}' cannot be read; leave it out.")


def _after(remarks: Sequence[str]) -> str:
    return "".join(f" {remark}" for remark in remarks)
