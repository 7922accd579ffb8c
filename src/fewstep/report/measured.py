"""The tables of what was measured: ``evaluation.json`` and ``shift.json`` in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.report.gather import Evaluated, Run
from fewstep.report.words import ABSENT, count, is_number, number, percent, with_spread

BREADTH = ("precision", "recall", "density", "coverage", "diversity")
_SHARED = (
    ("fd", "Frechet distance"),
    ("accuracy", "Class accuracy"),
    ("prompt_accuracy", "Prompt accuracy"),
    ("recall", "Recall"),
    ("coverage", "Coverage"),
    ("diversity", "Diversity"),
    ("diversity_ratio", "Diversity, over the teacher's"),
)


@dataclass(frozen=True)
class TableRow:
    """A row of a table: ``name``, ``cells`` as texts, and a ``role`` for its looks."""

    name: str
    cells: tuple[str, ...]
    role: str = ""


@dataclass(frozen=True)
class Table:
    """``columns``: the first is of the rows' names, the others of their cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def title(row: Evaluated) -> str:
    """Student, 4 steps."""
    model = f"best {row.model}" if row.best else row.model
    return f"{model.capitalize()}, {count(row.steps, 'step')}" + (f", guided by {row.guidance}" if row.guidance else "")


def distance(row: Evaluated) -> str:
    """The Frechet distance with its spread."""
    return with_spread(row.figures.get("fd"), row.figures.get("fd_spread"))


def evaluated_table(run: Run) -> Table | None:
    """The table of ``evaluation.json``, the halves of the data last for reference; columns of
    breadth only where it was measured. None without figures.
    """
    evaluated = (*run.evaluated, *run.of_best, *run.guided)
    breadth = [name for name in BREADTH if any(is_number(row.figures.get(name)) for row in evaluated)]
    prompted = [(name, of) for name, of in _PROMPTED if any(is_number(of(row.figures)) for row in evaluated)]
    columns = (
        "Model",
        "Frechet distance",
        *(name for name, _ in prompted),
        "Class accuracy",
        *(name.capitalize() for name in breadth),
        "Network evaluations an image",
        "ms an image",
    )
    rows = [
        TableRow(
            title(row),
            (
                distance(row),
                *(percent(of(row.figures)) for _, of in prompted),
                percent(row.figures.get("accuracy")),
                *_figures(row.figures, (*breadth, "nfe", "ms_per_image")),
            ),
            row.model,
        )
        for row in evaluated
    ]
    if is_number(run.reference.get("halves_fd")):
        rows.append(
            TableRow(
                "Two halves of the data",
                (number(run.reference["halves_fd"]), *[ABSENT] * (len(columns) - 2)),
                "reference",
            )
        )
    return Table("Evaluation", columns, tuple(rows)) if rows else None


def _prompt_accuracy(figures: Mapping[str, Any]) -> Any:
    found = figures.get("prompt_accuracy")
    return found.get("all") if isinstance(found, dict) else None


_PROMPTED: tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...] = (
    ("Prompt accuracy", _prompt_accuracy),
    ("Diversity a prompt, over the teacher's", lambda figures: figures.get("prompt_diversity_ratio")),
    ("Diversity a class, over the teacher's", lambda figures: figures.get("class_diversity_ratio")),
)


def teacher_share(row: Evaluated) -> float | None:
    """The distance within a prompt or class as a share of the teacher's, None where it was not
    measured.
    """
    found = next((value for _, of in _PROMPTED[1:] if is_number(value := of(row.figures))), None)
    return None if found is None else float(found)


def mismatch_rows(run: Run) -> list[dict[str, Any]]:
    """The mismatch degree by noise level: the teacher on data, and on the student's samples
    (DisBack, Fig. 11); as Eq. 9 is printed too, where it was measured so.
    """
    columns = [run.mismatch.get(name) for name in ("levels", "training", "assessed", "reliable")]
    if (
        not all(isinstance(column, list) for column in columns)
        or len({len(column) for column in columns if column is not None}) != 1
    ):
        return []
    rows = zip(*(column for column in columns if column is not None), strict=True)
    shown = [
        {"level": number(level), "training": number(training), "assessed": number(assessed), "reliable": bool(fine)}
        for level, training, assessed, fine in rows
    ]
    for name in ("training", "assessed"):
        for row, norm in zip(shown, _norms(run.mismatch.get("norms"), name, len(shown)), strict=True):
            row[f"{name}_norm"] = norm
    return shown


def _norms(norms: Any, name: str, rows: int) -> list[str]:
    """The mean norm of each level with its deviation over the samples."""
    found = norms.get(name) if isinstance(norms, dict) else None
    columns = [found.get(key) for key in ("mean", "deviation")] if isinstance(found, dict) else []
    if not columns or not all(isinstance(column, list) and len(column) == rows for column in columns):
        return [ABSENT] * rows
    return [with_spread(mean, deviation) for mean, deviation in zip(*columns, strict=True)]


def reading_of_table(run: Run) -> str:
    """How the table is to be read."""
    samples, draws, teacher = (run.reference.get(name) for name in ("samples", "draws", "teacher"))
    spread = f", and ± is the spread over {number(draws)} draws." if is_number(draws) and draws > 1 else "."
    size = f" Each is measured on {number(samples)} samples{spread}"
    reading = "Lower distances are better." + (size if is_number(samples) else "")
    if isinstance(teacher, dict):
        reading += f" Distances are to {number(teacher.get('samples'))} samples of the teacher at "
        reading += f"{number(teacher.get('steps'))} steps" + (
            f", guided by {number(teacher['guidance'])}." if is_number(teacher.get("guidance")) else "."
        )
    for sentence in run.worse_with_more:
        reading += f" {sentence[:1].upper()}{sentence[1:]}"
    if any(is_number(row.figures.get("recall")) for row in run.evaluated):
        reading += (
            " Precision and density say how much of what is generated is like data, recall and coverage "
            "how much of the data is reached; "
            "diversity is the distance within classes over the data's own. They are of the first draw."
        )
    return reading


def shift_tables(run: Run) -> list[Table]:
    """DDIL's Tables 5 to 7, and what each step does to a sample; none without ``shift.json``.

    Parts that are not as they should be are left out.
    """
    levels = _levels(run.shift)
    found = [
        _shared(run.shift.get("mixing"), "probability", "Teacher with probability", {}),
        _shared(run.shift.get("teacher_then_student"), "time", "Teacher down to sigma / alpha, then student", levels),
        _shared(run.shift.get("student_then_teacher"), "time", "Student down to sigma / alpha, then teacher", levels),
        _sensitivity(run.shift.get("sensitivity"), levels),
    ]
    return [table for table in found if table is not None]


def reading_of_shift(run: Run) -> str:
    """How those tables are to be read."""
    teacher, student, samples = (number(run.shift.get(name)) for name in ("teacher_steps", "student_steps", "samples"))
    return (
        f"Teacher and student share each generation: {student} transitions, of which the teacher makes its "
        f"own in {teacher} DDIM steps in all; {samples} samples a row, the same noise in "
        "each (DDIL, Tables 5 to 7). Where the teacher's help lowers the distance most, the student's "
        "errors arise; the third table shows which of them the teacher mends afterwards."
    )


def _shared(rows: Any, setting: str, name: str, levels: Mapping[float, str]) -> Table | None:
    if not _objects(rows):
        return None
    columns = [(key, label) for key, label in _SHARED if any(is_number(row.get(key)) for row in rows)]
    shown = tuple(
        TableRow(_named(row.get(setting), levels), tuple(_cell(row, key) for key, _ in columns)) for row in rows
    )
    return Table(name, (name, *(label for _, label in columns)), shown)


def _sensitivity(found: Any, levels: Mapping[float, str]) -> Table | None:
    if not isinstance(found, dict):
        return None
    columns = [
        column for name in ("times", "student_once", "teacher_once") if isinstance(column := found.get(name), list)
    ]
    if len(columns) != 3 or len({len(column) for column in columns}) != 1:
        return None
    rows = [
        TableRow(_named(time, levels), (number(once), number(spared)))
        for time, once, spared in zip(*columns, strict=True)
    ]
    rows.append(TableRow("Student throughout", (number(found.get("student")), ABSENT)))
    return Table(
        "Distance from the teacher's sample",
        ("Step from sigma / alpha", "Student in this step only", "Teacher in this step only"),
        tuple(rows),
    )


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key == "fd":
        return with_spread(row.get("fd"), row.get("fd_spread"))
    return percent(row.get(key)) if key in ("accuracy", "prompt_accuracy") else number(row.get(key))


def _figures(figures: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(number(figures.get(name)) for name in names)


def _levels(shift: Mapping[str, Any]) -> dict[float, str]:
    """The noise level of each time, in words."""
    times, levels = shift.get("times"), shift.get("levels")
    if not isinstance(times, list) or not isinstance(levels, list) or len(times) != len(levels):
        return {}
    return {
        time: "pure noise" if level is None else number(level)
        for time, level in zip(times, levels, strict=True)
        if is_number(time)
    }


def _named(setting: Any, levels: Mapping[float, str]) -> str:
    return levels.get(setting, number(setting)) if is_number(setting) else number(setting)


def _objects(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
