"""What was not finite, whose it was, and where the run can go on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.system.finite import first_not_finite
from fewstep.training.phase import Phase, Term
from fewstep.training.reporting.reports import Report
from fewstep.training.saving.saver import Saver

_REMEDY = "lower the learning rate or change the weighting, and start anew in another folder"


class Diverged(UserError):
    """A loss, a gradient or a weight was not a finite number; nothing of that step is kept, and the
    last checkpoint is from before it.
    """


class WayBack:
    """Where a run that diverged can go on from. All processes call all methods."""

    def __init__(self, saver: Saver):
        self._saver = saver
        self._went_on_from: int | None = None

    def went_on_from(self, step: int) -> None:
        """The run goes on from the checkpoint of global step ``step``."""
        self._went_on_from = step

    def saved(self) -> None:
        """A checkpoint was written since."""
        self._went_on_from = None

    def diverged(self, what: str) -> Diverged:
        """The exception that says ``what`` was not finite and where to go on.

        The checkpoint from which the run has come here at once is set aside.
        """
        self._saver.finish()
        checkpoints = self._saver.checkpoints
        names = distributed.together(lambda: [path.name for path in checkpoints.paths()])
        paths = [checkpoints.folder / name for name in names]
        if not paths:
            nowhere = "there is no checkpoint yet to go on from"
            return Diverged(f"{what}; nothing of that step was kept, and {nowhere}: {_REMEDY}.")
        if self._went_on_from is None:
            here = f"go on from {paths[0]} with --resume, or, where it ends here again, {_REMEDY}"
            return Diverged(f"{what}; nothing of that step was kept: {here}.")
        again = f"{what}; the run went on from {paths[0]} and ended here at once"
        if len(paths) == 1 or checkpoints.was_set_aside(self._went_on_from):
            return Diverged(f"{again}, as it will whenever it goes on: {_REMEDY}.")
        aside = checkpoints.set_aside(paths[0]).name
        older = f"go on from {paths[1]} with --resume, or, where it ends here again, {_REMEDY}"
        return Diverged(f"{again}, so that this checkpoint was set aside as {aside}: {older}.")


def to_blame(report: Report, gradients_of: Callable[[Phase], None]) -> Sequence[Term]:
    """The terms whose gradients are not finite, found by taking each alone once more; all of them
    where none is, or where there is only one.

    ``gradients_of`` makes the gradients of a phase's loss at the report's step anew.
    """
    phase = report.phase
    if len(phase.terms) == 1:
        return phase.terms
    found = []
    for term in phase.terms:
        phase.trained.zero_grad(set_to_none=True)
        gradients_of(replace(phase, terms=[term]))
        gradients = [(name, value.grad) for name, value in phase.trained.named_parameters() if value.grad is not None]
        if distributed.largest(int(bool(first_not_finite(gradients)))):
            found.append(term)
    phase.trained.zero_grad(set_to_none=True)
    return found or phase.terms
