"""The page on which a rater chooses among pairs of pictures, without knowing whose they are.

The page is told places in the rater's own order, captions and sides. Names of models, runs and
files stay with the server, and both pictures are answered alike.
"""

from __future__ import annotations

import threading
from typing import Any

from fewstep.errors import UserError, one_line
from fewstep.pages.served import Answer, Said, ServedPage
from fewstep.report.sheets import shown
from fewstep.studies.preference.answer_book import CHOICES, AnswerBook
from fewstep.studies.preference.picture_pairs import PairStudy
from fewstep.system.ledger import print_sentence

_MOST_DIGITS = 5


class PreferencePage(ServedPage):
    """Asks for what a rater's ``book`` has no answer to yet."""

    def __init__(self, study: PairStudy, book: AnswerBook):
        super().__init__("prefer")
        self._study, self._book, self._lock = study, book, threading.Lock()

    def asked(self, name: str) -> Answer | None:
        """``state``, or a picture: ``picture/PLACE/SIDE``."""
        if name == "state":
            with self._lock:
                return Answer.of(self._state())
        match name.split("/"):
            case ["picture", place, ("left" | "right") as side] if place.isascii() and place.isdigit():
                if len(place) <= _MOST_DIGITS and int(place) < len(self._study):
                    return Answer(self._picture(int(place), side), "image/png")
        return None

    def told(self, name: str, said: Said) -> Answer | None:
        """``answer`` with a place and a choice, or ``undo`` with a place; the state after it."""
        if name not in ("answer", "undo"):
            return None
        place = said.whole("place", 0, len(self._study) - 1)
        with self._lock:
            if name == "answer":
                self._book.add(place, said.one_of("choice", CHOICES))
            else:
                self._book.undo(place)
            return Answer.of(self._state())

    def _picture(self, place: int, side: str) -> bytes:
        try:
            return self._study.picture(*self._book.shown.picture(place, side))
        except UserError as error:
            # The sentence names the file, and with it the model: it is for the terminal.
            print_sentence(one_line(str(error)))
            raise UserError("a picture of this pair cannot be read; tell whoever started this page.") from error

    def _state(self) -> dict[str, Any]:
        """What the page shows: the next pair, null when all are answered."""
        done, total = len(self._book.answered), len(self._study)
        pair = None if done == total else {"place": done, "caption": shown(self._caption(done))}
        return {"rater": self._book.rater, "done": done, "total": total, "pair": pair}

    def _caption(self, place: int) -> str:
        return self._study.captions[self._book.shown.order[place]]
