"""Laws of phased consistency: one phase is consistency distillation bit for bit, each phase goes to
its own lower edge, and the critic's view is the forward process from there.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import SCHEDULES, normals, one_gaussian, three_gaussians, tiny_denoiser
from torch import Tensor, nn
from trajectory_kit import FromFunction, carried, exact_step, noisy

from fewstep.condition import Condition
from fewstep.denoisers import Denoiser, copy_of, freeze
from fewstep.objectives import ConsistencyDistillation, Hinge, Ladder, PhasedCritic, PhasedGenerator
from fewstep.objectives.trajectories.phased import seen_in_phase
from fewstep.random import Key
from fewstep.schedule import KarrasVE, Schedule
from fewstep.solvers import HEUN
from fewstep.solvers.transition import renoised
from fewstep.states import State, Step
from fewstep.targets import Fixed
from fewstep.times import RhoGrid

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


class _Slope(nn.Module):
    """A critic whose logit is linear in what it sees; it keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.6, -0.3], dtype=torch.float64))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def logits(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.seen.append((x, t))
        return x @ self.weight


def _ladder(schedule: Schedule, parts: int) -> Ladder:
    first = float(schedule.time_at_sigma(8.0))
    times = RhoGrid().between(schedule, first, schedule.t_min, 9)
    return Ladder.in_parts(tuple(times.tolist()), 1, parts)


def _state(schedule: Schedule, ladder: Ladder) -> State:
    return noisy(one_gaussian(schedule), torch.tensor(ladder.starts * 2, dtype=torch.float64))


def _shifted(model: Denoiser, shift: Tensor) -> FromFunction:
    return FromFunction(model.schedule, lambda x, t, _: model(x, t) + shift)


def _between(ladder: Ladder, t: Tensor) -> tuple[Tensor, Tensor]:
    edge = ladder.below(t)[1]
    return edge, ladder.above(edge)


@every_schedule
def test_one_phase_is_the_whole_trajectory_bit_for_bit(schedule: Schedule) -> None:
    whole, one = Ladder(_ladder(schedule, 1).times), _ladder(schedule, 1)
    assert whole == one
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    student, teacher = _shifted(three_gaussians(schedule), shift), one_gaussian(schedule)
    state = _state(schedule, one)
    totals = [
        ConsistencyDistillation(student, three_gaussians(schedule), Fixed(teacher), ladder, HEUN)(
            Step(Key(0), len(state.x)), state
        ).total
        for ladder in (whole, one)
    ]
    assert torch.equal(*totals)
    assert torch.equal(*(torch.autograd.grad(total, shift)[0] for total in totals))


@every_schedule
def test_a_phase_ends_at_its_lower_edge_and_the_next_begins_there(schedule: Schedule) -> None:
    """Four phases of two steps: each state's edge is the last time of its phase, and the upper end
    the time where the phase begins.
    """
    ladder = _ladder(schedule, 4)
    edge, upper = _between(ladder, torch.tensor(ladder.starts, dtype=torch.float64))
    times = ladder.times
    assert edge.tolist() == [times[2], times[2], times[4], times[4], times[6], times[6], 0.0, 0.0]
    assert upper.tolist() == [times[0], times[0], times[2], times[2], times[4], times[4], times[6], times[6]]


@every_schedule
def test_both_ends_of_the_exact_student_are_the_exact_flow(schedule: Schedule) -> None:
    """The student's own end, and that of its average after an exact step of the teacher."""
    ladder, gaussian = _ladder(schedule, 4), one_gaussian(schedule)
    state = _state(schedule, ladder)
    edge = ladder.below(state.t)[1]

    def lower(t: Tensor) -> Tensor:
        # A step that ends at the edge stays there, so that any estimate does.
        found = torch.tensor(ladder.edges, dtype=torch.float64)
        return found[(found < t[:, None] - 1e-12).sum(1) - 1]

    student = exact_step(gaussian, lower)
    rungs = exact_step(gaussian, lambda t: ladder.below(t)[0])
    objective = ConsistencyDistillation(student, student, Fixed(rungs), ladder)
    expected = carried(gaussian, state.x, state.t, edge)
    torch.testing.assert_close(objective.end(state, student(state.x, state.t)), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(objective.target_end(state), expected, rtol=1e-6, atol=1e-6)


@every_schedule
def test_an_end_is_noised_as_the_forward_process_noises_it(schedule: Schedule) -> None:
    """With the forward process' mean and variance at tau from those at the edge, exactly: alpha_tau
    x_0, and sigma_tau^2 of two independent normals' sum.
    """
    t, tau = (schedule.time_at_sigma(torch.full((4,), level, dtype=torch.float64)) for level in (0.4, 3.0))
    x0, zero = normals(4, 2), torch.zeros(4, 2, dtype=torch.float64)
    signal = renoised(schedule, schedule.add_noise(x0, t, zero), t, tau, zero)
    torch.testing.assert_close(signal, schedule.alpha(tau)[:, None] * x0)
    one = torch.ones_like(zero)
    parts = [
        renoised(schedule, schedule.sigma(t)[:, None] * first, t, tau, second)
        for first, second in ((one, zero), (zero, one))
    ]
    torch.testing.assert_close(parts[0] ** 2 + parts[1] ** 2, (schedule.sigma(tau) ** 2)[:, None].expand(4, 2))
    assert torch.equal(renoised(schedule, x0, t, t, one), x0)


@every_schedule
def test_a_critic_sees_ends_inside_their_phase(schedule: Schedule) -> None:
    ladder = _ladder(schedule, 4)
    t = torch.tensor(ladder.starts * 8, dtype=torch.float64)
    edge, upper = _between(ladder, t)
    step = Step(Key(0), len(t))
    x, tau = seen_in_phase(step, schedule, ladder, normals(len(t), 2), edge, "critic", "real")
    assert x.shape == (len(t), 2)
    assert bool((tau >= edge.clamp(min=schedule.t_min)).all())
    assert bool((tau <= upper).all())
    assert float((tau - edge).min()) < 0.2 * float((upper - edge).max())


def test_the_student_is_moved_and_the_critic_is_not_and_the_other_way_round() -> None:
    schedule = KarrasVE()
    student = tiny_denoiser().double()
    teacher, averaged = freeze(tiny_denoiser(seed=1).double()), freeze(copy_of(student))
    ladder, critic = _ladder(schedule, 2), _Slope()
    consistency = ConsistencyDistillation(student, averaged, Fixed(teacher), ladder)
    state = _state(schedule, ladder)
    PhasedGenerator(consistency, critic, Hinge())(Step(Key(0), len(state.x)), state).total.backward()
    assert critic.weight.grad is None
    assert any(value.grad is not None for value in student.parameters())
    student.zero_grad()
    PhasedCritic(critic, consistency, Hinge())(Step(Key(0), len(state.x)), state).total.backward()
    assert critic.weight.grad is not None
    assert all(value.grad is None for each in (student, teacher, averaged) for value in each.parameters())


@every_schedule
def test_the_sides_of_the_critic_are_the_averages_and_the_students_ends(schedule: Schedule) -> None:
    """Both at the same times, and with the hinge's loss of what was seen."""
    ladder, critic = _ladder(schedule, 4), _Slope()
    student, averaged = three_gaussians(schedule), one_gaussian(schedule)
    consistency = ConsistencyDistillation(student, averaged, Fixed(averaged), ladder)
    state = _state(schedule, ladder)
    edge = ladder.below(state.t)[1]

    def step() -> Step:
        return Step(Key(0), len(state.x))

    total = PhasedCritic(critic, consistency, Hinge())(step(), state).total
    ends = {"real": consistency.target_end(state), "fake": consistency.end(state, student(state.x, state.t))}
    expected = {
        role: seen_in_phase(step(), schedule, ladder, end, edge, "critic", role)[0] for role, end in ends.items()
    }
    (real, at), (fake, also) = critic.seen
    assert torch.equal(at, also)
    assert torch.equal(real, expected["real"])
    assert torch.equal(fake, expected["fake"])
    margins = (1 - real @ critic.weight).relu().mean() + (1 + fake @ critic.weight).relu().mean()
    torch.testing.assert_close(total, margins)
