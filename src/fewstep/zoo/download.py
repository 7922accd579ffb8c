"""Weights on this machine: a path as it is, or a URL's file, fetched once into a cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from fewstep.caches import cache_folder
from fewstep.errors import UserError
from fewstep.locations import absolute, is_address


def local_file(source: str | Path, sha256: str | None = None) -> Path:
    """The file at a path or an https URL; one from a URL is kept in ``cache_folder`` and not fetched again.

    Raises ``UserError`` when there is no such file, it cannot be fetched, or its SHA-256 is not ``sha256`` (64 hexadecimal digits; None accepts any).
    """
    path = _fetched(str(source)) if is_address(source) else Path(absolute(str(source)))
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    if sha256 is not None and file_digest(path) != sha256.lower():
        raise UserError(f"{path}: its SHA-256 is {file_digest(path)}, not the expected {sha256}; remove the file and fetch it again, or correct the digest.")
    return path


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_file(url: str) -> Path:
    """Where the file of an https URL is kept once it was fetched. Raises ``UserError`` for another kind of address."""
    if not url.startswith("https://"):
        raise UserError(f"{url}: only https is fetched, so that nobody on the way can put another file in its place; use an https URL or a local file.")
    # The name alone would mix up the same name of two sites.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", url.partition("?")[0].rsplit("/", 1)[-1])[-100:]
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def _fetched(url: str) -> Path:
    path = cached_file(url)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside in the same folder and renamed, by torch.hub.
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise UserError(f"{url}: could not be fetched ({error}); check the address and the connection, or give a local file.") from error
    return path
