"""The command that measures many samples: of a run, or of pictures in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import MOST_SAMPLES, MOST_STEPS, JsonOption, listeners
from fewstep.command.tables.evaluations import measurement_table
from fewstep.command.tables.picture_figures import pictures_table

USUAL_SAMPLES, USUAL_BATCH = 50_000, 500
group = typer.Typer()

MeasuredRun = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; none with --pictures.")]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=2, max=MOST_SAMPLES, help=f"How many samples; {USUAL_SAMPLES:,} unless given."),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Processes, each on one thread; the result is the same for any number."),
]
OfTeacher = Annotated[bool, typer.Option("--teacher", help="Measure the run's teacher instead.")]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, max=MOST_STEPS, help="Steps; the student's own and 35 for the teacher unless given."
    ),
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help="Statistics of the data: .npz with mu and sigma, or what --write-reference wrote.",
    ),
]
Metric = Annotated[
    list[str],
    typer.Option(
        "--metric",
        help="fd, kid, is, breadth or accuracy; repeatable; all that the feature space allows unless given.",
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, max=USUAL_BATCH, help="Samples in memory at a time, in each process.")
]
WrittenReference = Annotated[
    Path | None,
    typer.Option(
        "--write-reference",
        metavar="FILE",
        help="Write the statistics of the run's data to a file, and do nothing else.",
    ),
]
Folders = Annotated[
    list[Path],
    typer.Option("--pictures", metavar="FOLDER", help="Measure the pictures of a folder or zip; repeatable."),
]
Real = Annotated[
    Path | None, typer.Option("--real", metavar="FOLDER", help="With --pictures, those that distances are to.")
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=1,
        max=4096,
        help="With --pictures, pixels a side of the centred square; as they are unless given.",
    ),
]
Patch = Annotated[
    int | None,
    typer.Option("--patch", min=1, max=4096, help="With --real, also the distance of patches of so many pixels."),
]
Features = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="SECTION",
        help="With --pictures, what evaluation.features of a recipe may be; inception unless given.",
    ),
]
Clip = Annotated[
    Path | None, typer.Option("--clip", metavar="FOLDER", help="With --pictures, a CLIP model of transformers' form.")
]
ClipSize = Annotated[
    int | None,
    typer.Option("--clip-size", min=1, max=4096, help="With --clip, of the square that it is given; see --size."),
]
ClipPrefix = Annotated[
    str | None, typer.Option("--clip-prefix", metavar="TEXT", help="With --clip, put before each caption.")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="With --pictures, their prompts in the order of their names; their captions unless given.",
    ),
]
Diversity = Annotated[
    bool, typer.Option("--diversity", help="With --pictures, also the distance between those of one prompt.")
]
Targets = Annotated[
    Path | None,
    typer.Option("--targets", metavar="FOLDER", help="With --pictures, the pictures that prompts are to make."),
]
Scores = Annotated[
    list[Path],
    typer.Option("--scores", metavar="FILE.csv", help="With --pictures, scores of each; repeatable, one a folder."),
]
Earlier = Annotated[
    list[Path],
    typer.Option("--beside", metavar="FILE.json", help="With --pictures, also what --out wrote; repeatable."),
]
ResultFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.json", help="With --pictures, also write the result.")
]


@group.command(name="measure")
def measure_run(
    run: MeasuredRun = None,
    samples: Samples = None,
    processes: Processes = None,
    teacher: OfTeacher = False,
    steps: Steps = None,
    reference: StatisticsFile = None,
    metric: Metric = [],  # noqa: B006
    batch: BatchOption = None,
    write: WrittenReference = None,
    pictures: Folders = [],  # noqa: B006
    real: Real = None,
    size: Size = None,
    patch: Patch = None,
    features: Features = None,
    clip: Clip = None,
    clip_size: ClipSize = None,
    clip_prefix: ClipPrefix = None,
    prompts: PromptsFile = None,
    diversity: Diversity = False,
    targets: Targets = None,
    scores: Scores = [],  # noqa: B006
    beside: Earlier = [],  # noqa: B006
    out: ResultFile = None,
    as_json: JsonOption = False,
) -> None:
    """Measures student or teacher on many samples, over processes: Frechet and kernel distance,
    inception score, precision, recall, density, coverage, diversity, class accuracy; or folders of
    pictures as papers do: Frechet distance, of patches too, CLIP score, diversity a prompt, scores.

    Example: fewstep measure runs/digits-disback --samples 50000 --processes 2
    """
    from fewstep.runs import Workers, measure_many, write_reference
    from fewstep.runs.pictures.published_students import check_source
    from fewstep.runs.protocols import ClipChoice, PictureProtocol, measure_pictures

    of_pictures = {
        "--real": real,
        "--size": size,
        "--patch": patch,
        "--features": features,
        "--clip": clip,
        "--clip-size": clip_size,
        "--clip-prefix": clip_prefix,
        "--prompts": prompts,
        "--diversity": diversity,
        "--targets": targets,
        "--scores": scores,
        "--beside": beside,
        "--out": out,
    }
    of_run = {
        "--samples": samples,
        "--processes": processes,
        "--teacher": teacher,
        "--steps": steps,
        "--metric": metric,
        "--batch": batch,
        "--write-reference": write,
    }
    check_source(run, pictures, of_pictures, of_run, ("--pictures", "folders of pictures"))
    if run is None:
        asked = ClipChoice.said(clip, clip_size, clip_prefix)
        protocol = PictureProtocol(size, patch, real, reference, features, asked, prompts, diversity, targets)
        found = measure_pictures(pictures, protocol, scores, beside, out, listeners())
        typer.echo(json.dumps(found) if as_json else pictures_table(found))
        return
    workers = Workers(processes or 1, batch or USUAL_BATCH)
    if write is not None:
        typer.echo(str(write_reference(run, write, workers, listeners())))
        return
    result = measure_many(
        run,
        samples or USUAL_SAMPLES,
        "teacher" if teacher else "student",
        steps,
        reference,
        metric or None,
        workers,
        listeners(),
    )
    typer.echo(json.dumps(result) if as_json else measurement_table(result))
