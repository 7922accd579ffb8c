"""A digest follows the content, whatever the names, times and inodes around it say."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fewstep.caches import cache_folder, content_digest
from fewstep.errors import UserError

OLD_NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def written(path: Path, content: bytes, time_ns: int = OLD_NS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(time_ns, time_ns))
    return path


def test_a_files_digest_is_that_of_its_bytes_and_is_remembered(tmp_path: Path) -> None:
    file = written(tmp_path / "a", b"content")
    assert content_digest(file) == hashlib.sha256(b"content").hexdigest()
    (entry,) = (cache_folder() / "digests").iterdir()
    entry.write_text(entry.read_text().replace(content_digest(file), "0" * 64))
    assert content_digest(file) == "0" * 64


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, change: str) -> None:
    file = written(tmp_path / "a", b"content")
    content_digest(file)
    other = b"another" if change != "size" else b"longer content"
    if change == "inode":
        os.replace(written(tmp_path / "b", other), file)
    else:
        written(file, other, OLD_NS + (change == "time"))
    assert content_digest(file) == hashlib.sha256(other).hexdigest()


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"content")
    content_digest(file)
    assert not (cache_folder() / "digests").exists()


def test_a_folders_digest_is_its_names_and_contents_wherever_it_lies(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        written(tmp_path / folder / "x" / "a", b"1")
        written(tmp_path / folder / "b", b"2", OLD_NS + len(folder))
    first = content_digest(tmp_path / "one")
    assert first == content_digest(tmp_path / "two")
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert first != content_digest(tmp_path / "two")


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    written(tmp_path / "one" / "a", b"1")
    (tmp_path / "one" / "up").symlink_to(tmp_path / "one")
    assert len(content_digest(tmp_path / "one")) == 64


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: cannot be read"):
        content_digest(tmp_path / "missing")


def test_a_cache_folder_that_cannot_be_written_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a", b"content")
    monkeypatch.setenv("FEWSTEP_CACHE", str(written(tmp_path / "file", b"")))
    assert content_digest(file) == hashlib.sha256(b"content").hexdigest()
