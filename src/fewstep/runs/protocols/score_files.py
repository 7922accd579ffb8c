"""Scores of pictures that others' programs computed (HPSv2, PickScore, ImageReward), from a CSV.

The first line names the columns. ``file`` (or ``file_name``) holds a picture's path below its
folder, or ``number`` the number that is its name: 12 is ``000012.png``. Every other column is a
score, but columns of words that are known: a prompt, a caption, a seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.data.prompts.columns import columns_there
from fewstep.data.prompts.formats import check_size, csv_rows
from fewstep.errors import UserError
from fewstep.metrics.averages import Average

FILES, NUMBER = ("file", "file_name"), "number"
PASSED_OVER = ("prompt", "caption", "text", "seed")
"""Columns that are no scores."""
MOST_COLUMNS, MOST_ROWS, MOST_BYTES = 64, 1_000_000, 2**28
_MOST_NAME = 60
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")


@dataclass(frozen=True)
class ScoreColumns:
    """The column that says which picture a row is of, and those of scores; ``found`` is told of
    them.
    """

    found: Callable[[tuple[str, ...]], None]

    def among(self, names: Sequence[str], place: str) -> tuple[str, ...]:
        """See ``ChosenColumns``."""
        wrong = next((name for name in names if _CONTROL.search(name) or len(name) > _MOST_NAME or not name), None)
        if wrong is not None:
            raise UserError(
                f"{place}: has a column {wrong[:_MOST_NAME]!a}, which is no name of a score; write one of 1 to "
                f"{_MOST_NAME} characters."
            )
        keys = [name for name in (*FILES, NUMBER) if name in names]
        if len(keys) != 1:
            what = "has no column" if not keys else "has more than one of the columns"
            raise UserError(
                f"{place}: {what} 'file', 'file_name' or 'number', which says whose a row's scores are; "
                f"{columns_there(names)}; name the columns in the first line."
            )
        scores = [name for name in names if name not in (*keys, *PASSED_OVER)]
        twice = next((name for name in (*keys, *scores) if list(names).count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{place}: has two columns '{twice}'; rename one of them.")
        if not scores or len(scores) > MOST_COLUMNS:
            raise UserError(
                f"{place}: has {len(scores)} columns of scores; give 1 to {MOST_COLUMNS} beside '{keys[0]}'."
            )
        self.found((keys[0], *scores))
        return (keys[0], *scores)


@dataclass(frozen=True)
class JoinedScores:
    """``values``: by column, the scores of the pictures that have a row, in the pictures' order.

    ``missing`` and ``extra``: how many pictures have no row, and rows no picture, with an example
    of each.
    """

    values: Mapping[str, tuple[float, ...]]
    missing: tuple[int, str]
    extra: tuple[int, str]

    def as_json(self) -> dict[str, Any]:
        """Means with intervals by column, and what was left over."""
        return {
            "means": {name: Average.of(values).as_json() for name, values in self.values.items()},
            "without_scores": self.missing[0],
            "without_a_picture": self.extra[0],
        }

    def remarks(self, path: object) -> list[str]:
        """A sentence on each kind of what was left over."""
        kinds = ((self.missing, "pictures without a row of scores"), (self.extra, "rows without a picture"))
        return [
            f"{path}: {count:,} {what} (such as {example}), which are left out."
            for (count, example), what in kinds
            if count
        ]


def read_scores(path: Path, folder: Path, names: Sequence[str]) -> JoinedScores:
    """The scores in a file, joined to the pictures of ``folder`` by their ``names`` below it.

    Raises ``UserError``, naming file and line, for what is no CSV of finite numbers with a line of
    names, for two rows of one picture, and where no row is of a picture.
    """
    check_size(path, MOST_BYTES, "divide it")
    columns: list[str] = []
    numbered = {int(stem): name for name in names if (stem := PurePosixPath(name).stem).isascii() and stem.isdigit()}
    known, found, strangers = set(names), dict[str, tuple[float, ...]](), dict[str, int]()
    for line, row in csv_rows(path, ScoreColumns(columns.extend)):
        if not any(row):
            continue
        place = f"{path}: line {line}"
        name = _name(row[0], columns[0], folder, numbered, place)
        if name in found or name in strangers:
            raise UserError(f"{place} is a second row of '{name:.80}'; leave one of them.")
        if len(found) + len(strangers) == MOST_ROWS:
            raise UserError(f"{path}: has more than {MOST_ROWS:,} rows; divide it.")
        values = tuple(_number(text, column, place) for text, column in zip(row[1:], columns[1:], strict=True))
        if name in known:
            found[name] = values
        else:
            strangers[name] = line
    if not found:
        example = f", such as '{next(iter(strangers)):.80}'" if strangers else ""
        raise UserError(
            f"{path}: has no row of a picture of {folder} ({len(strangers):,} of others{example}); name pictures as "
            f"they are there, such as '{names[0]}'."
        )
    missing = [name for name in names if name not in found]
    return JoinedScores(
        {column: tuple(found[name][at] for name in names if name in found) for at, column in enumerate(columns[1:])},
        (len(missing), f"'{missing[0]}'" if missing else ""),
        (len(strangers), next((f"line {line}" for line in strangers.values()), "")),
    )


def _name(text: str, column: str, folder: Path, numbered: Mapping[int, str], place: str) -> str:
    """The name of the picture that a row is of, below its folder; a picture's or not."""
    if not text or _CONTROL.search(text):
        what = "is empty" if not text else "has control characters"
        raise UserError(f"{place}: '{column}' {what}, where a picture should be named; correct it.")
    if column == NUMBER:
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UserError(f"{place}: '{column}' is '{text:.40}', which is no whole number; correct it.")
        return numbered.get(int(text), text)
    given = PurePosixPath(text)
    root = PurePosixPath(folder.absolute())
    return str(given.relative_to(root) if given.is_absolute() and given.is_relative_to(root) else given)


def _number(text: str, column: str, place: str) -> float:
    """A finite number."""
    shown = text.strip()
    value = float(shown) if len(shown) <= 60 and _DECIMAL.fullmatch(shown) else math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: '{column}' is {shown[:40]!a}, which is no finite number; correct it.")
    return value
