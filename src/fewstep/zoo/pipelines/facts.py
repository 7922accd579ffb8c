"""``fewstep.json``, by which an exported folder says what it is: how its student is sampled, and
the SHA-256 of each of its files but the card, which is there to be edited by whoever publishes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep import __version__
from fewstep.errors import UserError
from fewstep.system.files import write_text
from fewstep.system.ledger import file_digest
from fewstep.zoo.diffusers_weights import CORRECT, read_configuration

FACTS, CARD, FORMAT = "fewstep.json", "README.md", 1
_DIGEST = re.compile("[0-9a-f]{64}")


def as_json(values: Mapping[str, Any]) -> str:
    """The values as diffusers writes configurations."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the facts of a folder that has all its other files already."""
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: file_digest(path) for name, path in named.items() if name not in (FACTS, CARD)}
    write_text(folder / FACTS, as_json({"format": FORMAT, "fewstep": __version__, **facts, "files": files}))


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``write_facts`` wrote; ``files`` are names within the folder with their digests.

    Raises ``UserError`` for a file that is missing or malformed.
    """
    path = folder / FACTS
    facts = read_configuration(path)
    files = facts.get("files")
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: is not of format {FORMAT}; it may come from another version, export the run again.")
    if not isinstance(files, dict) or not all(_is_entry(name, digest) for name, digest in files.items()):
        raise UserError(f"{path}: has no 'files' that names files of the folder with their SHA-256; {CORRECT}.")
    return facts


def changed_files(folder: Path, facts: Mapping[str, Any]) -> dict[str, str]:
    """What is not as it was written, by name: ``missing`` or ``changed``."""
    found: dict[str, str] = {}
    for name, digest in facts["files"].items():
        path = folder / name
        if not path.is_file():
            found[name] = "missing"
        elif file_digest(path) != digest:
            found[name] = "changed"
    return found


def _is_entry(name: Any, digest: Any) -> bool:
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not PurePosixPath(name).is_absolute()
        and ".." not in parts
        and "\0" not in name
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest) is not None
    )
