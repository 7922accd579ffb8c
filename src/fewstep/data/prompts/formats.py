"""The rows of a file of prompts, each with its place: lines, CSV, JSON lines, a JSON list, parquet.

Text files are read a line at a time. A line ends with LF, CRLF or CR, and a line break inside a
quoted field becomes LF. A byte order mark at the beginning of a file is passed over. Bytes that are
no UTF-8 are found line by line, so that a sentence can say where the bytes are.

CSV is read strictly: a quote that is never closed would otherwise take the rest of the file into
one prompt, and a comma outside quotes would cut a prompt short.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.archive import PackedText
from fewstep.data.prompts.columns import ChosenColumns, Columns, columns_there, kind_of_value
from fewstep.errors import UserError
from fewstep.system.files import readable

MOST_LINE = 2**24
MOST_JSON = 2**27
"""Characters of a line, and of a JSON list: what JSON makes of a text takes many times its length
in memory.
"""
_PARQUET_ROWS = 1024
# How Python keeps a byte that is no UTF-8 (``surrogateescape``).
_NO_UTF8 = re.compile("[\udc80-\udcff]")


TextFile = Path | PackedText


class Format(NamedTuple):
    """How files of one suffix are read: ``rows`` gives number and values of each row.

    ``unit``: what a row's number counts. ``columns``: whether the rows have columns.
    """

    unit: str
    rows: Callable[[Path, Columns], Iterator[tuple[int, tuple[Any, ...]]]]
    columns: bool = True


def lines_of(path: TextFile, most: int = MOST_LINE) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, each ended by LF.

    Raises ``UserError``, naming the line, for what is no UTF-8 and for a line of more than ``most``
    characters.
    """
    with readable(path), path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        number = 0
        while line := stream.readline(most + 1):
            number += 1
            if len(line) > most:
                raise UserError(f"{path}: line {number} has more than {most:,} characters; divide it.")
            wrong = None if line.isascii() else _NO_UTF8.search(line)
            if wrong is not None:
                raise UserError(
                    f"{path}: line {number} is not UTF-8 (byte 0x{ord(wrong[0]) - 0xDC00:02x}, "
                    f"character {wrong.start() + 1} of the line); save the file as UTF-8."
                )
            yield number, line


def check_size(path: Path, most: int, remedy: str) -> None:
    """Raises ``UserError``, which ends with the remedy, for a file of more than ``most`` bytes."""
    with readable(path):
        check_bytes(path, path.stat().st_size, most, remedy)


def check_bytes(where: object, size: int, most: int, remedy: str) -> None:
    """Raises ``UserError``, which ends with the remedy, for more than ``most`` bytes."""
    if size > most:
        raise UserError(f"{where}: has {size:,} bytes, more than the {most:,} that it may have; {remedy}.")


def _plain(path: Path, columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, line in lines_of(path):
        yield number, (line,)


def csv_rows(path: TextFile, columns: ChosenColumns) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The rows of CSV."""
    rows = csv.reader((line for _, line in lines_of(path)), strict=True)
    try:
        header = [name.strip() for name in next((row for row in rows if row), [])]
        if not header:
            return
        chosen = [header.index(name) for name in columns.among(header, str(path))]
        # A row may take several lines: the number is that of the first.
        number = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}: line {number} has {_counted(len(row), 'field')}, the header has {len(header)}; "
                    "put a text with commas into double quotes."
                )
            yield number, tuple(row[place] for place in chosen) if row else ("",) * len(chosen)
            number = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}: line {rows.line_num} is not CSV ({error}); look for a double quote that is never closed "
            "or not doubled."
        ) from error


def json_rows(path: TextFile, columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The rows of JSON lines."""
    objects = _Objects(path, columns)
    for number, line in lines_of(path):
        place = f"{path}: line {number}"
        yield number, objects.values(_parsed(line, place) if line.strip() else "", place)


def _json_list(path: Path, columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
    check_size(path, MOST_JSON, "write the prompts as JSON lines (.jsonl), which are read one at a time")
    text = "".join(line for _, line in lines_of(path, MOST_JSON))
    listed = _parsed(text, str(path)) if text.strip() else []
    if not isinstance(listed, list):
        raise UserError(
            f"{path}: holds {kind_of_value(listed)}, not a list of prompts; write the prompts as a JSON list, "
            "or as JSON lines in a file that ends in .jsonl."
        )
    objects = _Objects(path, columns)
    for number, value in enumerate(listed, 1):
        yield number, objects.values(value, f"{path}: entry {number}")


def _parquet(path: Path, columns: Columns) -> Iterator[tuple[int, tuple[Any, ...]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow, which reads parquet: pip install 'fewstep[data]'.") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            chosen = columns.among(file.schema_arrow.names, str(path))
            # Columns that are not asked for, pictures among them, are not read.
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(chosen)):
                for values in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
                    number += 1
                    yield number, values
    # A text that is no UTF-8 is a ``ValueError`` as well.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is no readable parquet file ({error}) after row {number}; restore it from a copy."
        ) from error


class _Objects:
    """The values of JSON rows: of objects those of the columns, which the first object decides."""

    def __init__(self, path: TextFile, columns: Columns):
        self._path, self._columns = path, columns
        self._chosen: tuple[str, ...] | None = None

    def values(self, value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, Mapping):
            # A row that is empty has no columns, whatever is asked for.
            if (self._columns.besides or self._columns.asked is not None) and value != "":
                raise UserError(
                    f"{place} is {kind_of_value(value)}, not an object with columns; correct it or take it out."
                )
            return (*("" for _ in self._columns.besides), value)
        if self._chosen is None:
            self._chosen = self._columns.among(list(value), place)
        missing = next((name for name in self._chosen if name not in value), None)
        if missing is not None:
            raise UserError(f"{place} has no '{missing}'; {columns_there(list(value))}; correct it or take it out.")
        return tuple(value[name] for name in self._chosen)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # The number of the line is in the place, unless the text has several.
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise UserError(
            f"{place} is not JSON ({error.msg}: {line}column {error.colno}); correct it or take it out."
        ) from error
    # Python reads no number of thousands of digits.
    except ValueError as error:
        raise UserError(f"{place} is not JSON that can be read ({error}); correct it or take it out.") from error
    except RecursionError as error:
        raise UserError(f"{place} is nested too deeply; no prompt is, correct it or take it out.") from error


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


FORMATS = {
    ".txt": Format("line", _plain, columns=False),
    "": Format("line", _plain, columns=False),
    ".csv": Format("line", csv_rows),
    ".jsonl": Format("line", json_rows),
    ".json": Format("entry", _json_list),
    ".parquet": Format("row", _parquet),
}
"""The formats by the suffix of the file's name; a name without a suffix is a text's."""
