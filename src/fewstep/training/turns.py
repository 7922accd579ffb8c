"""A phase's turn in a step: its loss over the step's portions, backward, clipping, its optimizer,
and the averages that follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import nn

from fewstep.denoisers import Averaged
from fewstep.networks.elsewhere import given_place
from fewstep.states import Step
from fewstep.system import distributed
from fewstep.training.layout import Layout
from fewstep.training.optimizer import step_unless
from fewstep.training.phase import Phase, Stage, Term
from fewstep.training.reporting.divergence import to_blame
from fewstep.training.reporting.reports import Report, Soundness
from fewstep.training.settings import Settings


class Turns:
    """Takes the turns of a stage's phases on ``device``, or where their networks were placed;
    ``average`` follows ``model``.

    From the first step on that is not finite nothing moves.
    """

    def __init__(self, layout: Layout, settings: Settings, device: torch.device, model: nn.Module, average: Averaged):
        self._layout = layout
        self._halved = settings.precision == "bf16"
        self._device = device
        self._model = model
        self._average = average
        self._soundness = Soundness()
        self._losses: dict[str, nn.Module] = {}

    @property
    def ready(self) -> bool:
        """Whether a stage was prepared."""
        return bool(self._losses)

    def prepare(self, stage: Stage) -> None:
        """Makes the losses of a stage's phases."""
        self._losses = {phase.name: self._layout.prepared(phase) for phase in stage.phases}

    def forget(self) -> None:
        """Lets the losses go: DDP's modules must be gone before their group is."""
        self._losses = {}

    def take(self, phase: Phase, steps: Sequence[Step], optimizer: torch.optim.Optimizer, rate: float) -> Report:
        """One turn over ``steps``, the portions of a step, at a learning rate; what it reports
        stays on the device.
        """
        optimizer.zero_grad(set_to_none=True)
        report = Report(phase, steps)
        self._backward(phase, steps, self._losses[phase.name], report)
        most = float("inf") if phase.optimizer.clip is None else phase.optimizer.clip
        norm = nn.utils.clip_grad_norm_(phase.trained.parameters(), most)
        report.end(distributed.whole(norm))
        lost = self._soundness.judge(report)
        for group in optimizer.param_groups:
            group["lr"] = rate
        step_unless(optimizer, lost)
        for average in (*([self._average] if phase.network is self._model else []), *phase.averages):
            average.update(phase.network, lost)
        return report

    def to_blame(self, report: Report) -> Sequence[Term]:
        """The terms of a report's phase whose gradients were not finite."""
        return to_blame(report, lambda phase: self._backward(phase, report.steps, self._layout.prepared(phase)))

    def _backward(self, phase: Phase, steps: Sequence[Step], loss: nn.Module, report: Report | None = None) -> None:
        """Adds up the gradients of a phase's loss over the portions of a step, where the phase's
        network is.
        """
        place = given_place(phase.network) or self._device
        with self._layout.holding(phase):
            for number, step in enumerate([step.on(place) for step in steps], 1):
                with self._layout.accumulating(phase, loss) if number < len(steps) else contextlib.nullcontext():
                    with torch.autocast(place.type, torch.bfloat16, enabled=self._halved):
                        total, losses, figures, reductions = loss(step)
                    if report is not None:
                        report.add(losses, figures, reductions)
                    (total if len(steps) == 1 else total / len(steps)).backward()
                step.forget_graphs()
