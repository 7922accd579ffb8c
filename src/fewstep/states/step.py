"""One step of training, as states and objectives see it: where it stands, and what it has computed
already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep import cost
from fewstep.condition import Condition
from fewstep.cost import unmetered
from fewstep.networks.elsewhere import given_place
from fewstep.random import Key
from fewstep.states.state import CPU, State, States

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Asked:
    """What a step was asked for and can be made before it: states whose draws need no network, and
    normals by purpose and shape, with the device to which they went.
    """

    states: tuple[States, ...] = ()
    normals: tuple[tuple[str, tuple[int, ...], torch.device], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.states or self.normals)


class Step:
    """Samples ``start`` to ``start + rows`` of the global batch at a place, made for networks on
    ``device``: states put their samples and conditions there.

    Terms that name the same states share one draw, and a student's samples are made once: ``run``
    makes them with a graph, which all terms of one phase share, and a later phase of the same step
    that asks for them by ``sample`` gets those. A phase adds its terms' losses before it goes
    backward, which frees the graph: whoever goes backward calls ``forget_graphs`` after it.
    """

    def __init__(
        self,
        key: Key,
        rows: int,
        start: int = 0,
        device: torch.device = CPU,
        whole: dict[int, tuple[object, Any]] | None = None,
    ):
        self.key = key
        self.rows = rows
        self.start = start
        self.device = device
        # Keys are identities, which only hold while the objects live: each entry keeps its own.
        self._states: dict[tuple[int, torch.device], tuple[States, State]] = {}
        # The state as it was drawn, of each that was brought to another device.
        self._drawn: dict[int, State] = {}
        # By the state as it was drawn; on each device where they were asked for.
        self._samples: dict[tuple[int, int], tuple[nn.Module, State, dict[torch.device, Tensor]]] = {}
        self._graphs: dict[tuple[int, int], tuple[nn.Module, State, Tensor]] = {}
        self._whole = {} if whole is None else whole
        self._normals: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        # Of a named step: the step itself. It must not hold itself, or its tensors wait for the
        # collector.
        self._unnamed: Step | None = None
        self._asked_states: dict[int, States] = {}
        self._asked_normals: dict[tuple[str, tuple[int, ...]], torch.device] = {}

    @classmethod
    def portions(cls, key: Key, rows: int, start: int, parts: int, device: torch.device = CPU) -> list[Step]:
        """``parts`` equal portions of the samples ``start`` to ``start + rows`` of a step, which
        share what belongs to the step as a whole (``once``).
        """
        portion = rows // parts
        whole: dict[int, tuple[object, Any]] = {}
        return [cls(key, portion, start + part * portion, device, whole) for part in range(parts)]

    def named(self, name: str) -> Step:
        """The same step, whose own draws are ``name``'s: other purposes have other numbers.

        States and samples are shared.
        """
        view = copy.copy(self)
        view.key, view._unnamed = replace(self._root.key, owner=name), self._root
        return view

    def on(self, device: torch.device) -> Step:
        """The same step for a phase whose network is on another device: states and samples are made
        where they always are, and brought there once. The step itself on its own device.
        """
        if device == self.device:
            return self
        view = copy.copy(self)
        view.device, view._unnamed = device, self._root
        return view

    @property
    def _root(self) -> Step:
        return self._unnamed or self

    def once(self, owner: object, make: Callable[[], T]) -> T:
        """What ``owner`` makes for the step as a whole rather than for its samples: made once,
        whatever portion asks first.
        """
        if id(owner) not in self._whole:
            self._whole[id(owner)] = owner, make()
        made: T = self._whole[id(owner)][1]
        return made

    def state(self, states: States) -> State:
        """The draw of ``states`` at this step, made once."""
        key = id(states), self.device
        if states.ahead:
            self._asked_states[id(states)] = states
        if key not in self._states and self.device == self._root.device:
            self._states[key] = states, states.draw(self._root)
        elif key not in self._states:
            drawn = self._root.state(states)
            self._states[key] = states, drawn.to(self.device)
            self._drawn[id(self._states[key][1])] = drawn
        return self._states[key][1]

    def sample(self, model: nn.Module, state: State) -> Tensor:
        """The model's samples (B, *D) at a state, without gradient: what was kept, or made now."""
        drawn, here = self._drawn.get(id(state), state), state.x.device
        made = self._samples.setdefault((id(model), id(drawn)), (model, drawn, {}))[2]
        if not made:
            # Of the state on both sides, the one where the model is need not travel.
            at = state if given_place(model) == here else drawn
            with torch.no_grad():
                made[at.x.device] = model(at.x, at.t, at.condition)
        if here not in made:
            made[here] = next(iter(made.values())).to(here)
        return made[here]

    def run(self, model: nn.Module, state: State) -> Tensor:
        """The model's samples (B, *D) at a state with their graph, made once for all terms of a
        phase, and kept.
        """
        key = (id(model), id(state))
        if key not in self._graphs:
            with torch.enable_grad():
                self._graphs[key] = model, state, model(state.x, state.t, state.condition)
            self.keep(model, state, self._graphs[key][2])
        return self._graphs[key][2]

    def jvp(
        self,
        model: Callable[[Tensor, Tensor, Condition], Tensor],
        x: Tensor,
        t: Tensor,
        condition: Condition,
        tangents: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The model's estimate (B, *D) at x (B, *D) and t (B,), with its graph, and without one the
        derivative of the estimate along ``tangents``, those of x (B, *D) and t (B,): forward-mode
        differentiation, of one forward pass.

        Counted as that pass and one evaluation for the derivative.
        """
        with unmetered(), torch.enable_grad():
            estimate, derivative = torch.func.jvp(lambda x, t: model(x, t, condition), (x, t), tangents)[:2]
        cost.count_evaluations(estimate)
        cost.count_evaluations(derivative.detach())
        return estimate, derivative.detach()

    def forget_graphs(self) -> None:
        """Called after a phase's backward: the next phase that ``run``s a model makes its samples
        anew. What ``sample`` hands out stays.
        """
        self._graphs.clear()

    def keep(self, model: nn.Module, state: State, samples: Tensor) -> None:
        """Hands the model's samples at a state to later phases of this step, without their
        graph.
        """
        drawn = self._drawn.get(id(state), state)
        self._samples[id(model), id(drawn)] = model, drawn, {state.x.device: samples.detach()}

    def noise_like(self, purpose: str, x: Tensor) -> Tensor:
        """Standard normals of x's shape (B, *D), type and device."""
        key = (self.key.purpose_of(purpose), tuple(x.shape))
        self._asked_normals[key] = x.device
        made = self._normals.pop(key, None)
        return (self.key.normal(purpose, x.shape, self.start) if made is None else made).to(x.device, x.dtype)

    @property
    def asked(self) -> Asked:
        """What it was asked for so far, apart from what was prepared and not asked for."""
        normals = tuple((*key, device) for key, device in self._asked_normals.items())
        return Asked(tuple(self._asked_states.values()), normals)

    def prepare(self, asked: Asked) -> None:
        """Makes what ``asked`` names, so that it is there when it is asked for: the same numbers,
        whoever makes them.
        """
        for purpose, shape, device in asked.normals:
            self._normals[purpose, shape] = self.key.normal(purpose, shape, self.start).to(device)
        # A draw takes its normals from those.
        for states in asked.states:
            self.state(states)
        self._asked_states.clear()
        self._asked_normals.clear()
