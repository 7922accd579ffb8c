"""The teacher's own samples as what is compared with: their moments, computed once.

All that decides the samples is written down in JSON values: the teacher's section and the checksums
of what it names, the conditions and their numbers, the sampler, the seed and the feature space.
By that the moments are found again, whichever run, recipe or machine asks (``kept_moments``).

The reference's noise is none that an evaluation draws: the teacher itself, measured on the same
noise as its reference, would be at distance 0. Its samples are in a random order of their
conditions, so that the first of them stand for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.cost import unmetered
from fewstep.data import Dataset
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import FeatureStatistics, features_of
from fewstep.metrics.quality import labels_of
from fewstep.metrics.stored.kept_moments import KeptMoments, key_of
from fewstep.metrics.stored.moments import Moments
from fewstep.metrics.stored.reference import Reference
from fewstep.random import GENERATOR, Key
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.checksums import origins_of
from fewstep.recipes.reading.places import Named, with_names
from fewstep.runs.sampler import Sampler, TeacherSampler
from fewstep.system import distributed
from fewstep.system.files import digest_of
from fewstep.system.ledger import print_sentence
from fewstep.training import Listener

STAGE = "teacher-reference"


def shipped_moments() -> Path:
    """The folder of the moments that ship."""
    with resources.as_file(resources.files("fewstep.zoo") / "moments") as folder:
        return folder


@dataclass(frozen=True, eq=False)
class TeacherMoments:
    """``count`` samples of a teacher at ``steps`` steps, and their moments in a feature space.

    ``sampler``: makes the teacher's pictures, already guided where it is to be. ``numbers``
    (count,): of the condition of each sample; None without conditions. ``made``: all that decides
    the samples and their features. ``say`` is told that they are computed.
    """

    sampler: Sampler
    space: FeatureSpace
    count: int
    steps: int
    seed: int
    numbers: Tensor | None
    made: Mapping[str, Any]
    say: Callable[[str], None] = print_sentence

    def get(self, listener: Listener | None = None) -> FeatureStatistics:
        """Mean and covariance of the features of all samples: those that ship, those that are kept,
        or computed now and kept; ``listener`` is told how that goes.
        """

        def compute() -> FeatureStatistics:
            self.say(
                f"the moments of {self.count:,} samples of the teacher at {self.steps} steps are computed now, and "
                f"kept in {self.kept.folder}."
            )
            return self.compute(listener or Listener())

        return self.kept.get(compute)

    def reference(self, listener: Listener | None = None) -> Reference:
        """The same as a file has them."""
        return Reference(self.get(listener), self.space.name, made=self.made)

    @property
    def described(self) -> dict[str, Any]:
        """What a result's file says of them."""
        return {name: self.made[name] for name in ("samples", "steps", "guidance")} | {"moments": key_of(self.made)}

    @property
    def kept(self) -> KeptMoments:
        """Where the moments are kept."""
        return KeptMoments(self.made, self.space.name, shipped_moments(), self.say)

    def features(self, first: int, rows: int) -> Iterator[Tensor]:
        """The features of the samples [first, first + rows), in blocks (n, d) whose bits do not
        depend on the number of processes.

        Raises ``UserError`` for samples that are not finite.
        """
        key, together = Key(self.seed, STAGE), self.sampler.together * distributed.size()
        for start in range(first, first + rows, together):
            stop = min(start + together, first + rows)
            part = None if self.numbers is None else self.numbers[start:stop]
            with unmetered():
                samples = self.sampler.draw(key, stop - start, part, self.steps, start)
            for block in samples.clamp(self.sampler.low, self.sampler.high).split(self.sampler.together):
                yield features_of(block, self.space.extract).cpu()

    def drawn(self, rows: int) -> Tensor:
        """The features (rows, d) of the first samples, which stand for all: for ``agreement``."""
        return torch.cat(list(self.features(0, rows)))

    def compute(self, listener: Listener) -> FeatureStatistics:
        """The moments, computed anew."""
        with listener:
            listener.stage("reference", self.count, 0)
            return Moments.of_batches(self._told(self.features(0, self.count), listener)).statistics()

    def _told(self, blocks: Iterator[Tensor], listener: Listener) -> Iterator[Tensor]:
        done = 0
        for block in blocks:
            done += len(block)
            listener.step(done, f"{done:,} samples")
            yield block


def teacher_moments(
    recipe: DistillRecipe,
    sampler: TeacherSampler,
    space: FeatureSpace,
    data: Dataset | None,
    say: Callable[[str], None] = print_sentence,
) -> TeacherMoments:
    """The samples that 'evaluation.reference' asks for, of the recipe's teacher.

    ``sampler``: the teacher's, not guided yet. Their conditions are in the proportions of the
    data's labels, and in equal ones where there are none.
    """
    choice = recipe.evaluation
    assert choice.reference is not None
    numbers = labels_of(data, choice.reference.samples, sampler.classes) if sampler.classes else None
    if numbers is not None:
        numbers = numbers[Key(choice.seed, STAGE).permutation("order", len(numbers))]
    scale, steps = choice.reference_guidance, choice.reference_steps
    guided = sampler.guided(scale).pictured
    made = {
        "teacher": {
            **with_names(recipe.teacher, _unnamed).model_dump(mode="json"),
            **origins_of(recipe, ("teacher",)),
        },
        "conditions": sampler.owner.identity,
        "numbers": None if numbers is None else digest_of({"numbers": numbers}, {}),
        "samples": choice.reference.samples,
        "steps": steps,
        "guidance": None if scale == 1.0 else scale,
        "solver": choice.solver.model_dump(mode="json"),
        "range": [guided.low, guided.high],
        "seed": choice.seed,
        "noise": GENERATOR,
        "features": {
            **with_names(choice.features, _unnamed).model_dump(mode="json"),
            "space": space.name,
            **{key: value for key, value in origins_of(recipe, ("evaluation",)).items() if "features" in key},
        },
    }
    return TeacherMoments(guided, space, choice.reference.samples, steps, choice.seed, numbers, made, say)


def _unnamed(named: Named) -> str | None:
    """What ships keeps its name; a path's place is taken by the checksum of what is there."""
    return named.value if named.value is None or named.mark.what == "shipped" else ""
