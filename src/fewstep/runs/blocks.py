"""Samples by the tens of thousands, gathered a block of indices at a time in several processes.

A sample is a function of its index, so a block is the same whoever draws it: blocks are given to
whichever process is free, each on one thread, and merged in the order of their indices. The outcome
is therefore the same bit for bit for every number of processes. Another size of the blocks changes
it by rounding alone. Processes are spawned and open the run for themselves; what they send back is
sums and the few features that are kept, never samples. A script that measures with several must be
importable (its calls below ``if __name__ == "__main__":``).
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics.gathered import Gathered, Gatherer, spaced
from fewstep.metrics.inception_score import ClassScores
from fewstep.metrics.quality import labels_of
from fewstep.metrics.stored.moments import Moments
from fewstep.random import Key
from fewstep.recipes.building.device import resolve_device
from fewstep.recipes.building.parts import data_of
from fewstep.runs.loading import load, load_teacher
from fewstep.runs.sampler import BATCH, Sampler
from fewstep.system.imports import import_named, named
from fewstep.training import Listener

SPLITS = 10


@dataclass(frozen=True)
class Workers:
    """``processes``, each on one thread, and the ``batch`` of samples that each has in memory at a
    time. Raises ``UserError`` for numbers below 1, and for batches above 500.
    """

    processes: int = 1
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.processes < 1 or not 1 <= self.batch <= BATCH:
            raise UserError(
                f"measuring needs at least 1 process and batches of 1 to {BATCH}, got {self.processes} and "
                f"{self.batch}."
            )


@dataclass(frozen=True)
class Job:
    """``count`` samples of a run's ``source``, in the feature space of its recipe; ``steps`` of the
    model.

    Models draw in the data's class proportions, from the noise that ``evaluate`` draws first; the
    data is taken in the order of its classes, evenly spaced where ``count`` is less than all.
    """

    run: Path
    source: Literal["student", "teacher", "data"]
    count: int
    steps: int = 1


class Crew:
    """The processes, as a context around all jobs that they work off; a single one is this process
    itself.
    """

    def __init__(self, workers: Workers):
        self.workers = workers
        self._stack = contextlib.ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self.workers.processes > 1:
            pool = ProcessPoolExecutor(self.workers.processes, multiprocessing.get_context("spawn"), _begin, (named(),))
            self._pool = self._stack.enter_context(pool)
        else:
            # Like a worker of several: the order in which threads add would show in the last
            # digits.
            self._stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def gather(self, job: Job, listener: Listener) -> Gathered:
        """All blocks of a job, merged in order; raises ``UserError`` where a process has been ended
        from outside.
        """
        starts = range(0, job.count, self.workers.batch)
        total: Gathered | None = None
        with listener:
            listener.stage(job.source, len(starts), 0)
            for done, part in enumerate(self._parts(job, starts), 1):
                total = part if total is None else total.merged(part)
                listener.step(done, f"{min(done * self.workers.batch, job.count)} samples")
        assert total is not None
        return total

    def _parts(self, job: Job, starts: range) -> Iterator[Gathered]:
        batch = self.workers.batch
        if self._pool is None:
            yield from map(_opened(job, batch), starts)
            return
        try:
            for arrays in self._pool.map(_in_worker, [job] * len(starts), [batch] * len(starts), starts):
                yield _from_arrays(arrays)
        except BrokenProcessPool as error:
            raise UserError(
                f"{job.run}: a measuring process was ended, perhaps for want of memory; use fewer processes "
                "or a smaller batch."
            ) from error


def _opened(job: Job, batch: int) -> Callable[[int], Gathered]:
    """The job as a function from the first index of a block of ``batch`` to what is gathered of
    it.
    """
    recipe = RunFolder(job.run).read_distill_recipe()
    data, seed = data_of(recipe.data), recipe.evaluation.seed
    sampler = _sampler(job, recipe.evaluation.guidance)
    look = data if data is not None else load(job.run).pictured.space if sampler is None else sampler.space
    gatherer = Gatherer(
        recipe.evaluation.features.space(look, resolve_device("auto")), job.count, min(SPLITS, job.count), seed
    )
    if sampler is None:
        assert data is not None
        order = torch.arange(len(data)) if data.labels is None else torch.argsort(data.labels, stable=True)
        order = order[spaced(len(data), job.count)]

        def of_data(start: int) -> Gathered:
            index = order[start : start + batch]
            return gatherer(start, data.take(index), None if data.labels is None else data.labels[index])

        return of_data
    labels = labels_of(data, job.count, sampler.classes) if sampler.classes else None
    key = Key(seed, "evaluation", 0)

    def of_model(start: int) -> Gathered:
        rows = min(batch, job.count - start)
        part = None if labels is None else labels[start : start + rows]
        return gatherer(start, sampler.draw(key, rows, part, job.steps, start).clamp(sampler.low, sampler.high), part)

    return of_model


def _sampler(job: Job, guidance: float | None) -> Sampler | None:
    """What makes a job's samples, the teacher's guided as its evaluation is; None for data."""
    if job.source == "data":
        return None
    return (load_teacher(job.run).guided(guidance) if job.source == "teacher" else load(job.run)).pictured


def _begin(modules: Sequence[str] = ()) -> None:
    """Sets up a worker: what terminals and SLURM send to all processes is the parent's to answer,
    which then gives out no more blocks. SIGTERM ends a worker. ``modules``: what the user has named
    for import.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    for name in modules:
        import_named(name)


_opened_once = functools.lru_cache(maxsize=1)(_opened)


def _in_worker(job: Job, batch: int, start: int) -> dict[str, Any]:
    return _as_arrays(_opened_once(job, batch)(start))


def _as_arrays(part: Gathered) -> dict[str, Any]:
    """As numpy arrays, which travel through a pipe; tensors would go through shared memory, of
    which containers have little.
    """
    scores = (
        None
        if part.scores is None
        else [_array(value) for value in (part.scores.counts, part.scores.probabilities, part.scores.entropies)]
    )
    moments = (part.moments.count, _array(part.moments.mean), _array(part.moments.scatter))
    return {
        "moments": moments,
        "kept": _array(part.kept),
        "labels": _array(part.labels),
        "scores": scores,
        "hits": part.hits,
    }


def _from_arrays(arrays: dict[str, Any]) -> Gathered:
    count, mean, scatter = arrays["moments"]
    scores = None if arrays["scores"] is None else ClassScores(*map(torch.from_numpy, arrays["scores"]))
    moments = Moments(count, torch.from_numpy(mean), torch.from_numpy(scatter))
    return Gathered(
        moments, torch.from_numpy(arrays["kept"]), torch.from_numpy(arrays["labels"]), scores, arrays["hits"]
    )


def _array(value: Tensor) -> np.ndarray:
    return value.numpy()
