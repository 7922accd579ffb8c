"""The names of shards: braces in them, as shells and WebDataset write ranges."""

from __future__ import annotations

import re
from itertools import product

from fewstep.errors import UserError

MOST_SHARDS = 100_000
_GROUP = re.compile(r"\{([^{}]*)\}")


def expanded(urls: str) -> list[str]:
    """The names that a text with braces stands for, in order: ``{000..099}`` is a range, ``{a,b}``
    a choice.

    Raises ``UserError`` for braces that are neither, and for more names than ``MOST_SHARDS``.
    """
    parts = _GROUP.split(urls)
    if any("{" in part or "}" in part for part in parts[::2]):
        raise UserError(
            f"'data.urls' is '{urls}', whose braces are not pairs, or lie within each other; write them as "
            f"{{000..099}} or {{a,b}}."
        )
    choices = [[part] if number % 2 == 0 else _choices(part, urls) for number, part in enumerate(parts)]
    count = 1
    for each in choices:
        count *= len(each)
    if count > MOST_SHARDS:
        raise UserError(
            f"'data.urls' is '{urls}', which stands for {count:,} shards, more than {MOST_SHARDS:,}; correct the range."
        )
    return ["".join(each) for each in product(*choices)]


def _choices(inner: str, urls: str) -> list[str]:
    span = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inner)
    if span is None:
        if "," not in inner:
            raise UserError(
                f"'data.urls' is '{urls}', where '{{{inner}}}' is neither a range such as {{000..099}} nor "
                f"a choice such as {{a,b}}; correct it."
            )
        return inner.split(",")
    first, last = int(span[1]), int(span[2])
    if abs(last - first) >= MOST_SHARDS:
        raise UserError(
            f"'data.urls' is '{urls}', where '{{{inner}}}' stands for more than {MOST_SHARDS:,} shards; "
            "correct the range."
        )
    # A range is as wide as the wider of its ends where one of them begins with a zero.
    padded = any(len(end) > 1 and end.startswith("0") for end in span.groups())
    width = max(len(span[1]), len(span[2])) if padded else 0
    return [
        f"{number:0{width}d}"
        for number in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)
    ]
