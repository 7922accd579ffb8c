"""Nothing that is not a finite number is kept: how tensors and values are looked at before they are
written, and after they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.system import distributed


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The name of the first tensor with a value that is not finite, of a sharded one in this
    process' part; empty where there is none.
    """
    # All are asked before the first answer is read: a device is waited for once.
    answers = [
        (name, torch.isfinite(distributed.part(value)).all())
        for name, value in tensors
        if value.is_floating_point() or value.is_complex()
    ]
    return next((name for name, answer in answers if not bool(answer)), "")


def first_number_not_finite(value: Any, place: str = "") -> str:
    """The place in a JSON value of the first number that is not finite, as ``a.b.0``; empty where
    there is none.
    """
    if isinstance(value, float):
        return "" if math.isfinite(value) else place.removeprefix(".")
    items: Iterable[tuple[Any, Any]] = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    return next((found for key, inner in items if (found := first_number_not_finite(inner, f"{place}.{key}"))), "")
