"""The command line's way in and out: joins the processes that torchrun has started, and turns what
ended a command into a sentence and an exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import typer

from fewstep.command.cli import app
from fewstep.errors import SharedError, Stopped, UserError, is_out_of_memory, one_line
from fewstep.system.ending import Ended, end_at_once, ended_by_signals
from fewstep.system.imports import foremost
from fewstep.system.launch import launched


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"fewstep: {one_line(sentence)}", err=True)
    sys.exit(code)


class _AtOnce:
    """A hook of Python's for exceptions that nobody can catch, in the place of ``before``: a Ctrl-C
    or another signal among them ends the process, in one sentence.

    It may fall into a callback or into the interpreter's own end, where Python would say so and go
    on.
    """

    def __init__(self, before: Callable[..., Any]):
        self.before = before

    def __call__(self, *what: Any) -> None:
        # ``sys.excepthook`` is given the kind of an exception and then the exception,
        # ``sys.unraisablehook`` an object that has both.
        kind, error = what[:2] if isinstance(what[0], type) else (what[0].exc_type, what[0].exc_value)
        if not issubclass(kind, (KeyboardInterrupt, Ended)):
            self.before(*what)
            return
        end_at_once(error.signal if isinstance(error, Ended) else signal.SIGINT)


def _end_at_once_where_interrupted() -> None:
    if not isinstance(sys.excepthook, _AtOnce):
        sys.excepthook = _AtOnce(sys.excepthook)
    if not isinstance(sys.unraisablehook, _AtOnce):
        sys.unraisablehook = _AtOnce(sys.unraisablehook)


def _is_a_lost_process(error: Exception) -> bool:
    """Whether an exchange failed because the process at the other end is gone; gloo and nccl say so
    by plain RuntimeErrors.
    """
    return "RANK" in os.environ and any(
        sign in str(error)
        for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    )


@contextlib.contextmanager
def _group() -> Iterator[None]:
    """Of the processes that torchrun has started, which work together, one talks."""
    if launched() is None:
        yield
        return
    # DDP warns once about a choice that ours is on purpose (``training.layout``).
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from fewstep.system import distributed

    with contextlib.ExitStack() as inside:
        inside.enter_context(distributed.joined())
        if not distributed.first():
            inside.enter_context(
                contextlib.redirect_stdout(inside.enter_context(open(os.devnull, "w", encoding="utf-8")))
            )
        yield


def _print_any_name() -> None:
    """Makes the output take names of any coding: what it cannot print is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command() -> None:
    """The command: an error that the user can mend is one sentence and exit code 2; a run stopped
    by signal S has saved and exits with 128 + S, as does any other command, at once.

    Of several processes each ends so; the sentence is said by the one whose error it was.
    """
    _end_at_once_where_interrupted()
    _print_any_name()
    try:
        with ended_by_signals(), _group():
            sys.argv[1:] = foremost(sys.argv[1:])
            app()
    except SharedError:
        sys.exit(2)
    except UserError as error:
        _fail(str(error), 2)
    except UnicodeEncodeError as error:
        _fail(
            f"'{error.object}' cannot be a file's name in this locale, whose coding is {error.encoding}; "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1.",
            2,
        )
    except (MemoryError, RuntimeError) as error:
        if _is_a_lost_process(error):
            _fail(
                "another process of this run has ended, and this one with it; look for what it said, and "
                "go on with --resume.",
                1,
            )
        if not is_out_of_memory(error):
            raise
        _fail(
            "there is not enough memory; 'fewstep plan RECIPE' says what a recipe takes: lower "
            "'training.batch', the sizes of networks or the number of samples.",
            2,
        )
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except SystemExit as ended:
        # Typer makes this code of Ctrl-C, and says nothing.
        if ended.code != 130:
            raise
        _fail("interrupted.", 130)
    except (Stopped, Ended) as stopped:
        group = launched()
        if group is None or group.number == 0:
            _fail(str(stopped), 128 + stopped.signal)
        sys.exit(128 + stopped.signal)
