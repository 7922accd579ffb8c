r"""Is a student better with more steps, as it should be? Its Frechet distances at several numbers
of steps, compared beyond what the noise of the draws explains.

With the mean d of n draws and their standard deviation s at each number of steps, more steps are
called worse than fewer where

    d_more - d_fewer > 3 sqrt((s_more^2 + s_fewer^2) / n).

The draws are the same noise at each number of steps, so that the true deviation of the difference
is smaller than that of independent draws, and a sentence is seldom wrong. One draw says nothing of
its noise, so that nothing is said of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

STEPS = (1, 2, 4, 8)
"""At which a student of several steps is measured."""
DEVIATIONS = 3.0


@dataclass(frozen=True)
class WorseWithMore:
    """The distance ``fd`` at ``more`` steps is larger than ``fewer_fd`` at ``fewer`` steps, by more
    than the ``bound`` that noise explains.
    """

    more: int
    fd: float
    fewer: int
    fewer_fd: float
    bound: float

    @property
    def sentence(self) -> str:
        """The figures and what to do about them."""
        has = "step has" if self.fewer == 1 else "steps have"
        return (
            f"more steps are worse: {self.more} steps have a Frechet distance of {self.fd:.2f}, and {self.fewer} {has} "
            f"{self.fewer_fd:.2f}, though noise explains {self.bound:.2f} at most; sample with {self.fewer}, or train "
            "on the student's own trajectories ('states')."
        )


def worse_with_more(distances: Mapping[int, tuple[float, float]], draws: int) -> list[WorseWithMore]:
    """The numbers of steps at which a student is worse than at a smaller number, of ``distances``
    by number of steps, each a mean and the standard deviation of ``draws`` draws.

    Of each the smaller number beside which it is the worst. Nothing for one draw.
    """
    if draws < 2:
        return []
    found = []
    for more in sorted(distances):
        fd, spread = distances[more]
        pairs = [
            WorseWithMore(more, fd, fewer, other, DEVIATIONS * math.sqrt((spread**2 + others**2) / draws))
            for fewer, (other, others) in distances.items()
            if fewer < more
        ]
        worst = max(pairs, key=lambda pair: pair.fd - pair.fewer_fd - pair.bound, default=None)
        if worst is not None and worst.fd - worst.fewer_fd > worst.bound:
            found.append(worst)
    return found
