r"""Aggregated states: the collection D <- D u tau of DAgger (Ross et al. 2011; DDIL, Garrepalli et
al. 2024, Alg. 2 and 3).

Fresh states of a source (trajectories of today's student, say) are added to a bounded buffer, and
training draws from the buffer: the student also sees what its earlier selves met. A state that is
drawn once and forgotten costs a trajectory; whole trajectories (Alg. 2 adds each of theirs),
collected now and then, cost little. What a full buffer forgets:

- ``ring``: the oldest state, so that it holds the last ``capacity``;
- ``reservoir``: by Vitter's algorithm R (1985), state number n (from 0) takes slot n while there is
  room and then slot j, uniform in {0, ..., n}, if j < capacity, else it is let go: at any time each
  state ever seen is held with the same probability capacity / (n + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.resumable import Resumable
from fewstep.states.state import State, States
from fewstep.states.step import Step

# What belongs to how a state was made, not to the state; a trajectory's has none of it.
_FORGOTTEN = ("x0", "noise", "origin")


class _Buffer:
    """What a ``Dagger`` remembers: tensors of ``capacity`` rows, how many states were seen, and
    where it last collected.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}
        self.seen = 0
        self.last: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class Dagger(States, Resumable):
    """Draws uniformly, with replacement, from a buffer of at most ``capacity`` states of
    ``source``; see the module's docstring.

    The first draw at a place (stage, step) first adds the fresh states of ``collect`` samples, if
    the step is a multiple of ``every`` or the buffer is empty; further draws there add none.
    ``of_each`` "one" adds one state of each sample, "all" all of its trajectory's
    (``States.trajectories``). The fresh ones are samples 0 to ``collect`` of the place's global
    batch, whatever rows are drawn, so that all processes hold the same buffer. x, t and the
    condition are kept; x0, noise and origin are None. Its state is the buffer, kept on the device
    of the states: a checkpoint holds it.

    Raises ``UserError`` for numbers below 1, for collect > capacity, for an unknown ``keep`` or
    ``of_each``, and at the draw for a source whose conditions change their fields.
    """

    source: States
    capacity: int
    collect: int
    keep: Literal["reservoir", "ring"]
    every: int = 1
    of_each: Literal["one", "all"] = "one"
    _buffer: _Buffer = field(init=False, repr=False, default_factory=_Buffer)

    def __post_init__(self) -> None:
        if not 1 <= self.collect <= self.capacity or self.every < 1:
            raise UserError(
                f"dagger: needs 1 <= collect <= capacity and every >= 1, got collect {self.collect}, "
                f"capacity {self.capacity} and every {self.every}."
            )
        if self.keep not in _SLOTS:
            raise UserError(f"dagger: keep must be one of {', '.join(_SLOTS)}, got '{self.keep}'.")
        if self.of_each not in ("one", "all"):
            raise UserError(f"dagger: of_each must be 'one' or 'all', got '{self.of_each}'.")

    @property
    def filled(self) -> int:
        """How many states the buffer holds."""
        return min(self._buffer.seen, self.capacity)

    def draw(self, step: Step) -> State:
        buffer, here = self._buffer, (step.key.stage, step.key.step)
        if buffer.rows:
            # A buffer from a checkpoint is on the CPU until its first draw.
            buffer.rows = State.of(buffer.rows).to(step.device).tensors()
        if buffer.last != here and (step.key.step % self.every == 0 or not buffer.seen):
            self._add(self.fresh(step), step.key)
            buffer.last = here
        index = step.key.integers("dagger-row", step.rows, self.filled, step.start)
        return State.of({name: value[index.to(value.device)] for name, value in buffer.rows.items()})

    def fresh(self, step: Step) -> State:
        """What is collected at a step, the same in every process."""
        whole = Step(step.key, self.collect, device=step.device)
        return self.source.trajectories(whole) if self.of_each == "all" else whole.state(self.source)

    def _add(self, fresh: State, key: Key) -> None:
        buffer, tensors = (
            self._buffer,
            {name: value for name, value in fresh.tensors().items() if name not in _FORGOTTEN},
        )
        if not buffer.seen:
            buffer.rows = {name: value.new_zeros(self.capacity, *value.shape[1:]) for name, value in tensors.items()}
        if set(tensors) != set(buffer.rows):
            raise UserError(
                f"dagger: its source gives {', '.join(sorted(tensors))}, but gave "
                f"{', '.join(sorted(buffer.rows))} before; its states must keep the same fields."
            )
        slots = _SLOTS[self.keep](buffer.seen, len(fresh.x), self.capacity, key).tolist()
        # A slot that is taken twice belongs to the later state; -1 is let go.
        row_of = {slot: row for row, slot in enumerate(slots) if slot >= 0}
        taken, rows = (
            torch.tensor(list(row_of), dtype=torch.int64),
            torch.tensor(list(row_of.values()), dtype=torch.int64),
        )
        for name, value in buffer.rows.items():
            value[taken.to(value.device)] = tensors[name][rows.to(value.device)]
        buffer.seen += len(fresh.x)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._buffer.seen, "last": None if self._buffer.last is None else list(self._buffer.last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._buffer.seen = state["seen"]
        self._buffer.last = None if state["last"] is None else (state["last"][0], state["last"][1])

    def tensors(self) -> dict[str, Tensor]:
        return {name: value[: self.filled].clone() for name, value in self._buffer.rows.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Returns to a buffer; raises ``UserError`` unless it holds as many states as a buffer of
        this capacity would.
        """
        if any(len(value) != self.filled for value in tensors.values()):
            raise UserError(
                f"dagger: the checkpoint's buffer is not one of capacity {self.capacity}; resume with the "
                "capacity that the run began with."
            )
        self._buffer.rows = {
            name: torch.cat([value, value.new_zeros(self.capacity - len(value), *value.shape[1:])])
            for name, value in tensors.items()
        }


def _ring(seen: int, rows: int, capacity: int, key: Key) -> Tensor:
    return (seen + torch.arange(rows)) % capacity


def _reservoir(seen: int, rows: int, capacity: int, key: Key) -> Tensor:
    order = seen + torch.arange(rows)
    slots = (key.uniform("dagger-slot", rows) * (order + 1)).long()
    return torch.where(order < capacity, order, torch.where(slots < capacity, slots, -1))


_SLOTS: dict[str, Callable[[int, int, int, Key], Tensor]] = {"ring": _ring, "reservoir": _reservoir}
