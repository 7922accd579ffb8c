"""How an exported folder says that its student is sampled: ``sampled_by``, read back.

``fewstep.json`` names the scheduler's class and the call; the scheduler's own file says whether a
flow is noised again. Both come from outside, so that each value is asked for with its range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.zoo.diffusers_weights import CORRECT, read_configuration
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.pipelines.facts import FACTS, read_facts
from fewstep.zoo.pipelines.index import SCHEDULER

MOST_LISTED = 1000
"""Timesteps that a folder may list."""
LARGEST_SIDE = 16_384
"""Of a picture, in pixels."""
FLOW = "FlowMatchEulerDiscreteScheduler"
_JUMPS = {"LCMScheduler": "renoise", "TCDScheduler": "renoise", "DDIMScheduler": "ddim"}


@dataclass(frozen=True)
class FolderSampling:
    """``jump`` and ``boundary``: how its student jumps, and whether as a consistency function.
    ``timesteps``: where its network is called, falling; of a flow ``sigmas`` in their place, its
    times before the shift, in (0, 1]. ``guidance``: the scale in its call, None where the call has
    none. ``size``: height and width of its pictures in pixels.
    """

    jump: str
    boundary: bool
    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]
    guidance: float | None
    size: tuple[int, int] | None


def folder_sampling(folder: Path) -> FolderSampling:
    """What the folder says.

    Raises ``UserError`` for a file that is missing or malformed, and for a scheduler that no
    exported folder has.
    """
    where, facts = folder / FACTS, read_facts(folder)
    name, call = facts.get("scheduler"), call_of(facts, where)
    guidance = call.get("guidance_scale")
    if guidance is not None:
        guidance = _number(guidance, where, "guidance_scale", 0.0, 1e4)
    size = _size(call, where)
    if name == FLOW:
        config = read_configuration(folder / SCHEDULER)
        return FolderSampling(jump_of_flow(config), False, (), _falling(call, where, "sigmas"), guidance, size)
    if name not in _JUMPS:
        raise UserError(
            f"{where}: has {shown_foreign(name)} for the scheduler, and exported folders have "
            f"{', '.join((*_JUMPS, FLOW))}; {CORRECT}."
        )
    timesteps: Any = facts.get("timesteps")
    if not is_timesteps(timesteps):
        raise UserError(f"{where}: names no timesteps; give them by --timesteps.")
    if name == "TCDScheduler" and call.get("eta") != 1:
        raise UserError(
            f"{where}: has {shown_foreign(call.get('eta'))} for eta in its call, and our consistency models are "
            f"sampled at 1; {CORRECT}."
        )
    return FolderSampling(_JUMPS[name], name == "TCDScheduler", tuple(timesteps), (), guidance, size)


def call_of(facts: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The arguments of the pipeline's call. Raises ``UserError`` where there are none."""
    call = facts.get("call")
    if not isinstance(call, dict):
        raise UserError(f"{where}: has no 'call' that names arguments; {CORRECT}.")
    return call


def jump_of_flow(config: Mapping[str, Any]) -> str:
    """How the flow's scheduler of that configuration goes on from an estimate."""
    return "renoise" if config.get("stochastic_sampling") is True else "ddim"


def is_timesteps(values: Any) -> bool:
    """Whether these are falling timesteps, a list of up to ``MOST_LISTED``."""
    return (
        isinstance(values, list)
        and 0 < len(values) <= MOST_LISTED
        and all(type(each) is int and 0 <= each < 100_000 for each in values)
        and all(a > b for a, b in pairwise(values))
    )


def check_sigmas(sigmas: tuple[float, ...], where: object) -> None:
    """Raises ``UserError`` unless these are falling numbers in (0, 1]."""
    if not sigmas or not all(0 < each <= 1 for each in sigmas) or any(a <= b for a, b in pairwise(sigmas)):
        raise UserError(
            f"{where}: the sigmas {', '.join(f'{each:.6g}' for each in sigmas[:8])} must be falling numbers above 0 "
            "and up to 1, a flow's times before their shift; correct them, such as 1,0.75,0.5,0.25."
        )


def _falling(call: Mapping[str, Any], where: object, name: str) -> tuple[float, ...]:
    values = call.get(name)
    if not isinstance(values, list) or not 0 < len(values) <= MOST_LISTED:
        raise UserError(f"{where}: has no {name} in its call, by which a flow is sampled; {CORRECT}.")
    found = tuple(_number(each, where, name, 0.0, 1.0) for each in values)
    check_sigmas(found, where)
    return found


def _number(value: Any, where: object, name: str, low: float, high: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise UserError(
            f"{where}: has {shown_foreign(value)} for {name} in its call, which must be a number from {low:g} to "
            f"{high:g}; {CORRECT}."
        )
    return float(value)


def _size(call: Mapping[str, Any], where: object) -> tuple[int, int] | None:
    sides = [call.get(name) for name in ("height", "width")]
    if sides == [None, None]:
        return None
    if not all(type(side) is int and 8 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(
            f"{where}: has {shown_foreign(sides)} for height and width in its call, which must be whole numbers from "
            f"8 to {LARGEST_SIDE:,}; {CORRECT}."
        )
    return sides[0], sides[1]  # type: ignore[return-value]
