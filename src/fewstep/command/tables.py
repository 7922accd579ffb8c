"""What commands print: results as small tables of plain text.

Nothing heavy is imported here, since ``--help`` must answer at once.
"""

from __future__ import annotations

import json
from typing import Any

from fewstep.errors import UserError, one_line

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


def matrix_table(name: str | None, as_json: bool) -> str:
    """What goes with what: a line a recipe, or one recipe and its reasons; raises ``UserError`` for
    a recipe without axes.
    """
    from fewstep.recipes import DistillRecipe, load_recipe, shipped_names
    from fewstep.recipes.legality import columns, matrix_row

    names = shipped_names() if name is None else [name]
    loaded = [(each, load_recipe(each)) for each in names]
    rows = [matrix_row(each, recipe.method) for each, recipe in loaded if isinstance(recipe, DistillRecipe)]
    if not rows:
        raise UserError(
            f"{name}: is a recipe for 'fewstep pretrain', which has no axes; give one for 'fewstep distill'."
        )
    if as_json:
        return json.dumps({each.name: each.cells for each in rows})
    width = max(len(each.name) for each in rows) + 2
    short = [column.split()[1] for column in columns()]
    lines = [
        " " * width + "  ".join(short),
        *(
            f"{each.name:<{width}}"
            + "  ".join(
                f"{'yes' if each.cells[c] is None else '-':<{len(s)}}" for c, s in zip(columns(), short, strict=True)
            )
            for each in rows
        ),
    ]
    if name is not None:
        lines += [f"- {reason}" for reason in rows[0].cells.values() if reason is not None]
    return "\n".join(lines)


def images_table(described: dict[str, Any]) -> str:
    """What an image set holds: a line, and one a class."""
    channels, height, width = described["shape"]
    lines = [
        (
            f"{described['path']}: {described['images']} images of {width} x {height}, "
            f"{'RGB' if channels == 3 else 'grey'}, {len(described['classes']) or 'no'} classes"
        )
    ]
    lines += [f"  {each['images']:>7} {one_line(each['name'])}" for each in described["classes"]]
    lines += [one_line(remark) for remark in described.get("remarks", [])]
    return "\n".join([*lines, *([described["sheet"]] if "sheet" in described else [])])


def evaluation_table(result: dict[str, Any]) -> str:
    """What ``evaluate`` found: a line a model and number of steps, and below one a guidance
    scale.
    """
    lines = [
        (
            f"{'':<34} {'Frechet distance':>18} {'class accuracy':>15} {'recall':>7} {'diversity':>10} "
            f"{'evaluations':>12} {'ms/image':>9}"
        )
    ]
    for name in ("teacher", "student"):
        lines += [_quality(f"{name}, {_steps(steps)}", entry) for steps, entry in result[name].items()]
    for scale, models in result.get("guidance", {}).items():
        lines += [
            _quality(f"{name}, {_steps(steps)}, guided by {scale}", entry)
            for name, found in models.items()
            for steps, entry in found.items()
        ]
    reference = result["reference"]
    halves = f"{reference['halves_fd']:>18.2f}" if "halves_fd" in reference else f"{'-':>18}"
    lines.append(
        f"{'two halves of the data':<34} {halves}   ({reference['samples']} samples a draw, "
        f"{_draws(reference['draws'])})"
    )
    lines += _left_out(result)
    return "\n".join([*lines, *_mismatch(result.get("mismatch", {}))])


def _mismatch(found: dict[str, Any]) -> list[str]:
    """The teacher's mismatch degree on data and on the student's samples, in both units."""
    if "assessed_norm" not in found:
        return []
    lines = [
        f"{'mismatch degree of the teacher':<34} {'a dimension, times sigma':>26} {'mean norm (DisBack, Eq. 9)':>28}"
    ]
    for key, name in (("training", "on data"), ("assessed", "on the student's samples")):
        norm = found[f"{key}_norm"]
        lines.append(
            f"{name:<34} {found[f'{key}_mean']:>26.3f} " + f"{norm['mean']:.3g} +- {norm['deviation']:.2g}".rjust(28)
        )
    return lines


def measurement_table(result: dict[str, Any]) -> str:
    """What ``measure`` found: a line a number."""
    reference = result["reference"]
    against = "the data" if reference["file"] is None else reference["file"]
    lines = [
        (
            f"{result['model']}, {_steps(str(result['steps']))}, {result['samples']} samples, in the space "
            f"'{result['space']}', against {against}"
        )
    ]
    for key, name in _MEASURED.items():
        if key in result:
            value = result[key]
            lines.append(
                f"{name:<28} "
                + (f"{value['mean']:.4g} +- {value['spread']:.2g}" if isinstance(value, dict) else f"{value:.4g}")
            )
    lines += _left_out(result)
    return "\n".join(lines)


def shift_table(result: dict[str, Any]) -> str:
    """What ``shift`` found: three tables of shared generations, and the sensitivity of each
    step.
    """
    levels = dict(zip(result["times"], result["levels"], strict=True))
    tables = [_shared("teacher with probability", [(f"{entry['probability']:g}", entry) for entry in result["mixing"]])]
    for name, title in (
        ("teacher_then_student", "teacher down to sigma/alpha"),
        ("student_then_teacher", "student down to sigma/alpha"),
    ):
        tables.append(_shared(title, [(_level(levels[entry["time"]]), entry) for entry in result[name]]))
    found = result["sensitivity"]
    lines = [f"{'step from sigma/alpha':<28} {'student here only':>18} {'teacher here only':>18}"]
    for time, once, spared in zip(found["times"], found["student_once"], found["teacher_once"], strict=True):
        lines.append(f"{_level(levels[time]):<28} {once:>18.4f} {spared:>18.4f}")
    lines.append(
        f"{'student throughout':<28} {found['student']:>18.4f}   (distance from the teacher's sample of the "
        "same noise, in feature space)"
    )
    size = (
        f"teacher: {result['teacher_steps']} DDIM steps, student: {result['student_steps']}; "
        f"{result['samples']} samples a draw, {_draws(result['draws'])}"
    )
    guided = "" if result["guidance"] is None else f", guidance {result['guidance']:g}"
    return "\n\n".join([*tables, "\n".join(lines), size + guided])


def _shared(title: str, rows: list[tuple[str, dict[str, Any]]]) -> str:
    lines = [f"{title:<28} {'Frechet distance':>18} {'class accuracy':>15} {'recall':>7} {'diversity':>10}"]
    return "\n".join(
        lines
        + [
            f"{setting:<28} {_distance(entry):>18} {_accuracy(entry):>15} {_figure(entry, 'recall', 7)} "
            f"{_figure(entry, 'diversity', 10)}"
            for setting, entry in rows
        ]
    )


def _quality(label: str, entry: dict[str, Any]) -> str:
    breadth = f"{_figure(entry, 'recall', 7)} {_figure(entry, 'diversity', 10)}"
    return (
        f"{label:<34} {_distance(entry):>18} {_accuracy(entry):>15} {breadth} {entry['nfe']:>12.0f} "
        f"{entry['ms_per_image']:>9.2f}"
    )


def _figure(entry: dict[str, Any], name: str, width: int) -> str:
    return f"{entry[name]:>{width}.3f}" if entry.get(name) is not None else f"{'-':>{width}}"


def _left_out(result: dict[str, Any]) -> list[str]:
    """A line a reason, with the figures that were left out for it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in result.get("left_out", {}).items():
        by_reason.setdefault(reason, []).append(_MEASURED.get(name, name))
    return [f"left out: {', '.join(names)}: {one_line(reason)}." for reason, names in by_reason.items()]


def _distance(entry: dict[str, Any]) -> str:
    if entry.get("fd") is None:
        return "-"
    return f"{entry['fd']:.2f} +- {entry['fd_spread']:.2f}" if entry["fd_spread"] else f"{entry['fd']:.2f}"


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['accuracy']:.1%}" if entry.get("accuracy") is not None else "-"


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
        reached = "; ".join(
            f"{other}: " + ("never" if found is None else f"{found['steps']} steps, {found['evaluations']} evaluations")
            for other, found in entry["reaches"].items()
        )
        lines.append(
            f"{name:<{width}} {entry['level']:>8.2f} {entry['steps']:>8} {entry['evaluations']:>12}   {reached}"
        )
    return "\n".join([*lines, *_speed_ups(comparison, width)])


def _speed_ups(comparison: dict[str, Any], width: int) -> list[str]:
    """How many times sooner each run reaches fixed levels than the others; beside it what the paper
    says of such a pair.
    """
    lines = [f"{'sooner than':<{width}} {'at level':>10} {'in steps':>9} {'in evaluations':>15}"]
    pairs = [
        (name, other, found, entry.get("published", {}).get(other))
        for name, entry in comparison.items()
        for other, found in entry.get("speed_up", {}).items()
    ]
    # Of a pair the faster run has the row; both where it depends on the level.
    for name, other, found, published in pairs:
        rows = [
            each
            for each in found
            if each["evaluations"] is not None and (each["evaluations"] > 1 or published is not None)
        ]
        if not rows:
            continue
        lines.append(
            f"{name} than {other}"
            + ("" if published is None else f" (the paper's Fig. 1: {published:g} times, in iterations)")
        )
        lines += [
            f"{'':<{width}} {each['level']:>10.4g} {_times(each['steps']):>9} {_times(each['evaluations']):>15}"
            for each in rows
        ]
    return lines if len(lines) > 1 else []


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f} x"


def plan_table(plan: dict[str, Any], memory: float | None) -> str:
    """A plan: networks, what a step takes, and a line a setting."""
    parts = [
        f"  {each['role']:<30}{each['kind']:<16}{_count(each['parameters']):>9} parameters{_size(each['bytes']):>12}"
        for each in plan["parts"]
    ]
    steps = ", ".join(f"{name} {count:,}" for name, count in plan["steps"].items())
    lines = [
        f"{plan['recipe']}: {sum(plan['steps'].values()):,} steps ({steps}), batch {plan['batch']}",
        *parts,
        (
            f"  a forward keeps {_size(plan['kept']).strip()} a sample for the backward, at most "
            f"{plan['graphs']:.1f} of them at once"
        ),
        (
            f"  on disk: the path {_size(plan['path_bytes']).strip()}, each checkpoint "
            f"{_size(plan['checkpoint_bytes']).strip()}"
        ),
        f"  work: {plan['evaluations']:.3g} network evaluations of {plan['operations']:.3g} operations",
        *(f"  {note}" for note in plan["notes"]),
        "",
        f"{'setting':<34}{'batch a GPU':>12}{'state':>12}{'activations':>13}{'memory':>12}"
        + (f"{'fits':>6}{'most':>7}" if memory else "")
        + f"{'time':>9}",
        *(_setting_line(each, plan["cheapest"], memory) for each in plan["settings"]),
    ]
    if memory and plan["cheapest"] is None:
        most = max(each["largest_batch"] * each["gpus"] for each in plan["settings"])
        lines.append(
            f"nothing fits into {memory:g} GiB; "
            + (
                f"with --set training.batch={most} the leanest of these does."
                if most
                else "more GPUs, or larger ones, are needed."
            )
        )
    elif plan["cheapest"] is not None:
        lines.append(
            f"* the fewest GPU-hours of those that {'fit' if memory else 'there are'}: {_advice(plan['cheapest'])}"
        )
    return "\n".join(lines)


def _setting_line(setting: dict[str, Any], cheapest: dict[str, Any] | None, memory: float | None) -> str:
    how = f"{setting['gpus']} x " if setting["gpus"] > 1 else ""
    name = f"{how}{setting['mode']}, {setting['precision']}{', recomputed' if setting['recompute'] else ''}"
    mark = "*" if setting == cheapest else " "
    fits = f"{'yes' if setting['memory'] <= memory * 2**30 else 'no':>6}{setting['largest_batch']:>7}" if memory else ""
    sizes = f"{_size(setting['state']):>12}{_size(setting['activations']):>13}{_size(setting['memory']):>12}"
    return f"{mark} {name:<32}{setting['batch']:>12}{sizes}{fits}{_duration(setting['hours']):>9}"


def _advice(setting: dict[str, Any]) -> str:
    options = [
        f"--set training.precision={setting['precision']}",
        *(["--set training.recompute=true"] if setting["recompute"] else []),
    ]
    gpus = "one GPU" if setting["gpus"] == 1 else f"{setting['gpus']} GPUs by {setting['mode']}"
    return f"{gpus}, {' '.join(options)}"


def inspection_table(found: dict[str, Any]) -> str:
    """A line a figure; nested ones as JSON."""
    return "\n".join(
        f"{key:<12}{value:,}"
        if isinstance(value, int)
        else f"{key:<12}{value if isinstance(value, str) else json.dumps(value)}"
        for key, value in found.items()
    )


def checkpoints_table(found: dict[str, Any]) -> str:
    """What was removed, and a line a checkpoint."""
    lines = [f"removed {found['run']}/{name}" for name in found["removed"]]
    lines += [_checkpoint_line(each, found) for each in found["checkpoints"]]
    if not found["checkpoints"]:
        lines.append(f"{found['run']}: has no checkpoints.")
    lines += [
        f"{found['run']}/{name}: half a file of a writer that was killed; --prune removes it."
        for name in found["leftovers"]
    ]
    if found["checkpoints"] and not found["verified"]:
        lines.append("Headers and lengths only were looked at; --verify compares checksums.")
    return "\n".join(lines)


def _checkpoint_line(each: dict[str, Any], found: dict[str, Any]) -> str:
    if each["state"] != "whole":
        return f"  {'-':>9}  {each['state']:<24}{_size(each['bytes']):>12}  {each['why']}"
    stage = f"step {each['stage_step']} of {each['name'] or 'stage ' + str(each['stage'] + 1)}"
    return (
        f"{'*' if each['file'] == found['resumes'] else ' '} {each['step']:>9}  "
        f"{stage:<24}{_size(each['bytes']):>12}  {each['file']}"
    )


def findings_table(findings: list[dict[str, str]]) -> str:
    """A line a finding, what to do below it, and their number."""
    lines = []
    for each in findings:
        lines.append(f"{each['level']:<8} {each['place']}: {each['sentence']}")
        lines += [f"{'':<8}   {each['remedy']}"] if each["remedy"] else []
    problems, notes = (sum(each["level"] == level for each in findings) for level in ("problem", "note"))
    return "\n".join(
        [
            *lines,
            (
                f"{problems or 'no'} problem{'' if problems == 1 else 's'}, {notes or 'no'} "
                f"note{'' if notes == 1 else 's'}."
            ),
        ]
    )


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _count(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
