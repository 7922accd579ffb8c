"""What one rater says of the pairs of a study: one file, to which lines are only added.

In which order a rater sees the pairs, and which model is on the left, is a function of the study's
seed and the rater's name, so that a rater who comes back goes on where he was. Of each model's
pictures half are on the left, but for one where the number of pairs is odd: whoever prefers a side
prefers no model.

A line is ``{"pair", "left", "prefers"}``, the model on the left and the one that is preferred or
``"none"``; ``{"undo": PAIR}`` takes back the last one. Each is synced before the next pair is
shown.
"""

from __future__ import annotations

import fcntl
import json
import os
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.studies.preference.picture_pairs import MODELS, PairStudy
from fewstep.system.files import readable, sync_folder, why_not_written

CHOICES = ("left", "right", "none")
MOST_NAME = 60
SUFFIX = ".jsonl"
_PUNCTUATION = " ._-"
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Preference:
    """A rater's answer to a pair, with the model that was on the ``left``; ``prefers``: ``A``,
    ``B`` or ``none``.
    """

    pair: int
    left: str
    prefers: str

    @property
    def side(self) -> str:
        """Which of ``CHOICES`` was chosen."""
        if self.prefers == "none":
            return "none"
        return "left" if self.prefers == self.left else "right"


@dataclass(frozen=True)
class ShownPairs:
    """The pairs as a rater sees them: the i-th is ``order[i]``, with the model ``lefts[i]`` on the
    left.
    """

    order: tuple[int, ...]
    lefts: tuple[str, ...]

    @classmethod
    def of(cls, seed: int, rater: str, pairs: int) -> ShownPairs:
        """Those of a rater: a function of seed and name."""
        key = Key(seed, "preference", owner=rater)
        first = int(key.integers("first side", 1, 2))
        sides = (key.permutation("side", pairs) + first) % 2
        return cls(tuple(key.permutation("order", pairs).tolist()), tuple(MODELS[side] for side in sides.tolist()))

    def picture(self, place: int, side: str) -> tuple[int, str]:
        """The pair that is the ``place``-th, and the model on its ``left`` or ``right``."""
        return self.order[place], self._model(place, side)

    def preference(self, place: int, choice: str) -> Preference:
        """One of ``CHOICES`` as an answer."""
        prefers = "none" if choice == "none" else self._model(place, choice)
        return Preference(self.order[place], self.lefts[place], prefers)

    def _model(self, place: int, side: str) -> str:
        other = {"A": "B", "B": "A"}
        return self.lefts[place] if side == "left" else other[self.lefts[place]]


class AnswerBook:
    """The answers of ``rater`` to the pairs of ``study``, held by this process alone.

    Raises ``UserError`` for a name that cannot be a file's, a file of other answers, and while
    another process holds it.
    """

    def __init__(self, study: PairStudy, rater: str):
        self.rater = checked_rater(rater)
        self.path = study.answers / f"{self.rater}{SUFFIX}"
        self.shown = ShownPairs.of(study.seed, self.rater, len(study))
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            sync_folder(self.path.parent)
        except OSError as error:
            raise UserError(why_not_written(self.path, error)) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise UserError(f"{self.path}: another fewstep process asks this rater; go on there, or end it.") from error
        self.answered = read_answers(self.path, self.shown)

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._handle)

    def add(self, place: int, choice: str) -> None:
        """Keeps one of ``CHOICES`` of the ``place``-th pair, which must be the next one.

        Raises ``UserError`` for another, and where the line cannot be written; nothing is kept
        then.
        """
        if place != len(self.answered) or place == len(self.shown.order):
            raise UserError("this pair was answered meanwhile; go on with the one that is shown now.")
        preference = self.shown.preference(place, choice)
        self._append(asdict(preference))
        self.answered.append(preference)

    def undo(self, place: int) -> None:
        """Takes back the answer to the ``place``-th pair, which must be the last one; raises as
        ``add`` does.
        """
        if not self.answered or place != len(self.answered) - 1:
            raise UserError("there is no such answer to take back; go on with the pair that is shown now.")
        self._append({"undo": self.answered[-1].pair})
        self.answered.pop()

    def _append(self, line: dict[str, Any]) -> None:
        try:
            held, there = os.fstat(self._handle), os.stat(self.path)
            if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
                raise UserError(f"{self.path}: was replaced by another file meanwhile; start the command again.")
            # Begins a line of its own, whatever was cut short before it.
            torn = held.st_size > 0 and os.pread(self._handle, 1, held.st_size - 1) != b"\n"
            content = ("\n" if torn else "") + json.dumps(line) + "\n"
            written = os.write(self._handle, content.encode())
            os.fsync(self._handle)
        except OSError as error:
            raise UserError(why_not_written(self.path, error)) from error
        if written < len(content):
            raise UserError(f"{self.path}: could not be written whole; free some space on the disk.")


def checked_rater(name: str) -> str:
    """A rater's name in one spelling; raises ``UserError`` for one that cannot be a file's."""
    name = unicodedata.normalize("NFC", name)
    if not 0 < len(name) <= MOST_NAME or not all(each.isalnum() or each in _PUNCTUATION for each in name):
        raise UserError(f"--rater: '{name:.80}' is no name; give up to {MOST_NAME} letters, digits, spaces, '.-_'.")
    if name[0] == "." or name != name.strip():
        raise UserError(f"--rater: '{name}' begins or ends so that no file should; give a name of letters.")
    return name


def read_answers(path: Path, shown: ShownPairs) -> list[Preference]:
    """The answers in a rater's file, in their order; a line that a crash has cut short is passed
    over.

    Raises ``UserError`` for lines that are no answers to pairs as they were ``shown``.
    """
    with readable(path):
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None
    if content is None:
        raise UserError(f"{path}: has more than {_MOST_BYTES:,} bytes, which no rater's answers have; move it away.")
    found: list[Preference] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not _follow(found, said, shown):
            raise UserError(
                f"{path}: line {number} is no answer of this rater to the pairs of this study; restore the file, or "
                "give another name by --rater."
            )
    return found


def _follow(found: list[Preference], said: Any, shown: ShownPairs) -> bool:
    """Takes in a line; false where it cannot come next."""
    match said:
        case {"undo": int(pair)} if found and found[-1].pair == pair:
            found.pop()
            return True
        case {"pair": int(pair), "left": str(left), "prefers": ("A" | "B" | "none") as prefers}:
            place = len(found)
            if place < len(shown.order) and (pair, left) == (shown.order[place], shown.lefts[place]):
                found.append(Preference(pair, left, prefers))
                return True
    return False


def all_answers(study: PairStudy) -> dict[str, list[Preference]]:
    """The answers of each rater who has given one, by name; raises as ``read_answers`` does."""
    found = {}
    for path in sorted(study.answers.glob(f"*{SUFFIX}")) if study.answers.is_dir() else ():
        rater = path.name.removesuffix(SUFFIX)
        answers = read_answers(path, ShownPairs.of(study.seed, rater, len(study)))
        if answers:
            found[rater] = answers
    return found
