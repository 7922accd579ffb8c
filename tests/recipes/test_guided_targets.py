"""Runs whose target is guided: what a scale of 1 changes (nothing), what guidance costs, who else
follows the guided teacher, and what the log tells of the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import (
    BACKTRACKED,
    MATCHING,
    fitted,
    tiny,
    without_syncing,  # noqa: F401 (a fixture)
)
from torch import Tensor

from fewstep.condition import LABELS
from fewstep.denoisers import Guided, Reflected
from fewstep.errors import UserError
from fewstep.objectives import ScoreMatching
from fewstep.planning.sketch import sketch
from fewstep.recipes import DistillRecipe, config, load_recipe
from fewstep.recipes.building.distillation import Distillation, build_context, build_distillation, check_parts
from fewstep.recipes.building.frozen_teachers import Teacher
from fewstep.report.history import History
from fewstep.targets import GuidedTarget, ReflectedTarget
from fewstep.training.actions import MakePairs
from fewstep.training.reporting.log import read_log

BATCH = 4


def run(folder: Path, target: dict[str, Any], method: dict[str, Any] | None = None, **others: Any):
    """The parts of a run on digits that has ended, its log and its network evaluations; its
    teacher is the shipped one, which knows classes apart.
    """
    made = tiny(method or MATCHING, target=target, digits=True, **{"steps": 6, **others})
    recipe = made.model_copy(update={"teacher": config.ShippedTeacher(kind="shipped", name="digits")})
    parts = build_distillation(recipe, folder)
    trainer = fitted(recipe, parts, folder)
    return parts, read_log(folder / "metrics.jsonl"), trainer.progress.evaluations


def weights(parts: Distillation) -> list[Tensor]:
    assert parts.fake is not None
    return [*parts.student.state_dict().values(), *parts.fake.state_dict().values()]


def equal(one: Distillation, other: Distillation) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def guided(kind: str, scale: float = 3.0, **settings: Any) -> dict[str, Any]:
    return {"guidance": {"kind": kind, "scale": scale, **settings}}


FIXED = {"kind": "fixed"}


@pytest.mark.parametrize("kind", ["constant", "rescaled", "patchwise", "along-path"])
def test_a_scale_of_one_is_no_guidance_bit_for_bit_at_no_cost(kind: str, tmp_path: Path) -> None:
    plain, _, paid = run(tmp_path / "plain", BACKTRACKED)
    one, _, cost = run(tmp_path / "one", {**BACKTRACKED, **guided(kind, 1.0)})
    assert equal(plain, one)
    assert cost == paid
    for node in ("node-1.safetensors", "node-2.safetensors"):
        assert (tmp_path / "plain" / "path" / node).read_bytes() == (tmp_path / "one" / "path" / node).read_bytes()


def test_guidance_costs_one_pass_of_the_target_and_the_fake_score_pays_none(tmp_path: Path) -> None:
    """Two steps of recording at 4, four at 8 without guidance and 9 with it."""
    _, _, plain = run(tmp_path / "plain", BACKTRACKED)
    _, _, constant = run(tmp_path / "constant", {**BACKTRACKED, **guided("constant")})
    _, _, along = run(tmp_path / "along", {**BACKTRACKED, **guided("along-path")})
    assert plain == BATCH * (2 * 4 + 4 * 8)
    assert constant == along == BATCH * (2 * 4 + 4 * 9)


def test_a_path_without_nodes_is_a_fixed_target_bit_for_bit(tmp_path: Path) -> None:
    fixed, _, _ = run(tmp_path / "fixed", {**FIXED, **guided("constant")})
    for kind in ("constant", "along-path"):
        one, _, _ = run(tmp_path / kind, {**BACKTRACKED, "nodes": 1, **guided(kind)})
        assert equal(fixed, one)
    plain, _, _ = run(tmp_path / "plain", FIXED)
    assert not equal(fixed, plain)


def test_recording_drops_conditions_for_a_guided_target_alone(tmp_path: Path) -> None:
    def dropout(target: dict[str, Any]) -> float:
        parts = build_distillation(tiny(MATCHING, target={**BACKTRACKED, **target}, digits=True), tmp_path)
        (term,) = parts.stages[0].phases[0].terms
        assert isinstance(term.objective, ScoreMatching)
        fake = next(phase for phase in parts.stages[1].phases if phase.name == "fake").terms[0].objective
        assert isinstance(fake, ScoreMatching)
        assert fake.dropout == 0.0
        assert term.objective.conditions == parts.prior.conditions
        return term.objective.dropout

    assert dropout({}) == dropout(guided("constant", 1.0)) == 0.0
    assert dropout(guided("constant")) == dropout(guided("along-path")) == 0.1
    assert dropout({"dropout": 0.3}) == dropout({**guided("constant"), "dropout": 0.3}) == 0.3
    assert dropout({**guided("constant"), "dropout": 0.0}) == 0.0


def test_dropped_conditions_change_the_path(tmp_path: Path) -> None:
    one, other = (
        run(tmp_path / str(rate), {**BACKTRACKED, **guided("constant"), "dropout": rate})[0] for rate in (0.0, 0.9)
    )
    assert one.path is not None
    assert other.path is not None
    assert one.path.nodes[-1]["digest"] != other.path.nodes[-1]["digest"]


@pytest.mark.parametrize("role", [None, "teacher"])
def test_pairs_and_rollouts_of_the_teacher_are_guided_as_the_target_is(role: str | None, tmp_path: Path) -> None:
    """Or the terms of a method would pull to two distributions; thresholds come last."""
    method = {**MATCHING, "regression": {"pairs": 8, "steps": 2}}
    for target in ({**FIXED, **guided("constant")}, {**BACKTRACKED, **guided("along-path")}):
        parts = build_distillation(tiny(method, target=target, role=role, digits=True), tmp_path)
        stage = parts.stages[-1]
        (pairs,) = [action for action in stage.begin if isinstance(action, MakePairs)]
        teacher = pairs.flow_map.denoiser  # type: ignore[attr-defined]
        if role is not None:
            assert isinstance(teacher, Reflected)
            teacher = teacher.denoiser
        assert isinstance(teacher, Guided)
        assert teacher.scale == 3.0
        assert teacher.denoiser is parts.teacher
        (matching,) = [term.objective for phase in stage.phases for term in phase.terms if term.name == "matching"]
        found = matching.target  # type: ignore[attr-defined]
        if target["kind"] == "backtracked":
            assert isinstance(found, ReflectedTarget if role else GuidedTarget)
        else:
            assert (found.denoiser.denoiser if role else found.denoiser).scale == 3.0


def test_a_method_that_is_told_a_scale_asks_the_owner_of_conditions(tmp_path: Path) -> None:
    method = {"kind": "consistency", "points": 4, "rollout_steps": [2], "guidance": {"low": 1.0, "high": 3.0}}
    recipe = tiny(method, digits=True)
    parts = build_distillation(recipe, tmp_path)
    opened = Teacher(parts.teacher, parts.prior.conditions, parts.space, data=parts.data)
    context = build_context(recipe, tmp_path, opened, lambda x: x.flatten(1), torch.device("cpu"))
    assert isinstance(context.guided_teacher, Guided)
    assert context.guided_teacher.conditions is context.prior.conditions is context.conditions
    assert context.conditions.count == 10
    assert context.conditions is not LABELS


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("imagenet64-disback", ["target.guidance={kind: along-path, scale: 2.0}"], "trained with the class of every"),
        ("imagenet64-diff-instruct", ["target.guidance={kind: constant, scale: 2.0}"], "'teacher.kind: nvidia'"),
        ("ffhq64-disback", ["target.guidance={kind: constant, scale: 2.0}"], "this one was never told any"),
        ("digits-lcm", ["target.guidance={kind: constant, scale: 2.0}"], "student is told the scale"),
    ],
)
def test_a_teacher_that_cannot_be_guided_is_refused_in_a_sentence(
    recipe: str, overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    def built(*settings: str) -> None:
        loaded = load_recipe(recipe, settings)
        assert isinstance(loaded, DistillRecipe)
        check_parts(loaded)
        sketch(loaded, tmp_path)

    with pytest.raises(UserError, match=sentence) as caught:
        built(*overrides)
    assert "\n" not in str(caught.value)
    assert "'target.guidance" in str(caught.value)
    # A scale of 1 asks for nothing.
    built("target.guidance={kind: constant, scale: 1.0}")


def test_the_log_tells_the_gap_of_the_first_step(tmp_path: Path) -> None:
    """However rarely it has a line; and along the path it is another than at the full scale."""
    found = {}
    for kind in ("constant", "along-path"):
        every, rare = (
            run(tmp_path / f"{kind}-{log_every}", {**BACKTRACKED, **guided(kind, 6.0)}, log_every=log_every)[1]
            for log_every in (1, 1000)
        )
        gaps = [entry["student.gap"] for entry in every if entry.get("stage") == "distill"]
        assert History.of(every).first_gap() == History.of(rare).first_gap() == gaps[0]
        found[kind] = gaps[0]
    assert found["constant"] != found["along-path"]
    assert History.of(run(tmp_path / "fixed", FIXED)[1]).first_gap() is None
