"""Who is told how a run goes: a bar, TensorBoard, Weights & Biases, or anybody's own
``Listener``.
"""

from collections.abc import Callable, Mapping

from fewstep.errors import UserError
from fewstep.training.listeners.bar import Bar
from fewstep.training.listeners.listener import Listener, Several, Silent
from fewstep.training.listeners.tensorboard import TensorBoard
from fewstep.training.listeners.wandb import WandB

TRACKS: Mapping[str, Callable[[], Listener]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""What the command line calls them."""


def open_track(name: str) -> Listener:
    """The listener of that name; raises ``UserError`` for another name, and where its extra is
    missing.
    """
    if name not in TRACKS:
        raise UserError(f"--track: there is no '{name}'; give {' or '.join(TRACKS)}.")
    return TRACKS[name]()


__all__ = ["TRACKS", "Bar", "Listener", "Several", "Silent", "TensorBoard", "WandB", "open_track"]
