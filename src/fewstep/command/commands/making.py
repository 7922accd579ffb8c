"""Commands that make a student: recipes, training, samples, and its folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import (
    MOST_STEPS,
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
    from fewstep.runs import distill

    folder = distill(recipe, settings, out, resume, listeners(track))
    write_run_report(folder)
    typer.echo(
        f"{folder}: student.safetensors, samples/final.png and report.html are there; 'fewstep evaluate "
        f"{folder}' measures them."
    )


@group.command(name="sample")
def sample_run(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; none with --base.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            max=MOST_STEPS,
            help="Steps; those that the student was made for, and 35 of the teacher, unless given.",
        ),
    ] = None,
    class_id: Annotated[
        int | None, typer.Option("--class", min=0, help="One class for all samples; all classes in turn unless given.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Sample i of a seed is always the same.")] = 0,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many: 80 unless given, and of each prompt that is given 1.")
    ] = None,
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", help="What to draw, of a text-to-image model; may be repeated."),
    ] = [],  # noqa: B006
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="The same from a .txt, .csv, .jsonl, .json or .parquet file."),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Sample the run's teacher instead.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="The teacher's picture above the student's, from the same seed.")
    ] = False,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            min=0,
            help="Classifier-free guidance of the teacher, or the scale for a student that was conditioned on it.",
        ),
    ] = None,
    lora: Annotated[
        list[str],
        typer.Option(
            "--lora",
            metavar="FILE[:WEIGHT]",
            help="An adapter to add to the student; with --teacher to the teacher, which a distilled adapter makes a "
            "few-step student; may be repeated.",
        ),
    ] = [],  # noqa: B006
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="FOLDER|ID",
            help="A pipeline of diffusers' in the place of RUN: a few-step student that others have published, or that "
            "was exported.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="With --base, the network's weights: .safetensors or .bin."),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option("--timesteps", metavar="I,J,...", help="With --base, at which the network is called."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="With --base, of the hub's model.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="With --base, of the weights, such as fp16.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.png",
            help="The picture, .png, .jpg, .webp or .bmp; RUN/samples/sample.png unless given.",
        ),
    ] = None,
    npz: Annotated[
        Path | None, typer.Option("--npz", metavar="FILE.npz", help="Also write the samples as an array.")
    ] = None,
) -> None:
    """Draws samples into a PNG grid, and optionally an .npz.

    Example: fewstep sample runs/digits-disback -n 50 --class 7 --seed 1 --npz sevens.npz
    """
    from fewstep.runs.loading import adapters_said
    from fewstep.runs.pictures.asked_pictures import drawn_for, pictured_by, prompts_said, write_drawn
    from fewstep.runs.pictures.published_students import check_source, published_by
    from fewstep.runs.pictures.sample_files import check_array, check_picture, write_array
    from fewstep.system.caches import output

    picture = out or (run / "samples" / "sample.png" if run is not None and run.is_dir() else Path("sample.png"))
    check_picture(picture)
    if npz is not None:
        check_array(npz)
    said = prompts_said(prompt, prompts)
    of_base = {"--model": model, "--timesteps": timesteps, "--revision": revision, "--variant": variant}
    check_source(run, base, of_base, {"--teacher": teacher, "--compare": compare, "--class": class_id is not None})
    adapters = adapters_said(lora)
    if base is not None:
        sampler = published_by(base, revision, variant, model, adapters, timesteps, guidance, said)
    else:
        assert run is not None
        sampler = pictured_by(run, teacher, compare, guidance, said, adapters)
    samples, numbers = drawn_for(sampler, said, n, seed, class_id, steps)
    with output(picture):
        write_drawn(picture, samples, numbers, sampler)
    if npz is not None:
        with output(npz):
            write_array(npz, samples)
    typer.echo(str(picture))


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
) -> None:
    """Writes the student of a text-to-image run as a folder that diffusers opens, with a card that
    says how to sample it; or with --lora the adapter of a run whose student is one.

    Example: fewstep export runs/sd15-disback exports/sd15-one-step --dtype fp16
    """
    from fewstep.runs import export
    from fewstep.runs.export import export_adapter

    if lora is not None:
        typer.echo(str(export_adapter(run, out, lora)))
        return
    typer.echo(f"{export(run, out, dtype)}: README.md has the call that samples it.")
