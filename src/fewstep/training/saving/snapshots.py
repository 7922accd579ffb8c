"""A run as its checkpoints hold it: what is saved, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.kinds.network_files import load_strictly
from fewstep.random import GENERATOR
from fewstep.resumable import Resumable
from fewstep.system import distributed
from fewstep.system.finite import first_not_finite, first_number_not_finite
from fewstep.training.phase import Stage, build_optimizers
from fewstep.training.reporting.divergence import WayBack
from fewstep.training.reporting.journal import Journal
from fewstep.training.saving.checkpoint import Checkpoint
from fewstep.training.saving.optimizer_states import optimizer_tensors, restore_optimizer
from fewstep.training.saving.origin_checks import check_origins
from fewstep.training.saving.saver import Saver
from fewstep.training.settings import Progress, Settings

Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class CheckpointContent:
    """What a checkpoint is of: the ``stages``, the ``networks`` that they write, what the
    ``stateful`` remember, and the ``journal``.
    """

    stages: Sequence[Stage]
    networks: Mapping[str, nn.Module]
    stateful: Mapping[str, Resumable]
    journal: Journal

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of networks and stateful objects, by name."""
        networks = {f"network/{name}": network.state_dict() for name, network in self.networks.items()}
        stateful = {f"stateful/{place}": found.tensors() for place, found in self.stateful.items()}
        return {f"{name}/{key}": value for name, held in (networks | stateful).items() for key, value in held.items()}


class Snapshots:
    """Saves what is ``kept`` and a stage's optimizers, and returns to them.

    Nothing that is not finite is saved. ``say`` is told what is not as it was. All processes call
    all methods.
    """

    def __init__(self, kept: CheckpointContent, saver: Saver, settings: Settings, say: Callable[[str], None]):
        self.way_back = WayBack(saver)
        self._kept = kept
        self._saver = saver
        self._settings = settings
        self._say = say

    def save(self, progress: Progress, optimizers: Optimizers) -> None:
        """Writes a checkpoint, or begins to.

        Raises ``Diverged`` when something that it would hold is not finite.
        """
        tensors = self._kept.tensors()
        for name, optimizer in optimizers.items():
            tensors |= optimizer_tensors(optimizer, f"optimizer/{name}")
        stateful = {place: found.state_dict() for place, found in self._kept.stateful.items()}
        self._check_finite(progress, tensors, {"stateful": stateful})
        state = {
            "run": self._settings.run,
            "origins": dict(self._settings.origins),
            "progress": vars(progress),
            **self._kept.journal.state(),
            "stateful": stateful,
            **_computed_with(),
            "draws": GENERATOR,
        }
        self._saver.save(progress.step, tensors, state)
        self.way_back.saved()

    def restore(self) -> tuple[Progress, dict[str, torch.optim.Optimizer]] | None:
        """Returns to the newest checkpoint: where it stands, and the optimizers of its stage; None
        when there is no checkpoint.
        """
        found = self._saver.checkpoints.newest(self._say)
        if found is None:
            self._begin_again()
            return None
        state, folder = found.state, self._saver.checkpoints.folder
        check_origins(f"the newest checkpoint in {folder}", state.get("origins", {}), self._settings.origins, self._say)
        progress = Progress(**state["progress"])
        self._warn_if_not_exact(state)
        if set(state["stateful"]) != set(self._kept.stateful):
            raise UserError(f"{folder}: the checkpoint is of another set of stages; it cannot be resumed with these.")
        for place, value in state["stateful"].items():
            self._kept.stateful[place].load_state_dict(value)
            self._kept.stateful[place].load_tensors(found.read(f"stateful/{place}/", {}))
        for name, network in self._kept.networks.items():
            tensors = found.read(f"network/{name}/", network.state_dict())
            load_strictly(network, tensors, f"checkpoint of step {progress.step}, network '{name}'")
        self._kept.journal.restore(state)
        self.way_back.went_on_from(progress.step)
        return progress, self._optimizers(progress, found)

    def _optimizers(self, progress: Progress, found: Checkpoint) -> dict[str, torch.optim.Optimizer]:
        optimizers = build_optimizers(self._kept.stages[progress.stage])
        if progress.stage_step:
            for name, optimizer in optimizers.items():
                restore_optimizer(optimizer, f"optimizer/{name}", found)
        return optimizers

    def _check_finite(self, progress: Progress, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Raises ``Diverged``, in all processes, when something that a checkpoint would hold is not
        finite.
        """
        found = distributed.everyones(first_not_finite(tensors.items()) or first_number_not_finite(state))
        wrong = next((each for each in found if each), "")
        if wrong:
            at = f"after step {progress.step} (stage '{self._kept.stages[progress.stage].name}')"
            raise self.way_back.diverged(f"'{wrong}' held values that are not finite {at}")

    def _begin_again(self) -> None:
        """Cuts the log of a run that was ended before its first checkpoint.

        Raises ``UserError`` where one must have been written: it is gone, or its disk is not
        mounted.
        """
        log = self._kept.journal.log
        if not log.path.is_file():
            return
        # In the background one is whole when the next begins, at the latest.
        first = self._settings.checkpoint_every * (2 if self._saver.kind == "background" else 1)
        made = log.last_step()
        if made > first:
            what = f"holds no checkpoint, though the run made {made} steps"
            remedy = "put its checkpoints back (is a disk not mounted?), or start anew in another folder"
            raise UserError(f"{self._saver.checkpoints.folder}: {what}; {remedy}.")
        self._say("there is no checkpoint to resume from: starting from the beginning.")
        log.cut(0, self._say)

    def _warn_if_not_exact(self, state: Mapping[str, Any]) -> None:
        for what, now in _computed_with().items():
            if state[what] != now:
                before = f"the run began with {state[what]}"
                self._say(f"resuming with {what} {now}, {before}: the rest will not be bit for bit the same.")
        # Before the second generator, checkpoints did not say.
        if (then := state.get("draws", 1)) != GENERATOR:
            what = f"its draws come from generator {then}, this version's from generator {GENERATOR}"
            self._say(f"the run goes on with other noise than it would have met: {what}.")


def _computed_with() -> dict[str, Any]:
    """What the last bits of a run depend on."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
