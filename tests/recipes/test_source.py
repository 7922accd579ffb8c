"""Recipes: what ships is whole, what is wrong is one sentence that names the key, and a short run
keeps its proportions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fewstep.errors import UserError
from fewstep.recipes import DistillRecipe, dump, load_recipe, shipped_names, shipped_text

SHIPPED = [
    "digits-diff-instruct",
    "digits-diff-instruct-warm",
    "digits-disback",
    "digits-features",
    "digits-teacher",
    "mixture2d-disback",
    "mixture2d-teacher",
]


def test_all_recipes_ship():
    assert set(SHIPPED) <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_recipe_resolves_and_its_resolved_text_is_a_fixed_point(name, tmp_path):
    recipe = load_recipe(name)
    written = tmp_path / "resolved.yaml"
    written.write_text(dump(recipe))
    assert load_recipe(written) == recipe
    assert shipped_text(name).startswith("# ")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.stepz=3", r"--set training.stepz: unknown key 'training.stepz'; did you mean 'steps'\?"),
        ("method.fake.optimizer.lrr=1", r"unknown key 'method.fake.optimizer.lrr'; did you mean 'lr'\?"),
        ("target.nodess=3", r"unknown key 'target.nodess'; did you mean 'nodes'\?"),
        ("target.switch.stepss=3", r"unknown key 'target.switch.stepss'; did you mean 'steps'\?"),
        ("zzz=1", r"unknown key 'zzz'; known here: task, teacher"),
        ("training.steps=-3", r"'training.steps' is -3: .*greater than or equal to 1"),
        ("training.steps=many", r"'training.steps' is 'many': .*integer"),
        ("training.steps=2.5", r"'training.steps' is 2.5: .*integer"),
        ("training.batch=true", r"'training.batch' is True: .*integer"),
        ("training.precision=fp8", r"'training.precision' is 'fp8'"),
        ("target.kind=forward", r"'target.kind' is 'forward'; it must be one of 'fixed', 'backtracked'"),
        ("target={nodes: 3}", r"'target' must say its 'kind'; one of 'fixed', 'backtracked'"),
        ("target.switch.steps=[]", r"'target.switch.steps"),
        ("target.switch.steps=[3, 0]", r"'target.switch.steps"),
        ("training.steps.more=1", r"'training.steps' is a value, not a section"),
        ("a." * 600 + "b=1", r"names sections more than 50 deep"),
        ("training.steps", r"must be of the form section.key=value"),
        ("task=sing", r"'task' must be one of distill, pretrain"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load_recipe("digits-disback", [override])
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_the_file_and_key(tmp_path):
    values = yaml.safe_load(shipped_text("digits-disback"))
    del values["data"]
    values["training"]["lr"] = 1
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"mine.yaml: .*('data' is missing|unknown key 'training.lr')"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "a recipe is a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("!!python/object/apply:os.system ['echo hacked']", "not valid YAML"),
        ("", "a recipe is a mapping"),
        ("task: distill", "is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_recipe(path)


def test_a_yaml_bomb_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(
            f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        )
    )
    with pytest.raises(UserError, match="aliases"):
        load_recipe(path)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="did you mean 'digits-disback'"):
        load_recipe("digits-disbak")
    with pytest.raises(UserError, match="no such recipe file"):
        load_recipe(tmp_path / "none.yaml")


def test_floats_without_a_point_are_numbers(tmp_path):
    recipe = load_recipe("digits-disback", ["method.optimizer.lr=1e-5"])
    assert isinstance(recipe, DistillRecipe)
    assert recipe.method.optimizer.lr == 1e-5


def test_fewer_steps_keep_the_recipes_proportions():
    whole, tenth = load_recipe("digits-disback"), load_recipe("digits-disback", ["training.steps=200"])
    assert isinstance(whole, DistillRecipe)
    assert isinstance(tenth, DistillRecipe)
    factor = 200 / whole.training.steps
    assert tenth.training.steps == 200
    for section in ("record", "switch"):
        before, after = getattr(whole.target, section).steps, getattr(tenth.target, section).steps
        assert after == max(1, round(before * factor))
    assert tenth.method == whole.method


def test_at_least_one_step_each():
    recipe = load_recipe("digits-disback", ["training.steps=4"])
    assert isinstance(recipe, DistillRecipe)
    assert recipe.target.record.steps == recipe.target.switch.steps == 1


def test_a_share_that_the_user_gives_stays_as_given():
    recipe = load_recipe("digits-disback", ["training.steps=40", "target.switch.steps=7"])
    assert isinstance(recipe, DistillRecipe)
    assert recipe.target.switch.steps == 7
    whole = load_recipe("digits-disback", ["training.steps=40", "target.record={kind: distance, max_steps: 80}"])
    assert isinstance(whole, DistillRecipe)
    assert whole.target.record.max_steps == 80


def test_steps_in_a_users_own_file_scale_nothing(tmp_path):
    values = yaml.safe_load(shipped_text("digits-disback"))
    values["training"]["steps"] = 50
    path: Path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(path)
    assert recipe.target.record.steps == values["target"]["record"]["steps"]


def test_words_that_yaml_once_took_for_booleans_are_words(tmp_path):
    """``on`` is a key of the section ``reflected``; only true and false are booleans, as in YAML
    1.2.
    """
    recipe = load_recipe("digits-pd", ["reflected={kind: static, on: [teacher]}"])
    assert recipe.reflected.on == ["teacher"]
    path = tmp_path / "mine.yaml"
    path.write_text(
        shipped_text("digits-pd").replace(
            "reflected: {kind: none}", "reflected:\n  kind: static\n  on: [teacher, student]"
        )
    )
    assert load_recipe(path).reflected.on == ["teacher", "student"]
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        (
            "digits-pd-ddil",
            ["states.capacity=8", "states.collect=16"],
            r"'states' 'capacity' \(8\) must be at least 'collect' \(16\)",
        ),
        (
            "digits-pd",
            ["states={kind: per-batch, data: 0, teacher: 0, student: 0}"],
            r"'states' one of 'data', 'teacher' and 'student' must be positive",
        ),
        (
            "digits-lcm",
            ["method.guidance.low=9", "method.guidance.high=3"],
            r"'method\.guidance' 'low' \(9(\.0)?\) must not exceed 'high' \(3(\.0)?\)",
        ),
        (
            "digits-cd",
            ["method.intervals=3"],
            r"'method' 'steps' is 2, but with 3 'intervals' a sample takes one step in each",
        ),
    ],
)
def test_values_that_contradict_each_other_name_the_section_and_both(name, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_recipe(name, overrides)


def test_with_several_intervals_the_steps_need_not_be_said(tmp_path):
    recipe = load_recipe("digits-cd", ["method={kind: consistency, points: 18, intervals: 3}"])
    assert recipe.method.steps == recipe.method.sampling.steps == 3
    path = tmp_path / "mine.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe
