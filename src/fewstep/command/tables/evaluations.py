"""What measurements of samples found: ``evaluate`` and ``measure``."""

from __future__ import annotations

from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import shown_accuracy, shown_distance, shown_draws, shown_figure, shown_steps
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
}


def quality_table(result: dict[str, Any]) -> str:
    """What ``evaluate`` found: a line a model and number of steps, and below one a guidance
    scale.
    """
    rows = [
        _quality(f"{name}, {shown_steps(steps)}", entry)
        for name in ("teacher", "student")
        for steps, entry in result[name].items()
    ]
    rows += [
        _quality(f"{name}, {shown_steps(steps)}, guided by {scale}", entry)
        for scale, models in result.get("guidance", {}).items()
        for name, found in models.items()
        for steps, entry in found.items()
    ]
    reference = result["reference"]
    halves = f"{reference['halves_fd']:.2f}" if "halves_fd" in reference else "-"
    headings = right("Frechet distance", "class accuracy", "recall", "diversity", "evaluations", "ms/image")
    lines = [
        grid([*left(""), *headings], [*rows, ["two halves of the data", halves]]),
        f"{reference['samples']} samples a draw, {shown_draws(reference['draws'])}",
        *_left_out(result),
        *_mismatch(result.get("mismatch", {})),
    ]
    return "\n".join(lines)


def _quality(label: str, entry: dict[str, Any]) -> list[str]:
    return [
        label,
        shown_distance(entry),
        shown_accuracy(entry),
        shown_figure(entry, "recall"),
        shown_figure(entry, "diversity"),
        f"{entry['nfe']:.0f}",
        f"{entry['ms_per_image']:.2f}",
    ]


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
    against = "the data" if reference["file"] is None else one_line(reference["file"])
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
