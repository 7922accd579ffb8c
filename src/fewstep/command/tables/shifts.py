"""What ``shift`` found: where the errors of a student of several steps arise."""

from __future__ import annotations

from typing import Any

from fewstep.command.grid import grid, left, right
from fewstep.command.tables.figures import (
    shown_distance,
    shown_draws,
    shown_figure,
    shown_level,
    shown_share,
)


def shift_table(result: dict[str, Any]) -> str:
    """Three tables of shared generations, and the sensitivity of each step."""
    levels = dict(zip(result["times"], result["levels"], strict=True))
    tables = [_shared("teacher with probability", [(f"{entry['probability']:g}", entry) for entry in result["mixing"]])]
    for name, title in (
        ("teacher_then_student", "teacher down to sigma/alpha"),
        ("student_then_teacher", "student down to sigma/alpha"),
    ):
        tables.append(_shared(title, [(shown_level(levels[entry["time"]]), entry) for entry in result[name]]))
    size = (
        f"teacher: {result['teacher_steps']} DDIM steps, student: {result['student_steps']}; "
        f"{result['samples']} samples a draw, {shown_draws(result['draws'])}"
    )
    guided = "" if result["guidance"] is None else f", guidance {result['guidance']:g}"
    if result["target_guidance"] is not None:
        said = ", ".join(f"{key} {value}" for key, value in result["target_guidance"].items() if key != "kind")
        guided = f", teacher guided ({result['target_guidance']['kind']}: {said})"
    return "\n\n".join([*tables, _sensitivity(result["sensitivity"], levels), size + guided])


def _shared(title: str, rows: list[tuple[str, dict[str, Any]]]) -> str:
    share = "prompt" if any("prompt_accuracy" in entry for _, entry in rows) else "class"
    key = "prompt_accuracy" if share == "prompt" else "accuracy"
    return grid(
        [
            *left(title),
            *right("Frechet distance", f"{share} accuracy", "recall", "coverage", "diversity", "of the teacher's"),
        ],
        [
            [
                setting,
                shown_distance(entry),
                shown_share(entry, key),
                shown_figure(entry, "recall"),
                shown_figure(entry, "coverage"),
                shown_figure(entry, "diversity"),
                shown_figure(entry, "diversity_ratio"),
            ]
            for setting, entry in rows
        ],
    )


def _sensitivity(found: dict[str, Any], levels: dict[float, float | None]) -> str:
    rows = [
        [shown_level(levels[time]), f"{once:.4f}", f"{spared:.4f}"]
        for time, once, spared in zip(found["times"], found["student_once"], found["teacher_once"], strict=True)
    ]
    table = grid(
        [*left("step from sigma/alpha"), *right("student here only", "teacher here only")],
        [*rows, ["student throughout", f"{found['student']:.4f}"]],
    )
    return f"{table}\n(distance from the teacher's sample of the same noise, in feature space)"
