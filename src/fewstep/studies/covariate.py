"""Where the errors of a run's few-step student arise: what ``fewstep shift`` does (DDIL, Garrepalli
et al. 2024, App. E, Tables 5 to 7 and Figure 4; see ``shift``, ``sensitivity``).

Rows of the tables that are one of the two models alone are measured once: without the teacher, all
three tables are what ``evaluate`` says of the student on equally many samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fewstep.denoisers import Denoiser, Generator, Guided, Rescheduled, device_of
from fewstep.errors import UserError
from fewstep.keeping.origins import measured_origins
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics.quality import Evaluator
from fewstep.random import Key
from fewstep.recipes.building.parts import evaluator_in
from fewstep.runs.loading import load_beside, teacher_of
from fewstep.runs.pictures.image_sets import announce
from fewstep.runs.sampler import StudentSampler
from fewstep.runs.teacher_reference import teacher_moments
from fewstep.studies.sensitivity import step_sensitivity
from fewstep.studies.shift import (
    PROBABILITIES,
    Relay,
    Selection,
    ShiftRow,
    Stochastic,
    StudentFirst,
    TeacherFirst,
    shift_row,
)
from fewstep.training import Listener
from fewstep.training.listeners import Several

TEACHER_STEPS = 8
SENSITIVITY_ROWS = 1000


def measure_shift(
    run: Path | str,
    teacher_steps: int | None = None,
    samples: int | None = None,
    draws: int = 1,
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Quality of generations that teacher and student share, and each step's sensitivity; also
    written to ``shift.json``.

    ``teacher_steps``: DDIM steps of the teacher alone, 8 for each of the student's unless given
    (App. E: 32 for 4). ``samples`` a draw: the recipe's unless given. Raises ``UserError`` for a
    student of one step, for a generator, and for steps that are no multiple of the student's.
    """
    folder = RunFolder(Path(run))
    recipe = folder.read_distill_recipe()
    choice = recipe.evaluation if samples is None else recipe.evaluation.model_copy(update={"samples": samples})
    if recipe.data is None:
        raise UserError(
            f"{run}: its recipe has no 'data' section, and 'shift' compares samples with data; run a recipe with data."
        )
    data = recipe.data.open()
    listener = Several(listeners)
    announce(data, listener)
    teacher = teacher_of(recipe, data)
    student = load_beside(folder.path, teacher)
    space = choice.features.space(data.space, device_of(student.model))
    evaluator = evaluator_in(space, choice, data, student.classes)
    if recipe.evaluation.reference is not None:
        moments = teacher_moments(recipe, teacher, space, data, listener.say).get(listener)
        evaluator = replace(evaluator, reference=lambda: moments)
    guided = recipe.target.guidance.guided(teacher.denoiser, student.prior.conditions, degraded=0.0)
    relay = build_relay(folder.path, student, guided, teacher_steps)
    with listener:
        listener.stage("shift", len(PROBABILITIES) + 2 * relay.transitions - 1, 0)
        result = {
            "student_steps": relay.transitions,
            "teacher_steps": len(relay.fine) - 1,
            "samples": evaluator.samples,
            "draws": draws,
            "guidance": relay.guidance,
            "target_guidance": recipe.target.guidance.describe() if recipe.target.guidance.guides else None,
            "origins": measured_origins(folder, recipe, data, listener.say),
            "times": relay.times.tolist(),
            "levels": [_finite(level) for level in relay.prior.schedule.rho(relay.times).tolist()],
            **_tables(relay, evaluator, draws, listener),
            "sensitivity": _sensitivity(relay, evaluator),
        }
        listener.step(len(PROBABILITIES) + 2 * relay.transitions - 1, "sensitivity")
    folder.write(folder.path / "shift.json", json.dumps(result, indent=2) + "\n", listener.say)
    return result


def build_relay(run: Path, student: StudentSampler, teacher: Denoiser, teacher_steps: int | None = None) -> Relay:
    """A run's student and teacher as a relay on the student's own grid; a teacher of another
    schedule is rescheduled, and guided where the student was conditioned on a scale.
    """
    sampling = student.sampling
    if isinstance(student.model, Generator):
        raise UserError(
            f"{run}: its student is a generator, which has no noise levels at which a teacher could take "
            "over; 'shift' needs a student of several steps."
        )
    if sampling.steps == 1:
        raise UserError(
            f"{run}: its student takes one step, so there is no time at which a teacher could take over; "
            "'shift' needs a student of several steps."
        )
    schedule = student.schedule
    if teacher.schedule != schedule:
        teacher = Rescheduled(teacher, schedule)
    if sampling.guidance is not None:
        teacher = Guided(teacher, conditions=student.prior.conditions)
    steps = TEACHER_STEPS * sampling.steps if teacher_steps is None else teacher_steps
    times, fine = (sampling.times(schedule, student.prior.time, count) for count in (sampling.steps, steps))
    flow_map = sampling.flow_map(student.model, schedule)
    return Relay(teacher, flow_map, student.prior, times, fine, sampling.guidance, student.codec, student.batch)


def _tables(relay: Relay, evaluator: Evaluator, draws: int, listener: Listener) -> dict[str, list[dict[str, Any]]]:
    """Tables 5, 6 and 7, without what one model alone would be measured for again."""
    done, n, times = 0, relay.transitions, relay.times.tolist()

    def measured(selection: Selection, setting: float, note: str) -> ShiftRow:
        nonlocal done
        found = shift_row(relay, evaluator, selection, setting, draws)
        done += 1
        listener.step(done, note)
        return found

    mixing = [measured(Stochastic(p), p, f"mixed, p = {p:g}") for p in PROBABILITIES]
    student, teacher = mixing[0], mixing[-1]

    def switched(kind: Callable[[int], Selection], first: ShiftRow, last: ShiftRow, note: str) -> list[ShiftRow]:
        between = [measured(kind(index), times[index], f"{note} at {times[index]:.3g}") for index in range(1, n)]
        return [replace(first, setting=times[0]), *between, replace(last, setting=times[n])]

    down = switched(TeacherFirst, student, teacher, "teacher, then student")
    up = switched(StudentFirst, teacher, student, "student, then teacher")
    return {
        "mixing": [_entry(found, "probability", teacher) for found in mixing],
        "teacher_then_student": [_entry(found, "time", teacher) for found in down],
        "student_then_teacher": [_entry(found, "time", teacher) for found in up],
    }


def _entry(found: ShiftRow, setting: str, teacher: ShiftRow) -> dict[str, Any]:
    """A row as plain values, its setting by its own name, and its diversity as a share of the
    teacher's; without a classifier there is no accuracy.
    """
    values = {name: value for name, value in asdict(found).items() if name != "setting" and value is not None}
    if found.diversity is not None and teacher.diversity:
        values["diversity_ratio"] = found.diversity / teacher.diversity
    return {setting: found.setting, **values}


def _sensitivity(relay: Relay, evaluator: Evaluator) -> dict[str, Any]:
    """In the feature space of the evaluation, on the first draw's noise."""
    rows = min(evaluator.samples, SENSITIVITY_ROWS)
    found = step_sensitivity(
        relay, Key(evaluator.seed, "evaluation", 0), rows, replace(evaluator, samples=rows).labels, evaluator.features
    )
    return {**asdict(found), "samples": rows}


def _finite(value: float) -> float | None:
    """None for the infinite level of pure noise, which JSON cannot say."""
    # Without its sign, which a level of 0 may have.
    return value + 0.0 if math.isfinite(value) else None
