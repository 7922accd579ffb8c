"""A target whose estimates are thresholded, whichever denoiser is in force."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.denoisers import Denoiser, Reflected
from fewstep.denoisers.threshold import Threshold
from fewstep.targets.target import Target


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

    def observe(self, log_snr: Tensor, gap: Tensor) -> None:
        self.target.observe(log_snr, gap)
