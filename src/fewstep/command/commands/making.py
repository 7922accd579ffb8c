"""Commands that make a student: recipes, training, and its folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import (
    BestOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    RunArgument,
    SetOption,
    ThreadsOption,
    TrackOption,
    listeners,
    use_threads,
    which_student,
)
from fewstep.command.tables.prospects import matrix_table

group = typer.Typer()


@group.command(name="recipes")
def print_recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe.")] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print what goes with what; with a name, also why not.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Lists the recipes that ship, prints one, or shows which states, targets, students and
    thresholds each method goes with.

    Example: fewstep recipes digits-disback > mine.yaml
    """
    from fewstep.recipes.reading.source import shipped_names, shipped_text

    if matrix:
        typer.echo(matrix_table(name, as_json))
        return
    if name is not None:
        typer.echo(shipped_text(name), nl=False)
        return
    for each in shipped_names():
        typer.echo(f"{each:<32}{shipped_text(each).splitlines()[0].removeprefix('# ')}")


@group.command(name="pretrain")
def pretrain_recipe(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006
    out: OutOption = None,
    resume: ResumeOption = False,
    threads: ThreadsOption = None,
    track: TrackOption = [],  # noqa: B006
) -> None:
    """Trains a teacher or a feature network from scratch.

    Example: fewstep pretrain digits-teacher --set training.steps=200 --out runs/my-teacher
    """
    use_threads(threads)
    from fewstep.runs import pretrain

    folder = pretrain(recipe, settings, out, resume, listeners(track))
    typer.echo(f"{folder}/model.safetensors")


@group.command(name="distill")
def distill_recipe(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006
    out: OutOption = None,
    resume: ResumeOption = False,
    threads: ThreadsOption = None,
    track: TrackOption = [],  # noqa: B006
) -> None:
    """Distils a teacher into a few-step student.

    Example: fewstep distill digits-disback --set training.steps=400 --out runs/quick
    """
    use_threads(threads)
    from fewstep.report import write_run_report
    from fewstep.runs import RunFolder, distill

    folder = distill(recipe, settings, out, resume, listeners(track))
    write_run_report(folder)
    kept = RunFolder(folder)
    best = f"; {kept.best.name} is the best, of step {kept.read_best()['step']}" if kept.best.is_file() else ""
    typer.echo(
        f"{folder}: student.safetensors, samples/final.png and report.html are there; 'fewstep evaluate "
        f"{folder}' measures them{best}."
    )


@group.command(name="export")
def export_run(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to be made, new or empty.")],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="fp32|fp16|bf16", help="The type of the U-Net's weights.")
    ] = "fp32",
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora",
            metavar="peft|kohya|comfyui",
            help="Write the adapter alone, for diffusers (peft), A1111 (kohya) or ComfyUI; OUT is a file.",
        ),
    ] = None,
    best: BestOption = False,
) -> None:
    """Writes the student of a text-to-image run as a folder that diffusers opens, with a card that
    says how to sample it; or with --lora the adapter of a run whose student is one.

    Example: fewstep export runs/sd15-disback exports/sd15-one-step --dtype fp16
    """
    from fewstep.runs import export
    from fewstep.runs.export import export_adapter

    which = which_student(best, run)
    if lora is not None:
        typer.echo(str(export_adapter(run, out, lora, which)))
        return
    typer.echo(f"{export(run, out, dtype, which)}: README.md has the call that samples it.")
