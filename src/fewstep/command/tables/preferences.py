"""What ``prefer`` found: shares with their intervals, over answers, over raters and by rater."""

from __future__ import annotations

from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.errors import one_line

_NAMES = {
    "A": "A",
    "B": "B",
    "none": "no difference",
    "decided": "A, of those who prefer one",
    "left": "left, of the same",
}


def preference_table(found: dict[str, Any]) -> str:
    """The models, a line a share, a line a rater, and the raters' agreement."""
    answers, raters = found["answers"], found["raters"]
    models = [f"{name}: {_model(model)}" for name, model in found["models"].items()]
    shares = [
        [
            label,
            str(answers[name]["count"]),
            _percent(answers[name]["share"]),
            _interval(answers[name]["wilson"]),
            *((_percent(raters[name]["mean"]), _interval(raters[name]["student"])) if name in raters else ("", "")),
        ]
        for name, label in _NAMES.items()
    ]
    headings = [*left("preferred"), *right("answers", "share", "Wilson 95 %", "mean of raters", "Student 95 %")]
    by_rater = [
        [
            one_line(rater),
            str(each["count"]),
            *(_percent(each[name]["share"]) for name in ("A", "B", "none", "left")),
            _interval(each["A"]["wilson"]),
        ]
        for rater, each in found["by_rater"].items()
    ]
    columns = [*left("rater"), *right("answers", "A", "B", "none", "left", "A: Wilson 95 %")]
    counted = f"{answers['count']} answers of {raters['count']} raters to {found['pairs']} pairs"
    return "\n".join([*models, counted, "", grid(headings, shares), "", grid(columns, by_rater), "", _agreement(found)])


def _model(model: dict[str, Any]) -> str:
    guided = "" if model.get("guidance") is None else f", guided by {model['guidance']:g}"
    return one_line(f"{model['run']} ({model.get('model')}{guided})")


def _agreement(found: dict[str, Any]) -> str:
    agreement = found["agreement"]
    if agreement["equal"] is None:
        return "agreement: no pair has two raters yet"
    alpha = "not defined" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
    return (
        f"agreement on {agreement['shared_pairs']} shared pairs: {_percent(agreement['equal'])} of answers are equal, "
        f"Krippendorff's alpha {alpha}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"
