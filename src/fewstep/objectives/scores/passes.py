"""How the estimates of target and fake score are made where both stand on one network: in two
passes, or in one batch with a contiguous portion for each.

Both are the same estimates up to rounding. Which one is faster depends on the network, the batch
and the device: three samples in one batch take less than three batches of one sample, and batches
that fill the device gain nothing.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import cost
from fewstep.networks.calls import Asking, answered_apart, answered_together
from fewstep.resumable import Resumable
from fewstep.system import distributed

REPEATS = 3
"""How often each way is timed, after a first time that does not count."""


class Passes(abc.ABC):
    """Makes estimates that are asked for at once."""

    def begun(self) -> Passes:
        """For one run; the same for all of them unless a class remembers something."""
        return self

    @abc.abstractmethod
    def estimates(self, *asked: Callable[[], Asking]) -> list[Tensor]:
        """The estimates (B, *D) in the order in which they are asked for; each of ``asked`` begins
        to ask when it is called.
        """


@dataclass(frozen=True)
class Separate(Passes):
    """One pass for each.

    All are begun before the first is brought back from the device of its network.
    """

    def estimates(self, *asked: Callable[[], Asking]) -> list[Tensor]:
        return answered_apart([each() for each in asked])


@dataclass(frozen=True)
class Together(Passes):
    """Calls of one network in one batch."""

    def estimates(self, *asked: Callable[[], Asking]) -> list[Tensor]:
        return answered_together([each() for each in asked])


@dataclass(eq=False)
class Faster(Passes, Resumable):
    """What is faster at the first step of a run, which stays with it, also when it is resumed.

    ``together_over_separate``: the ratio of the times there, of the first process; None before.
    """

    together_over_separate: float | None = None

    def begun(self) -> Passes:
        return Faster()

    def state_dict(self) -> dict[str, Any]:
        return {"together_over_separate": self.together_over_separate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.together_over_separate = state["together_over_separate"]

    def figures(self) -> dict[str, float]:
        """The ratio, once it is found."""
        return {} if self.together_over_separate is None else {"together_over_separate": self.together_over_separate}

    def estimates(self, *asked: Callable[[], Asking]) -> list[Tensor]:
        if self.together_over_separate is None:
            with cost.unmetered():
                ratio = seconds(Together(), *asked) / seconds(Separate(), *asked)
            self.together_over_separate = distributed.agreed(ratio)
        return (Together() if self.together_over_separate < 1 else Separate()).estimates(*asked)


PASSES = {"separate": Separate(), "together": Together(), "measured": Faster()}
"""By name."""


def seconds(passes: Passes, *asked: Callable[[], Asking]) -> float:
    """The least time that the estimates take, in seconds; without gradients."""
    found = []
    with torch.no_grad():
        for _ in range(1 + REPEATS):
            begun = time.perf_counter()
            # To have the numbers on the host is to wait for the device.
            sum(float(estimate.flatten()[0]) for estimate in passes.estimates(*asked))
            found.append(time.perf_counter() - begun)
    return min(found[1:])
