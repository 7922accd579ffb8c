"""What a target is, and the one that never changes."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from fewstep.denoisers import Denoiser


class Target(abc.ABC):
    """Which denoiser plays the teacher at this step."""

    @property
    @abc.abstractmethod
    def denoiser(self) -> Denoiser:
        """The teacher in force; frozen."""

    @abc.abstractmethod
    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        """Is told, for each sample, the level (B,) and the squared distance (B,) between fake score
        and teacher that a step found there.
        """


@dataclass(frozen=True, eq=False)
class Fixed(Target):
    """Always the same teacher."""

    teacher: Denoiser

    @property
    def denoiser(self) -> Denoiser:
        return self.teacher

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        return
