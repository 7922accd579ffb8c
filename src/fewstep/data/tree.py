"""Which files of a tree are its images, and what is passed over: one rule for folders and for
archives.

Hidden files and folders are passed over, and with them what macOS puts into an archive
(``__MACOSX/``, ``._x``, ``.DS_Store``); so are files whose suffix is no picture's, and links to
folders. Nothing is passed over in silence: what was, is counted with an example of each kind.

The folders at the top of the tree are classes, in natural order: by their letters, and by their
numbers as numbers (1, 2, 10). Each has its number whether or not an image of it can be read.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fewstep.data.pixels import SUFFIXES

METADATA = "dataset.json"
CAPTIONS = "metadata.jsonl"
# Files that our own sets hold beside the images.
_OURS = frozenset({METADATA, "names.json", "drawn.json"})
HIDDEN = "hidden files or folders"
SUFFIX = f"files whose suffix is none of {', '.join(sorted(SUFFIXES))}"
LINK = "links to folders"
NOWHERE = "links that lead to no file"
WITHOUT_CAPTION = "images without a caption"
EMPTY = "classes without an image, which keep their numbers"


@dataclass(frozen=True)
class PassedOver:
    """What was passed over: by reason, how many and an example."""

    kinds: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Sequence[str]]) -> PassedOver:
        """The tally of names by reason; a reason without names is left out."""
        return cls({reason: (len(names), min(names)) for reason, names in found.items() if names})

    @classmethod
    def of_json(cls, value: Mapping[str, Mapping[str, Any]]) -> PassedOver:
        """What ``as_json`` has written.

        Raises ``KeyError``, ``TypeError`` or ``AttributeError`` for anything else.
        """
        return cls({str(reason): (int(entry["count"]), str(entry["example"])) for reason, entry in value.items()})

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __add__(self, other: PassedOver) -> PassedOver:
        both = dict(self.kinds)
        for reason, (count, example) in other.kinds.items():
            before = both.get(reason, (0, example))
            both[reason] = (before[0] + count, min(before[1], example))
        return PassedOver(both)

    def sentence(self, where: object) -> str:
        """One sentence; ``where``: the set."""
        listed = "; ".join(
            f"{count:,} {reason} (such as '{example}')" for reason, (count, example) in self.kinds.items()
        )
        return f"{where}: passed over {listed}."

    def as_json(self) -> dict[str, dict[str, int | str]]:
        """The tally by reason as JSON has it."""
        return {reason: {"count": count, "example": example} for reason, (count, example) in self.kinds.items()}


@dataclass(frozen=True)
class Tree:
    """``names`` of the images, sorted.

    ``root``: what stands before each of them, "" or a folder with "/"; ``tops``: the folders at the
    top. ``others``: the names of files that are passed over for their suffix, sorted.
    """

    names: tuple[str, ...]
    root: str
    tops: tuple[str, ...]
    passed_over: PassedOver
    others: tuple[str, ...] = ()

    def passed_over_but(self, used: Container[str]) -> PassedOver:
        """What is passed over where the files ``used`` are not."""
        kinds = {reason: entry for reason, entry in self.passed_over.kinds.items() if reason != SUFFIX}
        return PassedOver(kinds) + PassedOver.of({SUFFIX: [name for name in self.others if name not in used]})

    @property
    def parts(self) -> list[tuple[str, ...]]:
        """The parts of each image's name below the root."""
        return [PurePosixPath(name[len(self.root) :]).parts for name in self.names]


def tree_of(
    files: Iterable[str],
    folders: Iterable[str],
    links: Iterable[str] = (),
    nowhere: Iterable[str] = (),
    unwrap: bool = False,
) -> Tree:
    """The tree of files and folders by their names relative to it, with "/" between parts.

    ``links`` to folders and links that lead ``nowhere`` are passed over. ``unwrap``: a folder that
    holds all there is stands for the tree, as it does in the archive of a folder.
    """
    found: dict[str, set[str]] = {HIDDEN: set(), SUFFIX: set(), LINK: set(), NOWHERE: set()}
    seen = [name for name in files if not is_hidden(name, found[HIDDEN])]
    inner = [name for name in folders if not is_hidden(name, found[HIDDEN])]
    linked = [name for name in links if not is_hidden(name, found[HIDDEN])]
    found[LINK].update(linked)
    found[NOWHERE].update(name for name in nowhere if not is_hidden(name, found[HIDDEN]))
    root = _wrapper([*seen, *inner, *linked], seen) if unwrap else ""
    names = [name for name in seen if PurePosixPath(name).suffix.lower() in SUFFIXES]
    found[SUFFIX].update(
        name
        for name in seen
        if PurePosixPath(name).suffix.lower() not in SUFFIXES and name.removeprefix(root) not in _OURS
    )
    tops = {part for name in (*inner, *linked) if (part := name[len(root) :].partition("/")[0])}
    tops |= {name[len(root) :].partition("/")[0] for name in seen if "/" in name[len(root) :]}
    return Tree(
        tuple(sorted(names)),
        root,
        tuple(sorted(tops)),
        PassedOver.of({reason: sorted(those) for reason, those in found.items()}),
        tuple(sorted(found[SUFFIX])),
    )


def is_hidden(name: str, hidden: set[str]) -> bool:
    """Whether a part of the name is hidden; the first that is, is noted."""
    parts = name.split("/")
    first = next((number for number, part in enumerate(parts) if part.startswith(".") or part == "__MACOSX"), None)
    if first is not None:
        hidden.add("/".join(parts[: first + 1]))
    return first is not None


def _wrapper(entries: Sequence[str], files: Sequence[str]) -> str:
    tops = {name.partition("/")[0] for name in entries}
    return f"{tops.pop()}/" if len(tops) == 1 and files and all("/" in name for name in files) else ""


def natural(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """What sorts names by their letters and by their numbers as numbers."""
    parts = re.split(r"([0-9]+)", name)
    # A number by its digits: a name in an archive may have more of them than Python makes a number
    # of.
    numbers = [(len(part.lstrip("0")), part.lstrip("0")) for part in parts[1::2]]
    return tuple(numbers[place // 2] if place % 2 else part for place, part in enumerate(parts)), name
