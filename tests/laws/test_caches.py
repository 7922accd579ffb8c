"""A digest follows the content, whatever the names, times and inodes around it say."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from fewstep.errors import UserError
from fewstep.system import caches
from fewstep.system.caches import address_marks, cache_folder, content_digest, content_digests, held_cache
from fewstep.system.locks import locked

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


def test_the_files_of_a_folder_are_remembered_together(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        written(tmp_path / "set" / name, name.encode())
    expected = [hashlib.sha256(name.encode()).hexdigest() for name in ("b/c", "a")]
    assert content_digests(tmp_path / "set", ["b/c", "a"]) == expected
    (entry,) = (cache_folder() / "digests").iterdir()
    known = json.loads(entry.read_text(encoding="utf-8"))
    known["files"]["a"][-1] = "0" * 64
    entry.write_text(json.dumps(known), encoding="utf-8")
    assert content_digests(tmp_path / "set", ["b/c", "a"]) == [expected[0], "0" * 64]
    written(tmp_path / "set" / "a", b"A")
    os.utime(tmp_path / "set" / "a", ns=(OLD_NS + 1, OLD_NS + 1))
    assert content_digests(tmp_path / "set", ["a"]) == [hashlib.sha256(b"A").hexdigest()]
    with pytest.raises(UserError, match="gone: cannot be read"):
        content_digests(tmp_path / "set", ["gone"])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"files": 1}', b'{"files": {"a": 1}}', b"\xff"])
def test_a_damaged_memory_is_read_as_none(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "set" / "a", b"1")
    content_digests(tmp_path / "set", ["a"])
    (entry,) = (cache_folder() / "digests").iterdir()
    entry.write_bytes(content)
    assert content_digests(tmp_path / "set", ["a"]) == [hashlib.sha256(b"1").hexdigest()]


class _Answers(BaseHTTPRequestHandler):
    """What servers say of an address, by its path."""

    SAYS: ClassVar[dict[str, tuple[int, dict[str, str]]]] = {
        "/strong": (200, {"ETag": '"1"', "Content-Length": "5"}),
        "/weak": (200, {"ETag": 'W/"1"', "Content-Length": "5"}),
        "/silent": (200, {}),
        "/forbidden": (403, {}),
        "/gone": (404, {}),
    }

    def do_HEAD(self) -> None:
        code, headers = self.SAYS[self.path]
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), _Answers) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_an_address_is_known_by_what_its_server_says_strongly(server: str) -> None:
    assert address_marks(f"{server}/strong") == {"etag": '"1"', "length": "5"}
    assert address_marks(f"{server}/weak") == {"length": "5"}
    assert address_marks(f"{server}/silent") == address_marks(f"{server}/forbidden") == {}
    assert address_marks(f"{server}/gone") is None
    assert address_marks("http://127.0.0.1:1/x") is None
    assert address_marks("http://[") is None


def test_who_finds_a_folder_held_waits(tmp_path: Path) -> None:
    order = []
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "entry"):
            (tmp_path / "ready").touch()
            time.sleep(0.6)
            (tmp_path / "done").touch()
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with held_cache(tmp_path / "entry"):
        order.append((tmp_path / "done").exists())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert order == [True]


def test_a_folder_that_was_let_go_right_after_it_was_found_held_is_ours(tmp_path: Path, monkeypatch) -> None:
    """The lock is let go between the refusal and whatever is looked at next."""
    (tmp_path / "entry").mkdir()
    holder = open(tmp_path / "entry" / "lock", "wb")  # noqa: SIM115 (let go below)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def let_go_when_refused(folder: Path) -> contextlib.AbstractContextManager[None]:
        @contextlib.contextmanager
        def held() -> Iterator[None]:
            try:
                with locked_before(folder):
                    yield
            except UserError:
                holder.close()
                raise

        return held()

    locked_before = caches.locked
    monkeypatch.setattr(caches, "locked", let_go_when_refused)
    with held_cache(tmp_path / "entry"):
        assert holder.closed
