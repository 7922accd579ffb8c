"""What commands print: results as small tables of plain text. Nothing heavy is imported here, since ``--help`` must answer at once."""

from __future__ import annotations

import json
from typing import Any

from fewstep.errors import UserError


def matrix_table(name: str | None, as_json: bool) -> str:
    """What goes with what: a line a recipe, or one recipe and its reasons; raises ``UserError`` for a recipe without axes."""
    from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
    from fewstep.recipes.legality import COLUMNS, row

    names = shipped_names() if name is None else [name]
    loaded = [(each, load_recipe(each)) for each in names]
    rows = [row(each, recipe.method) for each, recipe in loaded if isinstance(recipe, DistillRecipe)]
    if not rows:
        raise UserError(f"{name}: is a recipe for 'fewstep pretrain', which has no axes; give one for 'fewstep distill'.")
    if as_json:
        return json.dumps({each.name: each.cells for each in rows})
    width = max(len(each.name) for each in rows) + 2
    short = [column.split()[1] for column in COLUMNS]
    lines = [
        " " * width + "  ".join(short),
        *(f"{each.name:<{width}}" + "  ".join(f"{'yes' if each.cells[c] is None else '-':<{len(s)}}" for c, s in zip(COLUMNS, short, strict=True)) for each in rows),
    ]
    if name is not None:
        lines += [f"- {reason}" for reason in rows[0].cells.values() if reason is not None]
    return "\n".join(lines)


def evaluation_table(result: dict[str, Any]) -> str:
    """What ``evaluate`` found: a line a model and number of steps, and below one a guidance scale."""
    lines = [f"{'':<34} {'Frechet distance':>18} {'class accuracy':>15} {'recall':>7} {'diversity':>10} {'evaluations':>12} {'ms/image':>9}"]
    for name in ("teacher", "student"):
        lines += [_quality(f"{name}, {_steps(steps)}", entry) for steps, entry in result[name].items()]
    for scale, models in result.get("guidance", {}).items():
        lines += [_quality(f"{name}, {_steps(steps)}, guided by {scale}", entry) for name, found in models.items() for steps, entry in found.items()]
    reference = result["reference"]
    lines.append(f"{'two halves of the data':<34} {reference['halves_fd']:>18.2f}   ({reference['samples']} samples a draw, {_draws(reference['draws'])})")
    return "\n".join(lines)


def shift_table(result: dict[str, Any]) -> str:
    """What ``shift`` found: three tables of shared generations, and the sensitivity of each step."""
    levels = dict(zip(result["times"], result["levels"], strict=True))
    tables = [_shared("teacher with probability", [(f"{entry['probability']:g}", entry) for entry in result["mixing"]])]
    for name, title in (("teacher_then_student", "teacher down to sigma/alpha"), ("student_then_teacher", "student down to sigma/alpha")):
        tables.append(_shared(title, [(_level(levels[entry["time"]]), entry) for entry in result[name]]))
    found = result["sensitivity"]
    lines = [f"{'step from sigma/alpha':<28} {'student here only':>18} {'teacher here only':>18}"]
    for time, once, spared in zip(found["times"], found["student_once"], found["teacher_once"], strict=True):
        lines.append(f"{_level(levels[time]):<28} {once:>18.4f} {spared:>18.4f}")
    lines.append(f"{'student throughout':<28} {found['student']:>18.4f}   (distance from the teacher's sample of the same noise, in feature space)")
    size = f"teacher: {result['teacher_steps']} DDIM steps, student: {result['student_steps']}; {result['samples']} samples a draw, {_draws(result['draws'])}"
    guided = "" if result["guidance"] is None else f", guidance {result['guidance']:g}"
    return "\n\n".join([*tables, "\n".join(lines), size + guided])


def _shared(title: str, rows: list[tuple[str, dict[str, Any]]]) -> str:
    lines = [f"{title:<28} {'Frechet distance':>18} {'class accuracy':>15} {'recall':>7} {'diversity':>10}"]
    return "\n".join(lines + [f"{setting:<28} {_distance(entry):>18} {_accuracy(entry):>15} {entry['recall']:>7.3f} {entry['diversity']:>10.3f}" for setting, entry in rows])


def _quality(label: str, entry: dict[str, Any]) -> str:
    breadth = f"{entry['recall']:>7.3f} {entry['diversity']:>10.3f}"
    return f"{label:<34} {_distance(entry):>18} {_accuracy(entry):>15} {breadth} {entry['nfe']:>12.0f} {entry['ms_per_image']:>9.2f}"


def _distance(entry: dict[str, Any]) -> str:
    return f"{entry['fd']:.2f} +- {entry['fd_spread']:.2f}" if entry["fd_spread"] else f"{entry['fd']:.2f}"


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['accuracy']:.1%}" if "accuracy" in entry else "-"


def _level(level: float | None) -> str:
    return "pure noise" if level is None else f"{level:.3g}"


def _draws(draws: int) -> str:
    return f"{draws} draw" + ("s" if draws != 1 else "")


def _steps(steps: str) -> str:
    return f"{steps} step" + ("s" if steps != "1" else "")


def comparison_table(comparison: dict[str, Any]) -> str:
    """What ``compare`` found: a line a run."""
    width = max(len(name) for name in comparison) + 2
    lines = [f"{'run':<{width}} {'level':>8} {'steps':>8} {'evaluations':>12}   reaches"]
    for name, entry in comparison.items():
        reached = "; ".join(f"{other}: " + ("never" if found is None else f"{found['steps']} steps, {found['evaluations']} evaluations") for other, found in entry["reaches"].items())
        lines.append(f"{name:<{width}} {entry['level']:>8.2f} {entry['steps']:>8} {entry['evaluations']:>12}   {reached}")
    return "\n".join(lines)
