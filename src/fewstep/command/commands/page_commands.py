"""Commands that serve a page to this machine: what people prefer, and a run to play with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.command.arguments import JsonOption, RunArgument
from fewstep.command.tables.preferences import preference_table
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.pages import LocalServer
    from fewstep.studies.preference import AskedModel, PairStudy

group = typer.Typer()

PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Where the page is served; 0 for a free one.")
]


@group.command(name="prefer")
def ask_raters(
    run_a: Annotated[Path | None, typer.Argument(metavar="RUN_A", help="A run folder.")] = None,
    run_b: Annotated[
        Path | None, typer.Argument(metavar="RUN_B", help="Another; none to go on with what --out holds.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A pair for each of these prompts, of text-to-image models."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="So many pairs, of classes in turn; 128 unless given.")
    ] = None,
    rater: Annotated[str | None, typer.Option("--rater", metavar="NAME", help="Who answers; each has a file.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Of the samples, and of the order and sides in which a rater sees them; 0 unless given."
        ),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="RUN_B's teacher in the place of its student.")] = False,
    guidance: Annotated[float | None, typer.Option("--guidance", min=0, help="Guidance of that teacher.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The pairs and the answers.")] = Path("preference"),
    port: PortOption = 0,
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="OUT", help="Print what the raters of this folder preferred, and ask nobody."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Asks a person which of two models' pictures is better, pair by pair and without names, on a
    page of this machine; then says what was preferred.

    Example: fewstep prefer runs/disback runs/di --out studies/digits --rater ada
    """
    from fewstep.studies.preference import AskedModel, preferred_shares
    from fewstep.studies.preference.answer_book import checked_rater

    if table is not None:
        if run_a is not None or rater is not None:
            raise UserError("--table: asks nobody; leave the runs and --rater out.")
        found = preferred_shares(table)
        typer.echo(json.dumps(found) if as_json else preference_table(found))
        return
    if as_json:
        raise UserError("--json: is of --table; leave it out, or give the folder of a study by --table.")
    if rater is None:
        raise UserError("--rater: is missing; give the name of whoever answers.")
    if run_a is not None and run_b is None:
        raise UserError("RUN_B: is missing; give a second run, or none to go on with what --out holds.")
    of_runs = {"--prompts": prompts, "--pairs": pairs, "--seed": seed, "--teacher": teacher or None}
    needless = next((name for name, value in of_runs.items() if value is not None), None)
    if run_a is None and needless is not None:
        raise UserError(f"{needless}: is of the runs; give RUN_A and RUN_B, or leave it out to go on.")
    if guidance is not None and not teacher:
        raise UserError("--guidance: is of the teacher; add --teacher or leave it out.")
    checked_rater(rater)
    asked = None if run_a is None or run_b is None else (AskedModel(run_a), AskedModel(run_b, teacher, guidance))
    _ask_rater(_study(out, asked, prompts, pairs, seed or 0), rater, port)


@group.command(name="play")
def play_run(
    run: RunArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The first prompt of the page; one of the run's unless given.")
    ] = None,
    port: PortOption = 0,
) -> None:
    """Serves a page of this machine on which student and teacher draw what one asks for, with the
    time and the network evaluations that each takes.

    Example: fewstep play runs/digits-disback
    """
    from fewstep.pages import LocalServer, PlayedRun, PlayPage

    _serve(LocalServer(PlayPage(PlayedRun.opened(run, prompt)), port))


def _study(
    out: Path, asked: tuple[AskedModel, AskedModel] | None, file: Path | None, pairs: int | None, seed: int
) -> PairStudy:
    """The study in a folder, drawn where there is none."""
    from fewstep.runs.pictures.asked_pictures import prompts_said
    from fewstep.studies.preference import drawn_study, study_at
    from fewstep.studies.preference.picture_pairs import is_study

    if asked is None:
        return study_at(out)
    texts = prompts_said((), file)
    texts = texts if texts is None else texts[:pairs]
    if not is_study(out):
        return drawn_study(out, *asked, texts, pairs, seed)
    study = study_at(out)
    study.check_asked(*asked, seed, texts, pairs)
    return study


def _ask_rater(study: PairStudy, rater: str, port: int) -> None:
    from fewstep.pages import LocalServer, PreferencePage
    from fewstep.studies.preference import AnswerBook

    _serve(LocalServer(PreferencePage(study, AnswerBook(study, rater)), port))


def _serve(server: LocalServer) -> None:
    """Serves until Ctrl-C."""
    typer.echo(server.address)
    typer.echo("Open this address in a browser of this machine; Ctrl-C ends it.", err=True)
    server.serve()
