r"""Mixtures of states: DDIL's three sources (Garrepalli et al. 2024, Alg. 1).

A training state comes from forward diffusion of data, from the student's backward trajectory, or
from the teacher's, with probabilities beta that change over training. ``Mixture`` decides for each
sample, so that every batch has something of each source; ``PerBatch`` for the whole batch, as the
paper's listing does (with sums of beta as bounds, see ``weights``). ``State.origin`` says where a
sample is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.states.state import State, States, select
from fewstep.states.step import Step
from fewstep.states.weights import Weights, check_names

# What is known of some states only, and is dropped unless all sources know it.
_OPTIONAL = ("x0", "noise")


@dataclass(frozen=True, eq=False)
class Mixture(States):
    """Each sample is from one of ``sources``, chosen by its own uniform number with the
    probabilities ``weights`` of the place's step.

    Every source of weight > 0 draws the whole batch and the samples that are its own are kept:
    wasteful, but a sample is a function of its index, whatever the others are, and all processes
    call the same networks equally often. x0 and noise are kept where all of those sources have
    them, else None; ``origin`` is the index in the order of ``sources``. Raises ``UserError`` for
    weights over other names, for a mixture of the same names directly within (its choices would be
    this one's), and at the draw for sources whose conditions carry different fields or whose
    samples differ in shape.
    """

    sources: Mapping[str, States]
    weights: Weights

    def __post_init__(self) -> None:
        check_names("mixture", self.sources, self.weights)
        for name, source in self.sources.items():
            if isinstance(source, Mixture) and set(source.sources) == set(self.sources):
                raise UserError(
                    f"mixture: its source '{name}' is a mixture over the same names, whose choices would "
                    "not be independent; rename the inner sources."
                )

    @property
    def ahead(self) -> bool:
        return all(source.ahead for source in self.sources.values())

    def draw(self, step: Step) -> State:
        names = list(self.sources)
        weights = self.weights.at(step.key.step)
        u = step.key.uniform("mixture-source-" + "-".join(sorted(names)), step.rows, step.start)
        origin = self.weights.choose(names, step.key.step, u)
        drawn = {name: step.state(self.sources[name]).tensors() for name in names if weights[name] > 0}
        return replace(State.of(_joined(names, drawn, origin)), origin=origin)


@dataclass(frozen=True, eq=False)
class PerBatch(States):
    """The whole batch is from one of ``sources``, chosen by one uniform number with the
    probabilities ``weights`` of the place's step; only that source is drawn.

    ``origin`` is the index in the order of ``sources``. Raises ``UserError`` for weights over other
    names.
    """

    sources: Mapping[str, States]
    weights: Weights

    def __post_init__(self) -> None:
        check_names("per batch", self.sources, self.weights)

    @property
    def ahead(self) -> bool:
        return all(source.ahead for source in self.sources.values())

    def draw(self, step: Step) -> State:
        index = self.chosen(step)
        return self._from(index, step.state(list(self.sources.values())[index]))

    def trajectories(self, step: Step) -> State:
        index = self.chosen(step)
        return self._from(index, list(self.sources.values())[index].trajectories(step))

    def chosen(self, step: Step) -> int:
        """Which source this step's batch is from, in the order of ``sources``."""
        names = list(self.sources)
        # No start: the choice is the whole batch's, and so every process's.
        u = step.key.uniform("batch-source-" + "-".join(sorted(names)), 1)
        return int(self.weights.choose(names, step.key.step, u))

    def _from(self, index: int, state: State) -> State:
        return replace(state, origin=torch.full((len(state.x),), index, dtype=torch.int64))


def _joined(names: list[str], drawn: Mapping[str, dict[str, Tensor]], origin: Tensor) -> dict[str, Tensor]:
    """Sample i of what source ``names[origin[i]]`` has drawn, by field."""
    first, *others = drawn
    joined = dict(drawn[first])
    for name in others:
        _check_alike(first, drawn[first], name, drawn[name])
        mask = origin == names.index(name)
        joined = {key: select(mask, drawn[name][key], value) for key, value in joined.items() if key in drawn[name]}
    return joined


def _check_alike(first: str, ours: Mapping[str, Tensor], name: str, theirs: Mapping[str, Tensor]) -> None:
    required = [
        {key: value.shape[1:] for key, value in tensors.items() if key not in (*_OPTIONAL, "origin")}
        for tensors in (ours, theirs)
    ]
    differing = sorted(key for key in {**required[0], **required[1]} if required[0].get(key) != required[1].get(key))
    if differing:
        raise UserError(
            f"mixture: the sources '{first}' and '{name}' differ in {', '.join(differing)}; all must carry "
            "the same fields, of the same shapes."
        )
