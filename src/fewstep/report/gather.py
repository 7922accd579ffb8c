"""Reads a run folder into one value.

Only ``recipe.yaml`` and ``metrics.jsonl`` must be there; for the rest ``missing`` says, in a
sentence, what is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, all_without_secrets, without_secrets
from fewstep.recipes import DistillRecipe, load_recipe
from fewstep.recipes.reading.source import read_values
from fewstep.report.history import History
from fewstep.report.page import Picture, evenly, read_picture
from fewstep.report.sheets import Sheet, read_sheet
from fewstep.system.ledger import is_set_aside
from fewstep.training.reporting.log import read_log

_STEP = re.compile(r"step-(\d+)\.png")
_IN_STRIP = 8


@dataclass(frozen=True)
class Evaluated:
    """One row of ``evaluation.json``: a model at a number of steps, and at a scale of guidance
    where there is one; figures are as the file has them. ``best``: whether it is of the best
    student that the run kept, from ``evaluation.best.json``.
    """

    model: str
    steps: int
    figures: Mapping[str, Any]
    guidance: str = ""
    best: bool = False


@dataclass(frozen=True)
class Run:
    """A run folder.

    ``samples`` are (step, picture); ``nodes`` the steps at which the path's nodes were recorded;
    ``missing`` maps a part to why it is not there. ``student_steps``: for how many it was trained,
    None where the recipe does not tell; ``backtracked``: whether there is a degradation path to
    speak of.
    """

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    history: History
    evaluated: tuple[Evaluated, ...]
    reference: Mapping[str, Any]
    mismatch: Mapping[str, Any]
    guided: tuple[Evaluated, ...]
    of_best: tuple[Evaluated, ...]
    worse_with_more: tuple[str, ...]
    shift: Mapping[str, Any]
    student_steps: int | None
    backtracked: bool
    samples: tuple[tuple[int, Picture], ...]
    path_picture: Picture | None
    path_rows: tuple[str, ...]
    nodes: tuple[Any, ...]
    closed: str
    pictures: tuple[Sheet, ...]
    missing: Mapping[str, str]


def gather(folder: Path) -> Run:
    """Reads a run folder; raises ``UserError`` when it holds no run."""
    text, recipe = _recipe(folder / "recipe.yaml")
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{folder}: has no metrics.jsonl, so nothing was run here yet; train first, or name another folder."
        )
    history = History.of(read_log(folder / "metrics.jsonl"))
    missing: dict[str, str] = {}
    evaluation = _json(folder / "evaluation.json", "evaluation", "The run was not evaluated yet", missing)
    manifest = _json(folder / "path" / "manifest.json", "path", "No degradation path was recorded", missing)
    samples, picture = _samples(folder, history), read_picture(folder / "samples" / "path.png")
    if not samples:
        missing["samples"] = "No samples were kept while the run went on."
    if picture is None:
        missing["path_picture"] = "There is no picture of the path's nodes (samples/path.png)."
    shift = _json(folder / "shift.json", "shift", "The covariate shift was not measured", missing)
    nodes, reference, mismatch = manifest.get("nodes"), evaluation.get("reference"), evaluation.get("mismatch")
    return Run(
        name=str(recipe.get("name") or folder.resolve().name),
        recipe=recipe,
        recipe_text=text,
        history=history,
        evaluated=_evaluated(evaluation),
        reference=reference if isinstance(reference, dict) else {},
        mismatch=mismatch if isinstance(mismatch, dict) else {},
        guided=_guided(evaluation.get("guidance")),
        worse_with_more=_sentences(evaluation.get("worse_with_more_steps")),
        of_best=tuple(
            replace(row, best=True)
            for row in _evaluated(_json(folder / "evaluation.best.json", "best", "", {}))
            if row.model == "student"
        ),
        shift=shift,
        student_steps=_student_steps(folder / "recipe.yaml"),
        backtracked=bool(manifest) or picture is not None or bool(history.switches()) or not _is_fixed(recipe),
        samples=samples,
        path_picture=picture,
        path_rows=_row_names(folder / "samples" / "path.json"),
        nodes=tuple(node.get("step") for node in nodes if isinstance(node, dict)) if isinstance(nodes, list) else (),
        closed=str(manifest.get("closed") or ""),
        pictures=_others(folder / "samples"),
        missing=missing,
    )


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path.parent}: is not a run folder (it has no recipe.yaml); check the path.")
    text, values = read_values(path)
    return without_secrets(text), all_without_secrets(values)


def _json(path: Path, part: str, absent: str, missing: dict[str, str]) -> dict[str, Any]:
    """The object in a JSON file; an empty one, with a sentence in ``missing``, when there is
    none.
    """
    place = f"{path.parent.name}/{path.name}" if part == "path" else path.name
    if not path.is_file():
        missing[part] = f"{absent} (there is no {place})."
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        missing[part] = f"{place} could not be read; write it anew."
        return {}
    return content


def _student_steps(path: Path) -> int | None:
    """Of the recipe's student; None for a recipe that is not of this version."""
    try:
        recipe = load_recipe(path)
    except UserError:
        return None
    return recipe.method.steps_of_student if isinstance(recipe, DistillRecipe) else None


def _is_fixed(recipe: Mapping[str, Any]) -> bool:
    """Whether the recipe says that the target is the teacher throughout."""
    target = recipe.get("target")
    return isinstance(target, dict) and target.get("kind") == "fixed"


def _evaluated(evaluation: Mapping[str, Any], guidance: str = "") -> tuple[Evaluated, ...]:
    """Teacher before student, many steps before few."""
    found = []
    for model in ("teacher", "student"):
        by_steps = evaluation.get(model)
        rows = by_steps.items() if isinstance(by_steps, dict) else ()
        known = [
            Evaluated(model, int(steps), figures, guidance)
            for steps, figures in rows
            if steps.isdecimal() and isinstance(figures, dict)
        ]
        found += sorted(known, key=lambda row: -row.steps)
    return tuple(found)


def _sentences(found: Any) -> tuple[str, ...]:
    """The sentences in a list of findings."""
    listed = found if isinstance(found, list) else ()
    return tuple(str(each["sentence"]) for each in listed if isinstance(each, dict) and "sentence" in each)


def _guided(by_scale: Any) -> tuple[Evaluated, ...]:
    """The same at each scale of guidance."""
    scales = by_scale.items() if isinstance(by_scale, dict) else ()
    return tuple(row for scale, models in scales if isinstance(models, dict) for row in _evaluated(models, str(scale)))


def _samples(folder: Path, history: History) -> tuple[tuple[int, Picture], ...]:
    """Those that the log names, or, when it names none, those that lie there; a few, evenly
    chosen.
    """
    logged = [str(entry.get("file", "")) for entry in history.samples]
    names = sorted(
        {Path(name).name for name in logged}
        or {path.name for path in (folder / "samples").glob("step-*.png") if not is_set_aside(path)}
    )
    found = [(int(match[1]), folder / "samples" / name) for name in names if (match := _STEP.fullmatch(name))]
    there = evenly(sorted(item for item in found if item[1].is_file()), _IN_STRIP)
    return tuple((step, picture) for step, path in there if (picture := read_picture(path)) is not None)


def _row_names(path: Path) -> tuple[str, ...]:
    content = _json(path, "rows", "", {})
    rows = content.get("rows")
    return tuple(str(row) for row in rows) if isinstance(rows, list) else ()


def _others(folder: Path) -> tuple[Sheet, ...]:
    paths = sorted(
        path
        for path in folder.glob("*.png")
        if not is_set_aside(path) and path.name != "path.png" and not _STEP.fullmatch(path.name)
    )
    return tuple(sheet for path in paths if (sheet := read_sheet(path)) is not None)
