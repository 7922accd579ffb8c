"""Files of addresses: fetched whole or not at all, kept, and looked at again before each use."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.zoo import download
from fewstep.zoo.download import cached_file, local_file

URL = "https://example.org/a/weights.pkl"


@pytest.fixture
def server(tmp_path, monkeypatch) -> dict[str, bytes]:
    """What a server has by address; "calls" counts what was fetched."""
    has: dict[str, bytes] = {"calls": b""}

    def fetch(url: str, to: str, progress: bool) -> None:
        has["calls"] += b"x"
        Path(to).write_bytes(has[url])

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(
        download, "address_marks", lambda url: {"length": str(len(has["whole"]))} if "whole" in has else None
    )
    return has


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_stays_as_it_was_fetched_and_its_digest_is_noted(server):
    server[URL] = b"one"
    path = local_file(URL)
    server[URL] = b"two"
    assert local_file(URL) == path
    assert path.read_bytes() == b"one"
    assert path.with_name(f"{path.name}.sha256").read_text(encoding="ascii") == _sha(b"one") + "\n"
    assert server["calls"] == b"x"


@pytest.mark.parametrize("content", [b"on", b"One", b""])
def test_a_file_that_was_cut_or_altered_is_found(content, server):
    server[URL] = b"one"
    path = local_file(URL)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        UserError,
        match=r"weights\.pkl: was cut or altered since it was fetched; restore it, or remove it to fetch https",
    ):
        local_file(URL)
    path.unlink()
    path.with_name(f"{path.name}.sha256").unlink()
    assert local_file(URL).read_bytes() == b"one"


def test_two_recipes_with_two_digests_have_two_files(server):
    server[URL] = b"one"
    first = local_file(URL, _sha(b"one"))
    server[URL] = b"two"
    other = local_file(URL, _sha(b"two").upper())
    assert (first.read_bytes(), other.read_bytes()) == (b"one", b"two")
    assert (local_file(URL, _sha(b"one")), local_file(URL, _sha(b"two")), local_file(URL)) == (first, other, first)
    assert cached_file(URL, _sha(b"two")) == other
    assert server["calls"] == b"xx"


def test_what_is_not_what_was_expected_is_not_kept(server):
    server[URL] = b"one"
    with pytest.raises(UserError, match=f"its SHA-256 is {_sha(b'one')}, not the expected 00"):
        local_file(URL, "00" * 32)
    server["whole"] = b"one, which is longer"
    with pytest.raises(
        UserError, match=r"weights\.pkl: 3 bytes came, and the server says that there are 20; fetch it again"
    ):
        local_file(URL)
    assert list(cached_file(URL).parent.glob("*weights*")) == []
    assert list(cached_file(URL).parent.glob(".*")) == []


def test_a_file_that_an_earlier_version_fetched_is_used_and_noted(server):
    path = cached_file(URL)
    path.parent.mkdir()
    path.write_bytes(b"one")
    assert local_file(URL) == path
    path.write_bytes(b"two")
    with pytest.raises(UserError, match="was cut or altered"):
        local_file(URL)
    assert server["calls"] == b""
