"""Runs of methods that follow scores, whose extra parts switched off are the method without them,
bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import ON_DIGITS, VARIANTS, fitted, tiny, without_syncing

from fewstep.errors import UserError
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.schedule import RectifiedFlow
from fewstep.times import LogNormalTimes

# A fixture.
__all__ = ["without_syncing"]


def trained_by(recipe: DistillRecipe, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of student and fake score after the run."""
    parts = build_distillation(recipe, folder)
    fitted(recipe, parts, folder)
    found = {f"student.{name}": value for name, value in parts.student.state_dict().items()}
    if parts.fake is not None:
        found |= {f"fake.{name}": value for name, value in parts.fake.state_dict().items()}
    return found


def alike(first: DistillRecipe, second: DistillRecipe, folder: Path) -> bool:
    """Whether two runs leave the same student and the same fake score, bit for bit."""
    ours, theirs = trained_by(first, folder / "ours"), trained_by(second, folder / "theirs")
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def sida(weight: float, critic_weight: float) -> dict[str, Any]:
    """SiDA at the weights of the student's adversarial term and of the critic's."""
    adversarial = {"kind": "fake-trunk", "weight": weight, "critic_weight": critic_weight}
    return {**VARIANTS["sida"], "alpha": 1.2, "adversarial": adversarial}


@pytest.mark.parametrize("steps", [1, 2])
def test_sida_without_weight_is_sid(tmp_path: Path, steps: int) -> None:
    """Either weight alone makes it another run."""
    plain = tiny({**VARIANTS["sid"], "steps": steps})
    assert alike(tiny({**sida(0.0, 0.0), "steps": steps}), plain, tmp_path / "none")
    assert not alike(tiny({**sida(0.1, 0.0), "steps": steps}), plain, tmp_path / "student")
    assert not alike(tiny({**sida(0.0, 0.1), "steps": steps}), plain, tmp_path / "critic")


def test_a_negative_weight_of_sidas_critic_is_refused() -> None:
    with pytest.raises(UserError, match="adversarial"):
        load_recipe("digits-sida", overrides=["method.adversarial.weight=-1"])


@pytest.mark.parametrize("digits", [False, True])
def test_sid_lsg_at_scales_of_one_is_sid(tmp_path: Path, digits: bool) -> None:
    """Either scale alone makes it another run, where there are classes."""

    def run(training: float, fake: float) -> DistillRecipe:
        method = {**VARIANTS["sid-lsg"], "alpha": 1.2, "training_guidance": training, "fake_guidance": fake}
        return tiny(method, digits=digits, steps=3)

    plain = tiny(VARIANTS["sid"], digits=digits, steps=3)
    assert alike(run(1.0, 1.0), plain, tmp_path / "none")
    if digits:
        assert not alike(run(1.5, 1.0), plain, tmp_path / "training")
        assert not alike(run(1.0, 1.5), plain, tmp_path / "student")


def test_guidance_of_the_fake_score_needs_a_teacher_with_classes(tmp_path: Path) -> None:
    for name in ("training_guidance", "fake_guidance"):
        with pytest.raises(UserError, match=rf"'method\.{name}' needs a teacher with classes"):
            build_distillation(tiny({**VARIANTS["sid-lsg"], name: 1.5}), tmp_path)


@pytest.mark.parametrize("digits", [False, True])
def test_decoupled_dmd_at_a_scale_of_one_is_distribution_matching(tmp_path: Path, digits: bool) -> None:
    plain = tiny(VARIANTS["distribution-matching"], digits=digits)
    assert alike(tiny(VARIANTS["decoupled-dmd"], digits=digits), plain, tmp_path)


def test_decoupled_dmd_is_another_run_at_another_scale(tmp_path: Path) -> None:
    """Of a teacher whose estimates depend on the class."""
    small = ("training.steps=3", "training.batch=4", "evaluation.samples=20", "evaluation.draws=1")
    one, two = (load_recipe("digits-decoupled-dmd", [*small, f"method.guidance={scale}"]) for scale in (1.0, 2.0))
    assert isinstance(one, DistillRecipe)
    assert isinstance(two, DistillRecipe)
    assert not alike(one, two, tmp_path)


def test_decoupled_dmd_refuses_a_guided_target_and_a_teacher_without_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a term of its own, 'method\.guidance'; use 'target\.guidance\.kind: none'"):
        build_distillation(tiny(VARIANTS["decoupled-dmd"], guidance="constant", digits=True), tmp_path)
    with pytest.raises(UserError, match=r"'method\.guidance' needs a teacher with classes"):
        build_distillation(tiny({**VARIANTS["decoupled-dmd"], "guidance": 2.0}), tmp_path)


@pytest.mark.parametrize("steps", [1, 2])
def test_ladd_is_the_adversarial_part_of_add(tmp_path: Path, steps: int) -> None:
    """A distillation of so small a weight that no gradient holds it."""

    def add(distillation: float) -> DistillRecipe:
        method = {**VARIANTS["adversarial-diffusion"], "adversarial": VARIANTS["ladd"]["adversarial"]}
        return tiny({**method, "steps": steps, "distillation": distillation})

    ladd = tiny({**VARIANTS["ladd"], "steps": steps})
    assert alike(ladd, add(1e-30), tmp_path / "without")
    assert not alike(ladd, add(1.0), tmp_path / "with")


def test_the_times_of_ladds_critic_are_logit_normal_on_a_flow() -> None:
    times = LogNormalTimes(mean=0.5, std=0.7).draw(RectifiedFlow(), Key(0), "times", 4000)
    logits = torch.logit(times)
    assert abs(float(logits.mean()) - 0.5) < 4 * 0.7 / 4000**0.5
    assert abs(float(logits.std()) - 0.7) < 4 * 0.7 / 8000**0.5
    assert abs(float((logits < 0.5).double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5


def test_dp_dmd_without_anchor_and_matched_throughout_is_distribution_matching(tmp_path: Path) -> None:
    """Of several steps; the anchor alone, and the steps that are left out, make it another run."""
    plain = tiny({**VARIANTS["distribution-matching"], "steps": 3})

    def run(anchor: float, matched_from: int) -> DistillRecipe:
        settings = {"steps": 3, "anchor": anchor, "matched_from": matched_from, "jump": "renoise"}
        return tiny({**VARIANTS["dp-dmd"], **settings})

    assert alike(run(0.0, 0), plain, tmp_path / "none")
    assert not alike(run(1.0, 0), plain, tmp_path / "anchor")
    assert not alike(run(0.0, 1), plain, tmp_path / "later")


@pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 2, "matched_from": 2}])
def test_dp_dmd_refuses_steps_that_leave_nothing_to_match(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="'steps'"):
        tiny({**VARIANTS["dp-dmd"], **settings})


def rcm(consistency: dict[str, Any], weight: float, matching: float, steps: int = 2) -> DistillRecipe:
    """rCM at the weights of its consistency and of its matching."""
    return tiny(
        {**VARIANTS["rcm"], "consistency": {**consistency, "weight": weight}, "matching": matching, "steps": steps}
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_rcm_without_consistency_is_distribution_matching(tmp_path: Path, steps: int) -> None:
    """Student and fake score."""
    plain = tiny({**VARIANTS["distribution-matching"], "steps": steps})
    term = {"kind": "continuous", "sigma_data": 2.3}
    assert alike(rcm(term, 0.0, 1.0, steps), plain, tmp_path / "none")
    assert not alike(rcm(term, 1.0, 1.0, steps), plain, tmp_path / "both")


@pytest.mark.parametrize(
    ("term", "plain"),
    [
        (
            {"kind": "continuous", "sigma_data": 2.3, "log_weight": "learned", "tangent_warmup": 3},
            {"kind": "continuous-consistency", "sigma_data": 2.3, "tangent_warmup": 3},
        ),
        (
            {"kind": "discrete", "points": 8, "skip": 2},
            {"kind": "consistency", "points": 8, "skip": 2, "rule": "euler", "distance": {"kind": "l2"}, "ema": 0.0}
            | {"rollout_steps": [2]},
        ),
    ],
)
def test_rcm_without_matching_is_its_consistency(tmp_path: Path, term: dict[str, Any], plain: dict[str, Any]) -> None:
    """The student, bit for bit; the fake score is trained beside it."""
    expected = trained_by(tiny({**plain, "steps": 2}), tmp_path / "plain")
    for matching in (0.0, 1.0):
        found = trained_by(rcm(term, 1.0, matching), tmp_path / f"{matching}")
        same = all(torch.equal(value, found[name]) for name, value in expected.items())
        assert same == (matching == 0)


def test_rcm_without_either_is_refused_and_without_matching_follows_no_degraded_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both 0, so that nothing trains the student"):
        rcm({"kind": "continuous"}, 0.0, 0.0)
    values = {**VARIANTS["rcm"], "matching": 0.0}
    with pytest.raises(UserError, match=r"'target\.kind: backtracked' cannot be combined"):
        build_distillation(tiny(values, target="backtracked"), tmp_path)


def test_swiftbrush_differs_from_diff_instruct_in_its_fake_score_alone() -> None:
    ours, theirs = (load_recipe(f"scenes-{name}").model_dump(mode="json") for name in ("swiftbrush", "diff-instruct"))
    assert ours["method"].pop("fake")["kind"] == "lora"
    assert theirs["method"].pop("fake")["kind"] == "learned"
    assert ours == theirs
    assert ours["data"] is None


@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("decoupled-dmd, guided", 0.1),
        ("sid-lsg, guided", 0.1),
        ("decoupled-dmd", 0.0),
        ("sid-lsg", 0.0),
        ("distribution-matching, images", 0.0),
    ],
)
def test_a_path_learns_the_unconditional_estimate_that_a_method_asks_for(
    tmp_path: Path, method: str, share: float
) -> None:
    """The target itself is not guided."""
    recipe = tiny({**VARIANTS, **ON_DIGITS}[method], target="backtracked", digits=True)
    record = build_distillation(recipe, tmp_path).stages[0]
    assert record.phases[0].terms[0].objective.dropout == share


def test_ladd_refuses_a_guidance_that_would_reach_no_estimate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its student follows a critic .*; use 'target\.guidance\.kind: none'"):
        build_distillation(tiny(ON_DIGITS["ladd, images"], guidance="constant", digits=True), tmp_path)


def test_the_guidance_of_decoupled_dmd_weighs_its_augmentation_beyond_one(tmp_path: Path) -> None:
    recipe = tiny({**ON_DIGITS["decoupled-dmd, guided"], "guidance": 3.5}, digits=True)
    terms = build_distillation(recipe, tmp_path).stages[-1].phases[0].terms
    assert {term.name: term.weight for term in terms} == {"matching": 1.0, "augmentation": 2.5}


@pytest.mark.parametrize("steps", [2, 3])
def test_dp_dmds_anchor_is_the_students_second_time(tmp_path: Path, steps: int) -> None:
    parts = build_distillation(tiny({**VARIANTS["dp-dmd"], "steps": steps}), tmp_path)
    anchor = next(term for term in parts.stages[-1].phases[0].terms if term.name == "anchor")
    times = parts.sampling.times(parts.prior.schedule, parts.prior.time)
    assert anchor.objective.anchor == pytest.approx(float(times[1]))
