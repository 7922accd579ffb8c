"""``fewstep plan``: every recipe's plan holds together, and the figures are those that a count by
hand gives.
"""

from __future__ import annotations

import json
import math

import pytest

from fewstep.command.entry import run_command
from fewstep.denoisers import copy_of
from fewstep.errors import UserError
from fewstep.planning import plan_recipe
from fewstep.planning.footprint import bytes_of, state_bytes
from fewstep.planning.gpu_settings import FRAGMENTATION, GIB, WORKSPACE
from fewstep.planning.rehearsal import Rehearsal
from fewstep.planning.twin import twin
from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
from fewstep.recipes.building.distillation import build_distillation
from fewstep.zoo import digits

# A model of the hub cannot be asked for its sizes here.
DISTILLING = [
    name
    for name in shipped_names()
    if isinstance(recipe := load_recipe(name), DistillRecipe) and recipe.teacher.kind != "pipeline"
]
# Counted once, for the recipes whose rehearsal is not what a test is about.
COUNTED = Rehearsal({}, {}, 1.0, 0.8)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal that costs nothing: 8 evaluations a step in every stage."""

    class Any8(dict[str, float]):
        def __missing__(self, _: str) -> float:
            return 8.0

    monkeypatch.setattr(
        "fewstep.planning.plan.rehearse", lambda _: Rehearsal(Any8(), {}, COUNTED.graphs, COUNTED.graphs_bf16)
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command line in this process, where the rehearsal can be replaced: (exit code, standard
    output, standard error).
    """

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fewstep", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", DISTILLING)
def test_every_recipe_has_a_plan(name):
    """Without weights, data or a GPU; sizes add up, sharding and more GPUs never take more, and
    what is said to fit most fits and one more does not.
    """
    gpus = 2 if load_recipe(name).training.batch % 2 == 0 else 1
    plan = plan_recipe(name, [], gpus, 80.0)
    assert plan.parts[0].role == "teacher"
    assert {part.role for part in plan.parts} >= {"teacher", "student"}
    assert all(part.parameters > 0 and part.bytes >= part.parameters for part in plan.parts)
    kept = [setting for setting in plan.settings if not setting.offload]
    by_way = {(setting.mode, setting.precision, setting.recompute): setting for setting in kept}
    for setting in plan.settings:
        each = setting.activations / setting.batch
        assert setting.memory == pytest.approx(FRAGMENTATION * (setting.state + setting.activations) + WORKSPACE, abs=4)
        for rows, fits in ((0.999 * setting.largest_batch, True), (1.001 * setting.largest_batch + 1, False)):
            assert (FRAGMENTATION * (setting.state + each * rows) + WORKSPACE <= 80 * GIB) == fits
        if setting.mode == "fsdp2":
            assert setting.state <= by_way["ddp", setting.precision, setting.recompute].state * (0.5 + 2)
        if setting.recompute:
            assert setting.activations < by_way[setting.mode, setting.precision, False].activations
            assert setting.hours > by_way[setting.mode, setting.precision, False].hours
    assert plan.cheapest is not None
    fitting = [setting for setting in plan.settings if setting.memory <= 80 * GIB]
    assert plan.cheapest.hours * plan.cheapest.gpus == min(
        setting.hours * setting.gpus for setting in fitting if setting.offload == all(each.offload for each in fitting)
    )


def test_the_state_is_that_of_the_run(tmp_path):
    """Of a recipe that is small enough to build: the same bytes as the built run's, and the
    slot.
    """
    plan = plan_recipe("digits-disback", [], 1)
    built = build_distillation(load_recipe("digits-disback"), tmp_path)
    one = bytes_of(digits())
    assert plan.settings[0].state == state_bytes(built.stages, built.teacher) + one
    assert plan.path_bytes == 4 * one
    assert plan.steps == {"record": 40, "distill": 2360}
    assert {part.role for part in plan.parts} == {
        "teacher",
        "fake score",
        "student",
        "average of student (distill)",
        "target's slot",
    }


def test_evaluations_of_diff_instruct_are_counted_by_hand():
    """A step: the student's forward and backward (3), teacher and fake score on it (2), the fake
    score's forward and backward (3).
    """
    plan = plan_recipe("digits-diff-instruct", ["training.steps=100", "training.batch=10"])
    assert plan.evaluations == 100 * 10 * 8
    assert plan.graphs == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("guidance", "each"),
    [
        ("{kind: constant, scale: 1.0}", 8),
        ("{kind: constant, scale: 3.0}", 9),
        ("{kind: along-path, scale: 3.0}", 9),
        ("{kind: interval, scale: 3.0, low: 0.0, high: 100.0}", 9),
    ],
)
def test_a_guided_targets_second_pass_is_planned(guidance: str, each: int):
    """Recording is not: the student (1), and the degrading teacher forward and backward (3)."""
    plan = plan_recipe("digits-disback", [f"target.guidance={guidance}", "training.batch=10"])
    assert plan.steps == {"record": 40, "distill": 2360}
    assert plan.evaluations == 10 * (40 * 4 + 2360 * each)


def test_pairs_are_paid_from_the_same_count():
    """DMD's regression: its pairs, by 18 Heun steps with the last one Euler's, are made once."""
    with_pairs = plan_recipe(
        "digits-dmd",
        ["training.steps=100", "training.batch=10", "method.regression.pairs=700", "method.regression.steps=18"],
    )
    steps = 100 * 10 * 11
    assert with_pairs.evaluations == pytest.approx(steps + 700 * 35)


def test_what_differentiates_through_more_networks_keeps_more():
    """SiD's loss goes through the student, the fake score and the teacher; Diff-Instruct's through
    the student alone.
    """
    assert plan_recipe("digits-sid", []).graphs > 2.5 * plan_recipe("digits-diff-instruct", []).graphs


@pytest.mark.usefixtures("counted")
def test_twice_the_batch_is_twice_the_activations_and_the_time():
    one, two = (plan_recipe("ffhq64-disback", [f"training.batch={batch}"]).settings[0] for batch in (16, 32))
    assert two.activations == 2 * one.activations
    assert two.hours == pytest.approx(2 * one.hours)
    assert two.state == one.state


@pytest.mark.usefixtures("counted")
def test_portions_keep_the_activations_of_one_and_sharded_the_gradients_of_a_network():
    whole, parts = (
        plan_recipe("ffhq64-disback", ["training.batch=32", f"training.accumulate={portions}"], 2, 80.0)
        for portions in (1, 4)
    )
    network = whole.parts[0].bytes
    for one, portion in zip(whole.settings, parts.settings, strict=True):
        assert (one.mode, one.batch) == (portion.mode, portion.batch)
        assert portion.activations == one.activations // 4
        assert portion.state - one.state == (network if one.mode == "fsdp2" else 0)
        assert portion.hours == one.hours
        assert portion.largest_batch % 4 == 0
    assert parts.settings[0].largest_batch == 4 * whole.settings[0].largest_batch
    with pytest.raises(
        UserError, match=r"'training\.batch' is 5, which 'training\.accumulate' = 2 equal portions cannot share"
    ):
        plan_recipe("ffhq64-disback", ["training.batch=5", "training.accumulate=2"])
    # Three samples a GPU in two portions cannot be.
    assert [
        setting.gpus
        for setting in plan_recipe("ffhq64-disback", ["training.batch=6", "training.accumulate=2"], 2).settings
    ] == [1] * 8


def test_a_plan_rehearses_a_recipe_of_many_portions():
    assert (
        plan_recipe(
            "digits-diff-instruct", ["training.steps=100", "training.batch=64", "training.accumulate=8"]
        ).evaluations
        == 100 * 64 * 8
    )


@pytest.mark.usefixtures("counted")
def test_a_plan_in_a_terminal_and_as_json(command):
    code, text, _ = command("plan", "ffhq64-disback", "--gpus", "2", "--memory", "12")
    assert code == 0
    for part in ("song-unet", "61.8 M parameters", "the fewest GPU-hours of those that fit"):
        assert part in text
    found = json.loads(command("plan", "ffhq64-disback", "--gpus", "2", "--memory", "12", "--json")[1])
    assert found["parts"][0]["parameters"] == 61_805_571
    assert len(found["settings"]) == 4 + 4 + 8
    assert math.isclose(
        found["settings"][0]["hours"], found["evaluations"] * found["operations"] / (0.5 * 0.3 * 312e12) / 3600
    )


@pytest.mark.usefixtures("counted")
def test_nothing_that_fits_is_said_with_a_remedy(command):
    assert (
        "nothing fits into 8 GiB; more GPUs, or larger ones, are needed."
        in command("plan", "imagenet64-disback", "--memory", "8")[1]
    )
    said = command("plan", "imagenet64-disback", "--memory", "12")[1]
    assert "nothing fits into 12 GiB; with --set training.batch=" in said
    assert said.endswith("--set training.recompute=true --set training.offload=true.\n")


@pytest.mark.usefixtures("counted")
def test_what_waits_is_advised_where_nothing_else_fits(command):
    """The state of the student's turn: itself, the fake score, the slot, the average, and three
    times its own parameters; of the whole run there are also the teacher and the fake score's
    three.
    """
    plan = plan_recipe("imagenet64-disback", [], 1, 24.0)
    one = plan.parts[0].bytes
    whole, used = (next(each for each in plan.settings if each.offload == offload) for offload in (False, True))
    trained = 4 * plan.parts[0].parameters
    # Of the average's count, which never waits, the sum alone knows.
    assert whole.state == 5 * one + 2 * 3 * trained + 8
    assert used.state == 4 * one + 3 * trained
    assert plan.carried == 2 * (2 * one + 2 * 2 * trained)
    assert plan.cheapest is not None
    assert not plan.cheapest.offload
    said = command("plan", "imagenet64-disback", "--memory", "16")[1]
    assert "* one GPU, bf16, recomputed, offloaded" in said
    assert "one GPU, --set training.precision=bf16 --set training.recompute=true --set training.offload=true" in said
    assert "offloaded, phases that take a turn each carry" in said
    assert "2 x ddp, bf16, offloaded" not in command("plan", "imagenet64-disback", "--gpus", "2")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["digits-teacher"], "is a recipe for 'fewstep pretrain', which has one network"),
        (
            [
                "digits-pd",
                "--set",
                (
                    "target={kind: backtracked, nodes: 2, record: {kind: every, steps: 2}, switch: {kind: "
                    "every, steps: 2}}"
                ),
            ],
            "cannot be combined",
        ),
        (
            ["emoji32-disback", "--set", "teacher={kind: file, path: nowhere.safetensors}"],
            "nowhere.safetensors: there is no such file",
        ),
        (["emoji32-disback", "--set", "teacher.recipe=emoji32-features"], "does not pretrain a denoiser"),
        (["ffhq64-disback", "--set", "teacher.network=ffhq65"], "is no published network that is known here"),
        (["ffhq64-disback", "--set", "teacher.sha256=abc"], "'teacher.sha256'"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_sentence(command, arguments, sentence):
    code, _, error = command("plan", *arguments)
    assert code == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_a_rehearsal_counts_and_does_not_learn():
    """At rates at which the twin's networks would diverge, and the plan with them."""
    assert (
        plan_recipe(
            "mixture2d-diff-instruct", ["method.optimizer.lr=1.0e+30", "training.steps=100", "training.batch=10"]
        ).evaluations
        > 0
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ\nat::native"), KeyError("distill"), ZeroDivisionError("division by zero")]
)
def test_a_rehearsal_that_fails_is_one_sentence(command, monkeypatch, error):
    def failing(self: object, resume: bool = False) -> None:
        raise error

    monkeypatch.setattr("fewstep.training.Trainer.fit", failing)
    code, _, said = command("plan", "mixture2d-diff-instruct")
    assert code == 2
    assert said.startswith(
        "fewstep: the plan's rehearsal, some steps of the recipe with tiny networks on made-up images, "
        f"failed ({type(error).__name__}: "
    )
    assert len(said.strip().splitlines()) == 1


def test_a_twin_of_a_twin_is_itself():
    small = twin(load_recipe("imagenet64-disback"), 20)
    assert twin(small, small.training.steps) == small


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match="at least 1 GPU"):
        plan_recipe("digits-disback", [], 0)


def test_building_a_plan_leaves_the_teacher_alone():
    """The shipped teacher is copied to the meta device, not moved there."""
    before = digits()
    plan_recipe("digits-diff-instruct", ["training.steps=20"])
    assert not next(copy_of(before).parameters()).is_meta
