"""What measurements of samples found: ``evaluate`` and ``measure``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import shown_distance, shown_draws, shown_figure, shown_share, shown_steps
from fewstep.errors import one_line

_MEASURED = {
    "fd": "Frechet distance",
    "kid": "kernel distance",
    "is": "inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
    "accuracy": "class accuracy",
    "prompt_accuracy": "prompt accuracy",
    "prompt_diversity": "diversity a prompt",
}


def quality_table(result: dict[str, Any]) -> str:
    """What ``evaluate`` found: a line a model and number of steps, and below one a guidance
    scale.
    """
    guidance, reference = result.get("teacher_guidance"), result["reference"]
    guided = {"teacher": "" if guidance is None else f", guided by {guidance:g}", "student": ""}
    entries = [
        (f"{name}, {shown_steps(steps)}{guided[name]}", entry)
        for name in ("teacher", "student")
        for steps, entry in result[name].items()
    ]
    entries += [
        (f"{name}, {shown_steps(steps)}, guided by {scale}", entry)
        for scale, models in result.get("guidance", {}).items()
        for name, found in models.items()
        for steps, entry in found.items()
    ]
    columns = [column for column in _COLUMNS if any(column.shown(entry) != "-" for _, entry in entries)]
    rows = [[label, *(column.shown(entry) for column in columns)] for label, entry in entries]
    if "halves_fd" in reference:
        rows.append(["two halves of the data", f"{reference['halves_fd']:.2f}"])
    best = result.get("best")
    lines = [
        *([] if best is None else [f"the student is the best that the run kept, of step {best['step']}"]),
        grid([*left(""), *right(*(column.heading for column in columns))], rows),
        f"{reference['samples']} samples a draw, {shown_draws(reference['draws'])}",
        *_compared_with(reference),
        *(says for key, says in _WITHIN.items() if any(key in entry for _, entry in entries)),
        *(each["sentence"] for each in result.get("worse_with_more_steps", [])),
        *_left_out(result),
        *_mismatch(result.get("mismatch", {})),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Column:
    """A figure of each model, and how it is shown: a dash where it could not be had. A figure that
    no model has is not in the table.
    """

    heading: str
    shown: Callable[[dict[str, Any]], str]


_COLUMNS = (
    _Column("Frechet distance", shown_distance),
    _Column("prompt accuracy", lambda entry: shown_share(entry.get("prompt_accuracy", {}), "all")),
    _Column("diversity a prompt", lambda entry: shown_figure(entry, "prompt_diversity_ratio")),
    _Column("class accuracy", lambda entry: shown_share(entry, "accuracy")),
    _Column("diversity a class", lambda entry: shown_figure(entry, "class_diversity_ratio")),
    _Column("recall", lambda entry: shown_figure(entry, "recall")),
    _Column("coverage", lambda entry: shown_figure(entry, "coverage")),
    _Column("diversity", lambda entry: shown_figure(entry, "diversity")),
    _Column("evaluations", lambda entry: f"{entry['nfe']:.0f}"),
    _Column("ms/image", lambda entry: f"{entry['ms_per_image']:.2f}"),
)


_WITHIN = {
    "prompt_diversity_ratio": (
        "diversity a prompt is the mean distance between pictures of one prompt, over the teacher's at its most steps"
    ),
    "class_diversity_ratio": (
        "diversity a class is the mean distance between ten samples of one class (of all samples where there are no "
        "classes), over the teacher's at its most steps"
    ),
}
"""What a column of diversity says, by the figure that it shows."""


def _compared_with(reference: dict[str, Any]) -> list[str]:
    """What Frechet distances are to, where that is not the data."""
    teacher = reference.get("teacher")
    if teacher is None:
        return []
    guided = "" if teacher["guidance"] is None else f", guided by {teacher['guidance']:g}"
    steps = shown_steps(str(teacher["steps"]))
    return [f"Frechet distances are to {teacher['samples']} samples of the teacher at {steps}{guided}"]


def _mismatch(found: dict[str, Any]) -> list[str]:
    """The teacher's mismatch degree on data and on the student's samples, in both units."""
    if "assessed_norm" not in found:
        return []
    rows = [
        [
            name,
            f"{found[f'{key}_mean']:.3f}",
            f"{found[f'{key}_norm']['mean']:.3g} +- {found[f'{key}_norm']['deviation']:.2g}",
        ]
        for key, name in (("training", "on data"), ("assessed", "on the student's samples"))
    ]
    headings = right("a dimension, times sigma", "mean norm (DisBack, Eq. 9)")
    return [grid([*left("mismatch degree of the teacher"), *headings], rows)]


def measurement_table(result: dict[str, Any]) -> str:
    """What ``measure`` found: a line a number."""
    reference = result["reference"]
    own = "the teacher's samples" if "teacher" in reference else "the data"
    against = own if reference["file"] is None else one_line(reference["file"])
    rows = [[name, _measured(result[key])] for key, name in _MEASURED.items() if key in result]
    lines = [
        (
            f"{result['model']}, {shown_steps(str(result['steps']))}, {result['samples']} samples, in the space "
            f"'{result['space']}', against {against}"
        ),
        *([grid(left("", ""), rows)] if rows else []),
        *_left_out(result),
    ]
    return "\n".join(lines)


def _measured(value: Any) -> str:
    return f"{value['mean']:.4g} +- {value['spread']:.2g}" if isinstance(value, dict) else f"{value:.4g}"


def _left_out(result: dict[str, Any]) -> list[str]:
    """A line a reason, with the figures that were left out for it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in result.get("left_out", {}).items():
        by_reason.setdefault(reason, []).append(_MEASURED.get(name, name))
    return [f"left out: {', '.join(names)}: {one_line(reason)}." for reason, names in by_reason.items()]
