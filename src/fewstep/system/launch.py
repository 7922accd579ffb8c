"""Which of how many processes this one is, by the variables that torchrun sets; what of them is
wrong or missing is said before anything waits for the others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fewstep.errors import UserError

REMEDY = (
    "start processes that work together by torchrun, which sets them all, or unset RANK and WORLD_SIZE for a "
    "process by itself"
)


@dataclass(frozen=True)
class Launch:
    """Process ``number`` (from 0) of ``processes``, which meet at ``meeting``, ``host:port``; alone
    in its group it meets nobody, and what the variables say of a place is not read.
    """

    number: int
    processes: int
    meeting: str | None


def launched() -> Launch | None:
    """What torchrun (or what sets the same variables) says of this process; None for a process by
    itself. Raises ``UserError`` for what cannot be meant.
    """
    number, processes = _whole("RANK", 0), _whole("WORLD_SIZE", 1)
    if number is None and processes in (None, 1):
        return None
    if processes is None:
        raise UserError(f"RANK is {number} in the environment, and WORLD_SIZE is not set; {REMEDY}.")
    if number is None:
        raise UserError(f"WORLD_SIZE is {processes} in the environment, and RANK is not set; {REMEDY}.")
    if number >= processes:
        raise UserError(
            f"RANK is {number} in the environment, and WORLD_SIZE is {processes}: processes are numbered "
            f"from 0 to {processes - 1}; {REMEDY}."
        )
    return Launch(number, processes, _meeting(number, processes) if processes > 1 else None)


def local_number() -> int:
    """The number of this process on its machine, from 0."""
    return _whole("LOCAL_RANK", 0) or 0


def restarts() -> int:
    """How often torchrun has started this group anew after a failure (``--max-restarts``)."""
    return _whole("TORCHELASTIC_RESTART_COUNT", 0) or 0


def restarted() -> bool:
    """Whether this is such a new start."""
    return restarts() > 0


def _meeting(number: int, processes: int) -> str:
    host, port = os.environ.get("MASTER_ADDR", ""), _whole("MASTER_PORT", 1)
    missing = [name for name, value in (("MASTER_ADDR", host), ("MASTER_PORT", port)) if not value]
    if missing:
        raise UserError(
            f"the environment says process {number} of {processes} (RANK and WORLD_SIZE), but not where "
            f"they meet ({' and '.join(missing)}); {REMEDY}."
        )
    if port is not None and port > 65_535:
        raise UserError(f"MASTER_PORT is {port} in the environment; a port is at most 65535; {REMEDY}.")
    return f"{host}:{port}"


def _whole(name: str, least: int) -> int | None:
    """A variable's whole number; None where it is not set, or set to nothing."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise UserError(f"{name} is {text!r} in the environment; it must be a whole number from {least}; {REMEDY}.")
    return int(text)
