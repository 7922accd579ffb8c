"""The command line: what is common to all commands, and the groups that they come in."""

from __future__ import annotations

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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# In the order in which ``--help`` lists them.
for group in (
    making.group,
    sample_command.group,
    measure_command.group,
    measuring.group,
    page_commands.group,
    looking.group,
):
    app.registered_commands += group.registered_commands
app.add_typer(image_data.group)


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
