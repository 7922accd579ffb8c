"""The server answers its own page alone, over real HTTP: what is foreign, malformed or too large is
refused in one sentence, and the server goes on.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from pages_kit import asked, painted_study

from fewstep.errors import UserError
from fewstep.pages import LocalServer, PreferencePage
from fewstep.pages.local_server import MOST_BODY
from fewstep.pages.served import Answer, Said, ServedPage
from fewstep.studies.preference import AnswerBook


@pytest.fixture
def server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[LocalServer]:
    """A server that says nothing on the terminal, whatever it is sent."""
    study = painted_study(tmp_path / "study")
    book = AnswerBook(study, "ada")
    with LocalServer(PreferencePage(study, book)) as found:
        yield found
        assert asked(found.address + "state").json["done"] == len(book.answered)
    book.close()
    assert capfd.readouterr() == ("", "")


def raw(server: LocalServer, request: str) -> str:
    """The answer to a request as it stands, which urllib would not send."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        parts = iter(lambda: connection.recv(65536), b"")
        return b"".join(parts).decode()


def token(server: LocalServer) -> str:
    return server.address.rstrip("/").rpartition("/")[2]


def test_every_answer_lets_the_page_load_nothing_of_others(server: LocalServer) -> None:
    for name in ("", "page.js", "page.css", "ask.js", "style.css", "state", "picture/0/left", "unknown"):
        answer = asked(server.address + name)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"].strip() == "fewstep"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_files_name_nothing_outside_and_obey_the_policy() -> None:
    folder = resources.files("fewstep.pages") / "templates"
    names = [each.name for each in folder.iterdir()]
    assert {"prefer.html", "play.html", "prefer.js", "play.js", "ask.js"} <= set(names)
    for name in names:
        text = (folder / name).read_text(encoding="utf-8")
        assert "//" not in text, name
        assert "innerHTML" not in text, name
        assert "@import" not in text, name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", text), name
            # Every field has a label, every picture an alternative text, every button words.
            fields = re.findall(r'<(?:input|select) id="([^"]+)"', text)
            assert all(f'<label for="{field}">' in text for field in fields), name
            assert all(" alt=" in image for image in re.findall(r"<img[^>]*>", text)), name


def test_requests_of_other_hosts_and_pages_are_refused(server: LocalServer) -> None:
    state = server.address + "state"
    answer = server.address + "answer"
    said = {"place": 0, "choice": "left"}
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", f"127.0.0.1:{server.port + 1}", ""):
        assert asked(state, Host=host).status == 403
        assert asked(answer, said, Host=host).status == 403
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.port}", "http://127.0.0.1", ""):
        refused = asked(answer, said, Origin=origin)
        assert refused.status == 403
        assert "another page" in refused.sentence
    twice = f"GET /{token(server)}/state HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nHost: evil.example\r\n\r\n"
    assert raw(server, twice).startswith("HTTP/1.0 403")
    assert raw(server, f"GET /{token(server)}/state HTTP/1.0\r\n\r\n").startswith("HTTP/1.0 403")
    assert asked(state).json["done"] == 0
    assert asked(state, Host=f"localhost:{server.port}").status == 200
    assert asked(answer, said, Origin=f"http://127.0.0.1:{server.port}").json["done"] == 1


def test_without_the_token_there_is_nothing(server: LocalServer, tmp_path: Path) -> None:
    root = f"http://127.0.0.1:{server.port}/"
    wrong = "x" * len(token(server))
    for path in (
        "",
        "state",
        "page.js",
        wrong,
        f"{wrong}/state",
        f"{token(server)[:-1]}/state",
        token(server),
        "%00/x",
    ):
        refused = asked(root + path)
        assert refused.status == 404
        assert token(server) not in refused.content.decode()
        assert asked(root + path, {"place": 0, "choice": "left"}).status == 404
    book = AnswerBook(painted_study(tmp_path / "other"), "ada")
    with LocalServer(PreferencePage(painted_study(tmp_path / "third"), book)) as other:
        assert token(other) != token(server)
        assert len(token(other)) >= 32
    book.close()


@pytest.mark.parametrize(
    "path",
    [
        "../study.json", "..%2fstudy.json", "%2e%2e/study.json", "picture/0/../../study.json", "picture/0/left/../left",
        "picture/-1/left", "picture/6/left", "picture/99999999999999999999/left", "picture/0/A", "picture/٣/left",
        "picture/0/left/", "//etc/passwd", "/etc/passwd", "page.html", "prefer.html", "templates/prefer.html", "answer",
    ],
)  # fmt: skip
def test_names_are_looked_up_and_lead_to_no_file(server: LocalServer, path: str) -> None:
    """The path is sent as it stands, without a client that would tidy it."""
    request = f"GET /{token(server)}/{path} HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
    assert raw(server, request).startswith("HTTP/1.0 404")


def test_a_body_that_is_too_large_is_refused_unread(server: LocalServer) -> None:
    refused = asked(server.address + "answer", b" " * 10_000_000)
    assert refused.status == 413
    assert "65,536 bytes" in refused.sentence
    head = f"POST /{token(server)}/answer HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n"
    # What it says it will send is not waited for.
    assert raw(server, f"{head}Content-Length: 10000000000000\r\n\r\n").startswith("HTTP/1.0 413")
    for length in ("Content-Length: -1\r\n", "Content-Length: x\r\n", "Content-Length: 1e3\r\n", ""):
        assert raw(server, f"{head}{length}\r\n").startswith("HTTP/1.0 411")
    chunked = f"{head}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    assert raw(server, chunked).startswith("HTTP/1.0 411")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"place": NaN}', b'{"place": 1e999, "choice": "left"}',
        b'{"place": {"a": 1}, "choice": "left"}', b"[" * (MOST_BODY - 1), b'{"place": ' + b"9" * 60_000 + b"}",
        b'{"place": true, "choice": "left"}', b'{"place": 0.0, "choice": "left"}', b'{"place": "0", "choice": "left"}',
        b'{"place": 6, "choice": "left"}', b'{"place": -1, "choice": "left"}', b'{"place": 0}',
        b'{"place": 0, "choice": "up"}', b'{"place": 0, "choice": null}', b'{"place": 1, "choice": "left"}',
        b'{"place": 0, "choice": "\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused_in_one_sentence(server: LocalServer, body: bytes) -> None:
    refused = asked(server.address + "answer", body)
    assert refused.status == 400
    assert len(refused.sentence) < 300
    assert asked(server.address + "state").json["done"] == 0


def test_other_media_types_methods_and_requests_are_refused(server: LocalServer) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert asked(server.address + "answer", {"place": 0, "choice": "left"}, Content_Type=kind).status == 415
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        request = f"{method} /{token(server)}/state HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
        assert raw(server, request).startswith("HTTP/1.0 501")
    # Of an unknown version, to which no headers are sent.
    assert "not understood (HTTP 400)" in raw(server, "GET / HTTP/x\r\n\r\n")
    assert " 414 " in raw(server, f"GET /{'x' * 70_000} HTTP/1.0\r\n\r\n")
    assert asked(server.address + "unknown", {}).status == 404


def test_it_listens_to_this_machine_alone_and_asks_nobody_for_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> str:
        raise AssertionError("a name was asked for")

    for name in ("getfqdn", "gethostbyaddr", "gethostbyname", "getaddrinfo"):
        monkeypatch.setattr(socket, name, never)
    book = AnswerBook(painted_study(tmp_path / "study"), "ada")
    with LocalServer(PreferencePage(painted_study(tmp_path / "other"), book)) as server:
        assert server._listener.socket.getsockname() == ("127.0.0.1", server.port)
        assert server.address.startswith(f"http://127.0.0.1:{server.port}/")
        with pytest.raises(UserError, match=f"--port: {server.port} cannot be had"):
            LocalServer(PreferencePage(painted_study(tmp_path / "third"), book), server.port)
    book.close()


class Failing(ServedPage):
    """Raises what it is told to."""

    def asked(self, name: str) -> Answer | None:
        return Answer.of({"name": name})

    def told(self, name: str, said: Said) -> Answer | None:
        if name == "full":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if name == "user":
            raise UserError("two\nlines\x1b[0m at https://user:word@host/")
        raise RuntimeError("a defect")


def test_errors_are_sentences_and_defects_are_told_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalServer(Failing("play")) as server:
        assert asked(server.address + "full", {}).sentence.startswith("there is not enough memory")
        assert asked(server.address + "user", {}).sentence == "two\\nlines\\x1b[0m at https://***@host/"
        assert capfd.readouterr().err == ""
        with pytest.raises(OSError, match="Remote end closed"):
            asked(server.address + "defect", {})
        assert "RuntimeError: a defect" in capfd.readouterr().err
        assert asked(server.address + "more").json == {"name": "more"}
