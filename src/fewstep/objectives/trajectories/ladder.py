r"""The discrete times of a trajectory, on which distillation steps down.

A ``Ladder`` is a decreasing grid of times, from where sampling starts to t_min. A step from one of
them goes ``skip`` rungs down (Luo et al. 2023, LCM, Sec. 4.3, k = 20), at most to the end.

``edges`` split the trajectory into intervals, each with a consistency function of its own that goes
to the interval's lower edge (multistep consistency models, Heek et al. 2024): a time t belongs to
the interval whose lower edge is the largest edge below t, and no step passes it. The one edge 0 is
the whole trajectory in one piece, whose last rung is t_min.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError

_TOLERANCE = 1e-9


def check_decreasing(times: Sequence[float], owner: str) -> None:
    """Raises ``UserError`` unless there are two times or more, all in [0, 1], each below the one
    before; ``owner`` names whose they are.
    """
    if len(times) < 2 or not all(1 >= t > s >= 0 for t, s in pairwise(times)):
        raise UserError(f"{owner}: needs at least two times that fall strictly within [0, 1], got {_listed(times)}.")


def index_among(times: Sequence[float], t: Tensor, owner: str, way: Literal["down", "up"] = "down") -> Tensor:
    """The index in ``times`` (decreasing) of each of t (B,), (B,) int64.

    Raises ``UserError`` for one that is off by more than 1e-9, and for the one from which no step
    goes that ``way``: the last, or upwards the first.
    """
    end, others = (len(times) - 1, "all but the last") if way == "down" else (0, "all but the first")
    grid = torch.tensor(times, dtype=torch.float64, device=t.device)
    distance, index = (t.to(torch.float64)[:, None] - grid).abs().min(1)
    wrong = (distance > _TOLERANCE) | (index == end)
    if bool(wrong.any()):
        raise UserError(
            f"{owner}: a state stands at t = {float(t[wrong][0]):.9g}, from which no step goes {way} on its "
            f"times {_listed(times)}; draw the states' times from {others} of these."
        )
    return index


def _listed(times: Sequence[float]) -> str:
    shown = [f"{t:.6g}" for t in times]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])


@dataclass(frozen=True)
class Ladder:
    """See the module's docstring.

    ``times``: decreasing, the last is t_min > 0; ``edges``: ascending from 0.0, the others among
    the times.

    Raises ``UserError`` for anything else.
    """

    times: tuple[float, ...]
    skip: int = 1
    edges: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        check_decreasing(self.times, "consistency's times")
        if self.times[-1] == 0:
            raise UserError(
                "consistency's times: the last must be t_min, where the student is the identity, not 0, "
                "where networks are not called."
            )
        if self.skip < 1:
            raise UserError(f"consistency's skip: must be at least 1, got {self.skip}.")
        inner = self.edges[1:]
        if (
            self.edges[:1] != (0.0,)
            or any(a >= b for a, b in pairwise(self.edges))
            or not set(inner) <= set(self.times[1:-1])
        ):
            raise UserError(
                "consistency's edges: must rise from 0.0 and be among the times between the first and the "
                f"last, got {_listed(self.edges)}."
            )

    @classmethod
    def in_parts(cls, times: tuple[float, ...], skip: int, parts: int) -> Ladder:
        """The ladder whose ``parts`` intervals have equally many of the steps of ``times``, or as
        nearly as whole steps allow.
        """
        steps = len(times) - 1
        return cls(times, skip, (0.0, *sorted(times[round(index * steps / parts)] for index in range(1, parts))))

    @property
    def starts(self) -> tuple[float, ...]:
        """The times at which states may stand: all but the last."""
        return self.times[:-1]

    def below(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(the time of each sample's next rung, its interval's lower edge), each (B,), float64, for
        times t (B,) of ``starts``; raises ``UserError`` for other times.
        """
        index = index_among(self.times, t, "consistency")
        times, edges = torch.tensor(self.times, dtype=torch.float64), torch.tensor(self.edges, dtype=torch.float64)
        now = times[index]
        edge = edges[(edges < now[:, None]).sum(1) - 1]
        return torch.maximum(times[(index + self.skip).clamp(max=len(times) - 1)], edge), edge

    def above(self, edge: Tensor) -> Tensor:
        """The upper end of the intervals whose lower edges are ``edge`` (B,), (B,), float64: the
        next edge, or the first time.
        """
        ends = torch.tensor([*self.edges[1:], self.times[0]], dtype=torch.float64)
        return ends[torch.searchsorted(torch.tensor(self.edges, dtype=torch.float64), edge)]
