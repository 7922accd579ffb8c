"""The classes of an image set: of its ``dataset.json``, else of its folders.

A class is a whole number from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fewstep.data.archive import MOST_CLASSES, Source, read_labels_json
from fewstep.data.tree import EMPTY, METADATA, PassedOver, natural
from fewstep.errors import UserError

# The names that EDM's sets give: their folders are no classes.
_EDM = re.compile(r"[0-9]{5}/img[0-9]{8}\.png")


class Labels(NamedTuple):
    """The ``numbers`` of the images' classes, or None.

    ``names``: those of the classes. ``passed_over``: among others, classes without an image.
    ``remarks``: sentences that are worth a line.
    """

    numbers: list[int] | None
    names: tuple[str, ...] = ()
    passed_over: PassedOver = PassedOver()
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """How many classes there are, those without an image among them."""
        return 0 if self.numbers is None else max(len(self.names), max(self.numbers) + 1)


def class_number(value: Any, refuse: Callable[[], UserError]) -> int:
    """The class that a value names: a whole number from 0, or a text of its digits.

    Raises what ``refuse`` makes for any other, a fraction among them.
    """
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[0-9]{1,9}\s*", value, re.ASCII) else None
    try:
        number = int(value)
        whole = bool(number == value)
    except (TypeError, ValueError, OverflowError):
        raise refuse() from None
    if not whole or not 0 <= number < MOST_CLASSES:
        raise refuse()
    return number


def read_labels(source: Source) -> Labels:
    """The classes of the images of a source.

    Raises ``UserError`` naming the entry that is wrong.
    """
    if source.has(source.tree.root + METADATA):
        return _described(source, read_labels_json(source, source.tree.root + METADATA))
    parts = source.tree.parts
    if all(len(each) == 1 for each in parts) or all(_EDM.fullmatch("/".join(each)) for each in parts):
        return Labels(None)
    stray = next((name for name, each in zip(source.names, parts, strict=True) if len(each) == 1), None)
    if stray is not None:
        raise UserError(
            f"{source.path}: '{stray}' lies beside the sub-folders that name the classes; move it into one, "
            "or set 'data.labels: false'."
        )
    if len(source.tree.tops) > MOST_CLASSES:
        raise UserError(
            f"{source.path}: has {len(source.tree.tops):,} sub-folders, more than classes there may be "
            f"({MOST_CLASSES:,}); set 'data.labels: false'."
        )
    return _folders(source, [each[0] for each in parts])


def _folders(source: Source, tops: list[str]) -> Labels:
    classes = sorted(source.tree.tops, key=natural)
    filled = set(tops)
    empty = [name for name in classes if name not in filled]
    remarks = []
    # What was trained before knows the classes by their old numbers.
    before, now = sorted(filled), [name for name in classes if name in filled]
    if before != now:
        first = next(number for number, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
        remarks.append(
            f"{source.path}: class folders are in the order of their numbers, so that class "
            f"{classes.index(now[first])} is '{now[first]}'; "
            f"an earlier fewstep, which sorted them by characters, had '{before[first]}' there."
        )
    if empty:
        remarks.append(
            f"{source.path}: class {classes.index(empty[0])} ('{empty[0]}') has no image and keeps its "
            "number, which an earlier fewstep gave to the next class; "
            "remove the folder if it is no class."
        )
    if source.packed:
        remarks.append(
            f"{source.path}: has no {METADATA}, so that its {len(classes)} folders are the classes; set "
            "'data.labels: false' for no classes."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return Labels([numbers[top] for top in tops], tuple(classes), PassedOver.of({EMPTY: empty}), tuple(remarks))


def _described(source: Source, metadata: Any) -> Labels:
    where = f"{source.path}: '{METADATA}'"
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list | None):
        raise UserError(f"{where} must be an object whose 'labels' is a list of [name, class] or null; write it so.")
    if not metadata.get("labels"):
        return Labels(None)
    given: dict[str, int] = {}
    for pair in metadata["labels"]:
        match pair:
            case [str(name), int(label)] if 0 <= label < MOST_CLASSES and not isinstance(label, bool):
                shown = name.replace("\\", "/")
                if given.setdefault(shown, label) != label:
                    raise UserError(
                        f"{where} gives '{shown}' two classes, {given[shown]} and {label}; leave one of them."
                    )
            case _:
                raise UserError(
                    f"{where} has the label {str(pair)[:80]}, not a name and a class from 0 to "
                    f"{MOST_CLASSES - 1}; correct it, or set 'data.labels: false'."
                )
    below = [name[len(source.tree.root) :] for name in source.names]
    missing = next((name for name in below if name not in given), None)
    if missing is not None:
        raise UserError(f"{where} has no label for '{missing}'; add it, or set 'data.labels: false'.")
    labels = [given[name] for name in below]
    names = _class_names(where, metadata.get("classes", []), max(labels) + 1)
    filled = set(labels)
    empty = [
        names[number] if names else str(number)
        for number in range(max(len(names), max(labels) + 1))
        if number not in filled
    ]
    extra = sorted(given.keys() - set(below))
    return Labels(labels, names, PassedOver.of({f"labels of {METADATA} without an image": extra, EMPTY: empty}))


def _class_names(where: str, names: Any, least: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or 0 < len(names) < least:
        raise UserError(
            f"{where}: 'classes' must be a list of at least {least} names, one a class; correct it or take it out."
        )
    return tuple(names)
