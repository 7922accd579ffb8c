"""Laws of piecewise rectified flow: one window is reflow, and the flow that is straight inside each
window has no loss.
"""

from __future__ import annotations

import pytest
import torch
from law_kit import normals, one_gaussian, three_gaussians
from torch import Tensor, nn
from trajectory_kit import FromFunction, carried, exact_step, noisy

from fewstep.denoisers import GaussianMixture, Rescheduled
from fewstep.errors import UserError
from fewstep.objectives import PiecewiseVelocity, VelocityRegression
from fewstep.random import Key
from fewstep.schedule import KarrasVE, RectifiedFlow
from fewstep.solvers import EULER, HEUN, Rule
from fewstep.states import State, Step
from fewstep.targets import Fixed

FLOW = RectifiedFlow()
WINDOWS = (1.0, 0.7, 0.25, 0.0)
every_rule = pytest.mark.parametrize("rule", [EULER, HEUN], ids=["euler", "heun"])


def _shifted(weight: Tensor) -> FromFunction:
    return FromFunction(FLOW, lambda x, t, _: torch.tanh(x) * weight + t[:, None])


def _state(edges: tuple[float, ...]) -> State:
    return noisy(one_gaussian(FLOW), torch.tensor(edges[:-1] * 8, dtype=torch.float64))


def _step(state: State) -> Step:
    return Step(Key(0, "law"), len(state.x))


def _straight(gaussian: GaussianMixture, edges: tuple[float, ...]) -> FromFunction:
    """The denoiser whose velocity inside a window is the window's, along the Gaussian's exact flow:
    z_t is a linear function of the window's start, which is solved for it.
    """
    falling = torch.tensor(edges, dtype=torch.float64)

    def estimate(x: Tensor, t: Tensor, _: object) -> Tensor:
        index = ((falling[1:] >= t[:, None]).sum(1)).clamp(max=len(edges) - 2)
        start, edge = falling[index], falling[index + 1]
        share = ((t - edge) / (start - edge))[:, None]
        zero, first, second = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
        first[:, 0], second[:, 1] = 1, 1
        ends = [carried(gaussian, point, start, edge) for point in (zero, first, second)]
        turn = torch.stack([ends[1] - ends[0], ends[2] - ends[0]], 2)
        mixed = share[:, :, None] * torch.eye(2, dtype=x.dtype) + (1 - share[:, :, None]) * turn
        begun = torch.linalg.solve(mixed, x - (1 - share) * ends[0])
        velocity = (begun - carried(gaussian, begun, start, edge)) / (start - edge)[:, None]
        return x - t[:, None] * velocity

    return FromFunction(FLOW, estimate)


@every_rule
@pytest.mark.parametrize("steps", [1, 3])
def test_one_window_is_reflow(rule: Rule, steps: int) -> None:
    """Loss and gradient, on the pairs of noise and the teacher's end."""
    weight = torch.tensor([0.6, -0.4], dtype=torch.float64, requires_grad=True)
    student, teacher = _shifted(weight), Fixed(three_gaussians(FLOW))
    noise = State(normals(32, 2), torch.ones(32, dtype=torch.float64))
    objective = PiecewiseVelocity(student, teacher, (1.0, 0.0), steps, rule)
    pairs = State(noise.x, noise.t, x0=objective.landed(noise))
    losses = [objective(_step(noise), noise).total, VelocityRegression(student)(_step(pairs), pairs).total]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(each, weight)[0] for each in losses), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("edges", [(1.0, 0.0), (1.0, 0.5, 0.0), WINDOWS])
def test_the_flow_that_is_straight_inside_each_window_has_no_loss(edges: tuple[float, ...]) -> None:
    """Under the exact flow of a Gaussian; with other windows it has one."""
    gaussian = one_gaussian(FLOW)
    falling = torch.tensor(edges, dtype=torch.float64)
    teacher = exact_step(gaussian, lambda t: falling[(falling[1:] >= t[:, None]).sum(1) + 1])
    state = _state(edges)
    losses = [
        float(PiecewiseVelocity(student, Fixed(teacher), edges, 1, EULER)(_step(state), state).total)
        for student in (_straight(gaussian, edges), _straight(gaussian, (1.0, 0.6, 0.1, 0.0)))
    ]
    assert losses[0] < 1e-12
    assert losses[1] > 1e-5


@every_rule
def test_the_loss_is_the_square_of_the_velocitys_error_in_each_window(rule: Rule) -> None:
    """Written out from the ends of each window, sample by sample."""
    student, teacher = _shifted(torch.ones(2, dtype=torch.float64)), Fixed(three_gaussians(FLOW))
    state = _state(WINDOWS)
    objective = PiecewiseVelocity(student, teacher, WINDOWS, 2, rule)
    landed = objective.landed(state)
    share = _step(state).key.uniform("velocity-time", len(state.x))
    squares = []
    for row in range(len(state.x)):
        start = float(state.t[row])
        edge = WINDOWS[WINDOWS.index(start) + 1]
        low = max(edge, FLOW.t_min)
        t = torch.tensor([low + (start - low) * float(share[row])], dtype=torch.float64)
        part = (t - edge) / (start - edge)
        x_t = (1 - part) * landed[row : row + 1] + part * state.x[row : row + 1]
        velocity = (x_t - student(x_t, t)) / t
        squares.append((velocity - (state.x[row] - landed[row]) / (start - edge)).square().mean())
    total = objective(_step(state), state).total
    torch.testing.assert_close(total, torch.stack(squares).mean(), rtol=1e-8, atol=0)


def test_more_steps_of_the_teacher_end_nearer_to_its_flow() -> None:
    """By the rule's order; the last window ends in a step to 0."""
    gaussian, state = one_gaussian(FLOW), _state((0.9, 0.6, 0.3, 0.0))
    inner = state.t > 0.3
    expected = carried(gaussian, state.x, state.t, state.t - 0.3)
    errors = []
    for steps in (4, 8):
        objective = PiecewiseVelocity(gaussian, Fixed(gaussian), (0.9, 0.6, 0.3, 0.0), steps, HEUN)
        errors.append(float((objective.landed(state) - expected)[inner].abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=1.0)


def test_what_it_cannot_do_is_refused() -> None:
    flow, other = one_gaussian(FLOW), one_gaussian(KarrasVE())
    with pytest.raises(UserError, match="needs a denoiser under RectifiedFlow, got one under KarrasVE"):
        PiecewiseVelocity(other, Fixed(other), WINDOWS)
    with pytest.raises(UserError, match="must end at 0"):
        PiecewiseVelocity(flow, Fixed(flow), (1.0, 0.5))
    with pytest.raises(UserError, match=r"at least 1 step of the teacher, got 0 and 0\."):
        PiecewiseVelocity(flow, Fixed(flow), WINDOWS, 0)
    seen = Rescheduled(other, FLOW)
    state = noisy(flow, torch.full((2,), 0.4, dtype=torch.float64))
    with pytest.raises(UserError, match=r"a state stands at t = 0\.4, from which no step goes"):
        PiecewiseVelocity(seen, Fixed(seen), WINDOWS)(_step(state), state)


def test_the_student_alone_is_trained() -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    ours, theirs = Affine(), Affine()
    student, teacher = (FromFunction(FLOW, lambda x, t, _, own=own: own.scale * x) for own in (ours, theirs))
    state = _state(WINDOWS)
    PiecewiseVelocity(student, Fixed(teacher), WINDOWS)(_step(state), state).total.backward()
    assert ours.scale.grad is not None
    assert theirs.scale.grad is None
