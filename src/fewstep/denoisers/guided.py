"""Classifier-free guidance (Ho and Salimans 2022) of estimates of x0: from the unconditional one
towards the conditional one, and beyond.

Both estimates are made in one call of the denoiser. They are combined as estimates of x0, which is
the combination of scores, of noise or of velocities as well: at one x_t each of these is affine in
x0, and the factors of guidance add up to 1.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.condition import LABELS, Condition, Conditions, as_condition
from fewstep.denoisers.denoiser import Denoiser
from fewstep.denoisers.wrappers import Wrapper
from fewstep.errors import UserError
from fewstep.networks.calls import Asking, Call, answered
from fewstep.schedule import as_time, expand


class Guided(Wrapper):
    """null + w (conditional - null), all estimates of x0; w = 1 is the conditional estimate.

    ``scale`` is a number, or None to read w (B,) from the condition's ``guidance``. ``conditions``
    says what the unconditional condition is. Two evaluations a sample, in one batch; one for the
    number 1, which asks for nothing else. Raises ``UserError`` when it is called without a
    condition, or without a scale.
    """

    def __init__(self, denoiser: Denoiser, scale: float | None = None, conditions: Conditions = LABELS):
        super().__init__(denoiser)
        self.scale = scale
        self.conditions = conditions

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        return answered(self.asked(x, t, condition))

    def asked(self, x: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Asking:
        """See ``Denoiser``."""
        condition = as_condition(condition)
        if condition.labels is None and not condition.context:
            raise UserError("guidance needs a condition to guide towards: give labels or a context.")
        if self.scale == 1:
            return (yield from self.denoiser.asked(x, t, condition))
        return (yield from self._guided(x, as_time(t).expand(len(x)), condition))

    def _guided(self, x: Tensor, t: Tensor, condition: Condition) -> Asking:
        conditional, null = yield from self._estimates(x, t, condition)
        return self._combined(conditional, null, self._scale_of(condition, x))

    def _estimates(
        self, x: Tensor, t: Tensor, condition: Condition, rows: slice | Tensor = slice(None)
    ) -> Generator[Call, Tensor, tuple[Tensor, Tensor]]:
        """The conditional estimates (B, *D), and the unconditional ones of ``rows``, of one
        call.
        """
        on_device = rows if isinstance(rows, slice) else rows.to(x.device)
        null = self.conditions.null(condition[on_device])
        both = yield from self.denoiser.asked(
            torch.cat([x, x[on_device]]), torch.cat([t, t[rows]]), Condition.cat([condition, null])
        )
        return both[: len(x)], both[len(x) :]

    def _combined(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        return null + scale * (conditional - null)

    def _scale_of(self, condition: Condition, x: Tensor) -> Tensor | float:
        if self.scale is not None:
            return self.scale
        if condition.guidance is None:
            raise UserError("guidance without a scale: give Guided a number, or the condition a guidance scale.")
        return expand(condition.guidance, x)


class GuidedWithin(Guided):
    """Guided where the noise level sigma / alpha is above ``low`` and at most ``high``, elsewhere
    the conditional estimate (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval").

    Samples outside cost one evaluation: only those inside have an unconditional estimate.
    """

    def __init__(self, denoiser: Denoiser, scale: float, low: float, high: float, conditions: Conditions = LABELS):
        super().__init__(denoiser, scale, conditions)
        self.low, self.high = low, high

    def _guided(self, x: Tensor, t: Tensor, condition: Condition) -> Asking:
        level = self.schedule.rho(t)
        rows = ((level > self.low) & (level <= self.high)).nonzero().squeeze(1)
        conditional, null = yield from self._estimates(x, t, condition, rows)
        rows = rows.to(x.device)
        inside = self._combined(conditional[rows], null, self._scale_of(condition, x))
        return conditional.index_copy(0, rows, inside)


class GuidedRescaled(Guided):
    """The guided estimate g brought back to the standard deviation of the conditional one c (Lin
    et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", Sec. 3.4):

        share g std(c) / std(g) + (1 - share) g,

    the standard deviations being those of one sample over all of its dimensions.

    Lin et al. take them of what their network emits, a velocity v. Here they are of x0. Where alpha
    is 0, which their schedules reach, v is -x0, so that both are the same there. Elsewhere the
    deviation of v or of the noise is mostly that of x_t, which guidance does not change, while a
    picture with too much contrast is an x0 of too large a deviation; and x0 is what is compared,
    weighted and thresholded here, whatever the network emits.
    """

    def __init__(self, denoiser: Denoiser, scale: float, share: float, conditions: Conditions = LABELS):
        super().__init__(denoiser, scale, conditions)
        self.share = share

    def _combined(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        guided = super()._combined(conditional, null, scale)
        wanted, own = (each.flatten(1).std(1, correction=0) for each in (conditional, guided))
        # An estimate that is the same everywhere has no contrast to bring back.
        factor = torch.where(own > 0, wanted / own.clamp(min=torch.finfo(own.dtype).tiny), 1.0)
        return expand(torch.lerp(torch.ones_like(factor), factor, self.share), guided) * guided


class GuidedPatchwise(Guided):
    """The guided estimate whose velocity has, patch by patch, the length of the conditional one's
    (the rule of diffusers' ``QwenImagePipeline``).

    The velocity is that of the straight line from x0 to the noise, v = eps - x0, which a network of
    a flow emits. With c = alpha + sigma it is (x - c x0) / sigma, so that

        x0 = (x - r (x - c guided)) / c,  r = |x - c conditional| / |x - c guided|,

    the lengths being those of ``patch`` x ``patch`` places over all channels, or of the whole
    sample where it has no height and width. Raises ``UserError`` for a picture that has no whole
    number of patches.
    """

    def __init__(self, denoiser: Denoiser, scale: float, patch: int, conditions: Conditions = LABELS):
        super().__init__(denoiser, scale, conditions)
        if len(denoiser.shape) == 3 and any(side % patch for side in denoiser.shape[1:]):
            raise UserError(
                f"guidance by patches of {patch} x {patch} does not fit samples of "
                f"{denoiser.shape[1]} x {denoiser.shape[2]}; give a 'patch' that divides both."
            )
        self.patch = patch

    def _guided(self, x: Tensor, t: Tensor, condition: Condition) -> Asking:
        conditional, null = yield from self._estimates(x, t, condition)
        guided = self._combined(conditional, null, self._scale_of(condition, x))
        ends = expand(self.schedule.alpha(t) + self.schedule.sigma(t), x)
        line = x - ends * guided
        ratio = self._lengths(x - ends * conditional) / self._lengths(line)
        return (x - ratio * line) / ends

    def _lengths(self, values: Tensor) -> Tensor:
        """Lengths of patches, at each of their places (B, 1, H, W); of samples (B, 1, ...)."""
        # Above 0, where the root has a derivative.
        tiny = torch.finfo(values.dtype).tiny
        if values.ndim != 4:
            return expand(values.square().flatten(1).sum(1).clamp(min=tiny).sqrt(), values)
        places = functional.avg_pool2d(values.square().sum(1, keepdim=True), self.patch, divisor_override=1)
        return places.clamp(min=tiny).sqrt().repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
