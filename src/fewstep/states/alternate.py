r"""Trajectories that alternate between models (DDIL, Garrepalli et al. 2024, Alg. 2).

At each transition t -> s of a rollout one of several flow maps is taken, with DDIL's probability
beta the student's:

    x_s = map_k(x_t, t, s),    k ~ weights.

In progressive distillation a transition is one step of the student and two of the teacher,
``{"student": Solver(student, 1), "teacher": Solver(teacher, 2)}``: between s > 0 and t, the point
that ``Solver`` puts in the middle is the nested grid's (``times.nested_times``) where the grid is
uniform in a warped time. For s = 0 it is not: there the solver's grid is t, t_min, 0
(``Grid.times``). Rollouts never jump to 0, so this does not arise. Maps must be stateless (DDIM),
as each may be asked for any transition.

(The paper's listing prints sigma_s (sigma_t z - alpha_t v) for the noise's part; z = alpha x_0 +
sigma eps and v = alpha eps - sigma x_0 give sigma_s (sigma_t z + alpha_t v).)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.solvers import FlowMap
from fewstep.states.weights import Weights, check_names


@dataclass(frozen=True, eq=False)
class Alternate(FlowMap):
    """Uses one of ``maps`` at each transition, chosen for the whole batch from its place and the
    two times, with the probabilities ``weights`` of the place's step.

    ``at`` binds it and its maps to a place; an unbound one raises ``UserError`` when called, as
    does weights over other names when built.
    """

    maps: Mapping[str, FlowMap]
    weights: Weights
    key: Key | None = None

    def __post_init__(self) -> None:
        check_names("alternate", self.maps, self.weights)

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition | Tensor | None = None
    ) -> Tensor:
        return self.maps[self.chosen(float(t), float(s))](x, t, s, condition)

    def at(self, key: Key, start: int = 0) -> Alternate:
        return replace(self, maps={name: flow_map.at(key, start) for name, flow_map in self.maps.items()}, key=key)

    def chosen(self, t: float, s: float) -> str:
        """The name of the map that goes from t to s at this place."""
        if self.key is None:
            raise UserError(
                "alternate: its choices are a function of a place; bind it with 'at(place)', as rollouts do."
            )
        names = list(self.maps)
        # No start: the choice is the whole batch's, and so every process's.
        u = self.key.uniform(f"alternate-{t:.12g}-{s:.12g}", 1)
        return names[int(self.weights.choose(names, self.key.step, u))]
