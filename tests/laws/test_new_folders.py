"""Folders that are whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.system.folders import copy_file, new_folder


def filled(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_bytes(b"content")


def test_a_folder_appears_when_it_is_whole(tmp_path) -> None:
    path = tmp_path / "above" / "out"
    with new_folder(path) as folder:
        assert folder.parent == path.parent
        filled(folder)
        assert not path.exists()
    assert (path / "inner" / "file").read_bytes() == b"content"
    assert [each.name for each in path.parent.iterdir()] == ["out"]
    assert path.stat().st_mode == path.parent.stat().st_mode


def test_an_empty_folder_is_taken_and_a_link_to_one_stays_a_link(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as folder:
        filled(folder)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "inner" / "file").is_file()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_nothing_stays_of_one_that_failed(error: type[BaseException], tmp_path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            filled(folder)
            raise error("here")

    with pytest.raises(error, match="here"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays_as_it_is(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hidden").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"is a folder that holds '\.hidden' already"), new_folder(tmp_path / "out"):
        raise AssertionError
    with pytest.raises(UserError, match="is there already and is no folder"), new_folder(tmp_path / "file"):
        raise AssertionError
    with pytest.raises(UserError, match="could not be written"), new_folder(tmp_path / "file" / "below"):
        raise AssertionError


def test_what_came_meanwhile_stays_too(tmp_path) -> None:
    def two() -> None:
        with new_folder(tmp_path / "out") as folder:
            filled(folder)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "other").write_text("another's")

    with pytest.raises(UserError, match="is a folder that holds 'other' already"):
        two()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["other"]


def test_a_killed_writer_leaves_no_folder_of_that_name(tmp_path) -> None:
    code = (
        "import os, signal, sys; from fewstep.system.folders import new_folder\n"
        "with new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False, env=os.environ)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as folder:
        filled(folder)
    assert (tmp_path / "out" / "inner" / "file").is_file()


def test_bytes_are_copied_and_what_cannot_be_read_is_named(tmp_path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "link").symlink_to("one")
    copy_file(tmp_path / "link", tmp_path / "below" / "two")
    assert (tmp_path / "below" / "two").read_bytes() == content
    assert not (tmp_path / "below" / "two").is_symlink()
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file or directory\); check the path"):
        copy_file(tmp_path / "missing", tmp_path / "three")
    assert not (tmp_path / "three").exists()
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "one", tmp_path / "below" / "two")
