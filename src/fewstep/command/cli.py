"""The commands.

Every one is one Python call (see ``fewstep.runs``); what is heavy is imported inside the commands,
so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.command.tables import (
    checkpoints_table,
    comparison_table,
    evaluation_table,
    findings_table,
    images_table,
    inspection_table,
    matrix_table,
    measurement_table,
    plan_table,
    shift_table,
)
from fewstep.errors import all_without_secrets

if TYPE_CHECKING:
    from fewstep.training import Listener

app = typer.Typer(
    name="fewstep",
    help="Turns a pretrained diffusion model into a generator of one to four steps.\n\nExample: fewstep distill "
    "digits-disback && fewstep report runs/digits-disback",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def fewstep(
    imports: Annotated[
        list[str],
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a module of yours first, which registers networks or data; repeatable.",
        ),
    ] = [],  # noqa: B006
) -> None:
    """Turns a pretrained diffusion model into a generator of one to four steps.

    Example: fewstep distill digits-disback && fewstep report runs/digits-disback
    """
    if imports:
        from fewstep.system.imports import import_named

        for name in imports:
            import_named(name)


data = typer.Typer(
    name="data",
    help="Makes and shows image sets.\n\nExample: fewstep data emoji emoji32.zip --size 32",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data)

MOST_SAMPLES, MOST_STEPS = 1_000_000, 10_000
"""The bounds of the recipe's keys for the same things; a test compares them, since reading them
here would take a second.
"""

SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value of the recipe, such as training.steps=40; repeatable."
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder; runs/NAME unless given.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the folder; training.steps alone may be raised.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TrackOption = Annotated[
    list[str],
    typer.Option("--track", metavar="NAME", help="Also show the run in 'tensorboard' or 'wandb'; repeatable."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Processor threads; all unless given. Exact resume needs the same number."),
]


@app.command()
def recipes(
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


@app.command()
def pretrain(
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
    _use_threads(threads)
    from fewstep.runs import pretrain as run

    folder = run(recipe, settings, out, resume, _listeners(track))
    typer.echo(f"{folder}/model.safetensors")


@app.command()
def distill(
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
    _use_threads(threads)
    from fewstep.report import write_run_report
    from fewstep.runs import distill as run

    folder = run(recipe, settings, out, resume, _listeners(track))
    write_run_report(folder)
    typer.echo(
        f"{folder}: student.safetensors, samples/final.png and report.html are there; 'fewstep evaluate "
        f"{folder}' measures them."
    )


@app.command()
def sample(
    run: RunArgument,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, max=MOST_STEPS, help="Steps; 1 for the student and 35 for the teacher unless given."
        ),
    ] = None,
    class_id: Annotated[
        int | None, typer.Option("--class", min=0, help="One class for all samples; all classes in turn unless given.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Sample i of a seed is always the same.")] = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 80,
    teacher: Annotated[bool, typer.Option("--teacher", help="Sample the run's teacher instead.")] = False,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            min=0,
            help="Classifier-free guidance of the teacher, or the scale for a student that was conditioned on it.",
        ),
    ] = None,
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
    from fewstep.runs import load_guided, load_teacher
    from fewstep.runs.sample_files import check_array, check_picture, write_array, write_samples
    from fewstep.system.caches import output

    picture = out or (run / "samples" / "sample.png" if run.is_dir() else Path("sample.png"))
    check_picture(picture)
    if npz is not None:
        check_array(npz)
    sampler = load_teacher(run, 1.0 if guidance is None else guidance) if teacher else load_guided(run, guidance)
    samples = sampler(n, seed, class_id, steps)
    with output(picture):
        write_samples(picture, samples, sampler.low, sampler.high)
    if npz is not None:
        with output(npz):
            write_array(npz, samples)
    typer.echo(str(picture))


@app.command()
def evaluate(
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
) -> None:
    """Measures teacher and student: Frechet distance, class accuracy, recall, diversity, network
    evaluations and milliseconds an image.

    Example: fewstep evaluate runs/digits-disback --json
    """
    from fewstep.report import write_run_report
    from fewstep.runs import evaluate as measure

    result = measure(run, teacher_steps, student_steps, draws, _listeners(), guidance, samples)
    write_run_report(run)
    typer.echo(json.dumps(result) if as_json else evaluation_table(result))


@app.command()
def measure(
    run: RunArgument,
    samples: Annotated[int, typer.Option("--samples", min=2, max=MOST_SAMPLES, help="How many samples.")] = 50_000,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", min=1, help="Processes, each on one thread; the result is the same for any number."
        ),
    ] = 1,
    teacher: Annotated[bool, typer.Option("--teacher", help="Measure the run's teacher instead.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, max=MOST_STEPS, help="Steps; the student's own and 35 for the teacher unless given."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="Statistics of the data: .npz with mu and sigma, or what --write-reference wrote.",
        ),
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(
            "--metric",
            help="fd, kid, is, breadth or accuracy; repeatable; all that the feature space allows unless given.",
        ),
    ] = [],  # noqa: B006
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=500, help="Samples in memory at a time, in each process.")
    ] = 500,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write-reference",
            metavar="FILE",
            help="Write the statistics of the run's data to a file, and do nothing else.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measures student or teacher on many samples, over processes: Frechet and kernel distance,
    inception score, precision, recall, density, coverage, diversity, class accuracy.

    Example: fewstep measure runs/digits-disback --samples 50000 --processes 2
    """
    from fewstep.runs import Workers, measure_many, write_reference

    workers = Workers(processes, batch)
    if write is not None:
        typer.echo(str(write_reference(run, write, workers, _listeners())))
        return
    result = measure_many(
        run, samples, "teacher" if teacher else "student", steps, reference, metric or None, workers, _listeners()
    )
    typer.echo(json.dumps(result) if as_json else measurement_table(result))


@app.command()
def shift(
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

    result = measure_shift(run, teacher_steps, samples, draws, _listeners())
    write_run_report(run)
    typer.echo(json.dumps(result) if as_json else shift_table(result))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Two or more run folders.")],
    level: Annotated[
        list[float],
        typer.Option("--level", metavar="DISTANCE", help="Compare the speed at this Frechet distance; repeatable."),
    ] = [],  # noqa: B006
    as_json: JsonOption = False,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="The plot.")] = Path("comparison.png"),
) -> None:
    """Shows how many steps and network evaluations each run needs to reach the others' level and
    fixed ones, with a plot.

    Example: fewstep compare runs/digits-disback runs/digits-diff-instruct
    """
    from fewstep.report import DistanceCurve, plot_curves
    from fewstep.runs import compare as look
    from fewstep.runs.sample_files import check_picture
    from fewstep.system.caches import output

    check_picture(out)
    comparison = look(runs, level)
    for note in comparison.notes:
        typer.echo(note, err=True)
    curves = [DistanceCurve(run.name, run.steps, run.evaluations, run.fd) for run in comparison.runs]
    with output(out):
        plot_curves(curves, out, {f"{run.name}: level": run.level for run in comparison.runs})
    typer.echo(json.dumps(comparison.as_json()) if as_json else f"{comparison_table(comparison.as_json())}\n{out}")


@app.command(name="inspect")
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


@app.command()
def checkpoints(
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


@app.command()
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN | CHECKPOINT | RECIPE]",
            help="A run folder, a file of weights, or a recipe; this machine unless given.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Says what is wrong and what to do about it; exit code 2 if something is.

    Example: fewstep doctor runs/digits-disback
    """
    from dataclasses import asdict

    from fewstep.doctor import examine, has_problem

    findings = examine(target)
    listed = [all_without_secrets(asdict(finding)) for finding in findings]
    typer.echo(json.dumps({"findings": listed}) if as_json else findings_table(listed))
    if has_problem(findings):
        raise typer.Exit(2)


@app.command()
def plan(
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


@app.command()
def report(run: RunArgument) -> None:
    """Writes report.html into the run folder: settings, curves, samples, the path, health and cost.

    Example: fewstep report runs/digits-disback
    """
    from fewstep.report import write_run_report

    typer.echo(str(write_run_report(run)))


@data.command(name="zip")
def data_zip(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder of images, its sub-folders being the classes; or another zip."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="The zip to write.")],
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=1, help="Pixels a side, of the centred square; images stay as they are unless given."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Packs a folder of images into a zip of EDM's format.

    Example: fewstep data zip photos photos64.zip --size 64
    """
    from fewstep.runs.image_sets import make_zip

    described = make_zip(source, out, size)
    typer.echo(json.dumps(described) if as_json else images_table(described))


@data.command(name="emoji")
def data_emoji(
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="The zip to write.")],
    size: Annotated[int, typer.Option("--size", min=1, help="Pixels a side.")] = 32,
    font: Annotated[
        Path | None,
        typer.Option(
            "--font",
            metavar="FILE.ttf",
            help="NotoColorEmoji.ttf; where Debian's fonts-noto-color-emoji puts it unless given.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--names", metavar="FILE.txt", help="emoji-test.txt; where Debian's unicode-data puts it unless given."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draws the colour emoji: some 3,600 RGB images in nine classes.

    Font: SIL Open Font License 1.1; names: Unicode License.

    Example: fewstep data emoji emoji32.zip --size 32
    """
    from fewstep.runs.image_sets import make_emoji

    described = make_emoji(out, size, font, names)
    typer.echo(json.dumps(described) if as_json else images_table(described))


@data.command(name="show")
def data_show(
    source: Annotated[Path, typer.Argument(metavar="ZIP", help="A zip or a folder of images.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.png", help="Also write a contact sheet.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Says how many images of which size and classes there are.

    Example: fewstep data show emoji32.zip --out sheet.png
    """
    from fewstep.runs.image_sets import describe_images

    described = describe_images(source, out)
    typer.echo(json.dumps(described) if as_json else images_table(described))


def _listeners(tracks: Sequence[str] = ()) -> list[Listener]:
    """What shows how a run goes: a bar, and the tracks of these names; in the first of several
    processes only.
    """
    from fewstep.training import Bar
    from fewstep.training.listeners import open_track

    opened = [open_track(name) for name in dict.fromkeys(tracks)]
    return [Bar(), *opened] if os.environ.get("RANK", "0") == "0" else []


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
