"""The target that walks the degradation path backwards (DisBack, Alg. 2, Eq. 8).

Along a path of nodes s'_0 = teacher, ..., s'_N the target starts at s'_{N-1} (the fake score starts
at s'_N itself) and moves to s'_{N-2}, ..., s'_0 as the rule decides; there it stays. With N = 0 (no
path) and with N = 1 it is the teacher from the start: plain distribution matching, with the fake
score starting at the teacher or degraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers import Denoiser
from fewstep.resumable import Resumable
from fewstep.targets.hook import Hook
from fewstep.targets.path import DegradationPath, Prefetch
from fewstep.targets.switch import SwitchRule
from fewstep.targets.target import Target


class Backtracked(Target, Resumable, Hook):
    """See the module's docstring.

    Enters the path at the first use, so that it may be built before the path is recorded.
    """

    def __init__(self, path: DegradationPath, switch: SwitchRule):
        self.path = path
        self.switch = switch
        self.node: int | None = None
        self.steps = 0
        # What a step has told; the rule hears of it when the step was taken.
        self._told: list[tuple[Tensor, Tensor]] = []
        self._slot: Denoiser | None = None
        self._prefetch = Prefetch(path)

    @property
    def denoiser(self) -> Denoiser:
        self._in_force()
        return self.path.teacher if self._slot is None else self._slot

    @property
    def degraded(self) -> float:
        node = self._in_force()
        return node / self.path.last if node else 0.0

    @property
    def short(self) -> str:
        """A sentence for the end of a run whose target has not reached the teacher; nothing where
        it has.
        """
        if not self.node:
            return ""
        return (
            f"the run ended with its target at node {self.node} of {self.path.last}, and never reached its "
            "teacher; go on with --resume and more 'training.steps'."
        )

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        if self.node:
            self._told.append((log_snr, gap))

    def advance(self, step: int, model: object) -> None:
        """A hook for the student's phase, called after each of its steps that was taken: moves the
        target when the rule says so.
        """
        told, self._told = self._told, []
        if self.node is None or self.node == 0:
            return
        for log_snr, gap in told:
            self.switch.observe(log_snr, gap)
        self.steps += 1
        if self.switch.done(self.node, self.steps):
            self.switch.reset()
            self._enter(self.node - 1)

    def decides(self, step: int) -> bool:
        return self.node is not None and self.node > 0 and self.switch.decides(self.node, self.steps + 1)

    def networks(self) -> Sequence[nn.Module]:
        # A sharded teacher cannot be copied: the slot must be there before.
        self._slot = self._slot or self.path.blank()
        return self.path.teacher, self._slot

    def in_use(self) -> Sequence[nn.Module]:
        # Whoever asks does not use it yet: a path that is still recorded must not be entered.
        if self._first if self.node is None else self.node:
            self._slot = self._slot or self.path.blank()
            return (self._slot,)
        return (self.path.teacher,)

    def figures(self) -> dict[str, float]:
        return {} if self.node is None else {"target_node": self.node}

    def _in_force(self) -> int:
        """The node in force, entered at the first use."""
        if self.node is None:
            self._enter(self._first)
        assert self.node is not None
        return self.node

    @property
    def _first(self) -> int:
        """The node at which the path is entered."""
        return max(self.path.last - 1, 0)

    def _enter(self, node: int) -> None:
        self.node, self.steps = node, 0
        if node == 0:
            self._slot = None
            return
        if self._slot is None:
            self._slot = self.path.blank()
        self.path.fill(node, self._slot, self._prefetch.take(node))
        self._prefetch.start(node - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"node": self.node, "steps": self.steps, "switch": self.switch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Returns to a node; the path must already be as it was then."""
        self.switch.load_state_dict(state["switch"])
        if state["node"] is None:
            # The slot stays: one that was laid out over processes could not be made again.
            self.node = None
        else:
            self._enter(state["node"])
        self.steps = state["steps"]
