"""Laws of files: whole or absent, equal content gives equal bytes, and no damage goes unnoticed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from law_kit import normals
from safetensors.torch import save_file

from fewstep.errors import NotFinite, UserError
from fewstep.system.files import digest_of, read_tensors, write_bytes, write_tensors, write_text
from fewstep.system.locks import locked

TENSORS = {
    "weight": normals(3, 4, dtype=torch.float32),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "ids": torch.tensor([[1, -2], [3, 2**40]]),
    "half": normals(5, dtype=torch.float32).to(torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
}
METADATA = {"format": 1, "note": "änderung", "nested": {"a": [1, 2.5, None, True]}}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    # Bytes, so that NaN and the sign of zero count too.
    return one.keys() == other.keys() and digest_of(one, {}) == digest_of(other, {})


def _python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Tensors


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.safetensors"
    digest = write_tensors(path, TENSORS, METADATA)
    tensors, metadata = read_tensors(path)
    assert metadata == METADATA
    assert _same(tensors, TENSORS)
    assert all(
        tensors[name].dtype == value.dtype and tensors[name].shape == value.shape for name, value in TENSORS.items()
    )
    assert digest == digest_of(tensors, metadata)
    assert len(digest) == 64
    assert _names(path.parent) == {"a.safetensors"}


def test_special_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = {"x": torch.tensor([torch.finfo(torch.float32).max, -0.0, 1e-42])}
    write_tensors(tmp_path / "a", values, {})
    assert torch.equal(read_tensors(tmp_path / "a")[0]["x"].view(torch.int32), values["x"].view(torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), complex(0, float("nan"))])
def test_values_that_are_not_finite_are_not_written(tmp_path: Path, value: complex) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(2)}, {})
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(NotFinite, match="a: was not written, because 'y' holds values that are not finite"):
        write_tensors(tmp_path / "a", {"x": torch.ones(2), "y": torch.tensor([1.0, value])}, {})
    assert (tmp_path / "a").read_bytes() == before


def test_equal_content_gives_equal_bytes_in_any_order_and_process(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.arange(3.0), "y": torch.ones(2)}, {"one": 1, "two": [2]})
    write_tensors(tmp_path / "b", {"y": torch.ones(2), "x": torch.arange(3.0)}, {"two": [2], "one": 1})
    done = _python(
        """
        import sys, torch
        from pathlib import Path
        from fewstep.system.files import write_tensors
        write_tensors(Path(sys.argv[1]), {"x": torch.arange(3.0), "y": torch.ones(2)}, {"one": 1, "two": [2]})
        """,
        tmp_path / "c",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_views_tied_tensors_and_graphs_are_stored_by_value(tmp_path: Path) -> None:
    base = normals(4, 6, dtype=torch.float32).requires_grad_()
    views = {"whole": base, "again": base, "turned": base.T, "row": base[1], "strided": base[:, ::2]}
    write_tensors(tmp_path / "a", views, {})
    assert _same(read_tensors(tmp_path / "a")[0], {name: value.detach() for name, value in views.items()})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": torch.zeros(4)}, {"y": torch.zeros(4)}),
        ({"x": torch.zeros(4)}, {"x": torch.zeros(2, 2)}),
        ({"x": torch.zeros(4)}, {"x": torch.zeros(4, dtype=torch.int32)}),
        ({"x": torch.zeros(4)}, {"x": torch.tensor([0.0, 0.0, 0.0, -0.0])}),
        ({"x": torch.zeros(4)}, {"x": torch.zeros(4), "z": torch.zeros(0)}),
        ({"x": torch.zeros(1), "y": torch.ones(1)}, {"x": torch.ones(1), "y": torch.zeros(1)}),
    ],
)
def test_digests_tell_names_types_shapes_and_bytes_apart(one: dict, other: dict) -> None:
    assert digest_of(one, {}) != digest_of(other, {})
    assert digest_of(one, {}) != digest_of(one, {"step": 0})
    assert digest_of(one, {"a": 1, "b": 2}) == digest_of(one, {"b": 2, "a": 1})


# Damage


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    write_tensors(
        path, {"a": normals(40, dtype=torch.float32), "b": torch.arange(6)}, {"format": 1, "model": {"kind": "x"}}
    )
    return path


def _refused_or_equal(path: Path, content: bytes, original: tuple[dict, dict]) -> bool:
    """Whether ``content`` in the file is refused; if it is read, it must be read as the
    original.
    """
    path.write_bytes(content)
    try:
        tensors, metadata = read_tensors(path)
    except UserError:
        return True
    assert _same(tensors, original[0])
    assert metadata == original[1]
    return False


@pytest.mark.parametrize(("mask", "stride"), [(0x01, 1), (0x20, 5), (0x80, 5), (0xFF, 97)])
def test_a_flipped_byte_is_never_read_as_something_else(small: Path, mask: int, stride: int) -> None:
    content, original = small.read_bytes(), read_tensors(small)
    data = len(content) - 40 * 4 - 6 * 8
    for place in range(0, len(content), stride):
        damaged = bytearray(content)
        damaged[place] ^= mask
        refused = _refused_or_equal(small, bytes(damaged), original)
        # What is tolerated is white space of the header.
        assert refused or (place < data and content[place : place + 1].isspace())


def test_a_file_cut_short_or_grown_is_refused(small: Path) -> None:
    content, original = small.read_bytes(), read_tensors(small)
    for length in range(0, len(content), 7):
        assert _refused_or_equal(small, content[:length], original)
    for tail in (b"\0", b"\0" * 8, content):
        assert _refused_or_equal(small, content + tail, original)
    assert not _refused_or_equal(small, content, original)


def _foreign(kind: str, path: Path) -> None:
    if kind == "pickle":
        torch.save({"x": torch.zeros(2)}, path)
    elif kind == "text":
        path.write_text("hello\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        header = {"plain": None, "other": {"format": "pt"}}.get(kind, {"fewstep": kind})
        save_file({"x": torch.zeros(2)}, path, metadata=header)


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "text",
        "empty",
        "folder",
        "absent",
        "plain",
        "other",
        "not json",
        "3",
        "null",
        "[1]",
        '"text"',
        "{}",
        '{"digest": 3}',
    ],
)
def test_foreign_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    _foreign(kind, path)
    with pytest.raises(UserError, match=r"foreign\.safetensors"):
        read_tensors(path)


def test_metadata_nested_too_deep_to_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    _foreign("[" * 100_000 + "]" * 100_000, path)
    with pytest.raises(UserError, match=r"deep\.safetensors"):
        read_tensors(path)


# Writing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as it does when the disk is full."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(3.0)}, {})
    before = path.read_bytes()
    done = _python(
        """
        import resource, sys, torch
        from pathlib import Path
        from fewstep.errors import NotFinite, UserError
        from fewstep.system.files import write_tensors, write_text
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        folder = Path(sys.argv[1])
        for attempt in (
            lambda: write_tensors(folder / "a.safetensors", {"x": torch.zeros(100_000)}, {}),
            lambda: write_text(folder / "new.txt", "x" * 100_000),
        ):
            try:
                attempt()
            except UserError as error:
                print(error)
        write_text(folder / "fits.txt", "small")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "a.safetensors" in first
    assert "file-size limit" in first
    assert "new.txt" in second
    assert path.read_bytes() == before
    assert _names(tmp_path) == {"a.safetensors", "fits.txt"}


def test_a_process_killed_while_writing_leaves_the_old_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    done = _python(
        """
        import os, signal, sys
        from pathlib import Path
        from fewstep.system import files, locks
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with locks.locked(Path(sys.argv[1]).parent):
            files.write_text(Path(sys.argv[1]), "new")
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_text() == "old"
    with locked(tmp_path):
        pass


def test_an_obstacle_is_named_and_nothing_stays_aside(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="could not be written"):
            write_text(path, "x")
    assert _names(tmp_path) == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(umask: int, mode: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"content")
        write_bytes(tmp_path / "a", b"content again")
        now = os.umask(umask)
    finally:
        os.umask(old)
    assert now == umask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == b"content again"


def test_text_is_utf_8_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "Größe\r\n→\n")
    assert (tmp_path / "a").read_bytes() == "Größe\r\n→\n".encode()


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([letter]) * 300_000 for letter in b"ab"]
    write_bytes(path, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_bytes(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(path.read_bytes() in contents for _ in range(200))
    finally:
        stop.set()
        writer.join()
    assert _names(tmp_path) == {"a"}
