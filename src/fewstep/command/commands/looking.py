"""Commands that say what there is, what is wrong with it, and what a run will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import JsonOption, RecipeArgument, RunArgument, SetOption
from fewstep.command.tables.contents import checkpoints_table, findings_table, inspection_table, runs_table
from fewstep.command.tables.prospects import plan_table
from fewstep.errors import all_without_secrets

group = typer.Typer()


@group.command(name="runs")
def show_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look; 'runs' unless given.")] = Path(
        "runs"
    ),
    as_json: JsonOption = False,
) -> None:
    """Lists the runs below a folder: how far each is, and the distance that it measured last.

    Example: fewstep runs
    """
    from fewstep.studies.listed_runs import list_runs

    found = [run.as_json() for run in list_runs(folder)]
    typer.echo(json.dumps({"runs": found}) if as_json else runs_table(found, str(folder)))


@group.command(name="inspect")
def inspect_file(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A .pkl of EDM's release (a path or an https address), or a .safetensors of ours."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Says what a file of weights holds, with its number of parameters and checksum; nothing in it
    is run.

    Example: fewstep inspect runs/digits-disback/student.safetensors
    """
    from fewstep.doctor import inspect

    found = inspect(file)
    typer.echo(json.dumps(found) if as_json else inspection_table(found))


@group.command(name="checkpoints")
def keep_checkpoints(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Read each through and compare its checksum.")] = False,
    prune: Annotated[
        int | None,
        typer.Option(
            "--prune",
            min=1,
            metavar="N",
            help="Remove all but the newest N whole ones, and what crashed writers left; what is removed is printed.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists a run's checkpoints, the one from which a resumed run goes on by a star; verifies or
    removes them.

    Example: fewstep checkpoints runs/digits-disback --verify
    """
    from fewstep.runs import list_checkpoints, prune_checkpoints

    found = (list_checkpoints(run, verify) if prune is None else prune_checkpoints(run, prune)).as_json()
    typer.echo(json.dumps(found) if as_json else checkpoints_table(found))


@group.command(name="doctor")
def ask_doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN | FOLDER | CHECKPOINT | RECIPE]",
            help="A run folder, the folder of a pipeline, a file of weights, or a recipe; this machine unless given.",
        ),
    ] = None,
    attempt: Annotated[
        bool, typer.Option("--try", help="Draw a picture also of a pipeline that is large: minutes without a GPU.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Says what is wrong and what to do about it; exit code 2 if something is.

    Example: fewstep doctor runs/digits-disback
    """
    from dataclasses import asdict

    from fewstep.doctor import examine, has_problem

    findings = examine(target, attempt)
    listed = [all_without_secrets(asdict(finding)) for finding in findings]
    typer.echo(json.dumps({"findings": listed}) if as_json else findings_table(listed))
    if has_problem(findings):
        raise typer.Exit(2)


@group.command(name="plan")
def plan_run(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="At most so many GPUs.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, metavar="GB", help="Memory of a GPU in GiB; what fits is marked."),
    ] = None,
    tflops: Annotated[
        float,
        typer.Option("--tflops", min=0.001, help="A GPU's bf16 TFLOP/s, for the hours; half of it is taken in fp32."),
    ] = 312.0,
    reached: Annotated[
        float, typer.Option("--reached", min=0.001, max=1, help="The share of them that is reached.")
    ] = 0.3,
    as_json: JsonOption = False,
) -> None:
    """Says whether a recipe will fit and how long it will take, without its weights, data or a GPU.

    Example: fewstep plan imagenet64-disback --gpus 8 --memory 80
    """
    from fewstep.planning import plan_recipe

    found = plan_recipe(recipe, settings, gpus, memory, tflops, reached).as_json()
    typer.echo(json.dumps(found) if as_json else plan_table(found, memory))


@group.command(name="report")
def report_run(run: RunArgument) -> None:
    """Writes report.html into the run folder: settings, curves, samples, the path, health and cost.

    Example: fewstep report runs/digits-disback
    """
    from fewstep.report import write_run_report

    typer.echo(str(write_run_report(run)))
