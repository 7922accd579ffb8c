"""Is an exported folder as it was written? Its files against ``fewstep.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fewstep.doctor.findings import Finding, note, ok, problem
from fewstep.zoo.pipelines.facts import FACTS, changed_files, read_facts

_SENTENCES = {"missing": "there is no such file.", "changed": "is not the file that was written: its SHA-256 differs."}


def is_export(path: Path) -> bool:
    """Whether a folder says that it is an exported one."""
    return (path / FACTS).is_file()


def check_export(folder: Path) -> Iterator[Finding]:
    """The findings of a folder that ``fewstep export`` wrote.

    Nothing is loaded. Raises ``UserError`` for a ``fewstep.json`` that cannot be read.
    """
    facts = read_facts(folder)
    changed = changed_files(folder, facts)
    again = "Restore it from a copy, or export the run again into a new folder."
    for name, what in changed.items():
        yield problem(folder / name, _SENTENCES[what], again)
    if not changed:
        yield ok(
            folder / FACTS,
            f"{len(facts['files'])} files are as they were written: a student of timesteps "
            f"{', '.join(map(str, facts.get('timesteps', [])))}, {facts.get('dtype')}, of the run {facts.get('run')}.",
        )
    parts = sorted({folder / Path(name).parts[0] for name in facts["files"] if "/" in name})
    for path in sorted(each for part in parts for each in part.rglob("*") if each.is_file()):
        if path.relative_to(folder).as_posix() not in facts["files"]:
            yield note(
                path,
                "was not exported, and diffusers may read it in the place of what was.",
                "Take it away if it is not yours.",
            )
