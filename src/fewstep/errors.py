"""The exceptions that speak to the user.

Everything that a user can mend (a recipe's key, a missing file, a combination that makes no sense)
is raised as a ``UserError`` whose text says in one sentence what is wrong, where, and what to do.
The command line prints that sentence and exits with 2. Anything else that escapes is a defect of
ours and keeps its traceback.

A password in an address, or a signature behind its question mark, opens what it leads to: it
belongs neither into a sentence nor into a file that is passed on.
"""

from __future__ import annotations

import re
from typing import Any

from fewstep import NEEDS_UNIX

try:
    import fcntl  # noqa: F401
except ImportError:
    # Everything of ours imports this module; the command line says it without a traceback
    # (``start``).
    raise ImportError(NEEDS_UNIX) from None

# Whatever is before the last @ of the host, and whatever follows the question mark but a sentence's
# punctuation. A scheme is short, so that a long text costs no more than its length.
_ADDRESS = re.compile(
    r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)([^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)(\?[^\s#'\"<>]*[^\s#'\"<>):;,.])?"
)


def without_secrets(text: str) -> str:
    """The text with ``***`` in the place of user names, passwords and queries of the addresses in
    it.
    """
    return _ADDRESS.sub(
        lambda found: f"{found[1]}{'***@' if found[2] else ''}{found[3]}{'?***' if found[4] else ''}", text
    )


def all_without_secrets(value: Any) -> Any:
    """The same for every text in JSON values."""
    if isinstance(value, dict):
        return {key: all_without_secrets(each) for key, each in value.items()}
    if isinstance(value, list):
        return [all_without_secrets(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


LONGEST = 1000
"""Characters of a sentence: what it quotes may be of any length."""


def one_line(text: str) -> str:
    """The text in one line that is safe to print: control characters, line breaks and what turns a
    terminal's writing round are escaped, secrets in addresses left out, and of a long text its
    middle.
    """
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in without_secrets(text)
    )
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"


class UserError(Exception):
    """Something the user can mend; ``str(error)`` is one clear sentence."""


class NotFinite(UserError):
    """Values that are not finite numbers were to be written, or were read."""


class SharedError(UserError):
    """A ``UserError`` of the first process of a group, in the others: the first one says it."""


class SharedNotFinite(SharedError, NotFinite):
    """A ``NotFinite`` of the first process of a group, in the others."""


class Stopped(Exception):
    """A run was asked to stop by signal number ``signal``, and has saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation was refused; torch says so on a CPU by a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)
    )
