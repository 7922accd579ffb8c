"""What a page answers: its files, and what it is asked and told in JSON."""

from __future__ import annotations

import abc
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fewstep.errors import UserError
from fewstep.recipes.reading.sentences import shown_value
from fewstep.report.page import stylesheet

MOST_WHOLE = 2**53 - 1
"""The largest whole number that a browser holds exactly."""
_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True)
class Answer:
    """The ``content`` of an answer, of the media type ``kind``, under the HTTP ``status``."""

    content: bytes
    kind: str = "application/json"
    status: int = 200

    @classmethod
    def of(cls, value: Mapping[str, Any], status: int = 200) -> Answer:
        """A JSON object."""
        return cls(json.dumps(value, allow_nan=False).encode(), status=status)

    @classmethod
    def refusal(cls, sentence: str, status: int = 400) -> Answer:
        """A sentence in the place of what was asked for."""
        return cls.of({"error": sentence}, status)


class Said:
    """A JSON object that a page sent, of which each value is asked for with its bounds; every
    question raises ``UserError`` for another value, and for none.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    @classmethod
    def read(cls, content: bytes) -> Said:
        """Of a request's body. Raises ``UserError`` for what is no JSON object of plain values."""
        try:
            values = json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise UserError("the request: is no JSON; load the page again.") from error
        if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
            raise UserError("the request: is no JSON object of plain values; load the page again.")
        return cls(values)

    def whole(self, name: str, low: int, high: int = MOST_WHOLE) -> int:
        """A whole number in [``low``, ``high``]."""
        value = self._values.get(name)
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{name}: is {_given(value)}; give a whole number from {low} to {high:,}.")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """A number in [``low``, ``high``]."""
        value = self._values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{name}: is {_given(value)}; give a number from {low:g} to {high:g}.")
        return float(value)

    def text(self, name: str) -> str:
        """A text that is more than white space."""
        value = self._values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{name}: is empty; write some words.")
        return value

    def one_of(self, name: str, choices: Collection[str]) -> str:
        """One of some texts."""
        value = self._values.get(name)
        if not isinstance(value, str) or value not in choices:
            raise UserError(f"{name}: is {_given(value)}; give one of {', '.join(choices)}.")
        return value


class ServedPage(abc.ABC):
    """A page ``name``: its files in ``templates/``, what it is asked by GET and told by POST.

    Both may be called by several threads at a time. A name comes from outside: it is looked up,
    and never made part of a path.
    """

    def __init__(self, name: str):
        self._files = {
            "": _file(f"{name}.html"),
            "page.js": _file(f"{name}.js"),
            "page.css": _file(f"{name}.css"),
            "ask.js": _file("ask.js"),
            "style.css": Answer(stylesheet().encode() + _file("controls.css").content, _KINDS["css"]),
        }

    def file(self, name: str) -> Answer | None:
        """The file of that name, None where there is none."""
        return self._files.get(name)

    @abc.abstractmethod
    def asked(self, name: str) -> Answer | None:
        """What is answered to a question, None where there is none of that name; raises
        ``UserError`` where there is no answer.
        """

    @abc.abstractmethod
    def told(self, name: str, said: Said) -> Answer | None:
        """The same of what the page says."""


def _file(name: str) -> Answer:
    content = resources.files("fewstep.pages").joinpath("templates", name).read_bytes()
    return Answer(content, _KINDS[name.rpartition(".")[2]])


def _given(value: Any) -> str:
    return "missing" if value is None else shown_value(value)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
