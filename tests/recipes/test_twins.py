"""Every shipped recipe that needs files or a GPU, by its twin: the same file at tiny widths trains,
resumes bit for bit, and samples.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_combinations import without_syncing  # noqa: F401 (a fixture)
from test_methods import contents, lines_of, trainer_of

from fewstep.data.synthetic import waves
from fewstep.errors import UserError
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.building.frozen_teachers import pretrained_model
from fewstep.recipes.building.pretrain import build_pretraining
from fewstep.runs.sampler import StudentSampler
from fewstep.training import Trainer
from interrupt_kit import Interrupted, Interrupter

RECIPES = {name: load_recipe(name) for name in shipped_names()}
LARGE = {
    name: recipe
    for name, recipe in RECIPES.items()
    if recipe.data is None or not recipe.data.is_small or (isinstance(recipe, DistillRecipe) and recipe.prompts)
}
DISTILLED = [name for name, recipe in LARGE.items() if isinstance(recipe, DistillRecipe)]
PRETRAINED = [name for name, recipe in LARGE.items() if not isinstance(recipe, DistillRecipe)]


def _without_numbers(values):
    """Nested values, 0 for each number and for each list of numbers, without what says where a
    teacher comes from, and of a released network's name its kind alone.
    """
    if isinstance(values, dict):
        return {key: _without_numbers(value) for key, value in values.items() if key not in ("path", "recipe")}
    if isinstance(values, list):
        inner = [_without_numbers(value) for value in values]
        return 0 if set(map(str, inner)) == {"0"} else inner
    if isinstance(values, str):
        return values.rpartition("-")[2]
    return 0 if isinstance(values, (int, float)) and not isinstance(values, bool) else values


def _repeated(names):
    """The names of recipes that are an earlier one's with other numbers, files or data."""
    seen, found = [], []
    for name in names:
        values = RECIPES[name].model_dump(mode="json")
        parts = {key: value for key, value in values.items() if key not in ("data", "evaluation", "training")}
        known = _without_numbers(parts)
        if known in seen:
            found.append(name)
        seen.append(known)
    return found


def _slow_but(names, quick=()):
    """The names; those of text recipes but for the ``quick`` ones, and those of recipes that say no
    more than others, marked as slow.
    """
    text = [
        name
        for name in names
        if isinstance(RECIPES[name], DistillRecipe) and RECIPES[name].prompts is not None and name not in quick
    ]
    slow = [*text, *_repeated([name for name in names if name not in text])]
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.parametrize("name", _slow_but(DISTILLED, ("scenes-disback",)))
def test_a_twin_trains_resumes_and_samples(name, tmp_path):
    recipe = twin(LARGE[name], 12)
    whole = trainer_of(recipe, tmp_path / "whole")
    whole.fit()
    assert whole.progress.step >= 12
    with pytest.raises(Interrupted):
        trainer_of(recipe, tmp_path / "cut", [Interrupter(9)]).fit()
    resumed = trainer_of(recipe, tmp_path / "cut")
    resumed.fit(resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    parts = build_distillation(recipe, tmp_path / "whole")
    before = [value.clone() for value in parts.student.state_dict().values()]
    trained = resumed.average.average
    assert any(not torch.equal(a, b) for a, b in zip(before, trained.state_dict().values(), strict=True))
    samples = StudentSampler(-1.0, 1.0, trained, parts.prior, parts.sampling)(
        3, classes=None if parts.prior.conditions.count == 0 else 1
    )
    assert samples.shape == (3, *parts.space.shape)
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize("name", _slow_but(PRETRAINED))
def test_the_twin_of_a_pretraining_trains(name, tmp_path):
    recipe = twin(LARGE[name], 12)
    parts = build_pretraining(recipe)
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    trainer = Trainer(tmp_path, parts.stages, parts.model)
    trainer.settings = replace(trainer.settings, batch=2)
    trainer.fit()
    assert trainer.progress.step == 12
    assert any(not torch.equal(before[key], value) for key, value in parts.model.state_dict().items())


@pytest.mark.parametrize("name", DISTILLED)
def test_a_twin_is_the_recipe_but_for_its_size(name):
    """Method, target, states and thresholds are of the recipe's kinds, with its weights and
    rates.
    """
    recipe, small = LARGE[name], twin(LARGE[name], 20)

    def settings(section, key=""):
        if isinstance(section, dict):
            return {k: settings(v, k) for k, v in section.items()}
        return (
            None
            if isinstance(section, (int, list)) and not isinstance(section, bool) and key not in ("updates", "steps")
            else section
        )

    assert settings(small.method.model_dump()) == settings(recipe.method.model_dump())
    assert small.target.kind == recipe.target.kind
    assert small.student.kind == recipe.student.kind
    assert small.states.kind == recipe.states.kind
    if recipe.target.kind == "backtracked":
        assert small.target.nodes == recipe.target.nodes


def test_recipes_of_files_name_a_recipe_that_makes_them():
    """So that a plan needs no file: of the same kind of data, and a denoiser."""
    made = [name for name in DISTILLED if LARGE[name].teacher.kind == "file"]
    assert made
    for name in made:
        assert pretrained_model(LARGE[name].teacher) is not None
        assert load_recipe(LARGE[name].teacher.recipe).data == LARGE[name].data


def test_waves_are_a_function_of_their_seed_and_differ_by_class():
    data = waves((3, 16, 12), 4, 200, seed=5)
    assert data.shape == (3, 16, 12)
    assert torch.equal(data.samples, waves((3, 16, 12), 4, 200, seed=5).samples)
    assert not torch.equal(data.samples, waves((3, 16, 12), 4, 200, seed=6).samples)
    assert data.samples.abs().max() <= 1
    assert torch.equal(data.labels, torch.arange(200) % 4)
    # The frequencies are the class's: the mean absolute spectrum of a class differs from another's
    # by more than its halves do.
    spectra = torch.fft.rfft2(data.samples).abs()
    of_class = [spectra[data.labels == label] for label in range(4)]
    within = max(float((part[::2].mean(0) - part[1::2].mean(0)).norm()) for part in of_class)
    between = min(float((a.mean(0) - b.mean(0)).norm()) for i, a in enumerate(of_class) for b in of_class[:i])
    assert between > 2 * within


def test_waves_without_classes_have_no_labels():
    data = waves((1, 8, 8), 0, 10)
    assert (data.labels, data.classes) == (None, 0)
    assert data.take(torch.tensor([3, 3])).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("network", "shape", "sentence"),
    [
        (
            "{kind: small-unet, channels: 3, patch: 4}",
            "[3, 20, 20]",
            r"'model\.network\.kind: small-unet' does not take samples of shape \(3, 20, 20\)",
        ),
        (
            "{kind: small-unet, channels: 1}",
            "[3, 16, 16]",
            r"'model\.network\.kind: small-unet' does not take samples of shape \(3, 16, 16\)",
        ),
        (
            (
                "{kind: song-unet, img_resolution: 16, out_channels: 1, model_channels: 8, channel_mult: [1], "
                "num_blocks: 1, attn_resolutions: []}"
            ),
            "[3, 16, 16]",
            (
                r"'model\.network\.kind: song-unet' makes samples of shape \(1, 16, 16\) from samples of shape "
                r"\(3, 16, 16\)"
            ),
        ),
        (
            "{kind: residual-mlp}",
            "[3, 16, 16]",
            r"'model\.network\.kind: residual-mlp' does not take samples of shape \(3, 16, 16\)",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_it_is_built(network, shape, sentence):
    recipe = load_recipe(
        "emoji32-teacher", [f"model.network={network}", f"data={{kind: waves, shape: {shape}, classes: 3}}"]
    )
    with pytest.raises(UserError, match=sentence):
        build_pretraining(recipe)
