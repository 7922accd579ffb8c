"""Weights on this machine: a path as it is, or a URL's file, fetched once into a cache.

A file that was fetched stays: a run goes on with the weights with which it began, whatever the
server has meanwhile. Its SHA-256 is noted beside it, so that a file that was cut or altered later
is found. Where a recipe gives the SHA-256, the file that has it is taken, and fetched beside
another file of the same address.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import torch

from fewstep.errors import UserError
from fewstep.system.caches import address_marks, cache_folder, content_digest
from fewstep.system.files import write_alone
from fewstep.system.ledger import file_digest
from fewstep.system.locations import absolute, is_address


def local_file(source: str | Path, sha256: str | None = None) -> Path:
    """The file at a path or an https URL; one from a URL is kept in ``cache_folder`` and not
    fetched again.

    Raises ``UserError`` when there is no such file, it cannot be fetched, it was cut or altered
    since, or its SHA-256 is not ``sha256`` (64 hexadecimal digits; None accepts any).
    """
    if is_address(source):
        return _fetched(str(source), None if sha256 is None else sha256.lower())
    path = Path(absolute(str(source)))
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    if sha256 is not None and file_digest(path) != sha256.lower():
        raise UserError(
            f"{path}: its SHA-256 is {file_digest(path)}, not the expected {sha256}; remove the file and "
            "fetch it again, or correct the digest."
        )
    return path


def cached_file(url: str, sha256: str | None = None) -> Path:
    """Where the file of an https URL is kept once it was fetched, that of a SHA-256 where it is
    given. Raises ``UserError`` for another kind of address.
    """
    if not url.startswith("https://"):
        raise UserError(
            f"{url}: only https is fetched, so that nobody on the way can put another file in its place; "
            "use an https URL or a local file."
        )
    # The name alone would mix up the same name of two sites.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", url.partition("?")[0].rsplit("/", 1)[-1])[-100:]
    place = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = cache_folder() / f"{place}-{name}"
    if sha256 is None or not path.is_file() or content_digest(path) == sha256.lower():
        return path
    return cache_folder() / f"{place}-{sha256.lower()[:16]}-{name}"


def _fetched(url: str, sha256: str | None) -> Path:
    path = cached_file(url, sha256)
    if not path.is_file():
        _fetch(url, path, sha256)
    found = content_digest(path)
    if sha256 is not None and found != sha256:
        raise UserError(
            f"{path}: its SHA-256 is {found}, not the expected {sha256}; remove the file and fetch it "
            "again, or correct the digest."
        )
    if sha256 is None and found != _noted(path, found):
        raise UserError(
            f"{path}: was cut or altered since it was fetched; restore it, or remove it to fetch {url} again."
        )
    return path


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    """Puts the file of a URL at a path, whole or not at all."""
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        length = (address_marks(url) or {}).get("length") if sha256 is None else None
        torch.hub.download_url_to_file(url, str(aside), progress=False)
        found, size = file_digest(aside), aside.stat().st_size
        if sha256 is not None and found != sha256:
            raise UserError(
                f"{url}: its SHA-256 is {found}, not the expected {sha256}; correct the address or the digest."
            )
        # A connection that ends early gives a shorter file, and no error.
        if length is not None and length != str(size):
            raise UserError(f"{url}: {size:,} bytes came, and the server says that there are {length}; fetch it again.")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{url}: could not be fetched ({error}); check the address and the connection, or give a local file."
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _noted(path: Path, found: str) -> str:
    """The SHA-256 that was noted of a file when it was fetched.

    ``found`` is noted where there is no note yet.
    """
    note = path.with_name(f"{path.name}.sha256")
    try:
        return note.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        write_alone(note, found.encode() + b"\n")
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{note}: cannot be read ({error}); remove it, so that it is written anew.") from error
