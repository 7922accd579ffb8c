"""A run in Weights & Biases: its figures, pictures and sentences.

The run's folder keeps its id, so that a resumed run is the same one there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, one_line
from fewstep.system.files import write_alone
from fewstep.training.listeners.listener import Listener


class WandB(Listener):
    """Where it goes is said by W&B's own means (``wandb login``, ``WANDB_MODE``,
    ``WANDB_PROJECT``).

    Raises ``UserError`` where the extra is missing, and where W&B begins no run.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("Weights & Biases is not installed: pip install 'fewstep[wandb]'.") from error
        self._library = wandb
        self._run: Any = None
        self._step = 0
        self._early: list[str] = []

    def began(self, folder: Path, step: int) -> None:
        self._step = step
        settings = self._library.Settings(console="off", disable_git=True, save_code=False)
        project = os.environ.get("WANDB_PROJECT", "fewstep")
        name, identity = folder.absolute().name, _id_of(folder)
        try:
            begin = self._library.init
            self._run = begin(project=project, dir=folder, name=name, id=identity, resume="allow", settings=settings)
        except self._library.Error as error:
            remedy = "log in with 'wandb login', or set WANDB_MODE=offline"
            raise UserError(f"Weights & Biases began no run ({one_line(str(error)).rstrip('.')}); {remedy}.") from error
        # Its own count of steps can only grow; a resumed run makes some again.
        self._run.define_metric("*", step_metric="step")
        for sentence in self._early:
            self.say(sentence)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._step = step
        self._log({name.replace(".", "/", 1): value for name, value in figures.items()})

    def picture(self, step: int, path: Path) -> None:
        self._step = step
        self._log({"samples": self._library.Image(str(path))})

    def say(self, sentence: str) -> None:
        if self._run is None:
            self._early.append(sentence)
        self._log({"said": sentence})

    def finished(self) -> None:
        self._end(0)

    def __exit__(self, *failure: object) -> None:
        self._end(1)

    def _log(self, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.log({"step": self._step, **values})

    def _end(self, code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=code)


def _id_of(folder: Path) -> str:
    """The run's id, made with the folder's first."""
    path = folder / "wandb-id.txt"
    if not path.is_file():
        write_alone(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8", errors="replace").strip()
