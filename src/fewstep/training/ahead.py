"""The next step's draws, made in a thread while this step computes.

Draws are functions of a place (see ``random``), so that it does not matter who makes them, or when.
What a step will draw is guessed from the last one in which the same phases were due: the states
that need no network (``States.ahead``), pictures decoded, and the normals of objectives. A right
guess gives the very same numbers, a wrong one costs time alone. A draw that fails in the thread is
made again where it belongs, and fails there. Nothing of this is in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fewstep.random import Key
from fewstep.states.step import Asked, Step
from fewstep.system import distributed
from fewstep.training.phase import Stage
from fewstep.training.settings import Settings


class Ahead:
    """Makes the steps of this process' samples on ``device``; a context, inside of which there is a
    thread.
    """

    def __init__(self, settings: Settings, device: torch.device):
        self._settings = settings
        self._device = device
        self._pool: ThreadPoolExecutor | None = None
        self._asked: dict[tuple[str, ...], Asked] = {}
        self._waiting: tuple[Key, Future[list[Step]]] | None = None

    def take(self, stage: Stage, key: Key) -> list[Step]:
        """The portions of the step at a place, and begins with those of the one after it."""
        waiting, self._waiting = self._waiting, None
        right = waiting is not None and waiting[0] == key and waiting[1].exception() is None
        steps = waiting[1].result() if waiting is not None and right else self._fresh(key)
        then = key.at(key.step + 1)
        asked = self._asked.get(_kind(stage, then.step))
        if self._pool is not None and asked and then.step != stage.total:
            self._waiting = then, self._pool.submit(_prepared, self._fresh(then), asked)
        return steps

    def learn(self, stage: Stage, steps: Sequence[Step]) -> None:
        """Remembers what a step has asked for, of which all portions ask the same."""
        self._asked[_kind(stage, steps[0].key.step)] = steps[0].asked

    def _fresh(self, key: Key) -> list[Step]:
        start, rows = distributed.share(self._settings.batch)
        return Step.portions(key, rows, start, self._settings.accumulate, self._device)

    def __enter__(self) -> Ahead:
        # A thread has a current GPU of its own.
        there = (torch.cuda.set_device, (torch.cuda.current_device(),)) if self._device.type == "cuda" else (None, ())
        self._pool = ThreadPoolExecutor(1, "draws", *there)
        return self

    def __exit__(self, *failure: object) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


def _kind(stage: Stage, step: int) -> tuple[str, ...]:
    """What steps that draw alike have in common."""
    return (stage.name, *(phase.name for phase in stage.due(step)))


def _prepared(steps: list[Step], asked: Asked) -> list[Step]:
    for step in steps:
        step.prepare(asked)
    return steps
