"""The command that draws samples: of a run, or of a student that others have published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import MOST_STEPS, BestOption, listeners, which_student

group = typer.Typer()

DrawnRun = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; none with --base.")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        max=MOST_STEPS,
        help="Steps; those that the student was made for, and 35 of the teacher, unless given.",
    ),
]
ClassId = Annotated[
    int | None, typer.Option("--class", min=0, help="One class for all samples; all classes in turn unless given.")
]
Seed = Annotated[int, typer.Option("--seed", help="Sample i of a seed is always the same.")]
Number = Annotated[
    int | None, typer.Option("-n", min=1, help="How many: 80 unless given, and of each prompt that is given 1.")
]
PromptTexts = Annotated[
    list[str], typer.Option("--prompt", help="What to draw, of a text-to-image model; may be repeated.")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="The same from a .txt, .csv, .jsonl, .json or .parquet file."),
]
OfTeacher = Annotated[bool, typer.Option("--teacher", help="Sample the run's teacher instead.")]
Compared = Annotated[
    bool, typer.Option("--compare", help="The teacher's picture above the student's, from the same seed.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0,
        help="Classifier-free guidance of the teacher, or the scale for a student that was conditioned on it; with "
        "--base, of a network that is told no scale, by a second pass, where 1 is none.",
    ),
]
Added = Annotated[
    list[str],
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="An adapter to add to the student; with --teacher to the teacher, which a distilled adapter makes a "
        "few-step student; may be repeated.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="FOLDER|ID",
        help="A pipeline of diffusers' in the place of RUN: a few-step student that others have published, or that "
        "was exported.",
    ),
]
NetworkFile = Annotated[
    Path | None,
    typer.Option("--model", metavar="FILE", help="With --base, the network's weights: .safetensors or .bin."),
]
Timesteps = Annotated[
    str | None, typer.Option("--timesteps", metavar="I,J,...", help="With --base, at which the network is called.")
]
Sigmas = Annotated[
    str | None,
    typer.Option(
        "--sigmas",
        metavar="S,T,...",
        help="With --base, of a flow in the place of timesteps: its times before the shift, such as 1,0.75,0.5,0.25.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="With --base, of the hub's model.")]
Variant = Annotated[str | None, typer.Option("--variant", help="With --base, of the weights, such as fp16.")]
PictureFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE.png", help="The picture, .png, .jpg, .webp or .bmp; RUN/samples/sample.png unless given."
    ),
]
ArrayFile = Annotated[
    Path | None, typer.Option("--npz", metavar="FILE.npz", help="Also write the samples as an array.")
]

PicturesFolder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="In the place of a grid, a file a picture and their prompts, -n of each prompt, for fewstep measure "
        "--pictures; goes on where it was stopped.",
    ),
]


@group.command(name="sample")
def sample_run(
    run: DrawnRun = None,
    steps: Steps = None,
    class_id: ClassId = None,
    seed: Seed = 0,
    n: Number = None,
    prompt: PromptTexts = [],  # noqa: B006
    prompts: PromptsFile = None,
    teacher: OfTeacher = False,
    compare: Compared = False,
    guidance: GuidanceScale = None,
    lora: Added = [],  # noqa: B006
    base: Base = None,
    model: NetworkFile = None,
    timesteps: Timesteps = None,
    sigmas: Sigmas = None,
    revision: Revision = None,
    variant: Variant = None,
    out: PictureFile = None,
    npz: ArrayFile = None,
    folder: PicturesFolder = None,
    best: BestOption = False,
) -> None:
    """Draws samples into a PNG grid, and optionally an .npz; or pictures of prompts into a folder.

    Example: fewstep sample runs/digits-disback -n 50 --class 7 --seed 1 --npz sevens.npz
    """
    from fewstep.runs.loading import adapters_said
    from fewstep.runs.pictures.asked_pictures import drawn_for, pictured_by, prompts_said, write_drawn
    from fewstep.runs.pictures.published_students import PublishedStudent, check_source, sigmas_said, timesteps_said
    from fewstep.runs.pictures.sample_files import check_array, check_picture, write_array
    from fewstep.runs.protocols.drawn_folders import PromptPictures, check_alone, what_draws
    from fewstep.system.caches import output
    from fewstep.training.listeners import Several
    from fewstep.zoo.pipelines import PipelinePlace

    if folder is not None:
        check_alone({"--out": out, "--npz": npz, "--compare": compare, "--class": class_id is not None})
    picture = out or (run / "samples" / "sample.png" if run is not None and run.is_dir() else Path("sample.png"))
    check_picture(picture)
    if npz is not None:
        check_array(npz)
    said, adapters = prompts_said(prompt, prompts), adapters_said(lora)
    called = {"--timesteps": timesteps, "--sigmas": sigmas}
    of_base = {"--model": model, **called, "--revision": revision, "--variant": variant}
    check_source(run, base, of_base, {"--teacher": teacher, "--compare": compare, "--class": class_id is not None})
    student, which = None, which_student(best, run)
    if base is not None:
        place = PipelinePlace(base, revision, variant)
        called_at = timesteps_said(timesteps), guidance, sigmas_said(sigmas)
        student = PublishedStudent(place, model, tuple(adapters), *called_at)
        sampler = student.pictured(said)
    else:
        assert run is not None
        sampler = pictured_by(run, teacher, compare, guidance, said, adapters, which)
    if folder is not None:
        made = what_draws(student, run, teacher, guidance, adapters, which)
        PromptPictures(sampler, made, seed, 1 if n is None else n, steps).draw(folder, Several(listeners()))
        typer.echo(str(folder))
        return
    samples, numbers = drawn_for(sampler, said, n, seed, class_id, steps)
    with output(picture):
        write_drawn(picture, samples, numbers, sampler)
    if npz is not None:
        with output(npz):
            write_array(npz, samples)
    typer.echo(str(picture))
