"""Teachers of other schedules than Karras': every method runs on a variance-preserving and on a
flow teacher, as from a file of the user's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.denoisers import EDMInputs, IDDPMInputs, NetworkDenoiser, TimestepInputs, VPInputs, save_model
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.prediction import EDM, X0, Consistency, Epsilon, V, Velocity
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.reading.source import load_recipe, validate
from fewstep.runs.sampler import StudentSampler
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow
from fewstep.training import Trainer

RECIPES = (
    "kd",
    "pd",
    "cd",
    "ctm",
    "reflow",
    "dmd2-4step",
    "sid",
    "add",
    "scm",
    "f-distill",
    "pcm",
    "tcd",
    "meanflow",
    "perflow",
    "ect",
    "sida",
    "rcm",
    "moment",
    "tcm",
    "ayf",
)
# Methods that have no recipe for the plane, in the place of another's.
METHODS = {
    "ayf": ("cd", {"kind": "align-your-flow"}),
    "tcm": ("cd", {"kind": "truncated-consistency"}),
    "moment": ("sid", {"kind": "moment-matching", "steps": 2, "levels": 2}),
    "scm": ("cd", {"kind": "continuous-consistency", "sigma_data": 2.3}),
    "f-distill": ("sid", {"kind": "f-distill"}),
    "pcm": ("cd", {"kind": "phased-consistency", "points": 8, "adversarial": {}}),
    "tcd": ("cd", {"kind": "trajectory-consistency", "points": 8}),
    "meanflow": ("cd", {"kind": "mean-flow"}),
    "perflow": ("cd", {"kind": "piecewise-rectified-flow"}),
    "ect": ("cd", {"kind": "easy-consistency"}),
    "sida": ("sid", {"kind": "sida"}),
    "rcm": ("sid", {"kind": "rcm", "consistency": {"kind": "continuous", "sigma_data": 2.3}}),
}


def teacher_file(path: Path, kind: str) -> Path:
    torch.manual_seed(0)
    network = build({"kind": "residual-mlp", "dim": 2, "width": 16, "depth": 1, "classes": 0})
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    if kind == "vp":
        model = NetworkDenoiser(network, DiscreteVP("cosine"), Epsilon(), EDMInputs(2.0), (2,))
    else:
        model = NetworkDenoiser(network, RectifiedFlow(), Velocity(), TimestepInputs(offset=0.0), (2,))
    save_model(path, model)
    return path


@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_method_trains_on_a_teacher_of_another_schedule(tmp_path, kind, name):
    recipe, method = METHODS.get(name, (name, None))
    values = load_recipe(f"mixture2d-{recipe}").model_dump(mode="json")
    values["method"] = method or values["method"]
    values["teacher"] = {"kind": "file", "path": str(teacher_file(tmp_path / "teacher.safetensors", kind))}
    values["student"] = {"kind": "copy", "first_sigma": 20.0}
    values["training"] |= {"steps": 8, "batch": 4, "health_every": 1000}
    if "pairs" in values["method"]:
        values["method"]["pairs"] = {"kind": "stored", "count": 8} if name == "kd" else 8
    if kind == "flow":
        # A flow starts where alpha is 0, at which a grid in sigma / alpha cannot: refused before
        # anything is trained.
        with pytest.raises(UserError, match=r"'evaluation\.solver\.grid: rho' does not fit the teacher's schedule"):
            build_distillation(validate(values, "test"), tmp_path)
        values["evaluation"]["solver"]["grid"] = "uniform"
        if name == "reflow":
            values["method"]["solver"]["grid"] = "uniform"
    made = validate(values, "test")
    assert isinstance(made, DistillRecipe)
    parts = build_distillation(made, tmp_path)
    before = [parameter.detach().clone() for parameter in parts.student.parameters()]
    student = Trainer(tmp_path, parts.stages, parts.average, build_settings(made.training)).fit()
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.student.parameters(), strict=True))
    sampler = StudentSampler(-9.0, 9.0, student, parts.prior, parts.sampling)
    samples = sampler(6)
    assert samples.shape == (6, 2)
    assert bool(torch.isfinite(samples).all())


def test_the_first_flow_of_a_teacher_is_coupled_by_its_own_trajectories(tmp_path):
    """Reflow's first pairs are unit noise and what the teacher's solver makes of that noise at its
    own scale, whatever the teacher's schedule.
    """
    from fewstep.random import Key
    from fewstep.solvers import HEUN, Solver
    from fewstep.states import Step

    values = load_recipe("mixture2d-reflow").model_dump(mode="json")
    values["teacher"] = {"kind": "file", "path": str(teacher_file(tmp_path / "teacher.safetensors", "vp"))}
    values["training"] |= {"steps": 8, "batch": 4, "health_every": 1000}
    values["method"]["pairs"] = 8
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    parts = build_distillation(recipe, tmp_path)
    first = parts.stages[0]
    with torch.no_grad():
        first.begin[0].run()
    state = first.phases[0].terms[0].states.draw(Step(Key(0, "x"), 4))
    schedule = parts.teacher.schedule
    with torch.no_grad():
        made = Solver(parts.teacher, 18, HEUN)(schedule.prior_scale * state.x, schedule.t_max, 0.0, state.condition)
    assert bool((state.t == 1).all())
    torch.testing.assert_close(made, state.x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"prediction": X0()},
            "needs a network whose estimate of a clean sample is that sample, which a prediction of 'x0' does not",
        ),
        ({"prediction": Consistency()}, "a prediction of 'consistency' does not make so"),
        ({"inputs": IDDPMInputs()}, "inputs of 'iddpm' tell it the nearest index, which has no derivative"),
        ({}, None),
        ({"prediction": Velocity()}, None),
        ({"prediction": V(), "inputs": VPInputs()}, None),
        ({"prediction": EDM(2.0), "inputs": TimestepInputs()}, None),
    ],
)
@pytest.mark.parametrize("schedule", [KarrasVE(0.01, 40.0), DiscreteVP("cosine")], ids=["karras-ve", "vp"])
def test_consistency_in_continuous_time_refuses_a_teacher_that_it_cannot_differentiate(
    tmp_path, schedule, changes, sentence
):
    network = build({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 1, "classes": 0})
    parts = {"prediction": Epsilon(), "inputs": EDMInputs(2.0), **changes}
    save_model(
        tmp_path / "teacher.safetensors", NetworkDenoiser(network, schedule, parts["prediction"], parts["inputs"], (2,))
    )
    values = load_recipe("mixture2d-cd").model_dump(mode="json")
    values |= {
        "method": METHODS["scm"][1],
        "teacher": {"kind": "file", "path": str(tmp_path / "teacher.safetensors")},
        "student": {"kind": "copy", "first_sigma": 10.0},
    }
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    if sentence is None:
        build_distillation(recipe, tmp_path)
        return
    with pytest.raises(UserError, match=sentence) as caught:
        build_distillation(recipe, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_average_velocity_refuses_a_teacher_that_is_told_an_index(tmp_path):
    network = build({"kind": "residual-mlp", "dim": 2, "width": 8, "depth": 1, "classes": 0})
    teacher = NetworkDenoiser(network, DiscreteVP("cosine"), Epsilon(), IDDPMInputs(), (2,))
    save_model(tmp_path / "teacher.safetensors", teacher)
    values = load_recipe("mixture2d-cd").model_dump(mode="json")
    values |= {
        "method": METHODS["meanflow"][1],
        "teacher": {"kind": "file", "path": str(tmp_path / "teacher.safetensors")},
        "student": {"kind": "copy", "first_sigma": 10.0},
    }
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    with pytest.raises(UserError, match=r"'method\.kind: mean-flow' needs a network that is told a time"):
        build_distillation(recipe, tmp_path)
