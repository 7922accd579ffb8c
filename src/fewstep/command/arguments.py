"""What several commands are asked in the same words, and what they make of the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fewstep.keeping.run_folder import Which
    from fewstep.training import Listener

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
BestOption = Annotated[
    bool,
    typer.Option("--best", help="Of the best student that the run kept ('training.keep_best'), not of the last."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TrackOption = Annotated[
    list[str],
    typer.Option("--track", metavar="NAME", help="Also show the run in 'tensorboard' or 'wandb'; repeatable."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Processor threads; all unless given. Exact resume needs the same number."),
]


def listeners(tracks: Sequence[str] = ()) -> list[Listener]:
    """What shows how a run goes: a bar, and the tracks of these names; in the first of several
    processes only.
    """
    from fewstep.training import Bar
    from fewstep.training.listeners import open_track

    opened = [open_track(name) for name in dict.fromkeys(tracks)]
    return [Bar(), *opened] if os.environ.get("RANK", "0") == "0" else []


def which_student(best: bool, run: Path | None) -> Which:
    """Which of a run's students is meant; which step the best is of is said.

    Raises ``UserError`` where the run kept none, and for the best of no run.
    """
    if not best:
        return "last"
    from fewstep.errors import UserError
    from fewstep.keeping.run_folder import RunFolder

    if run is None:
        raise UserError("--best: is a student of a run, and --base names no run; leave one of them out.")
    found = RunFolder(run).read_best()
    figure = f"{found['measure']} {found['figure']:.4g} on noise that did not choose it"
    typer.echo(f"{RunFolder(run).best}: the student of step {found['step']}, {figure}.", err=True)
    return "best"


def use_threads(threads: int | None) -> None:
    """Computes on so many threads; as torch chooses where no number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
