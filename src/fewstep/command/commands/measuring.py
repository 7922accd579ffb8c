"""Commands that measure runs and compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import (
    MOST_SAMPLES,
    MOST_STEPS,
    BestOption,
    JsonOption,
    RunArgument,
    listeners,
    which_student,
)
from fewstep.command.tables.comparisons import comparison_table
from fewstep.command.tables.evaluations import quality_table
from fewstep.command.tables.shifts import shift_table

group = typer.Typer()


@group.command(name="evaluate")
def evaluate_run(
    run: RunArgument,
    as_json: JsonOption = False,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, max=MOST_SAMPLES, help="Samples a draw; the recipe's unless given."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, max=MOST_STEPS, help="Draws; the recipe's unless given.")
    ] = None,
    teacher_steps: Annotated[
        list[int], typer.Option("--teacher-steps", min=1, max=MOST_STEPS, help="Steps of the teacher; repeatable.")
    ] = [],  # noqa: B006
    student_steps: Annotated[
        list[int], typer.Option("--student-steps", min=1, max=MOST_STEPS, help="Steps of the student; repeatable.")
    ] = [],  # noqa: B006
    guidance: Annotated[
        list[float], typer.Option("--guidance", min=0, metavar="W", help="Also at this guidance scale; repeatable.")
    ] = [],  # noqa: B006
    best: BestOption = False,
) -> None:
    """Measures teacher and student: Frechet distance, class accuracy, recall, diversity, network
    evaluations and milliseconds an image.

    Example: fewstep evaluate runs/digits-disback --json
    """
    from fewstep.report import write_run_report
    from fewstep.runs import evaluate

    result = evaluate(
        run, teacher_steps, student_steps, draws, listeners(), guidance, samples, which=which_student(best, run)
    )
    write_run_report(run)
    typer.echo(json.dumps(result) if as_json else quality_table(result))


@group.command(name="shift")
def shift_of_run(
    run: RunArgument,
    teacher_steps: Annotated[
        int | None,
        typer.Option(
            "--teacher-steps",
            min=1,
            max=MOST_STEPS,
            help="DDIM steps of the teacher; 8 for each of the student's unless given.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=2, max=MOST_SAMPLES, help="Samples a row; the recipe's unless given.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, max=MOST_STEPS, help="Draws a row.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Shows where the errors of a student of several steps arise: generations shared by teacher and
    student (DDIL, Tables 5 to 7), and each step's sensitivity.

    Example: fewstep shift runs/digits-pd --samples 2000
    """
    from fewstep.report import write_run_report
    from fewstep.studies import measure_shift

    result = measure_shift(run, teacher_steps, samples, draws, listeners())
    write_run_report(run)
    typer.echo(json.dumps(result) if as_json else shift_table(result))


@group.command(name="compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Two or more run folders.")],
    level: Annotated[
        list[float],
        typer.Option("--level", metavar="DISTANCE", help="Compare the speed at this Frechet distance; repeatable."),
    ] = [],  # noqa: B006
    as_json: JsonOption = False,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="The plot.")] = Path("comparison.png"),
    best: BestOption = False,
) -> None:
    """Shows how many steps and network evaluations each run needs to reach the others' level and
    fixed ones, with a plot.

    Example: fewstep compare runs/digits-disback runs/digits-diff-instruct
    """
    from fewstep.report import DistanceCurve, plot_curves
    from fewstep.runs import compare
    from fewstep.runs.pictures.sample_files import check_picture
    from fewstep.system.caches import output

    check_picture(out)
    comparison = compare(runs, level, "best" if best else "last")
    for run in runs:
        which_student(best, run)
    for note in comparison.notes:
        typer.echo(note, err=True)
    curves = [DistanceCurve(run.name, run.steps, run.evaluations, run.fd) for run in comparison.runs]
    with output(out):
        plot_curves(curves, out, {f"{run.name}: level": run.level for run in comparison.runs})
    typer.echo(json.dumps(comparison.as_json()) if as_json else f"{comparison_table(comparison.as_json())}\n{out}")
