"""How the estimates of a target are guided (Ho and Salimans 2022): a value a kind.

The student then follows the score of the guided distribution, while the fake score, which is that
of the student's own samples, stays at scale 1 (DMD2's and DisBack's published scripts for SDXL: 8
and 1).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Literal

from fewstep.condition import Conditions
from fewstep.denoisers import Denoiser, Guided, GuidedPatchwise, GuidedRescaled, GuidedWithin
from fewstep.values import Contradiction, Count, Fraction, NotNegative, Positive, Value


@dataclass(frozen=True)
class Guidance(Value, abc.ABC):
    """A guidance; a scale w of 1 is the conditional estimate, as without any."""

    @property
    @abc.abstractmethod
    def guides(self) -> bool:
        """Whether any estimate is another than without guidance."""

    @property
    def follows_path(self) -> bool:
        """Whether it depends on the node of a recorded path."""
        return False

    @abc.abstractmethod
    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        """The denoiser, guided towards ``conditions``; the same object where nothing is guided.

        ``degraded``: where it stands on a path, 0 for the teacher and 1 for the last node.
        """


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The conditional estimate."""

    kind: Literal["none"] = field(default="none", kw_only=True)

    @property
    def guides(self) -> bool:
        return False

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        return denoiser


@dataclass(frozen=True)
class ConstantGuidance(Guidance):
    """``scale`` at every noise level, and at every node of a path."""

    kind: Literal["constant"] = field(default="constant", kw_only=True)
    scale: NotNegative

    @property
    def guides(self) -> bool:
        return self.scale != 1

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        return Guided(denoiser, self.scale, conditions) if self.guides else denoiser


@dataclass(frozen=True)
class IntervalGuidance(Guidance):
    """``scale`` at noise levels sigma / alpha above ``low`` and up to ``high`` (Kynkaanniemi et al.
    2024), at every node of a path.
    """

    kind: Literal["interval"] = field(default="interval", kw_only=True)
    scale: NotNegative
    low: NotNegative
    high: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise Contradiction(
                f"'low' is {self.low} and 'high' {self.high}; guidance needs an interval of noise levels, so 'low' "
                "must be below 'high'"
            )

    @property
    def guides(self) -> bool:
        return self.scale != 1

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        return GuidedWithin(denoiser, self.scale, self.low, self.high, conditions) if self.guides else denoiser


@dataclass(frozen=True)
class RescaledGuidance(Guidance):
    """``scale``, the estimate's standard deviation brought back to the conditional estimate's by
    ``share`` (Lin et al. 2024, Sec. 3.4, who take 0.7), at every node of a path.
    """

    kind: Literal["rescaled"] = field(default="rescaled", kw_only=True)
    scale: NotNegative
    share: Fraction = 0.7

    @property
    def guides(self) -> bool:
        return self.scale != 1

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        return GuidedRescaled(denoiser, self.scale, self.share, conditions) if self.guides else denoiser


@dataclass(frozen=True)
class PatchwiseGuidance(Guidance):
    """``scale``, the velocity of each patch of ``patch`` x ``patch`` places brought back to the
    length of the conditional estimate's, as diffusers' pipeline of Qwen-Image does, whose patches
    are of 2 x 2 latents; at every node of a path.
    """

    kind: Literal["patchwise"] = field(default="patchwise", kw_only=True)
    scale: NotNegative
    patch: Count = 2

    @property
    def guides(self) -> bool:
        return self.scale != 1

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        return GuidedPatchwise(denoiser, self.scale, self.patch, conditions) if self.guides else denoiser


@dataclass(frozen=True)
class GuidanceAlongPath(Guidance):
    """``scale`` at the teacher and 1 at the last node of a path, linear in the node between.

    The last node estimates the untrained student's samples. Guided, it would be no more than an
    extrapolation of their score, so that the student would begin far from its target.
    """

    kind: Literal["along-path"] = field(default="along-path", kw_only=True)
    scale: NotNegative

    @property
    def guides(self) -> bool:
        return self.scale != 1

    @property
    def follows_path(self) -> bool:
        return True

    def guided(self, denoiser: Denoiser, conditions: Conditions, degraded: float) -> Denoiser:
        # Exact at both ends.
        return ConstantGuidance(degraded + (1 - degraded) * self.scale).guided(denoiser, conditions, degraded)
