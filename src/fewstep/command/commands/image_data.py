"""Commands that make and show image sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.command.arguments import JsonOption
from fewstep.command.tables.contents import images_table

group = typer.Typer(
    name="data",
    help="Makes and shows image sets.\n\nExample: fewstep data emoji emoji32.zip --size 32",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@group.command(name="zip")
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
    from fewstep.runs.pictures.image_sets import make_zip

    described = make_zip(source, out, size)
    typer.echo(json.dumps(described) if as_json else images_table(described))


@group.command(name="emoji")
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
    from fewstep.runs.pictures.image_sets import make_emoji

    described = make_emoji(out, size, font, names)
    typer.echo(json.dumps(described) if as_json else images_table(described))


@group.command(name="scenes")
def data_scenes(
    out: Annotated[Path, typer.Argument(metavar="SHEET.png", help="The picture to write.")],
    digits: Annotated[int, typer.Option("--digits", min=1, max=2, help="Digits in a scene.")] = 1,
    part: Annotated[str, typer.Option("--part", help="Whose handwriting: train or test.")] = "train",
    combinations: Annotated[str, typer.Option("--combinations", help="Which scenes: seen, held-out or all.")] = "seen",
    count: Annotated[int, typer.Option("--count", min=1, help="Scenes on the sheet.")] = 48,
    seed: Annotated[int, typer.Option("--seed", help="Of the scenes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draws a sheet of scenes with their captions: coloured digits, 32 x 32, made on the spot.

    Example: fewstep data scenes sheet.png --digits 2
    """
    from fewstep.runs.pictures.image_sets import show_scenes

    described = show_scenes(out, digits, part, combinations, count, seed)
    typer.echo(json.dumps(described) if as_json else described["sheet"])


@group.command(name="show")
def data_show(
    source: Annotated[Path, typer.Argument(metavar="ZIP", help="A zip or a folder of images.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.png", help="Also write a contact sheet.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Says how many images of which size and classes there are.

    Example: fewstep data show emoji32.zip --out sheet.png
    """
    from fewstep.runs.pictures.image_sets import describe_images

    described = describe_images(source, out)
    typer.echo(json.dumps(described) if as_json else images_table(described))
