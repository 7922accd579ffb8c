"""Laws of a first jump to an anchor on the teacher's trajectory (DP-DMD)."""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, one_gaussian, three_gaussians, tiny_denoiser

from fewstep.denoisers import freeze
from fewstep.errors import UserError
from fewstep.objectives import AnchoredJump
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow, Schedule
from fewstep.solvers import Solver
from fewstep.solvers.transition import ddim_between
from fewstep.states import Prior, Step
from fewstep.times import UniformGrid

ROWS = 8
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
def test_a_ddim_step_by_the_wanted_estimate_lands_on_the_teachers_trajectory(schedule: Schedule) -> None:
    teacher = three_gaussians(schedule)
    solver = Solver(teacher, 12, grid=UniformGrid())
    step = Step(Key(1), ROWS)
    state = step.state(Prior(schedule, (2,), 0.8))
    wanted = AnchoredJump(teacher, solver, 0.3).wanted(state)
    landed = ddim_between(schedule, state.x.double(), wanted.double(), 0.8, 0.3)
    torch.testing.assert_close(landed, solver(state.x, 0.8, 0.3).double(), rtol=1e-5, atol=1e-5)


@every_schedule
def test_of_one_step_of_the_teacher_the_wanted_estimate_is_the_teachers_own(schedule: Schedule) -> None:
    """So a student that is its teacher has no loss."""
    teacher = one_gaussian(schedule)
    step = Step(Key(1), ROWS)
    state = step.state(Prior(schedule, (2,), 0.8))
    loss = AnchoredJump(teacher, Solver(teacher, 1, grid=UniformGrid()), 0.3)(step, state)
    assert float(loss.total) < 1e-9
    many = AnchoredJump(teacher, Solver(teacher, 20, grid=UniformGrid()), 0.3)(step, state)
    assert float(many.total) > 1e-6


def test_on_a_flow_it_is_the_regression_of_mean_velocities() -> None:
    schedule, t, s = RectifiedFlow(), 0.9, 0.4
    teacher, student = three_gaussians(schedule), one_gaussian(schedule)
    solver = Solver(teacher, 7, grid=UniformGrid())
    step = Step(Key(1), ROWS)
    state = step.state(Prior(schedule, (2,), t))
    velocity = (state.x - solver(state.x, t, s)) / (t - s)
    own = (state.x - student(state.x, t)) / t
    expected = t**2 * (own - velocity).square().mean()
    torch.testing.assert_close(AnchoredJump(student, solver, s)(step, state).total, expected, rtol=1e-5, atol=1e-9)


def test_it_trains_the_student_alone_and_refuses_other_times() -> None:
    student, teacher = tiny_denoiser(), freeze(tiny_denoiser(seed=1))
    step = Step(Key(1), ROWS)
    state = step.state(Prior(KarrasVE(), (2,), 0.1))
    AnchoredJump(student, Solver(teacher, 3), 0.01)(step, state).total.backward()
    assert all(value.grad is None for value in teacher.parameters())
    assert any(value.grad is not None for value in student.parameters())
    with pytest.raises(UserError, match="needs states of one time above it"):
        AnchoredJump(student, Solver(teacher, 3), 0.2).wanted(state)
