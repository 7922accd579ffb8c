"""What a target is, the one that never changes, and guidance and thresholds on any."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from fewstep.condition import Conditions
from fewstep.denoisers import Denoiser, Reflected
from fewstep.denoisers.threshold import Threshold
from fewstep.targets.guided_estimates import Guidance


class Target(abc.ABC):
    """Which denoiser plays the teacher at this step."""

    @property
    @abc.abstractmethod
    def denoiser(self) -> Denoiser:
        """The teacher in force; frozen."""

    @property
    def degraded(self) -> float:
        """Where the teacher in force stands on a recorded path: 0 for the teacher itself, 1 for the
        last node. 0 unless a class walks a path.
        """
        return 0.0

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


@dataclass(frozen=True, eq=False)
class GuidedTarget(Target):
    """The denoiser in force of ``target``, guided towards ``conditions``."""

    target: Target
    guidance: Guidance
    conditions: Conditions

    @property
    def denoiser(self) -> Denoiser:
        return self.guidance.guided(self.target.denoiser, self.conditions, self.degraded)

    @property
    def degraded(self) -> float:
        return self.target.degraded

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        self.target.observe(log_snr, gap)


@dataclass(frozen=True, eq=False)
class ReflectedTarget(Target):
    """``Reflected`` around the denoiser in force of ``target`` (Lou and Ermon 2023; DDIL, Sec.
    4.1).
    """

    target: Target
    threshold: Threshold

    @property
    def denoiser(self) -> Denoiser:
        return Reflected(self.target.denoiser, self.threshold)

    @property
    def degraded(self) -> float:
        return self.target.degraded

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        self.target.observe(log_snr, gap)
