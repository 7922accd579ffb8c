"""The command line's reference: what ``--help`` of each command prints."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.testing import CliRunner

HEAD = """# The command line

Each command, as its `--help` prints it. Exit code 0: done; 2: something is to be mended, said in one sentence.
"""


def page() -> str:
    """The page, in Markdown."""
    from fewstep.command.cli import app

    lines = [HEAD]
    for words in ((), *sorted(_commands(app))):
        printed = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"}, catch_exceptions=False).stdout
        lines += [f"## {' '.join(('fewstep', *words))}", "", "```", printed.strip("\n"), "```", ""]
    return "\n".join(lines)


def _commands(app: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield (*before, command.name or command.callback.__name__.replace("_", "-"))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, (*before, group.name or str(group.typer_instance.info.name)))
