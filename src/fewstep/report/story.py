"""The run in words: what was distilled, how far it came, what it cost, whether it was well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.report.gather import Evaluated, Run
from fewstep.report.history import History, StageCost
from fewstep.report.measured import distance, teacher_share, title
from fewstep.report.words import count, duration, is_number, listed, number, percent


@dataclass(frozen=True)
class Verdict:
    """``mood`` is "good", "fair", "bad" or "unknown"; ``word`` sums up, ``sentence`` explains."""

    mood: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Tile:
    """A figure of the headline and what it is."""

    label: str
    figure: str
    detail: str = ""
    mood: str = ""


@dataclass(frozen=True)
class CostRow:
    """A stage's cost in words."""

    stage: str
    steps: str
    evaluations: str
    share: str
    seconds: str
    per_step: str
    ms_per_step: str


def verdict(history: History) -> Verdict:
    """Was the run well? By its health readings, never by its losses."""
    warnings, checks = history.warnings(), count(len(history.health), "check")
    if not history.health:
        return Verdict("unknown", "not watched", "No health readings were taken, so nothing can be said about it.")
    if not warnings:
        return Verdict("good", "nothing was off", f"{checks}, and no warning.")
    given = count(sum(len(warned.steps) for warned in warnings), "warning")
    last = max(step for warned in warnings for step in warned.steps)
    if history.last_check_is_clean():
        return Verdict(
            "fair", "recovered", f"{given} in {checks}, the last at step {last:,}; the newest check was clean."
        )
    return Verdict(
        "bad", "something is off", f"{given} in {checks}, and the newest check, at step {last:,}, warned still."
    )


def method(recipe: Mapping[str, Any]) -> str:
    """What the recipe calls its method, with the fake score that tells the methods of distribution
    matching apart.
    """
    section = _sought(recipe, "method")
    fake = _word(section["fake"]) if isinstance(section, dict) and "fake" in section else ""
    return (_word(section) + (f", fake score: {fake}" if fake else "")) or "not named in the recipe"


def facts(run: Run) -> list[tuple[str, str]]:
    """What else tells this run from others: the student's steps, and states and thresholds where
    they are not the usual ones.
    """
    found = [] if run.student_steps is None else [("Student", count(run.student_steps, "step"))]
    for name, label, usual in (("states", "States", "usual"), ("reflected", "Thresholds", "none")):
        section = run.recipe.get(name)
        word = _word(section) if isinstance(section, dict) and "kind" in section else ""
        if word and word != usual:
            found.append((label, word))
    return found + _best(run)


def _best(run: Run) -> list[tuple[str, str]]:
    """The best student that the run kept, and whether it ended the run."""
    kept = next((entry for entry in reversed(run.history.best) if entry.get("kept")), None)
    if kept is None:
        return []
    section = _sought(run.recipe, "keep_best")
    measure = section.get("measure", "fd") if isinstance(section, dict) else "fd"
    found = [
        (
            "Best student",
            f"of step {kept['step']:,}, {measure} {number(kept.get('figure'))} on noise that did not choose it",
        )
    ]
    last = run.history.best[-1]
    if last.get("ends"):
        missed = count(int(last.get("misses", 0)), "measurement")
        found.append(("Ended early", f"at step {last['step']:,}, after {missed} without a better student"))
    return found


def target(run: Run) -> str:
    """What played the teacher: as the recipe says, and how it went as the log tells."""
    section = _sought(run.recipe, "target")
    said = _word(section) + _guided(section)
    switches, gap = run.history.switches(), run.history.first_gap()
    if not switches:
        return said or "not named in the recipe, and the log tells of no switch"
    named = [f"{switch.name} from step {switch.step:,}" for switch in switches]
    moved = ", ".join(named) if len(named) <= 5 else f"{named[0]}, {len(named) - 2} nodes between, {named[-1]}"
    ended = "" if switches[-1].node == 0 else f"; it ended at node {switches[-1].node}, short of the teacher"
    began = "" if gap is None else f"; the gap of its first step was {number(gap)}"
    return f"{said + ': ' if said else 'backtracked along the degradation path: '}{moved}{began}{ended}"


def _guided(target: Any) -> str:
    """The guidance of a recipe's target, for a sentence; nothing where it has none."""
    guidance = target.get("guidance") if isinstance(target, dict) else None
    if not isinstance(guidance, dict) or _word(guidance) in ("", "none"):
        return ""
    settings = listed([f"{name} {_shown(value)}" for name, value in guidance.items() if name != "kind"])
    return f", guided ({_word(guidance)}{f', {settings}' if settings else ''})"


def summary(run: Run) -> str:
    """The outcome in one sentence."""
    teachers, students = _rows(run, "teacher"), _rows(run, "student")
    if students:
        usual = _usual(run, students)
        others = listed([f"{distance(row)} in {count(row.steps, 'step')}" for row in students if row is not usual])
        reached = f"In {count(usual.steps, 'step')} the student reaches a Frechet distance of {distance(usual)}" + (
            f" ({others})" if others else ""
        )
        beside = listed([f"{distance(row)} in {count(row.steps, 'step')}" for row in teachers])
        share = teacher_share(usual)
        varied = "" if share is None else f" Its samples are {number(share)} times as diverse as the teacher's."
        return (f"{reached}; the teacher has {beside}." if beside else f"{reached}.") + varied
    checked = _checked(run.history)
    if checked:
        return (
            f"The run was not evaluated yet; at its newest check, step {checked[-1][0]:,}, the student's "
            f"Frechet distance was {number(checked[-1][1])}."
        )
    return "The run was not evaluated yet, and no distances were taken while it went on."


def tiles(run: Run) -> list[Tile]:
    """The headline's figures: student, teacher, cost, health."""
    stages, state = run.history.stages(), verdict(run.history)
    students = _rows(run, "student")
    if students:
        usual = _usual(run, students)
        students = [usual, *(row for row in students if row is not usual)]
    shown = [Tile(title(row), distance(row), _detail(row)) for row in [*students, *_rows(run, "teacher")]]
    if not students:
        checked = _checked(run.history)
        shown.insert(0, Tile("Student, newest check", number(checked[-1][1]) if checked else "–", "Frechet distance"))
    spent = _all_stages(stages)
    taken = "" if spent.seconds is None else f" in {duration(spent.seconds)}"
    shown.append(Tile("Cost", number(spent.evaluations), f"network evaluations, {count(spent.steps, 'step')}{taken}"))
    shown.append(Tile("Health", state.word, state.sentence, state.mood))
    return shown


def _all_stages(stages: tuple[StageCost, ...]) -> StageCost:
    """All stages as one."""
    seconds = [stage.seconds for stage in stages if stage.seconds is not None]
    return StageCost("all", (0, 0), stages[-1].last if stages else (0, 0), sum(seconds) if seconds else None)


def costs(stages: tuple[StageCost, ...]) -> list[CostRow]:
    """A row a stage, and the sum where there are several."""
    whole = _all_stages(stages)
    return [_cost(stage, whole.evaluations) for stage in (*stages, *([whole] if len(stages) > 1 else []))]


def _cost(stage: StageCost, evaluations: int) -> CostRow:
    steps = stage.steps or 1
    return CostRow(
        stage=stage.name,
        steps=number(stage.steps),
        evaluations=number(stage.evaluations),
        share=percent(stage.evaluations / evaluations) if evaluations else "–",
        seconds=duration(stage.seconds),
        per_step=number(round(stage.evaluations / steps)),
        ms_per_step="–" if stage.seconds is None else number(1000.0 * stage.seconds / steps),
    )


def path(run: Run) -> str:
    """The recorded path in a sentence or two."""
    after = listed([number(step) for step in run.nodes])
    recorded = (
        f"{count(len(run.nodes), 'node')} recorded"
        + (f" after {after} steps of degradation" if after else "")
        + "; the teacher is node 0."
    )
    return recorded + (f" Recording stopped early: {run.closed.rstrip('.')}." if run.closed else "")


def settings(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recipe as sections of (name, value), deeper names joined by dots; values that stand alone
    come first, under "".
    """
    alone = [(str(key), _shown(value)) for key, value in recipe.items() if not isinstance(value, dict)]
    sections = [(str(key), _flat(value, "")) for key, value in recipe.items() if isinstance(value, dict)]
    return ([("", alone)] if alone else []) + sections


def _flat(value: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{before}{key}"
        if isinstance(item, list) and any(isinstance(part, dict) for part in item):
            item = dict(enumerate(item))
        rows += _flat(item, f"{name}.") if isinstance(item, dict) and item else [(name, _shown(item))]
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "none"
    return "–" if value is None or value == {} else str(value)


def _sought(recipe: Mapping[str, Any], name: str) -> Any:
    """The value of ``name`` in the recipe or one level below."""
    deeper = (value[name] for value in recipe.values() if isinstance(value, dict) and name in value)
    return recipe[name] if name in recipe else next(deeper, None)


def _word(value: Any) -> str:
    """A setting's word: itself, or what a mapping calls itself."""
    if isinstance(value, dict):
        return _word(next((value[key] for key in ("name", "kind", "type", "method") if key in value), None))
    return "" if value is None else str(value)


def _rows(run: Run, model: str) -> list[Evaluated]:
    return [row for row in run.evaluated if row.model == model]


def _usual(run: Run, students: list[Evaluated]) -> Evaluated:
    """The student at the steps it was trained for, or else at the fewest."""
    return next((row for row in students if row.steps == run.student_steps), students[-1])


def _detail(row: Evaluated) -> str:
    accuracy, share = row.figures.get("accuracy"), teacher_share(row)
    return (
        "Frechet distance"
        + (f"; {percent(accuracy)} of the classes right" if is_number(accuracy) else "")
        + ("" if share is None or row.model == "teacher" else f"; {percent(share)} of the teacher's diversity")
    )


def _checked(history: History) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry["fd"])) for entry in history.evaluation if is_number(entry.get("fd"))]
