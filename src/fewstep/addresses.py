"""Addresses as they may be shown: a password in one, or a signature behind its question mark, opens what it leads to, and belongs neither into a log nor into a file that is passed on."""

from __future__ import annotations

import re
from typing import Any

# Whatever is before the last @ of the host, and whatever follows the question mark but a sentence's punctuation. A scheme is short, so that a long text costs no more than its length.
_ADDRESS = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)([^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)(\?[^\s#'\"<>]*[^\s#'\"<>):;,.])?")


def without_secrets(text: str) -> str:
    """The text with ``***`` in the place of user names, passwords and queries of the addresses in it."""
    return _ADDRESS.sub(lambda found: f"{found[1]}{'***@' if found[2] else ''}{found[3]}{'?***' if found[4] else ''}", text)


def all_without_secrets(value: Any) -> Any:
    """The same for every text in JSON values."""
    if isinstance(value, dict):
        return {key: all_without_secrets(each) for key, each in value.items()}
    if isinstance(value, list):
        return [all_without_secrets(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value
