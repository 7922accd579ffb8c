"""A run with a path ends at its teacher: refused where it cannot, said where that is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_combinations import LEARNED, MATCHING, OPTIMIZER, fitted, tiny, without_syncing

from fewstep.doctor import examine
from fewstep.errors import UserError
from fewstep.planning.plan import plan_on_gpus
from fewstep.planning.rehearsal import Rehearsal
from fewstep.recipes import DistillRecipe, config, dump, load_recipe, shipped_names
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.kit.backtracking import walk_of
from fewstep.recipes.reading.source import validate
from fewstep.runs import distill
from fewstep.targets import Every, RecordEvery, SwitchEvery
from fewstep.training import Silent
from fewstep.training.reporting.log import read_log

__all__ = ["without_syncing"]
LSUN = ("lsun-bedroom256-disback", "lsun-cat256-disback")
FAKE = {**LEARNED, "updates": 4}


def target(nodes: int, record: object, switch: object) -> dict[str, object]:
    return {"kind": "backtracked", "nodes": nodes, "record": record, "switch": switch, "optimizer": OPTIMIZER}


def every(steps: object) -> dict[str, object]:
    return {"kind": "every", "steps": steps}


def with_switch(name: str, switch: object) -> DistillRecipe:
    values = load_recipe(name).model_dump(mode="json")
    values["target"]["switch"] = switch
    recipe = validate(values, "test")
    assert isinstance(recipe, DistillRecipe)
    return recipe


def steps_at_the_teacher(recipe: DistillRecipe) -> int:
    """Of the student's updates in the run, those with the teacher as target, by stepping through
    it.
    """
    assert isinstance(recipe.target, config.BacktrackedTarget)
    assert isinstance(recipe.target.record, RecordEvery)
    assert isinstance(recipe.target.switch, SwitchEvery)
    rule, node, here, at_teacher = Every(recipe.target.switch.steps), recipe.target.nodes - 2, 0, 0
    for step in range(recipe.training.steps - recipe.target.record.steps * (recipe.target.nodes - 1)):
        if step % recipe.method.student_every:
            continue
        if node == 0:
            at_teacher += 1
            continue
        here += 1
        if rule.done(node, here):
            rule.reset()
            node, here = node - 1, 0
    return at_teacher


@pytest.mark.parametrize("name", LSUN)
def test_lsun_leaves_the_remaining_iterations_to_the_teacher(name):
    """B.2: 10,000 iterations, of which 500, 1,000 and 1,000 stand at nodes; 200 record."""
    recipe = load_recipe(name)
    assert recipe.training.steps == 10_000
    assert steps_at_the_teacher(recipe) == (10_000 - 200 - 2_500) // 4
    assert steps_at_the_teacher(with_switch(name, every([500, 1000, 1000]))) == 0


def test_every_shipped_path_ends_at_the_teacher_in_the_steps_of_its_recipe():
    for name in shipped_names():
        recipe = load_recipe(name)
        if (
            isinstance(recipe, DistillRecipe)
            and (walk := walk_of(recipe.target, recipe.method.student_every)) is not None
        ):
            assert walk.most < recipe.training.steps, name


@pytest.mark.parametrize("name", LSUN)
def test_a_run_that_would_end_before_its_teacher_is_refused_with_the_steps_that_it_needs(name, tmp_path):
    recipe = with_switch(name, every([500, 1000, 1000]))
    with pytest.raises(
        UserError,
        match=r"'training\.steps' is 10000, .* 200 steps .* at least 10000 .*set 'training\.steps' in the recipe "
        r"to 10201 or more",
    ):
        build_distillation(recipe, tmp_path)
    with pytest.raises(UserError, match="10201 or more"):
        plan_on_gpus(recipe, name)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert any(
        finding.level == "problem" and "10201 or more" in finding.sentence + finding.remedy
        for finding in examine(tmp_path / "recipe.yaml")
    )


@pytest.mark.parametrize(("fake", "steps", "least"), [(LEARNED, 7, 3 + 2 * 2 + 1), (FAKE, 16, 3 + 4 * 2 * 2 + 1)])
def test_shares_that_were_rounded_up_take_the_steps_that_they_need_and_no_more(fake, steps, least, tmp_path):
    recipe = tiny({**MATCHING, "fake": fake}, target=target(4, every(1), every(2)), steps=steps)
    parts = build_distillation(recipe, tmp_path)
    assert fitted(recipe, parts, tmp_path).progress.step == least
    assert parts.target is not None
    assert parts.target.node == 0
    assert parts.target.short == ""


def test_a_path_that_ended_early_asks_for_no_steps_of_nodes_that_are_not_there(tmp_path):
    record = {"kind": "distance", "distance": 1e6, "floor": 0.0, "max_steps": 2}
    recipe = tiny(MATCHING, target=target(4, record, every(5)), steps=8)
    assert fitted(recipe, build_distillation(recipe, tmp_path), tmp_path).progress.step == 8


def test_a_measured_run_that_ends_before_its_teacher_says_so_everywhere(tmp_path, monkeypatch):
    """A plateau of two windows of 10 cannot be seen in the steps of this run, though each node may
    be left after 2.
    """
    switch = {"kind": "plateau", "window": 10, "min_steps": 2, "max_steps": 100}
    recipe = tiny(MATCHING, target=target(4, every(1), switch), steps=12)
    path = tmp_path / "recipe.yaml"
    path.write_text(re.sub("health_every: 1000", "health_every: 6", dump(recipe)))
    monkeypatch.setattr(
        "fewstep.planning.plan.rehearse", lambda _: Rehearsal({"record": 8.0, "distill": 8.0}, {}, 1.0, 1.0)
    )
    assert any("8 to 204" in note for note in plan_on_gpus(recipe, "test").notes)
    watcher = Silent()
    folder = distill(path, out=tmp_path / "run", listeners=[watcher])
    assert any(
        "the run ended with its target at node 2 of 3, and never reached its teacher" in said for said in watcher.said
    )
    health = [entry for entry in read_log(folder / "metrics.jsonl") if entry.get("probe") == "health"]
    assert health[-1]["steps_short_of_teacher"] > 0
    assert any("will not reach the teacher" in warning for warning in health[-1]["warnings"])
    assert any("never reached its teacher" in finding.sentence for finding in examine(folder))


def test_the_docs_give_b2_as_the_recipes_have_it():
    text = (Path(__file__).parents[2] / "docs" / "disback.md").read_text()
    for recipe in (load_recipe("ffhq64-disback"), load_recipe("lsun-cat256-disback")):
        assert isinstance(recipe, DistillRecipe)
        assert isinstance(recipe.target, config.BacktrackedTarget)
        assert isinstance(recipe.target.switch, SwitchEvery)
        stated = (
            rf"`switch: {{kind: every, steps: {re.escape(str(list(recipe.target.switch.steps)))}}}`, "
            rf"`training\.steps: {recipe.training.steps}`"
        )
        assert re.search(stated, text)
    total = re.search(
        r"imagenet64-disback: ([\d,]+) steps \(record ([\d,]+), distill ([\d,]+)\)",
        (Path(__file__).parents[2] / "docs" / "plan.md").read_text(),
    )
    assert total is not None
    whole, record, rest = (int(each.replace(",", "")) for each in total.groups())
    assert whole == record + rest == load_recipe("imagenet64-disback").training.steps
