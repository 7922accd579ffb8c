"""A server of one page to this machine alone.

It listens on 127.0.0.1. Any program and any page of a browser on this machine can reach that
address, and a name of somebody's own can be made to lead to it (DNS rebinding), so that a request
is answered only if

- its ``Host`` is the server's own address, and its ``Origin``, where it has one, is the server's;
- its path begins with the token, which is random and printed once, for whoever started the server;
- its body is JSON and says so, which a foreign page cannot send without being asked first.

The page may load its own files alone, run its own script alone, and be framed by nobody
(Content-Security-Policy). Nothing is loaded from elsewhere, and nobody is asked for a name.
"""

from __future__ import annotations

import secrets
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from fewstep.errors import UserError, is_out_of_memory, one_line
from fewstep.pages.served import Answer, Said, ServedPage

HOST = "127.0.0.1"
MOST_BODY = 2**16
"""Bytes of a request's body."""
# What a refused request still sends is read and dropped, so that its sender gets to read the
# answer; a sender that goes on and on is left.
_MOST_DROPPED, _DROPPING_SECONDS = 2**24, 5.0
_PATIENCE, _POLLED = 30.0, 0.05
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LocalServer:
    """Serves ``page`` at ``address`` from a port of this machine, a free one for 0.

    As a context it serves from a thread of its own; ``serve`` serves until the command is ended.
    Raises ``UserError`` for a port that cannot be had.
    """

    def __init__(self, page: ServedPage, port: int = 0):
        self._token = secrets.token_urlsafe(24)
        try:
            self._listener = _Listener((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"--port: {port} cannot be had ({error.strerror or error}); give another, or 0.") from error
        self._listener.page, self._listener.token = page, self._token

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.server_address[1])

    @property
    def address(self) -> str:
        """Of the page, with the token."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve(self) -> None:
        """Answers until an exception, such as that of Ctrl-C, ends it."""
        try:
            self._listener.serve_forever(_POLLED)
        finally:
            self._listener.server_close()

    def __enter__(self) -> LocalServer:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Not ``http.server``'s: that asks the network for the name of its own address."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    page: ServedPage
    token: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that has left; a defect of ours is told with its traceback."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request, on a connection of its own."""

    server: _Listener
    timeout = _PATIENCE
    server_version, sys_version = "fewstep", ""

    def do_GET(self) -> None:
        name = self._admitted()
        if name is not None:
            page = self.server.page
            self._answer_by(lambda: page.file(name) or page.asked(name))

    def do_POST(self) -> None:
        name = self._admitted()
        if name is None:
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20) or "Transfer-Encoding" in self.headers:
            self._answer(Answer.refusal("the request: does not say its length; load the page again.", 411))
        elif int(length) > MOST_BODY:
            self._answer(Answer.refusal(f"the request: has more than {MOST_BODY:,} bytes; write less.", 413))
            self._drop(int(length))
        elif self.headers.get_content_type() != "application/json":
            self._answer(Answer.refusal("the request: is no JSON; load the page again.", 415))
            self._drop(int(length))
        else:
            content = self.rfile.read(int(length))
            page = self.server.page
            self._answer_by(lambda: page.told(name, Said.read(content)))

    def _admitted(self) -> str | None:
        """The name that is asked for; None where the request was refused."""
        port = self.server.server_address[1]
        own = {f"{HOST}:{port}", f"localhost:{port}"}
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0] not in own:
            self._answer(Answer.refusal("the request: was meant for another host; use the address as printed.", 403))
            return None
        if any(origin not in {f"http://{host}" for host in own} for origin in origins):
            self._answer(Answer.refusal("the request: comes from another page; use the address as printed.", 403))
            return None
        _, _, path = self.path.partition("?")[0].partition("/")
        token, slash, name = path.partition("/")
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()) or not slash:
            self._answer(_NOTHING)
            return None
        return name

    def _answer_by(self, asked: Callable[[], Answer | None]) -> None:
        try:
            answer = asked()
        except UserError as error:
            answer = Answer.refusal(one_line(str(error)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            answer = Answer.refusal("there is not enough memory for this; ask for less.", 503)
        self._answer(_NOTHING if answer is None else answer)

    def _answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def _drop(self, length: int) -> None:
        left, until = min(length, _MOST_DROPPED), time.monotonic() + _DROPPING_SECONDS
        self.connection.settimeout(_DROPPING_SECONDS)
        while left > 0 and time.monotonic() < until:
            read = self.rfile.read1(min(left, MOST_BODY))
            if not read:
                return
            left -= len(read)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What Python's own refusals say, such as of a method that is unknown."""
        self._answer(Answer.refusal(f"the request: is not understood (HTTP {int(code)}).", int(code)))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the address has the token in it."""


_NOTHING = Answer.refusal("there is nothing at this address; use the one that was printed.", 404)
