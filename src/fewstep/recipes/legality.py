"""What goes with what. One rule, asked when a recipe is built and when the matrix is printed.

A refusal names the two parts, says why, and what to use instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import UserError
from fewstep.networks import GeneratorNetwork
from fewstep.networks.kinds.registry import kinds
from fewstep.recipes import config
from fewstep.recipes.methods.method import Method

STATES = ("prior", "forward", "rollout", "ddil", "per-batch")
_DENOISERS = {"copy": "copy", "network": "copy", "lora": "lora"}
ROLES: tuple[config.Role, ...] = ("teacher", "target", "fake", "student")
GUIDED = "constant"
"""The guidance that stands for every kind where a method is asked whether its target is guided."""

_STATES_REASON = {
    "prior": "it is trained along trajectories, of which pure noise is only the start",
    "forward": "its student is only ever asked at pure noise",
    "rollout": "a student of one step has no trajectory to roll out",
    "ddil": "a student of one step has no trajectory to collect",
    "per-batch": "a student of one step has no trajectory to mix",
}


def families() -> dict[str, str]:
    """Kinds of students, by what a method needs to know of them.

    'copy': a denoiser all of whose weights are trained; 'lora': a denoiser with an adapter;
    'generator': a network on latents, of which any that is registered is a kind.
    """
    return {**_DENOISERS, **{name: "generator" for name, kind in kinds(GeneratorNetwork).items() if kind.in_recipes}}


def states_refusal(method: Method, kind: str) -> str | None:
    """Why the method is not trained on these states, None where it can be."""
    traits = method.effective_traits
    if kind == "usual" or kind in traits.states:
        return None
    reason = traits.because.get(kind, _STATES_REASON[kind])
    able = ", ".join(f"'{k}'" for k in ("usual", *STATES) if k == "usual" or k in traits.states)
    return (
        f"'method.kind: {_name(method)}' and 'states.kind: {kind}' cannot be combined: {reason}; use states of "
        f"kind {able}."
    )


def target_refusal(method: Method, kind: str) -> str | None:
    """Why the method does not take this target, None where it does."""
    if kind == "fixed" or method.effective_traits.scores:
        return None
    usual = (
        "it learns the jumps of the teacher's own trajectories, and those of a degraded teacher end in degraded samples"
    )
    reason = method.effective_traits.because.get(kind, usual)
    return (
        f"'method.kind: {_name(method)}' and 'target.kind: {kind}' cannot be combined: {reason}; use "
        "'target.kind: fixed', or a method that follows scores."
    )


def guidance_refusal(method: Method, kind: str) -> str | None:
    """Why the method's target is not guided by this kind of guidance, None where it can be."""
    if kind == "none":
        return None
    traits = method.effective_traits
    if not traits.guided:
        return (
            f"'method.kind: {_name(method)}' and 'target.guidance.kind: {kind}' cannot be combined: "
            f"{traits.because['guided']}; use 'target.guidance.kind: none'."
        )
    if "teacher" not in traits.roles:
        return (
            f"'method.kind: {_name(method)}' and 'target.guidance.kind: {kind}' cannot be combined: its student "
            "follows the data and never asks the teacher, so that nothing would be guided; use "
            "'target.guidance.kind: none'."
        )
    if method.sampling.guidance is None:
        return None
    return (
        f"'method.kind: {_name(method)}' and 'target.guidance.kind: {kind}' cannot be combined: by 'method.guidance' "
        "its student is told the scale by which its teacher is guided, sample by sample; use 'target.guidance.kind: "
        "none'."
    )


def is_generator(student: str) -> bool:
    """Whether students of this kind are generators on latents, which know no noise levels."""
    return families()[student] == "generator"


def student_refusal(method: Method, kind: str, states: str = "usual", roles: Sequence[str] = ()) -> str | None:
    """Why the method cannot train this student, None where it can."""
    traits, family = method.effective_traits, families()[kind]
    if family not in traits.students:
        reason = traits.because.get(family, _STUDENT_REASON[family])
        able = ", ".join(f"'{k}'" for k, of in families().items() if of in traits.students)
        return (
            f"'method.kind: {_name(method)}' and 'student.kind: {kind}' cannot be combined: {reason}; use a "
            f"student of kind {able}."
        )
    if is_generator(kind) and states not in ("usual", "prior"):
        return (
            f"'student.kind: {kind}' and 'states.kind: {states}' cannot be combined: a generator on latents "
            "knows no noise levels; use 'states.kind: prior', or a student that is a 'copy'."
        )
    if is_generator(kind) and "student" in roles:
        return (
            f"'student.kind: {kind}' and 'reflected.on: student' cannot be combined: only estimates of "
            "denoisers are thresholded; leave 'student' out of 'reflected.on'."
        )
    return None


_STUDENT_REASON = {
    "copy": "its student has another shape",
    "lora": "its student has inputs that the teacher's network has not, so more than an adapter must be trained",
    "generator": "a generator on latents knows no noise levels",
}


def role_refusal(method: Method, role: str) -> str | None:
    """Why this role's estimates cannot be thresholded, None where they can."""
    if role in method.effective_traits.roles:
        return None
    able = ", ".join(f"'{r}'" for r in method.effective_traits.roles)
    return (
        f"'method.kind: {_name(method)}' and 'reflected.on: {role}' cannot be combined: the method has no "
        f"estimates of that role to threshold; use {able}."
    )


def check(method: Method, student: str, target: str, states: str, roles: Sequence[str], guidance: str = "none") -> None:
    """Raises ``UserError`` with the first refusal; ``guidance``: the kind of the target's."""
    refusals = [
        target_refusal(method, target),
        guidance_refusal(method, guidance),
        states_refusal(method, states),
        student_refusal(method, student, states, roles),
    ]
    refusals += [role_refusal(method, role) for role in roles]
    for refusal in refusals:
        if refusal is not None:
            raise UserError(refusal)


@dataclass(frozen=True)
class MatrixRow:
    """What one recipe's method goes with: ``cells`` by column, None where it does, else the
    refusal.
    """

    name: str
    cells: dict[str, str | None]


def columns() -> tuple[str, ...]:
    """What a method is asked of, one column a choice."""
    return (
        *(f"states {kind}" for kind in STATES),
        "target backtracked",
        "target guided",
        *(f"student {kind}" for kind in families()),
        *(f"reflected {role}" for role in ROLES),
    )


def matrix_row(name: str, method: Method) -> MatrixRow:
    """The method against every choice of every axis, one at a time, by the rule that recipes are
    checked with.
    """
    cells = {f"states {kind}": states_refusal(method, kind) for kind in STATES}
    cells["target backtracked"] = target_refusal(method, "backtracked")
    cells["target guided"] = guidance_refusal(method, GUIDED)
    cells |= {f"student {kind}": student_refusal(method, kind) for kind in families()}
    cells |= {f"reflected {role}": role_refusal(method, role) for role in ROLES}
    return MatrixRow(name, cells)


def _name(method: Method) -> str:
    return method.kind
