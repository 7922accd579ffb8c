"""Laws of locks: one worker a folder, gone with its process, and nothing of anybody's is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.system.locks import in_use, locked


def _python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder), locked(folder):
        done = _python(
            """
            import sys
            from pathlib import Path
            from fewstep.errors import UserError
            from fewstep.system.locks import locked
            for folder in map(Path, sys.argv[1:]):
                try:
                    with locked(folder):
                        print("held")
                except UserError as error:
                    print(error)
            """,
            folder,
            tmp_path / "other",
        )
    assert done.returncode == 0, done.stderr
    refused, held = done.stdout.splitlines()
    assert "another fewstep process" in refused
    assert str(folder) in refused
    assert held == "held"


def test_a_lock_is_let_go_after_an_error_and_refused_to_other_threads(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    outcome: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path):
                outcome.append("held")
        except UserError:
            outcome.append("refused")

    for expected in ("refused", "held"):
        thread = threading.Thread(target=other)
        if expected == "refused":
            with locked(tmp_path):
                thread.start()
                thread.join()
        else:
            thread.start()
            thread.join()
        assert outcome[-1] == expected


def test_a_folder_stays_held_until_its_thread_has_let_go_as_often_as_it_locked(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    done = _python(
        """
        import os, signal, sys
        from pathlib import Path
        from fewstep.system.locks import in_use, locked
        folder = Path(sys.argv[1])
        with locked(folder):
            print(in_use(folder), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "True\n"), done.stderr
    assert not in_use(tmp_path)
    with locked(tmp_path):
        pass


def test_a_child_of_a_process_that_holds_a_folder_does_not_hold_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert not in_use(tmp_path)
    finally:
        sleeper.communicate(b"\n", timeout=60)


def test_what_stands_in_a_file_of_that_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("somebody's own")
    path.chmod(0o640)
    with locked(tmp_path):
        assert path.read_text() == "somebody's own"
    assert not in_use(tmp_path)
    assert path.read_text() == "somebody's own"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_leads_to_the_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "elsewhere")
    with locked(tmp_path / "run"):
        assert in_use(tmp_path / "run")
    assert not in_use(tmp_path / "run")
    assert (tmp_path / "run" / "lock").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b""


@pytest.mark.parametrize("obstacle", ["folder", "file above"])
def test_a_lock_that_cannot_be_made_is_one_sentence(obstacle: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if obstacle == "folder":
        (folder / "lock").mkdir(parents=True)
    else:
        folder.write_text("somebody's own")
    with pytest.raises(UserError, match=r"lock: could not be written: .*; choose another folder\.$"), locked(folder):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_where_the_kernel_has_no_lock_there_is_no_other(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="lock: could not be written: "), locked(tmp_path):
        pass


@pytest.fixture
def only_readable() -> Iterator[Path]:
    """A folder with a lock in which we may read and not write, also where the tests are root's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lock").touch(0o444)
        before = os.geteuid()
        folder.chmod(0o555)
        if before == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(before)
            folder.chmod(0o755)


def test_a_folder_that_can_only_be_read_can_be_asked_and_not_locked(only_readable: Path) -> None:
    assert not in_use(only_readable)
    with (
        pytest.raises(UserError, match="lock: could not be written: writing is not permitted; change the permissions"),
        locked(only_readable),
    ):
        pass
    with open(only_readable / "lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert in_use(only_readable)


def test_asking_writes_nothing_and_who_asks_is_not_seen(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").touch()
    before = (tmp_path / "lock").stat()
    with open(tmp_path / "lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not in_use(tmp_path)
    after = (tmp_path / "lock").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (before.st_mtime_ns, before.st_ctime_ns, 0)


def test_who_only_asks_does_not_keep_a_worker_out(tmp_path: Path) -> None:
    """The shared lock of a question is there when a worker comes, and gone a moment later."""
    asking = open(tmp_path / "lock", "wb")  # noqa: SIM115 (let go below)
    fcntl.flock(asking, fcntl.LOCK_SH)
    answered = threading.Timer(0.05, asking.close)
    answered.start()
    with locked(tmp_path):
        assert asking.closed
    answered.join()


def test_a_lock_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=r"lock: cannot be read \(Is a directory\); put an empty file in its place"):
        in_use(tmp_path)


def test_a_folder_below_a_file_is_held_by_nobody_and_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    assert not in_use(tmp_path / "file" / "run")
    with (
        pytest.raises(UserError, match=r"could not be written: .*choose another folder"),
        locked(tmp_path / "file/run"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "somebody's"
