"""Laws of Align Your Flow: to clean samples it is continuous consistency, by small normalisation it
is MeanFlow's plain square, which at equal times is flow matching, and the exact flow map is still.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, tiny_denoiser
from test_mean_flow import _state, _step, _tiny
from torch import Tensor
from trajectory_kit import ExactJump, noisy, trajectory

from fewstep import cost
from fewstep.denoisers import EndJump, trajectory_of
from fewstep.errors import UserError
from fewstep.objectives import AlignedFlow, AverageVelocity, ContinuousConsistency, FlowLine, MeanFlow, loss_of
from fewstep.objectives.trajectories.continuous_time import TrigFlow
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.states import State, Step
from fewstep.targets import Fixed

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
SD = 0.6
# No tangent is so small, or so large, that these constants were not all or nothing beside it.
LEAST, MOST = 1e-12, 1e9


def _gradients(objective: AverageVelocity, state: State, number: int = 0) -> list[Tensor]:
    total = objective(_step(state, number), state).total
    return list(torch.autograd.grad(total, list(objective.student.parameters())))


def _close(found: list[Tensor], wanted: list[Tensor], relative: float = 1e-6) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=relative * float(theirs.abs().max()))


@every_schedule
def test_to_clean_samples_it_is_continuous_consistency(schedule: Schedule) -> None:
    """At each time, up to the factor between both raw outputs: u = -g / w + ..., F = -g / (sd sin
    u) + ...
    """
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    aligned = AlignedFlow(student, Fixed(teacher), 0.0, 1.0, share=1.0, constant=LEAST)
    continuous = ContinuousConsistency(EndJump(student), Fixed(teacher), None, SD, 0, LEAST)
    for t in _state(teacher).t[:6]:
        state = noisy(teacher, t.repeat(8))
        total = continuous(_step(state), state).total
        expected = torch.autograd.grad(total, list(student.parameters()))
        ratio = SD * TrigFlow(schedule, SD).turn(state.t)[1][0] / FlowLine(schedule).place(state.t)[0]
        _close(_gradients(aligned, state), [ratio * each for each in expected])


@every_schedule
@pytest.mark.parametrize(("same", "end"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.2)])
def test_without_normalisation_it_is_the_plain_square_of_average_velocities(
    schedule: Schedule, same: float, end: float
) -> None:
    """At equal times that is flow matching (``test_mean_flow``)."""
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    state = _state(teacher)
    found = _gradients(AlignedFlow(student, Fixed(teacher), same, end, share=1.0, constant=MOST), state)
    _close([MOST * each for each in found], _gradients(MeanFlow(student, Fixed(teacher), same, end, power=0.0), state))


@every_schedule
def test_the_exact_flow_map_is_still(schedule: Schedule) -> None:
    """With the whole derivative; with a share of it, what is left of the tangent is that share's
    rest of v - u.
    """
    teacher = one_gaussian(schedule)
    state, exact = _state(teacher), trajectory(ExactJump(teacher), schedule)
    objective = AlignedFlow(exact, Fixed(teacher), 0.3, 0.0)
    velocities, tangents = zip(
        *(objective.missing(_step(state), state, whole) for whole in (0.0, 0.75, 1.0)), strict=True
    )
    assert torch.equal(velocities[0], velocities[2])
    size = float(tangents[0].abs().max())
    # Where r lies close to w, the exact map divides by their distance.
    assert float(tangents[2].square().mean().sqrt()) < 1e-3 * size
    torch.testing.assert_close(tangents[1], 0.25 * tangents[0], rtol=0, atol=2e-3 * size)
    moved = AlignedFlow(_tiny(schedule), Fixed(teacher), 0.3, 0.0).missing(_step(state), state)[1]
    assert float(moved.square().mean().sqrt()) > 1e-1 * size


def test_the_derivatives_share_rises_over_the_warmup() -> None:
    """Bit for bit that of the share that the step has."""
    schedule = KarrasVE()
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    state = _state(teacher)
    rising = AlignedFlow(student, Fixed(teacher), 0.0, 0.5, warmup=4, share=0.8)
    for number, share in ((0, 0.2), (1, 0.4), (3, 0.8), (9, 0.8)):
        fixed = AlignedFlow(student, Fixed(teacher), 0.0, 0.5, share=share)
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(_gradients(rising, state, number), _gradients(fixed, state, number), strict=True)
        )


@every_schedule
def test_the_gradient_is_minus_twice_the_normalised_tangent(schedule: Schedule) -> None:
    """Row by row, with a constant that counts."""
    teacher, student = one_gaussian(schedule), _tiny(schedule)
    state = _state(teacher)
    objective = AlignedFlow(student, Fixed(teacher), 0.2, 0.3, share=0.9, constant=0.5)
    velocity, tangent = objective.missing(_step(state), state, 0.9)
    normalised = tangent / (tangent.square().mean(1).sqrt() + 0.5)[:, None]
    expected = torch.autograd.grad((-2 * normalised * velocity).mean(), list(student.parameters()))
    _close(_gradients(objective, state), list(expected), 1e-9)
    total = objective(_step(state), state).total
    torch.testing.assert_close(total, normalised.square().mean())


def test_it_counts_what_it_runs_and_trains_the_student_alone() -> None:
    """The teacher 1, the student 3 and 1 for the derivative."""
    teacher, student = tiny_denoiser(seed=1), trajectory_of(tiny_denoiser())
    t = torch.linspace(0.001, 0.5, 6, dtype=torch.float64)
    state = State(KarrasVE().sigma(t)[:, None].float() * normals(6, 2, dtype=torch.float32), t)
    with cost.metered() as meter:
        loss_of(AlignedFlow(student, Fixed(teacher)), Step(Key(0), 6), state).total.backward()
    assert meter.evaluations == 5 * 6
    assert any(value.grad is not None for value in student.parameters())
    assert all(value.grad is None for value in teacher.parameters())


@pytest.mark.parametrize("settings", [{"warmup": -1}, {"share": 0.0}, {"share": 1.1}, {"constant": 0.0}])
def test_settings_out_of_bounds_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="aligned flow: 'warmup' must be at least 0"):
        AlignedFlow(_tiny(KarrasVE()), None, **settings)
