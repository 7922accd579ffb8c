"""When to move the target to the next node, one step nearer to the teacher.

``Every`` is the paper's rule: a fixed number of steps a node. ``Plateau`` looks at the gap between
fake score and target, which every distribution-matching step computes anyway: the gap falls while
the student approaches the node and then levels off at the noise of the two estimates. Gaps are
averaged per noise level, since levels differ by orders of magnitude, over two successive windows;
the target moves on when the second window's mean is no longer below ``1 - improvement`` times the
first's, averaged over the levels.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types as at
import torch
from torch import Tensor

from fewstep.resumable import Resumable
from fewstep.system import distributed
from fewstep.values import MOST, BelowOne, Contradiction, Share, Steps, Value

# Edges of the noise levels sigma / alpha within which gaps are averaged.
LEVEL_EDGES = (0.1, 0.25, 0.6, 1.5, 4.0)


class SwitchRule(Resumable):
    """Decides after each step of the student whether the target moves on."""

    @abc.abstractmethod
    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        """The levels (B,) and gaps (B,) of one step."""

    @abc.abstractmethod
    def done(self, node: int, steps: int) -> bool:
        """Whether to leave ``node`` after ``steps`` steps at it."""

    def decides(self, node: int, steps: int) -> bool:
        """Whether it looks at a gap after ``steps`` steps at ``node`` or may leave it: always,
        unless a class knows better.
        """
        return True

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets what was seen at the node that was left."""


@dataclass(frozen=True)
class Switching(Value, abc.ABC):
    """How a path is walked back: the settings of a rule."""

    @property
    def measures(self) -> bool:
        """Whether it looks at the gap to a learned fake score, and not at the steps alone."""
        return False

    @abc.abstractmethod
    def rule(self) -> SwitchRule:
        """A fresh rule."""

    @abc.abstractmethod
    def updates(self, nodes: int) -> tuple[list[int], list[int]]:
        """The fewest and the most updates of the student at each of ``nodes`` nodes, in the order
        of use.
        """


@dataclass(frozen=True)
class SwitchEvery(Switching):
    """``steps`` at each node; a list gives the nodes in the order of use (the most degraded target
    first), its last entry serving all that remain.
    """

    kind: Literal["every"] = field(default="every", kw_only=True)
    steps: Steps | Annotated[tuple[Annotated[int, at.Interval(ge=1, le=MOST)], ...], at.MinLen(1), Share()]

    def rule(self) -> SwitchRule:
        return Every(self.steps)

    def updates(self, nodes: int) -> tuple[list[int], list[int]]:
        each = [self.steps] if isinstance(self.steps, int) else list(self.steps)
        at_each = (each + each[-1:] * nodes)[:nodes]
        return at_each, at_each


@dataclass(frozen=True)
class SwitchAtPlateau(Switching):
    """See the module's docstring.

    ``window`` steps a window; at least ``min_steps`` and at most ``max_steps`` a node.
    """

    kind: Literal["plateau"] = field(default="plateau", kw_only=True)
    window: Steps = 20
    improvement: BelowOne = 0.02
    min_steps: Steps = 20
    max_steps: Steps = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps > self.max_steps:
            raise Contradiction(
                f"'min_steps' is {self.min_steps} and 'max_steps' {self.max_steps}; the fewest steps at a "
                "node must not exceed the most"
            )

    @property
    def measures(self) -> bool:
        return True

    def rule(self) -> SwitchRule:
        return Plateau(self)

    def updates(self, nodes: int) -> tuple[list[int], list[int]]:
        return [self.min_steps] * nodes, [self.max_steps] * nodes


class Every(SwitchRule):
    """See ``SwitchEvery``."""

    def __init__(self, steps: int | Sequence[int]):
        given = SwitchEvery(steps if isinstance(steps, int) else tuple(steps)).steps
        self.steps = (given,) if isinstance(given, int) else given
        self._visited = 0

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        return

    def done(self, node: int, steps: int) -> bool:
        return steps >= self.steps[min(self._visited, len(self.steps) - 1)]

    def decides(self, node: int, steps: int) -> bool:
        return self.done(node, steps)

    def reset(self) -> None:
        self._visited += 1

    def state_dict(self) -> dict[str, Any]:
        return {"visited": self._visited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._visited = state["visited"]


class Plateau(SwitchRule):
    """See ``SwitchAtPlateau``."""

    def __init__(self, settings: SwitchAtPlateau):
        self.settings, self.window = settings, settings.window
        self._sums: list[list[float]] = []
        self._counts: list[list[int]] = []
        self._whole = True

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        level = torch.bucketize(
            -0.5 * log_snr, torch.tensor([math.log(edge) for edge in LEVEL_EDGES], dtype=log_snr.dtype)
        )
        size = len(LEVEL_EDGES) + 1
        sums = torch.zeros(size, dtype=torch.float64).index_add_(0, level, gap.to("cpu", torch.float64))
        # Of the whole batch: every process decides alike.
        sums, counts = distributed.total(torch.stack([sums, torch.bincount(level, minlength=size).double()]))
        if not self._whole:
            # Another portion of the same step.
            sums, counts = (
                sums + torch.tensor(self._sums.pop(), dtype=torch.float64),
                counts + torch.tensor(self._counts.pop(), dtype=torch.float64),
            )
        self._sums.append(sums.tolist())
        self._counts.append(counts.long().tolist())
        self._whole = False
        del self._sums[: -2 * self.window], self._counts[: -2 * self.window]

    def done(self, node: int, steps: int) -> bool:
        self._whole = True
        if steps >= self.settings.max_steps:
            return True
        return (
            steps >= self.settings.min_steps
            and len(self._sums) >= 2 * self.window
            and self.ratio() > 1 - self.settings.improvement
        )

    def ratio(self) -> float:
        """The second window's mean gap over the first's, averaged over the levels that both have
        seen.
        """
        sums, counts = torch.tensor(self._sums, dtype=torch.float64), torch.tensor(self._counts, dtype=torch.float64)
        older, newer = (
            sums[half].sum(0) / counts[half].sum(0) for half in (slice(None, self.window), slice(self.window, None))
        )
        ratios = newer / older
        ratios = ratios[torch.isfinite(ratios)]
        # No finite ratio: the gap is exactly 0, which is as flat as it gets.
        return float(ratios.mean()) if len(ratios) else 1.0

    def reset(self) -> None:
        self._sums.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": [list(row) for row in self._sums], "counts": [list(row) for row in self._counts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = [list(row) for row in state["sums"]]
        self._counts = [list(row) for row in state["counts"]]
