"""How a run's steps are divided among stages, and that raising them moves the end of the last stage
alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.planning.sketch import sketch
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.kit.shares import divided
from fewstep.recipes.reading.source import load_recipe, shipped_names, validate


@pytest.mark.parametrize(
    ("total", "shares"), [(100, [1, 1.25, 1.5625]), (7, [1, 1, 1]), (1000, [0.6, 0.4]), (3, [1, 1, 1])]
)
def test_steps_are_divided_in_proportion_and_none_is_lost(total, shares):
    counts = divided(total, shares)
    assert sum(counts) == total
    assert all(abs(count - total * share / sum(shares)) < 1 for count, share in zip(counts, shares, strict=True))


def test_each_stage_has_a_step_even_where_there_are_too_few():
    assert divided(2, [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert divided(10, [1000, 1]) == [10, 1]


def stages(name: str, folder: Path, **training: int) -> list[tuple[str, int]]:
    values = load_recipe(name).model_dump(mode="json")
    values["training"] |= training
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    return [(stage.name, stage.until) for stage in build_distillation(recipe, folder).stages]


@pytest.mark.parametrize("name", ["mixture2d-pd", "mixture2d-pd-ddil", "mixture2d-reflow"])
def test_a_raised_run_keeps_its_stages_and_lengthens_the_last(tmp_path, name):
    before = stages(name, tmp_path, steps=600)
    after = stages(name, tmp_path, steps=1000, laid_out_for=600)
    assert len(before) > 2
    assert after[:-1] == before[:-1]
    assert after[-1] == (before[-1][0], before[-1][1] + 400)


def test_the_first_part_of_a_round_is_as_long_as_ddil_asks(tmp_path):
    values = load_recipe("mixture2d-pd-ddil").model_dump(mode="json")
    values["states"]["first_part"] = 0.25
    values["training"]["steps"] = 800
    values["method"] |= {"start": 8, "steps": 4}
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    assert [stage.until for stage in build_distillation(recipe, tmp_path).stages] == [200, 600]


@pytest.mark.parametrize(
    "name",
    [name for name in shipped_names() if name.startswith("digits-") and isinstance(load_recipe(name), DistillRecipe)],
)
def test_what_is_made_beforehand_scales_with_the_run(name, tmp_path):
    """With 4 steps no more samples are carried through networks before a stage than it draws, and
    no more than a step a stage and node is recorded.
    """
    recipe = load_recipe(name, ["training.steps=4"])
    assert isinstance(recipe, DistillRecipe)
    stages = sketch(recipe, tmp_path)[1].stages
    for stage in stages:
        if stage.total is None:
            # A recording that is measured; its most is the recipe's.
            assert recipe.model_dump()["target"]["record"]["max_steps"] <= 8
            continue
        assert sum(action.samples for action in stage.begin) <= stage.total * recipe.training.batch
    assert sum(stage.total or 0 for stage in stages) <= 32


def test_a_full_run_makes_all_its_pairs(tmp_path):
    for name, keys in (
        ("digits-reflow", ("method", "pairs")),
        ("digits-kd", ("method", "pairs", "count")),
        ("digits-dmd", ("method", "regression", "pairs")),
    ):
        recipe = load_recipe(name)
        assert isinstance(recipe, DistillRecipe)
        count = recipe.model_dump()
        for key in keys:
            count = count[key]
        made = [
            action.samples for stage in sketch(recipe, tmp_path)[1].stages for action in stage.begin if action.samples
        ]
        assert made
        assert set(made) == {count}


def rounds_of(tmp_path, *overrides: str) -> list[tuple[str, int]]:
    recipe = load_recipe("mixture2d-pd-ddil", overrides)
    assert isinstance(recipe, DistillRecipe)
    return [(stage.name, stage.until) for stage in build_distillation(recipe, tmp_path).stages]


def test_ddils_rounds_are_said_as_they_are(tmp_path):
    """Garrepalli et al. 2024, Sec. 5: 5 thousand steps, 6 and 4, 8 and 6, 8 and 6; the first round
    in one part.
    """
    paper = rounds_of(
        tmp_path, "method.steps=2", "method.rounds=[[5.0],[6.0,4.0],[8.0,6.0],[8.0,6.0]]", "training.steps=4300"
    )
    assert paper == [
        ("16-steps", 500),
        ("8-steps-1", 600),
        ("8-steps-2", 400),
        ("4-steps-1", 800),
        ("4-steps-2", 600),
        ("2-steps-1", 800),
        ("2-steps-2", 600),
    ]


def test_rounds_in_the_place_of_growth_and_parts_are_the_same_run(tmp_path):
    usual = rounds_of(tmp_path, "method.growth=2.0", "method.start=8", "method.steps=2", "training.steps=900")
    said = rounds_of(
        tmp_path, "method.rounds=[[0.6,0.4],[1.2,0.8]]", "method.start=8", "method.steps=2", "training.steps=900"
    )
    assert usual == said == [("4-steps-1", 180), ("4-steps-2", 120), ("2-steps-1", 360), ("2-steps-2", 240)]


def test_rounds_are_as_many_as_there_are(tmp_path):
    with pytest.raises(UserError, match="'rounds' has 1 entries, but from 32 steps to 4 there are 3 rounds"):
        load_recipe("mixture2d-pd-ddil", ["method.rounds=[[1.0]]"])
    with pytest.raises(UserError, match=r"method\.rounds"):
        load_recipe("mixture2d-pd-ddil", ["method.rounds=[[1.0],[1.0,2.0,3.0],[1.0]]"])
