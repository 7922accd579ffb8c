"""The command line's way in and out: joins the processes that torchrun has started, and turns what ended a command into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import typer

from fewstep.cli import app
from fewstep.errors import SharedError, Stopped, UserError, one_line


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"fewstep: {one_line(sentence)}", err=True)
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation was refused; torch says so on a CPU by a plain RuntimeError."""
    return isinstance(error, MemoryError) or "not enough memory" in str(error) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def _is_a_lost_process(error: Exception) -> bool:
    """Whether an exchange failed because the process at the other end is gone; gloo and nccl say so by plain RuntimeErrors."""
    return "RANK" in os.environ and any(sign in str(error) for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused"))


@contextlib.contextmanager
def _group() -> Iterator[None]:
    """Of the processes that torchrun has started, which work together, one talks."""
    if "RANK" not in os.environ:
        yield
        return
    # DDP warns once about a choice that ours is on purpose (``training.layout``).
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from fewstep import distributed

    with contextlib.ExitStack() as inside:
        inside.enter_context(distributed.joined())
        if not distributed.first():
            inside.enter_context(contextlib.redirect_stdout(inside.enter_context(open(os.devnull, "w"))))
        yield


def main() -> None:
    """The entry point: an error that the user can mend is one sentence and exit code 2; a run stopped by signal S has saved and exits with 128 + S.

    Of several processes each ends so; the sentence is said by the one whose error it was.
    """
    try:
        with _group():
            app()
    except SharedError:
        sys.exit(2)
    except UserError as error:
        _fail(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if _is_a_lost_process(error):
            _fail("another process of this run has ended, and this one with it; look for what it said, and go on with --resume.", 1)
        if not _is_out_of_memory(error):
            raise
        _fail("there is not enough memory; 'fewstep plan RECIPE' says what a recipe takes: lower 'training.batch', the sizes of networks or the number of samples.", 2)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except SystemExit as ended:
        # Typer makes this code of Ctrl-C, and says nothing.
        if ended.code != 130:
            raise
        _fail("interrupted.", 130)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            _fail(str(stopped), 128 + stopped.signal)
        sys.exit(128 + stopped.signal)
