"""What stands under pictures of samples: the prompts that they were asked for by, or their
classes.

A picture is a grid of samples, and its captions are a JSON file beside it, with the grid's
measures: the report cuts the picture by them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fewstep.condition import Conditions
from fewstep.runs.pictures.sample_files import GAP
from fewstep.system.files import write_text


def captions_below(owner: Conditions, numbers: Tensor | None, names: Sequence[str] = ()) -> list[str]:
    """The caption of each of the conditions ``numbers`` (n,): its prompt, or its class' name of
    ``names``, or its number where it has neither. None without conditions.
    """
    if numbers is None or not owner.count:
        return []
    known = owner.texts or names
    return [known[number] if number < len(known) else f"class {number}" for number in numbers.tolist()]


def write_captions(picture: Path, captions: Sequence[str], columns: int = 10) -> None:
    """Writes the captions of the samples in ``picture``, a grid of so many columns, beside it;
    nothing where there are none.
    """
    if captions:
        content = {"columns": columns, "gap": GAP, "captions": list(captions)}
        write_text(picture.with_suffix(".json"), json.dumps(content) + "\n")
