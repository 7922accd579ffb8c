"""Runs of recipes, bit for bit: an interrupted run is the whole run, and a method whose extra parts
are switched off is the method without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_combinations import (
    BACKTRACKED,
    LEARNED,
    MATCHING,
    STUDENT_SETTINGS,
    VARIANTS,
    fitted,
    method_of,
    tiny,
    without_syncing,
)
from test_combinations import ON_DIGITS as ON_DIGITS_VARIANTS

from fewstep.denoisers import Guided, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.networks.adapters import bases_of
from fewstep.objectives import ProgressiveDistillation
from fewstep.planning.twin import small
from fewstep.random import Key
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.recipes.building.distillation import Distillation, build_distillation
from fewstep.recipes.building.parts import build_settings
from fewstep.recipes.config import DigitsData, MixtureData
from fewstep.recipes.reading.source import validate
from fewstep.states import Step
from fewstep.system.files import read_tensors
from fewstep.training import Silent, Trainer
from interrupt_kit import Interrupted, Interrupter

# A fixture.
__all__ = ["without_syncing"]

# Recipes that need files are run as twins (see test_twins).
DISTILLING = [
    name
    for name in shipped_names()
    if isinstance(recipe := load_recipe(name), DistillRecipe) and isinstance(recipe.data, (DigitsData, MixtureData))
]
# With classes, which stored pairs, collections and critics then hold; guidance needs them, and
# FastGAN images. The others run on points in the plane, which take a fifth of the time.
ON_DIGITS = (
    "digits-kd",
    "digits-disback-dmd2",
    "digits-disback-guided",
    "digits-sid-lsg",
    "digits-decoupled-dmd",
    "digits-pd-ddil",
    *(name for name in DISTILLING if name.startswith("digits-lcm") or "fastgan" in name),
)


def shipped(name: str, steps: int) -> DistillRecipe:
    """A shipped recipe at a test's size: its own method, states, target, student and thresholds, on
    a teacher with random weights and the data that it is for.
    """
    recipe = load_recipe(name, [f"training.steps={steps}"])
    assert isinstance(recipe, DistillRecipe)
    values = recipe.model_dump(mode="json")
    sections = tiny(VARIANTS["knowledge"], digits=name in ON_DIGITS).model_dump(mode="json")
    values |= {"method": small(recipe.method), "states": small(recipe.states)} | {
        key: sections[key] for key in ("teacher", "data", "evaluation")
    }
    if values["student"]["kind"] == "fastgan":
        values["student"] |= STUDENT_SETTINGS["fastgan"]
    values["training"] |= {"batch": 4, "log_every": 2, "checkpoint_every": 3}
    made = validate(values, name)
    assert isinstance(made, DistillRecipe)
    return made


def trainer_of(recipe: DistillRecipe, folder: Path, listeners: Sequence[Silent] = ()) -> Trainer:
    """A trainer of new objects, as of a new process."""
    parts = build_distillation(recipe, folder)
    return Trainer(folder, parts.stages, parts.average, build_settings(recipe.training), listeners=listeners)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def contents(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The last checkpoint: all weights, averages, optimizers and buffers as bytes, and the rest of
    the state.
    """
    tensors, state = read_tensors(max((folder / "checkpoints").iterdir()))
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}, state


@pytest.mark.parametrize("name", DISTILLING)
def test_a_run_interrupted_twice_is_the_whole_run_bit_for_bit(name, tmp_path):
    """After step 4 and before the last step; a checkpoint every third step and at a stage's end, so
    that some steps are made again.
    """
    recipe = shipped(name, 10)
    whole = trainer_of(recipe, tmp_path / "whole")
    whole.fit()
    total = whole.progress.step
    cut = tmp_path / "cut"
    first, second = Interrupter(4), Interrupter(total - 1)
    with pytest.raises(Interrupted):
        trainer_of(recipe, cut, [first]).fit()
    again = trainer_of(recipe, cut, [second])
    second.left -= int(max((cut / "checkpoints").iterdir()).stem.removeprefix("step-"))
    with pytest.raises(Interrupted):
        again.fit(resume=True)
    assert again.progress.step == total - 1
    assert again.progress.stage == len(whole.stages) - 1 or len(whole.stages) > 3
    resumed = trainer_of(recipe, cut)
    resumed.fit(resume=True)
    assert contents(cut) == contents(tmp_path / "whole")
    assert lines_of(cut) == lines_of(tmp_path / "whole")
    for file in [*(tmp_path / "whole").glob("*.safetensors"), *(tmp_path / "whole").glob("path/*")]:
        assert (cut / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert all(
        torch.equal(value, whole.average.state_dict()[key]) for key, value in resumed.average.state_dict().items()
    )


def test_a_run_interrupted_while_its_path_is_measured_is_the_whole_run(tmp_path):
    """Its evaluations too: what a resumed rule looks at once more is not counted once more."""
    path = ["target.record={kind: distance, distance: 10.0, max_steps: 9}", "target.nodes=3"]
    recipe = load_recipe(
        "mixture2d-disback",
        [
            *path,
            "training.steps=16",
            "training.batch=4",
            "training.checkpoint_every=3",
            "training.log_every=1",
            "evaluation.samples=40",
        ],
    )
    assert isinstance(recipe, DistillRecipe)
    trainer_of(recipe, tmp_path / "whole").fit()
    cut = trainer_of(recipe, tmp_path / "cut", [Interrupter(5)])
    with pytest.raises(Interrupted):
        cut.fit()
    assert (cut.progress.stage, cut.progress.step) == (0, 5)
    trainer_of(recipe, tmp_path / "cut").fit(resume=True)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def weights(recipe: DistillRecipe, folder: Path) -> list[torch.Tensor]:
    """All that a run has trained, student and average included, wrappers not told apart."""
    parts = build_distillation(recipe, folder)
    fitted(recipe, parts, folder)
    networks = [parts.student, parts.average.average, *(phase.network for phase in parts.stages[-1].phases)]
    return [value for network in networks for value in network.state_dict().values()]


def same(first: DistillRecipe, second: DistillRecipe, folder: Path) -> bool:
    ours, theirs = weights(first, folder / "first"), weights(second, folder / "second")
    assert len(ours) == len(theirs)
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_dmd2_without_critic_and_extra_updates_is_diff_instruct(tmp_path):
    full, plain = shipped("digits-dmd2", 3), shipped("digits-diff-instruct", 3)
    stripped = full.model_dump(mode="json")
    stripped["method"]["adversarial"] = None
    stripped["method"]["fake"]["updates"] = 1
    bare = validate(stripped, "stripped")
    assert isinstance(bare, DistillRecipe)
    assert same(bare, plain, tmp_path)
    assert not same_student(full, plain, tmp_path)


def same_student(first: DistillRecipe, second: DistillRecipe, folder: Path) -> bool:
    ours, theirs = (student_after(recipe, folder / name) for name, recipe in (("one", first), ("other", second)))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def student_after(recipe: DistillRecipe, folder: Path) -> list[torch.Tensor]:
    parts = build_distillation(recipe, folder)
    fitted(recipe, parts, folder)
    return list(parts.student.state_dict().values())


@pytest.mark.parametrize(
    "name",
    [
        "distribution-matching",
        "distribution-matching, random start",
        "distribution-matching, low rank",
        "distribution-matching, delta",
        "distribution-matching, field",
        "f-distill",
        "sid",
        "adversarial-diffusion",
        "distribution-matching, fake trunk, 2 steps",
    ],
)
def test_a_path_of_one_node_is_the_fixed_target(name, tmp_path):
    assert same(tiny(VARIANTS[name]), tiny(VARIANTS[name], target={**BACKTRACKED, "nodes": 1}), tmp_path)
    assert not same_student(
        tiny(VARIANTS[name]), tiny(VARIANTS[name], target={**BACKTRACKED, "optimizer": {"lr": 0.1}}), tmp_path / "three"
    )


THRESHOLDED = (
    "progressive",
    "consistency",
    "continuous-consistency",
    "distribution-matching",
    "f-distill",
    "sid, 2 steps",
    "adversarial-diffusion",
    "rectified-flow",
)


def test_f_distill_of_the_reverse_divergence_is_distribution_matching_with_its_critic(tmp_path):
    """Bit for bit, student, fake score and critic; of another divergence it is not."""
    plain = tiny(VARIANTS["distribution-matching, fake trunk"])
    reverse, other = (
        tiny({**VARIANTS["f-distill"], "divergence": {"kind": kind}}) for kind in ("reverse-kl", "jensen-shannon")
    )
    assert same(reverse, plain, tmp_path / "reverse")
    assert not same_student(other, plain, tmp_path / "other")


def test_truncated_consistency_divides_the_run_and_asks_no_student_below_its_boundary(tmp_path):
    """The gap goes on in the second stage, whose nearer model is the first stage's average."""
    parts = build_distillation(tiny({**VARIANTS["truncated-consistency"], "first": 0.25}, steps=8), tmp_path)
    assert [(stage.name, stage.until) for stage in parts.stages] == [("first", 2), ("truncated", 6)]
    late, boundary = (term.objective for term in parts.stages[1].phases[0].terms)
    assert late.curriculum.begun == boundary.curriculum.begun == 2
    assert parts.stages[1].begin[0].target is late.nearer.first
    with pytest.raises(UserError, match=r"'method\.boundary' \(20\) must be no more than the least noise level"):
        build_distillation(tiny({**VARIANTS["truncated-consistency"], "boundary": 20.0}), tmp_path / "high")
    late_only = {"late_times": {"kind": "uniform", "high": 0.001}}
    with pytest.raises(UserError, match=r"times of training: none of them lie at t ="):
        build_distillation(tiny({**VARIANTS["truncated-consistency"], **late_only}), tmp_path / "early")


def test_one_phase_without_a_critic_is_consistency_distillation(tmp_path):
    """Bit for bit; several phases, or a critic, are another run."""
    consistency = tiny({"kind": "consistency", "points": 8, "steps": 1, "rollout_steps": [1]})
    phased = {"kind": "phased-consistency", "points": 8, "phases": 1, "steps": 1}
    assert same_student(consistency, tiny(phased), tmp_path / "one")
    assert not same_student(consistency, tiny({**phased, "phases": 2, "steps": 2}), tmp_path / "two")
    assert not same_student(consistency, tiny({**phased, "adversarial": {"weight": 1.0}}), tmp_path / "critic")


def test_a_warmup_of_one_step_is_none_and_a_longer_one_is_another_run(tmp_path):
    """Of the continuous tangent, whose share is whole from the first step on."""
    method = VARIANTS["continuous-consistency"]
    none, one, long = (tiny({**method, "tangent_warmup": steps}) for steps in (0, 1, 8))
    assert same(none, one, tmp_path / "one")
    assert not same_student(none, long, tmp_path / "long")


@pytest.mark.parametrize(
    ("name", "role"),
    [(name, role) for name in THRESHOLDED for role in method_of(VARIANTS[name]).effective_traits.roles],
)
def test_a_bound_that_nothing_reaches_is_no_threshold_and_one_that_bites_is(name, role, tmp_path):
    plain = tiny(VARIANTS[name], steps=8)
    for bound, equal in ((1e30, True), (0.01, False)):
        values = plain.model_dump(mode="json")
        values["reflected"] = {"kind": "static", "bound": bound, "on": [role]}
        reflected = validate(values, "reflected")
        assert isinstance(reflected, DistillRecipe)
        assert same_student(plain, reflected, tmp_path / f"{equal}") == equal


@pytest.mark.parametrize(
    "name",
    [
        "progressive",
        "consistency",
        "continuous-consistency",
        "trajectory",
        "knowledge, on the fly, 2 steps",
        "distribution-matching, 2 steps",
        "adversarial-diffusion",
    ],
)
def test_states_whose_other_sources_have_no_weight_are_forward_diffusion(name, tmp_path):
    forward = tiny(VARIANTS[name], "forward")
    nothing = {"kind": "ddil", "collected": 0.0, "later_collected": 0.0, "capacity": 16, "collect": 4}
    assert same(forward, tiny(VARIANTS[name], nothing), tmp_path / "ddil")
    assert same(forward, tiny(VARIANTS[name], {"kind": "per-batch", "data": 1.0, "student": 0.0}), tmp_path / "batch")
    everything = {**nothing, "collected": 1.0, "later_collected": 1.0}
    assert not same_student(forward, tiny(VARIANTS[name], everything), tmp_path / "all")
    assert not same_student(
        forward, tiny(VARIANTS[name], {"kind": "per-batch", "data": 0.0, "student": 1.0}), tmp_path / "student"
    )


def test_a_rollout_along_one_step_is_the_prior(tmp_path):
    parts = build_distillation(tiny({**VARIANTS["consistency"], "rollout_steps": [1]}, "rollout"), tmp_path)
    key = Key(0, "test")
    rolled, pure = (states.draw(Step(key, 5)) for states in (parts.stages[0].phases[0].terms[0].states, parts.prior))
    assert torch.equal(rolled.x, pure.x)
    assert torch.equal(rolled.t, pure.t)


class AtStages(Silent):
    """Looks when a stage begins, after its actions."""

    def __init__(self, look: Callable[[str], None]):
        super().__init__()
        self.look = look

    def stage(self, name: str, total: int | None, done: int) -> None:
        self.look(name)


def test_a_round_of_progressive_distillation_begins_where_the_round_before_ended(tmp_path):
    """Teacher and student of a round are the average of the round before; the first round's are the
    teacher.
    """
    recipe = tiny({**VARIANTS["progressive"], "steps": 1}, steps=8, average={"kind": "half-life", "steps": 2})
    parts = build_distillation(recipe, tmp_path)
    seen = []

    def look(name: str) -> None:
        (term,) = next(stage for stage in parts.stages if stage.name == name).phases[0].terms
        assert isinstance(term.objective, ProgressiveDistillation)
        states = [
            model.state_dict() for model in (term.objective.teacher.denoiser, parts.average.average, parts.student)
        ]
        seen.append(
            (
                name,
                len(term.objective.times),
                all(torch.equal(value, other[key]) for other in states for key, value in states[0].items()),
            )
        )

    Trainer(tmp_path, parts.stages, parts.average, build_settings(recipe.training), listeners=[AtStages(look)]).fit()
    assert seen == [("2-steps", 3, True), ("1-steps", 2, True)]
    (term,) = parts.stages[1].phases[0].terms
    assert isinstance(term.objective, ProgressiveDistillation)
    taught = term.objective.teacher.denoiser
    assert not any(
        torch.equal(value, parts.teacher.state_dict()[key])
        for key, value in taught.state_dict().items()
        if key.endswith("leave.weight")
    )
    assert not any(
        torch.equal(value, parts.student.state_dict()[key])
        for key, value in taught.state_dict().items()
        if key.endswith("leave.weight")
    )


def test_a_student_may_learn_its_prediction_before_its_guidance(tmp_path):
    """The first stage follows the teacher without guidance and at the scale 1, the second one the
    guided teacher at scales within the range; their lengths are the shares that are asked for.
    """
    method = ON_DIGITS_VARIANTS["progressive, converted, then guided"]
    method = {**method, "prepare": 0.3, "guidance": {"low": 2.0, "high": 3.0, "sample_at": 2.0}}
    parts = build_distillation(tiny(method, steps=20, digits=True), tmp_path)
    assert [(stage.name, stage.total) for stage in parts.stages] == [("convert", 4), ("prepare", 6), ("2-steps", 10)]
    step, scales, teachers = Step(Key(0), 64), [], []
    for stage in parts.stages[:2]:
        (term,) = stage.phases[0].terms
        guidance = term.states.draw(step).condition.guidance
        assert guidance is not None
        scales.append((float(guidance.min()), float(guidance.max())))
        teachers.append(type(term.objective.teacher.denoiser))
    assert scales[0] == (1.0, 1.0)
    assert 2.0 <= scales[1][0] < scales[1][1] <= 3.0
    assert teachers == [NetworkDenoiser, Guided]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"convert": None}, "needs both"),
        ({"guidance": None}, "needs both"),
        ({"convert_for": 0.5, "prepare": 0.5}, "must be below 1"),
    ],
)
def test_a_division_of_what_is_not_there_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny({**ON_DIGITS_VARIANTS["progressive, converted, then guided"], **changes})


def fake_at_the_start(method: dict[str, Any], folder: Path) -> tuple[Distillation, dict[str, torch.Tensor]]:
    """A backtracked run's fake score when the distillation begins."""
    recipe = tiny({**method, "steps": 1}, target=BACKTRACKED)
    parts = build_distillation(recipe, folder)
    found: dict[str, torch.Tensor] = {}

    def look(name: str) -> None:
        if name == "distill":
            assert parts.fake is not None
            found.update({key: value.clone() for key, value in parts.fake.state_dict().items()})

    Trainer(folder, parts.stages, parts.average, build_settings(recipe.training), listeners=[AtStages(look)]).fit()
    return parts, found


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return any(not torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("kind", ["distribution-matching", "f-distill", "sid"])
def test_a_fake_score_starts_at_the_last_node(kind, tmp_path):
    parts, fake = fake_at_the_start({**MATCHING, "kind": kind}, tmp_path)
    assert parts.path is not None
    assert not differs(fake, parts.path.read(parts.path.last))


def test_of_a_fake_score_with_an_adapter_the_base_starts_at_the_last_node_and_stays(tmp_path):
    parts, fake = fake_at_the_start(VARIANTS["distribution-matching, low rank"], tmp_path)
    assert parts.path is not None
    assert parts.fake is not None
    after = parts.fake.state_dict()
    (base,) = bases_of(parts.fake)
    assert base is not parts.teacher.network
    assert not differs(
        {f"network.{key}": value for key, value in base.state_dict().items()}, parts.path.read(parts.path.last)
    )
    assert fake.keys() == after.keys()
    assert all(not value.any() for key, value in fake.items() if key.endswith(".lora_B.weight"))
    assert any(value.any() for key, value in after.items() if key.endswith(".lora_B.weight"))


@pytest.mark.parametrize("kind", ["distribution-matching", "f-distill", "sid"])
def test_a_fake_score_of_random_weights_keeps_them_and_the_path_is_the_teachers(kind, tmp_path):
    method = {**MATCHING, "kind": kind, "fake": {**LEARNED, "start": "random"}}
    parts, fake = fake_at_the_start(method, tmp_path / "disback")
    plain = build_distillation(tiny(method), tmp_path / "plain").fake
    assert plain is not None
    assert not differs(fake, plain.state_dict())
    assert differs(fake, parts.teacher.state_dict())
    assert parts.path is not None
    # One step of Adam moves a weight by at most its rate.
    assert all(
        (value - parts.teacher.state_dict()[key]).abs().max() <= 1.01 * 1e-3
        for key, value in parts.path.read(1).items()
    )
