r"""How diffusers' pipelines sample a student: by which scheduler, and called with what.

| the student jumps by | scheduler | called with |
|---|---|---|
| ``renoise``, or in one step | ``LCMScheduler`` | ``timesteps`` |
| ``ddim`` | ``DDIMScheduler``, trailing | ``num_inference_steps`` |
| ``renoise``, from a ``Boundary`` | ``TCDScheduler`` | ``timesteps``, ``eta`` 1 |
| ``ddim``, or in one step, of a flow | ``FlowMatchEulerDiscreteScheduler`` | ``sigmas`` |
| ``renoise`` of a flow | the same, with ``stochastic_sampling`` | ``sigmas`` |

- ``LCMScheduler`` noises the estimate of x_0 to the next timestep. Its own boundary, c_skip x +
  c_out x_0 with c_skip = 1 / (1 + (2 s i)^2) at timestep i, is moved out of the way by its
  ``timestep_scaling`` s. Its own grid is of the solver that it was distilled from; with as many
  ``original_inference_steps`` as there are timesteps, every timestep is on it.
- ``DDIMScheduler`` steps from timestep i to i - N // n, whatever its timesteps are.
- ``TCDScheduler`` at eta = 1 goes to timestep 0 along the estimate, which is what ``Boundary``
  computes, and noises that. It knows that some noise is in there still, for which ours takes x_0:
  where there are several steps, both differ by a share sigma_0^2 / 2 (4e-4 for Stable Diffusion).
- ``FlowMatchEulerDiscreteScheduler`` shifts the ``sigmas`` of a call, which are our times before
  the shift. It steps along the straight line, or goes to the estimate and noises that.

All begin with noise of unit variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from fewstep.denoisers import Boundary, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.networks.kinds.build import describe_network
from fewstep.prediction import Flow
from fewstep.solvers.sampling import Sampling
from fewstep.zoo.diffusers_schedulers import settings_of

_NO_BOUNDARY = 1e4
_TOLERANCE = 1e-6
"""Of a timestep: times are float64."""


@dataclass(frozen=True, eq=False)
class SampledBy:
    """``scheduler``: one of diffusers'; ``timesteps``: where the network is called, decreasing;
    ``arguments``: of the pipeline's call, by which it samples the student; ``sigmas``: of a flow,
    the noise levels at its timesteps, which are no whole numbers.
    """

    scheduler: Any
    timesteps: tuple[float, ...]
    arguments: Mapping[str, Any]
    sigmas: tuple[float, ...] = ()


def text_denoiser(student: nn.Module) -> NetworkDenoiser:
    """The student's denoiser around the network of a text-to-image model.

    Raises ``UserError`` for a student of another kind.
    """
    inner = student.denoiser if isinstance(student, Boundary) else student
    if not isinstance(inner, NetworkDenoiser):
        raise UserError(
            f"the student is a {type(inner).__name__}, which none of diffusers' pipelines computes; take a student "
            "that is a denoiser of its own, without a threshold ('reflected') or jumps ('trajectory')."
        )
    # An adapter that is not folded in is refused there.
    describe_network(inner.network)
    if not (isinstance(inner.network, DenoisingNetwork) and inner.network.part and inner.network.context_shapes):
        raise UserError(
            f"the student's network is a {type(inner.network).__name__}, and a text-to-image folder holds diffusers' "
            "own; take a student of a text-to-image teacher."
        )
    return inner


def sampled_by(
    student: nn.Module, sampling: Sampling, times: Sequence[float], scale: float, alone: Mapping[str, Any]
) -> SampledBy:
    """How diffusers samples the ``student`` as ``sampling`` does along ``times`` (decreasing, the
    last 0), from noise of the standard deviation ``scale``; ``alone``: the arguments by which its
    pipeline makes no second pass.

    Raises ``UserError`` for a student of another kind, and for what none of the schedulers does.
    """
    denoiser = text_denoiser(student)
    settings = settings_of(denoiser.schedule, denoiser.prediction, denoiser.inputs)
    if abs(scale - 1.0) > _TOLERANCE:
        raise UserError(
            f"the student starts from noise of the standard deviation {scale:g}, and diffusers' pipelines from unit "
            "noise; take a student that starts as the teacher does."
        )
    told = {**alone, **_guidance(denoiser, sampling)}
    if isinstance(denoiser.prediction, Flow):
        _check_ends(times)
        levels = [float(denoiser.schedule.sigma(time)) for time in times[:-1]]
        scheduler = _of_flow(isinstance(student, Boundary), sampling, len(levels), settings)
        timesteps = tuple(settings["num_train_timesteps"] * level for level in levels)
        return SampledBy(scheduler, timesteps, {"sigmas": list(times[:-1]), **told}, tuple(levels))
    steps = timesteps_of(times, settings["num_train_timesteps"])
    scheduler, arguments = _chosen(isinstance(student, Boundary), sampling, steps, settings)
    return SampledBy(scheduler, steps, {**arguments, **told})


def needs_of(scheduler: str, count: int) -> Mapping[str, Any]:
    """The settings that a scheduler of that class needs for any student of ``count`` timesteps."""
    if scheduler == "FlowMatchEulerDiscreteScheduler":
        return {"use_dynamic_shifting": False}
    # A Stable Diffusion pipeline sets the offset of any scheduler to 1.
    common = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    free = {**common, "original_inference_steps": count}
    needs: dict[str, dict[str, Any]] = {
        "LCMScheduler": {**free, "timestep_scaling": _NO_BOUNDARY},
        "TCDScheduler": free,
        "DDIMScheduler": {**common, "timestep_spacing": "trailing"},
    }
    return needs.get(scheduler, {})


def timesteps_of(times: Sequence[float], count: int) -> tuple[int, ...]:
    """The timesteps i of times (i + 1) / ``count``, of all but the last, which must be 0.

    Raises ``UserError`` for a time between two of them.
    """
    _check_ends(times)
    places = [count * time - 1 for time in times[:-1]]
    off = next((place for place in places if abs(place - round(place)) > _TOLERANCE), None)
    if off is not None:
        raise UserError(
            f"the student is called at timestep {off:.6g}, and diffusers' schedulers know whole ones alone; "
            "'student.first_timestep' gives students that are called at such."
        )
    return tuple(round(place) for place in places)


def _check_ends(times: Sequence[float]) -> None:
    if len(times) < 2 or times[-1] != 0:
        raise UserError(f"the student's times {tuple(times)} do not end at 0; give those of its sampling.")


def _of_flow(boundary: bool, sampling: Sampling, steps: int, settings: Mapping[str, Any]) -> Any:
    import diffusers

    if boundary or sampling.jump not in ("renoise", "ddim") or (sampling.rule != "euler" and steps > 1):
        raise _not_sampled(boundary, sampling)
    noised = sampling.jump == "renoise" and steps > 1
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings, stochastic_sampling=noised)


def _not_sampled(boundary: bool, sampling: Sampling) -> UserError:
    what = f"jumps of the kind '{sampling.jump}'{' from a boundary' if boundary else ''} by '{sampling.rule}'"
    return UserError(
        f"the student is sampled by {what}, which no scheduler of diffusers' does as ours; take a student that is "
        "sampled by 'renoise', or by 'ddim'."
    )


def _chosen(
    boundary: bool, sampling: Sampling, timesteps: tuple[int, ...], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The scheduler, and the arguments that go with it."""
    import diffusers

    count, steps = settings["num_train_timesteps"], len(timesteps)
    asked = {"timesteps": list(timesteps)}
    if boundary and sampling.jump == "renoise":
        return diffusers.TCDScheduler(**settings, **needs_of("TCDScheduler", count)), {**asked, "eta": 1.0}
    if boundary or sampling.jump not in ("renoise", "ddim") or (sampling.rule != "euler" and steps > 1):
        raise _not_sampled(boundary, sampling)
    if sampling.jump == "renoise" or steps == 1:
        if timesteps[-1] == 0:
            raise UserError(
                "the student is called at timestep 0, from where LCMScheduler returns its input; take fewer steps."
            )
        return diffusers.LCMScheduler(**settings, **needs_of("LCMScheduler", count)), asked
    scheduler: Any = diffusers.DDIMScheduler(**settings, **needs_of("DDIMScheduler", count))
    scheduler.set_timesteps(steps)
    strides = {before - after for before, after in pairwise(timesteps)}
    if scheduler.timesteps.tolist() != list(timesteps) or strides != {count // steps}:
        raise UserError(
            f"the student jumps along the timesteps {', '.join(map(str, timesteps))}, and DDIMScheduler along "
            f"{', '.join(map(str, scheduler.timesteps.tolist()))}; take a student of that grid."
        )
    return scheduler, {"num_inference_steps": steps}


def _guidance(denoiser: NetworkDenoiser, sampling: Sampling) -> dict[str, float]:
    """The argument by which the network is told a scale: the sampling's, or the usual one of a
    network that has such; none for a network that reads no scale.
    """
    network = denoiser.network
    assert isinstance(network, DenoisingNetwork)
    scale = network.told if sampling.guidance is None else sampling.guidance
    if network.reads_guidance != (scale is not None):
        reads = "reads a guidance scale" if network.reads_guidance else "reads no guidance scale"
        raise UserError(
            f"the student's network {reads}, and its sampling says {sampling.guidance}; give the sampling that it was "
            "trained for."
        )
    return {} if scale is None else {"guidance_scale": scale}
