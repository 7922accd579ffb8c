r"""Two losses balanced by their gradients: L = L_main + lambda L_other (Esser et al. 2021, Eq. 6
and 7; CTM, Kim et al. 2024).

With p the first parameter of a layer that both reach, the last one of what they train,

    lambda = |d L_main / d p| / (|d L_other / d p| + 1e-6),

clipped to ``largest``, times ``weight``, and held constant, so that at weight 1 both push equally
hard on p whatever their units. It costs a backward of each loss down to p; a last layer makes that
the loss' own networks only. Over several processes the gradients are those of the whole batch; a
batch that is worked off in portions has a factor for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives.loss import Loss, Objective, loss_of
from fewstep.states import State, Step
from fewstep.system import distributed


@dataclass(frozen=True, eq=False)
class Balanced(Objective):
    """See the module's docstring.

    Before step ``start_after`` of its stage ``other`` is not computed and the loss is ``main``'s.

    Terms of the two that have the same name are refused with ``UserError``, as are losses that do
    not depend on ``layer``'s parameter.
    """

    main: Objective
    other: Objective
    layer: nn.Module
    start_after: int = 0
    largest: float = 1e4
    weight: float = 1.0

    @property
    def owned(self) -> Sequence[nn.Module]:
        return (*self.main.owned, *self.other.owned)

    def __call__(self, step: Step, state: State) -> Loss:
        with _seen_in(self.layer) as seen:
            main = loss_of(self.main, step, state)
            if step.key.step < self.start_after:
                return main
            other = loss_of(self.other, step, state)
        shared = set(main.terms) & set(other.terms)
        if shared:
            raise UserError(
                f"balanced losses: both report '{min(shared)}', which the log could not tell apart; balance "
                "objectives of different kinds."
            )
        parameter = seen[-1] if seen else next(self.layer.parameters())
        factor = (_push(main, parameter, self.main) / (_push(other, parameter, self.other) + 1e-6)).clamp(
            max=self.largest
        ) * self.weight
        return Loss(
            main.total + factor * other.total,
            {**main.terms, **other.terms, "balance": factor},
            {**main.reductions, **other.reductions},
        )


def _push(loss: Loss, parameter: nn.Parameter, objective: Objective) -> Tensor:
    """|d loss / d p|, a scalar without graph; the loss' graph stays."""
    (gradient,) = torch.autograd.grad(loss.total, parameter, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"balanced losses: {type(objective).__name__} does not depend on the layer they are balanced "
            "at; give one of the student's, best its last."
        )
    return distributed.mean_of(gradient).norm()


@contextlib.contextmanager
def _seen_in(layer: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The layer's first parameter as each forward pass inside uses it: of a sharded network that is
    the gathered one, which the layer does not show otherwise.
    """
    seen: list[nn.Parameter] = []
    handle = layer.register_forward_pre_hook(lambda module, _: seen.append(next(module.parameters())))
    try:
        yield seen
    finally:
        handle.remove()
