"""Refusals: each is one sentence that names the two parts, says why, and ends in a remedy that is
itself allowed.
"""

from __future__ import annotations

import re
from itertools import product

import pytest
from test_combinations import (
    AXES,
    BACKTRACKED,
    GUIDED,
    IMAGE_NETWORK,
    MATCHING,
    ON_DIGITS,
    PLACES,
    STUDENT_SETTINGS,
    VARIANTS,
    method_of,
    refusal,
    tiny,
)

from fewstep.errors import UserError
from fewstep.recipes import load_recipe
from fewstep.recipes.building.distillation import build_distillation
from fewstep.recipes.legality import ROLES, check, matrix_row, student_refusal

ALL = {**VARIANTS, **ON_DIGITS}
KEYS = {"reflected": "reflected.on", "guidance": "target.guidance.kind"}
SHAPE = re.compile(r"'([a-z.]+): ([a-z0-9-]+)' and '([a-z.]+): ([a-z0-9-]+)' cannot be combined: ([^;:]+); ([^;]+)\.")


def cells() -> list[tuple[str, str, str]]:
    """(variant, column, sentence) of all refusals."""
    return [
        (name, column, sentence)
        for name, values in ALL.items()
        for column, sentence in matrix_row(name, method_of(values)).cells.items()
        if sentence is not None
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_refusal_is_one_sentence_with_two_parts_a_reason_and_a_remedy(name):
    refused = [(column, sentence) for variant, column, sentence in cells() if variant == name]
    assert refused
    for column, sentence in refused:
        found = SHAPE.fullmatch(sentence)
        assert found is not None, sentence
        axis, value = PLACES.get(column, tuple(column.split()))
        key = KEYS.get(axis, f"{axis}.kind")
        assert found.groups()[:4] == ("method.kind", ALL[name]["kind"], key, value)
        assert found[6].startswith("use ")


@pytest.mark.parametrize("name", ALL)
def test_what_a_remedy_names_is_allowed_and_is_all_that_is(name):
    method = method_of(ALL[name])
    allowed = {
        "states": {
            states
            for states in ("usual", *dict.fromkeys(AXES[0]))
            if refusal(method, (str(states), "fixed", "copy", None, "none")) is None
        },
        "student": {
            student for student in AXES[2] if refusal(method, ("usual", "fixed", str(student), None, "none")) is None
        },
        "reflected": {role for role in ROLES if refusal(method, ("usual", "fixed", "copy", role, "none")) is None},
        "guidance": {"target.guidance.kind: none"},
        "target": {"target.kind: fixed"},
    }
    for variant, column, sentence in cells():
        if variant == name:
            remedies = set(re.findall(r"'([^']+)'", sentence.rpartition(";")[2]))
            assert remedies == allowed[PLACES.get(column, column.split())[0]]
    assert refusal(method, ("usual", "fixed", "copy", None, "none")) is None


@pytest.mark.parametrize("kind", ["latent-mlp", "fastgan"])
def test_a_generator_on_latents_goes_with_no_trajectories_and_no_threshold_of_its_own(kind):
    method = method_of(MATCHING)
    sentence = student_refusal(method, kind, roles=["teacher", "student"])
    assert sentence is not None
    assert re.fullmatch(
        rf"'student.kind: {kind}' and 'reflected.on: student' cannot be combined: [^;]+; leave 'student' out "
        r"of 'reflected.on'\.",
        sentence,
    )
    assert student_refusal(method, kind, roles=["teacher", "fake"]) is None
    sentence = student_refusal(method, kind, states="rollout")
    assert sentence is not None
    assert "use 'states.kind: prior'" in sentence
    assert student_refusal(method, kind, states="prior") is None


def test_the_first_of_several_refusals_is_raised_and_several_roles_are_each_looked_at():
    method = method_of(VARIANTS["progressive"])
    with pytest.raises(UserError, match=r"'target.kind: backtracked'"):
        check(method, "latent-mlp", "backtracked", "prior", ["fake"])
    with pytest.raises(UserError, match=r"'states.kind: prior'"):
        check(method, "latent-mlp", "fixed", "prior", ["fake"])
    with pytest.raises(UserError, match=r"'student.kind: latent-mlp'"):
        check(method, "latent-mlp", "fixed", "usual", ["fake"])
    with pytest.raises(UserError, match=r"'reflected.on: fake'"):
        check(method, "copy", "fixed", "usual", ["teacher", "student", "fake"])
    check(method, "copy", "fixed", "usual", ["teacher", "student"])


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("digits-pd", "forward rollout ddil per-batch guided copy network lora teacher student"),
        ("digits-lcm", "forward rollout ddil per-batch copy network teacher target student"),
        ("digits-ctm", "forward rollout ddil per-batch guided copy network teacher"),
        ("digits-dmd2", "prior backtracked guided copy network lora teacher fake student"),
        (
            "digits-dmd2-4step",
            "forward rollout ddil per-batch backtracked guided copy network lora teacher fake student",
        ),
        (
            "digits-diff-instruct",
            "prior backtracked guided copy network lora fastgan latent-mlp teacher fake student",
        ),
        ("digits-sds", "prior backtracked guided copy network lora fastgan latent-mlp teacher student"),
        ("digits-sid", "prior backtracked guided copy network lora fastgan latent-mlp teacher fake student"),
        ("digits-sid-lsg", "prior backtracked guided copy network lora fastgan latent-mlp teacher fake student"),
        ("digits-decoupled-dmd", "prior backtracked copy network lora fastgan latent-mlp teacher fake student"),
        ("digits-ladd", "forward rollout ddil per-batch copy network lora student"),
        ("digits-moment", "forward rollout ddil per-batch guided copy network lora teacher fake student"),
        ("digits-rcm", "forward rollout ddil per-batch backtracked guided copy network lora teacher fake student"),
        ("digits-dp-dmd", "backtracked guided copy network lora teacher fake student"),
        ("digits-sida", "prior backtracked guided copy network lora teacher fake student"),
        ("digits-f-distill", "prior backtracked guided copy network lora teacher fake student"),
        ("digits-scm", "forward rollout ddil per-batch guided copy network lora teacher student"),
        ("digits-pcm", "forward guided copy network lora teacher target student"),
        ("digits-meanflow", "forward rollout ddil per-batch guided copy network teacher"),
        ("digits-ayf", "forward rollout ddil per-batch guided copy network teacher"),
        ("digits-tcd", "forward rollout ddil per-batch guided copy network teacher"),
        ("digits-perflow", "forward guided copy network lora teacher student"),
        ("digits-tcm", "forward copy network lora student"),
        ("digits-ect", "forward copy network lora student"),
        ("digits-add", "forward rollout ddil per-batch backtracked guided copy network lora teacher student"),
        ("digits-reflow", "guided copy network lora teacher student"),
        ("digits-kd", "guided copy network lora teacher student"),
    ],
)
def test_the_matrix_as_the_family_is_understood(name, columns):
    """Written down by hand, so that a slip of the rule shows: scores backtrack, trajectories
    do not, one-step students have none; what is not told a scale may have a guided target.
    """
    found = [
        column.split()[1]
        for column, sentence in matrix_row(name, load_recipe(name).method).cells.items()
        if sentence is None
    ]
    assert found == columns.split()


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        (
            "digits-pd",
            ["method.start=12"],
            r"--set method.start: in 'method' 'start' \(12\) and 'steps' \(4\) must be powers of two",
        ),
        ("digits-pd", ["method.start=4"], r"'start' the larger"),
        (
            "digits-lcm",
            ["method.points=7", "method.intervals=2", "method.steps=2"],
            r"'points' \(7\) must be a multiple of 'intervals' \(2\)",
        ),
        ("digits-lcm", ["method.points=4"], r"at least the largest of 'rollout_steps'"),
        (
            "digits-pcm",
            ["method.phases=3"],
            r"'points' \(16\) must be a multiple of 'phases' \(3\), and 'steps' \(4\) must be 'phases'",
        ),
        ("digits-meanflow", ["method.end=0.6"], r"'same' \(0.5\) and 'end' \(0.6\) must be at most 1 in sum"),
        ("digits-tcd", ["method.points=3", "method.steps=4"], r"'points' \(3\) must be at least 'steps' \(4\)"),
        ("digits-ctm", ["method.points=3", "method.steps=4"], r"'points' \(3\) must be at least 'steps' \(4\)"),
        ("digits-kd", ["method.steps=2"], r"'steps' is 2, but stored pairs start from pure noise"),
        (
            "digits-reflow",
            ["method.steps=2"],
            r"'steps' \(2\) must be 1 where the flow is distilled; set 'distil' to 0",
        ),
    ],
)
def test_settings_that_do_not_fit_one_another_are_one_short_sentence(recipe, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load_recipe(recipe, overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"method": {**VARIANTS["distribution-matching, delta"], "adversarial": {"kind": "fake-trunk"}}},
            "'method.adversarial.kind: fake-trunk' needs a fake score that is trained",
        ),
        (
            {"method": {**VARIANTS["trajectory"], "adversarial": {"kind": "fake-trunk"}}},
            "'method.kind: trajectory' and 'method.adversarial.kind: fake-trunk' cannot be combined",
        ),
        (
            {"method": {"kind": "adversarial-diffusion", "adversarial": {"kind": "fake-trunk"}}},
            "'method.kind: adversarial-diffusion' and .* cannot be combined",
        ),
        (
            {"method": {**MATCHING, "adversarial": {"kind": "classifier-features"}}},
            "reads 8x8 digits; use 'teacher-trunk'",
        ),
        ({"method": {**VARIANTS["consistency"], "guidance": {}}}, "'method.guidance' needs a teacher with classes"),
        ({"method": MATCHING, "guidance": GUIDED}, "'target.guidance' needs a teacher with classes or prompts"),
        (
            {"method": MATCHING, "target": "backtracked", "guidance": "along-path"},
            "'target.guidance' needs a teacher with classes or prompts",
        ),
        ({"method": {**VARIANTS["progressive"], "guidance": {}}}, "'method.guidance' needs a teacher with classes"),
        (
            {
                "method": VARIANTS["distribution-matching, delta"],
                "target": {**BACKTRACKED, "switch": {"kind": "plateau"}},
            },
            "'target.switch.kind: plateau' watches the gap",
        ),
        ({"method": MATCHING, "student": {"kind": "copy", "first_sigma": 500.0}}, "'student.first_sigma' is 500.0"),
        (
            {"method": MATCHING, "student": "latent-mlp", "digits": True},
            "'student.kind: latent-mlp' makes points, and samples here have shape",
        ),
        ({"method": MATCHING, "student": "fastgan"}, "'student.kind: fastgan' makes square images"),
        (
            {"method": MATCHING, "student": {"kind": "network", **IMAGE_NETWORK}},
            "'student.network.kind: small-unet' does not take samples of shape",
        ),
        (
            {"method": MATCHING, "student": {"kind": "network", **STUDENT_SETTINGS["network"], "first_sigma": 500.0}},
            "'student.first_sigma' is 500.0",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_run_is_built(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        build_distillation(tiny(**changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_plateau_goes_with_every_learned_fake_score(tmp_path):
    """One that starts at random weights takes none of the path's, and has a gap all the same."""
    plateau = {**BACKTRACKED, "switch": {"kind": "plateau", "window": 1, "min_steps": 1, "max_steps": 2}}
    for name in (
        "distribution-matching",
        "distribution-matching, random start",
        "distribution-matching, low rank",
        "f-distill",
        "sid",
        "sida",
    ):
        build_distillation(tiny(VARIANTS[name], target=plateau), tmp_path)


def test_all_combinations_are_decided():
    """The rule says yes or no to every point of the product, for every variant; both happen."""
    verdicts = {
        refusal(method_of(values), combination) is None for values in ALL.values() for combination in product(*AXES)
    }
    assert verdicts == {True, False}
