r"""Two losses balanced by their gradients: L = L_main + lambda L_other (Esser et al. 2021, Eq. 6 and 7; CTM, Kim et al. 2024).

With p a parameter that both reach, the last layer of what they train,

    lambda = |d L_main / d p| / (|d L_other / d p| + 1e-6),

clipped to ``largest``, times ``weight``, and held constant, so that at weight 1 both push equally hard on p whatever their units. It costs a backward of each loss down to p; a last
layer makes that the loss' own networks only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective
from fewstep.states import State, Step


@dataclass(frozen=True, eq=False)
class Balanced(Objective):
    """See the module's docstring. Before step ``start_after`` of its stage ``other`` is not computed and the loss is ``main``'s.

    Terms of the two that have the same name are refused with ``UserError``, as are losses that do not depend on ``parameter``.
    """

    main: Objective
    other: Objective
    parameter: nn.Parameter
    start_after: int = 0
    largest: float = 1e4
    weight: float = 1.0

    def __call__(self, step: Step, state: State) -> Loss:
        main = self.main(step, state)
        if step.place.step < self.start_after:
            return main
        other = self.other(step, state)
        shared = set(main.terms) & set(other.terms)
        if shared:
            raise UserError(f"balanced losses: both report '{min(shared)}', which the log could not tell apart; balance objectives of different kinds.")
        factor = (self._push(main, self.main) / (self._push(other, self.other) + 1e-6)).clamp(max=self.largest) * self.weight
        return Loss(main.total + factor * other.total, {**main.terms, **other.terms, "balance": factor})

    def _push(self, loss: Loss, objective: Objective) -> Tensor:
        """|d loss / d p|, a scalar without graph; the loss' graph stays."""
        (gradient,) = torch.autograd.grad(loss.total, self.parameter, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise UserError(f"balanced losses: {type(objective).__name__} does not depend on the parameter they are balanced at; give one of the student's, best its last layer.")
        return gradient.detach().norm()
