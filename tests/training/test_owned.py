"""Modules that an objective owns: they are trained, clipped, saved and resumed with its phase's
network, and are no part of any average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import Averaged, HalfLife
from fewstep.objectives import Balanced, Loss, Objective, loss_of
from fewstep.planning.footprint import state_bytes
from fewstep.system.files import read_tensors
from fewstep.training import SGD, Adam, Phase, Stage, Term, Trainer
from fewstep.training.phase import named_networks
from interrupt_kit import Interrupted, Interrupter


class Scale(nn.Module):
    """A number and a buffer."""

    number: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(1))
        self.register_buffer("number", torch.ones(1))


@dataclass(frozen=True, eq=False)
class Weighted(Objective):
    """exp(w) times another loss, minus w, with w its own."""

    inner: Objective
    scale: Scale

    @property
    def owned(self) -> Sequence[nn.Module]:
        return (self.scale,)

    def __call__(self, step, state) -> Loss:
        loss = loss_of(self.inner, step, state)
        weight = (self.scale.log * self.scale.number).sum()
        return Loss(weight.exp() * loss.total - weight, loss.terms, loss.reductions)


def owning(run, optimizer=None, averages=()) -> Scale:
    """The run, its fake score's phase weighted; gives what the objective owns."""
    scale = Scale()
    student, fake = run.stages[0].phases
    optimizer = fake.optimizer if optimizer is None else optimizer
    phase = replace(
        fake, terms=[Term(Weighted(run.score_matching, scale), run.prior)], optimizer=optimizer, averages=averages
    )
    run.stages = [Stage("distill", 20, [student, phase])]
    return scale


@dataclass(frozen=True, eq=False)
class Three(Objective):
    """3, whatever the network."""

    network: nn.Module

    def __call__(self, step, state) -> Loss:
        return Loss(3.0 + 0.0 * next(self.network.parameters()).sum())


def test_what_an_objective_owns_is_trained_to_where_its_gradient_vanishes(small_run):
    """w tends to minus the logarithm of the loss, from a module that was frozen and in
    evaluation mode.
    """
    run, scale = small_run("owned"), Scale()
    scale.requires_grad_(False).eval()
    phase = Phase(
        "fake", run.fake, [Term(Weighted(Three(run.fake), scale), run.prior)], Adam(0.05, decay=0.5, betas=(0.9, 0.999))
    )
    Trainer(
        run.folder, [Stage("distill", 160, [phase])], run.student, replace(run.settings, checkpoint_every=1000)
    ).fit()
    assert scale.training
    assert float(scale.log.detach()) == pytest.approx(-math.log(3), abs=0.02)


def test_it_is_named_beside_its_phases_network_and_no_average_holds_it(small_run):
    run = small_run("named")
    average = Averaged(run.fake, HalfLife(5.0))
    scale = owning(run, averages=(average,))
    trainer = run.trainer()
    assert trainer.networks["fake.owned-0"] is scale
    assert list(named_networks(run.stages)) == ["student", "fake", "fake.owned-0", "distill.fake.average-0"]
    trainer.fit()
    assert average.average.state_dict().keys() == run.fake.state_dict().keys()
    assert trainer.average.average.state_dict().keys() == run.student.state_dict().keys()


def test_its_gradient_counts_in_the_bound(small_run):
    """Of plain gradient descent, network and owned module together move by rate times bound."""
    run = small_run("clipped")
    scale = owning(run, SGD(0.5, clip=1e-3))
    before = [value.detach().clone() for value in [*run.fake.parameters(), scale.log]]
    run.trainer().advance(1)
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip([*run.fake.parameters(), scale.log], before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(0.5e-3, rel=1e-4)
    assert float(scale.log.detach()) != 0.0


def test_a_run_that_is_left_goes_on_byte_equal_and_its_checkpoint_holds_it(small_run):
    whole, cut, again = small_run("whole"), small_run("cut"), small_run("cut")
    scales = [owning(run) for run in (whole, cut, again)]
    whole.trainer().fit()
    with pytest.raises(Interrupted):
        cut.trainer(listeners=[Interrupter(13)]).fit()
    again.trainer().fit(resume=True)
    assert torch.equal(scales[0].log, scales[2].log)
    assert not torch.equal(scales[0].log, scales[1].log)
    ends = [read_tensors(max((run.folder / "checkpoints").iterdir())) for run in (whole, again)]
    assert ends[0][0].keys() == ends[1][0].keys()
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert any(name.endswith(("owned-0/log", "owned-0.log")) for name in ends[0][0])
    assert any(name.endswith(("owned-0/number", "owned-0.number")) for name in ends[0][0])
    # Adam's moments of one more parameter.
    plain = small_run("plain", steps=20)
    plain.trainer().fit()
    others, _ = read_tensors(max((plain.folder / "checkpoints").iterdir()))
    assert len(ends[0][0]) == len(others) + 2 + 3


def test_what_two_terms_own_together_is_theirs_once_and_balanced_losses_own_what_their_parts_do(small_run):
    run, scale = small_run("once"), Scale()
    one, other = (Weighted(run.score_matching, each) for each in (scale, Scale()))
    phase = Phase("fake", run.fake, [Term(one, run.prior), Term(one, run.prior), Term(replace(one), run.prior)])
    assert phase.owned == [scale]
    assert sum(1 for _ in phase.trained.parameters()) == sum(1 for _ in run.fake.parameters()) + 1
    assert list(Balanced(one, other, run.fake.network.leave).owned) == [scale, other.scale]
    bare = Phase("fake", run.fake, [Term(run.score_matching, run.prior)])
    assert (bare.owned, bare.trained) == ([], run.fake)
    with_one, without = (state_bytes([Stage("s", 1, [each])]) for each in (phase, bare))
    # Weight, gradient and two moments of a number, and the buffer.
    assert with_one - without == 4 * 4 + 4


def test_its_values_do_not_touch_a_network_that_has_none(small_run):
    """An objective whose module adds nothing leaves the run as it was, bit for bit."""

    @dataclass(frozen=True, eq=False)
    class Idle(Objective):
        inner: Objective
        scale: Scale

        @property
        def owned(self) -> Sequence[nn.Module]:
            return (self.scale,)

        def __call__(self, step, state) -> Loss:
            return loss_of(self.inner, step, state)

    plain, idle = small_run("plain", steps=8), small_run("idle", steps=8)
    student, fake = idle.stages[0].phases
    scale = Scale()
    idle.stages = [
        Stage("distill", 8, [student, replace(fake, terms=[Term(Idle(idle.score_matching, scale), idle.prior)])])
    ]
    start = copy.deepcopy(scale.state_dict())
    for run in (plain, idle):
        Trainer(run.folder, run.stages, run.student, run.settings).fit()
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.fake.state_dict().values(), idle.fake.state_dict().values(), strict=True)
    )
    assert all(torch.equal(value, start[name]) for name, value in scale.state_dict().items())
