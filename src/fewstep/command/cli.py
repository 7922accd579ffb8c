"""The command line: what is common to all commands, and the groups that they come in."""

from __future__ import annotations

import inspect
import re
from typing import Annotated

import typer

from fewstep.command.commands import (
    image_data,
    looking,
    making,
    measure_command,
    measuring,
    page_commands,
    sample_command,
)

app = typer.Typer(
    name="fewstep",
    help="Turns a pretrained diffusion model into a generator of one to four steps.\n\nExample: fewstep distill "
    "digits-disback && fewstep report runs/digits-disback",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

GROUPS = {
    "make": [making.group, sample_command.group],
    "measure": [measure_command.group, measuring.group],
    "show to people": [page_commands.group],
    "look": [looking.group],
}
"""What commands are for, in the order in which ``--help`` lists them."""
FIRST = ("distill", "sample", "evaluate", "export", "doctor")
"""The commands that matter at first."""
for groups in GROUPS.values():
    for group in groups:
        app.registered_commands += group.registered_commands
app.add_typer(image_data.group)


def overview() -> str:
    """What ``fewstep`` alone shows: the first commands, and the names of the others by what they
    are for.
    """
    commands = {str(command.name): command for command in app.registered_commands}
    lines = ["fewstep turns a pretrained diffusion model into a generator of one to four steps.", ""]
    for name in FIRST:
        # Of its help what comes before the first stop.
        said = " ".join((inspect.getdoc(commands[name].callback) or "").split())
        lines.append(f"  fewstep {name:<10}{re.split(r'[.;:,]', said)[0]}")
    lines.append("")
    for purpose, groups in GROUPS.items():
        others = [str(each.name) for group in groups for each in group.registered_commands if each.name not in FIRST]
        lines.append(f"  {purpose + ':':<17}{', '.join(others)}")
    lines.append(
        f"  {'pictures:':<17}" + ", ".join(f"data {each.name}" for each in image_data.group.registered_commands)
    )
    lines += ["", "Begin with: fewstep distill digits-disback. Each command has --help, and all are in fewstep --help."]
    return "\n".join(lines)


@app.callback()
def fewstep(
    context: typer.Context,
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
    if context.invoked_subcommand is None:
        typer.echo(overview())
        return
    if imports:
        from fewstep.system.imports import import_named

        for name in imports:
            import_named(name)
