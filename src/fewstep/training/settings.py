"""What the loop is told, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from fewstep.errors import UserError
from fewstep.system import distributed
from fewstep.training.saving.origin_checks import Origins


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know besides the stages.

    ``batch``: samples a step, of all processes; each process works on its part in ``accumulate``
    equal portions, whose gradients are added up. Cadences are in steps; ``keep``: how many
    checkpoints stay. ``checkpoints``: one file, shards (``sharded``), or shards written in the
    background; None is shards where networks are sharded and a file elsewhere. ``mode`` and
    ``replicas``: how several processes share the networks (see ``layout``). ``run``: what tells
    this run's checkpoints from another's; nothing for any. ``device``: where the loop works; None
    is where the networks are. They are elsewhere only until they are sharded, and while they wait:
    with ``offload`` those that are not used do, in the host's memory (see ``training.offload``).
    ``origins``: checksums of what the run is made from, which checkpoints keep.
    """

    batch: int = 64
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 2
    accumulate: int = 1
    mode: Literal["ddp", "fsdp"] = "ddp"
    replicas: int = 1
    checkpoints: Literal["file", "shards", "background"] | None = None
    run: str = ""
    device: torch.device | None = None
    offload: bool = False
    origins: Origins = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "log_every", "checkpoint_every", "keep", "accumulate", "replicas"):
            if getattr(self, name) < 1:
                raise UserError(f"training settings: '{name}' must be at least 1, got {getattr(self, name)}.")

    def check_portions(self) -> None:
        """Raises ``UserError`` where the processes cannot share a batch in equal portions."""
        processes = distributed.size()
        if self.batch % (processes * self.accumulate):
            shared = f"in 'training.accumulate' = {self.accumulate} equal portions each"
            what = f"'training.batch' is {self.batch}, which {processes} processes cannot share {shared}"
            raise UserError(f"{what}; use a multiple of {processes * self.accumulate}.")


@dataclass
class Progress:
    """Where a run stands: ``stage_step`` steps of stage number ``stage`` are done, ``step`` in all,
    at ``evaluations`` network evaluations.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    evaluations: int = 0
