"""Optimizers against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.planning.footprint import state_bytes
from fewstep.recipes import load_recipe
from fewstep.training import SGD, Adam


def stepped(optimizer, gradients):
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    built = optimizer.build([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        built.step()
    return weight.detach()


def test_gradient_descent_is_its_formula():
    gradients = [torch.tensor([0.5, 1.0]), torch.tensor([-1.0, 0.25])]
    expected = torch.tensor([1.0, -2.0])
    for gradient in gradients:
        expected = expected - 0.1 * (gradient + 0.01 * expected)
    torch.testing.assert_close(stepped(SGD(0.1, weight_decay=0.01), gradients), expected)


def test_adams_first_step_is_the_rate_in_the_gradients_direction():
    """With any betas the bias-corrected first step is lr g / (|g| + eps)."""
    gradient = torch.tensor([0.3, -7.0])
    moved = stepped(Adam(0.1, betas=(0.5, 0.9)), [gradient])
    torch.testing.assert_close(moved, torch.tensor([1.0, -2.0]) - 0.1 * gradient.sign())


def test_a_rate_warms_up_and_falls_along_half_a_cosine():
    optimizer = SGD(1.0, warmup=3, decay=0.5)
    assert [optimizer.rate(step, 100) for step in (0, 1, 2, 3, 50)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert optimizer.rate(75, 100) == pytest.approx(0.5)
    assert optimizer.rate(99, 100) < 0.001
    assert optimizer.rate(99, None) == 1.0


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_a_rate_falls_along_a_line_where_that_is_asked(kind):
    optimizer = kind(2.0, warmup=3, decay=0.5, decay_along="line")
    assert [optimizer.rate(step, 100) for step in (0, 3, 50)] == [0.5, 2.0, 2.0]
    assert [optimizer.rate(step, 100) for step in (60, 75, 99)] == pytest.approx([1.6, 1.0, 0.04])
    assert optimizer.rate(99, None) == 2.0


def test_a_recipe_says_along_what_the_rate_falls():
    for kind, expected in (("line", 0.75), ("cosine", 0.5 * (1 + 0.5**0.5))):
        recipe = load_recipe(
            "mixture2d-pd",
            [
                f"method.optimizer.decay_along={kind}",
                "method.optimizer.decay=1.0",
                "method.optimizer.lr=1.0",
                "method.optimizer.warmup=0",
            ],
        )
        assert recipe.method.optimizer.rate(25, 100) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"warmup": -1}, {"decay": 1.5}])
def test_values_that_make_no_sense_are_refused(kind, wrong):
    with pytest.raises(UserError, match=rf"{kind.__name__}: '{next(iter(wrong))}' is .*, and must be"):
        kind(**wrong)


def test_gradient_descent_keeps_no_moments(small_run):
    run = small_run(nodes=3)
    plain = [
        replace(stage, phases=[replace(phase, optimizer=SGD(1e-3)) for phase in stage.phases]) for stage in run.stages
    ]
    one = sum(p.numel() * p.element_size() for p in run.teacher.parameters())
    assert state_bytes(run.stages, run.teacher) - state_bytes(plain, run.teacher) == 2 * 2 * one


def test_betas_of_gradient_descent_are_refused():
    with pytest.raises(
        UserError, match=r"unknown key 'method\.optimizer\.betas'; known here: lr, weight_decay, warmup"
    ):
        load_recipe("digits-disback", ["method.optimizer={kind: sgd, lr: 1.0e-3, betas: [0.5, 0.9]}"])


def test_gradient_descent_of_an_earlier_version_is_read():
    """Recipes of its runs spell out Adam's betas."""
    recipe = load_recipe("digits-disback", ["method.optimizer={kind: sgd, lr: 1.0e-3, betas: [0.0, 0.999]}"])
    assert recipe.method.optimizer == SGD(1e-3)
