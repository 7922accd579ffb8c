"""A run in TensorBoard: its figures, pictures and sentences, in the folder ``tensorboard`` of the
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import UserError
from fewstep.system.files import why_not_written
from fewstep.training.listeners.listener import Listener

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Listener):
    """Look with ``tensorboard --logdir RUNS``.

    Raises ``UserError`` where the extra is missing, and where nothing can be written.
    """

    def __init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError("TensorBoard is not installed: pip install 'fewstep[tensorboard]'.") from error
        self._writer: SummaryWriter | None = None
        self._step = 0
        self._early: list[str] = []

    def began(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place, self._step = folder / "tensorboard", step
        try:
            # What a run that was killed has shown of later steps is hidden: they are made again.
            self._writer = SummaryWriter(str(place), purge_step=step + 1 if step else 0)
        except OSError as error:
            raise UserError(why_not_written(place, error)) from error
        for sentence in self._early:
            self.say(sentence)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._step = step
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name.replace(".", "/", 1), value, step)
            # A run that is killed goes on from its checkpoint, and shows nothing again that is
            # before it.
            self._writer.flush()

    def picture(self, step: int, path: Path) -> None:
        from PIL import Image

        if self._writer is not None:
            with Image.open(path) as picture:
                self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def say(self, sentence: str) -> None:
        if self._writer is None:
            self._early.append(sentence)
        else:
            self._writer.add_text("said", sentence, self._step)

    def __exit__(self, *failure: object) -> None:
        if self._writer is not None:
            self._writer.close()
