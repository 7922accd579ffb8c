"""diffusers' scheduler files: what a network emits and is fed, by their class and their numbers.

- ``DDPMScheduler``, ``DDIMScheduler`` and their kin, also those that sample in sigma / alpha
  (``EulerDiscreteScheduler``): schedule ``DiscreteVP`` of its betas, with
  ``rescale_betas_zero_snr`` ``ZeroSNRVP``; prediction ``Epsilon``, ``X0`` or ``V``; inputs
  ``TimestepInputs``: index i.
- ``FlowMatchEulerDiscreteScheduler`` and its kin, ``DPMSolverMultistep-`` and ``UniPCMultistep-``
  with ``use_flow_sigmas``: schedule ``RectifiedFlow``, or ``ShiftedFlow`` of their shift, which
  with ``use_dynamic_shifting`` is that of the number of tokens; prediction ``Flow`` or ``X0``;
  inputs ``FlowInputs``: N sigma.
- ``EDMEulerScheduler``, ``EDMDPMSolverMultistep-``: schedule ``KarrasVE(sigma_min, sigma_max)``;
  prediction ``EDM``; inputs ``EDMInputs``.
- ``CMStochasticIterativeScheduler``: schedule ``KarrasVE(sigma_min, sigma_max)``; prediction
  ``Consistency``; inputs ``EDMInputs``, its label times 1000.

What a scheduler does besides (its grid and its rule of sampling) is a sampler's business and stays
out. Of what changes an estimate, clipping and thresholding, it is said that it stays out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fewstep.denoisers import EDMInputs, FlowInputs, TimestepInputs
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.prediction import EDM, X0, Consistency, Epsilon, Flow, Prediction, V
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule, ShiftedFlow, ZeroSNRVP
from fewstep.values import kind_of
from fewstep.zoo.diffusers_weights import CORRECT
from fewstep.zoo.nvidia.modules import flag, real, whole_number, word

Meaning = tuple[Schedule, Prediction, Inputs]

_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_VP: Mapping[str, Prediction] = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
_FLOW: Mapping[str, Prediction] = {"flow_prediction": Flow(), "sample": X0()}
_MOST_STEPS = 100_000
_LOWEST, _HIGHEST = 1e-6, 1e6
_SHIFTS = (1e-3, 1e3)
# Below it an estimate is a difference of numbers that float32 cannot tell apart.
_LEAST_SIGNAL = 1e-7
_CLIPPING = {
    "DDPMScheduler": ("clip_sample", True),
    "DDIMScheduler": ("clip_sample", True),
    "CMStochasticIterativeScheduler": ("clip_denoised", True),
    **dict.fromkeys(("HeunDiscreteScheduler", "LCMScheduler", "TCDScheduler"), ("clip_sample", False)),
}
"""Flags by which a scheduler clips, and what they are where they are left out."""


@contextlib.contextmanager
def about(path: object) -> Iterator[None]:
    """Puts the file's name before what is wrong in it, and what to do behind."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {str(error).removesuffix('.')}; {CORRECT}.") from error


def meaning_of(config: dict[str, Any], path: object, tokens: int | None = None) -> Meaning:
    """The schedule, the prediction and the inputs; ``tokens``: of one sample, as its network sees
    it, None for a network that sees none.

    Raises ``UserError`` naming file, key and value.
    """
    with about(path):
        name = word(config, "_class_name")
        if name not in _SCHEDULERS:
            raise UserError(f"is the configuration of a {name:.80}, which must be one of {', '.join(_SCHEDULERS)}")
        _left_out(config)
        schedule, prediction, inputs = _SCHEDULERS[name](config, tokens)
        prediction.check(schedule)
        inputs.check(schedule)
    return schedule, prediction, inputs


def settings_of(schedule: Schedule, prediction: Prediction, inputs: Inputs) -> dict[str, Any]:
    """The entries by which a scheduler says these three, of a variance preserving process: what
    ``meaning_of`` reads, without the class.

    Raises ``UserError`` for what such schedulers have no words for.
    """
    said = next((name for name, kind in _VP.items() if kind == prediction), None)
    if (
        not isinstance(schedule, DiscreteVP)
        or type(schedule) not in (DiscreteVP, ZeroSNRVP)
        or inputs != TimestepInputs(float(schedule.steps))
        or said is None
    ):
        raise UserError(
            f"schedule '{kind_of(type(schedule))}' with prediction '{kind_of(type(prediction))}' and inputs "
            f"'{kind_of(type(inputs))}' is none of diffusers' variance preserving ones, which alone are written so "
            "far; take a student whose teacher is a model of Stable Diffusion 1, 2 or SDXL."
        )
    return {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": next(name for name, betas in _BETAS.items() if betas == schedule.betas),
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "rescale_betas_zero_snr": type(schedule) is ZeroSNRVP,
        "prediction_type": said,
    }


def ignored_by(config: dict[str, Any], path: object) -> tuple[str, ...]:
    """Sentences on what a scheduler does to estimates of x0 that a denoiser here does not."""
    with about(path):
        on = _left_out(config)
    if not on:
        return ()
    return (
        (
            f"{path}: {' and '.join(on)} of its sampler is left out, estimates stay as the network makes them; "
            "'reflected' keeps them in range."
        ),
    )


def _left_out(config: dict[str, Any]) -> list[str]:
    """The keys by which a scheduler changes estimates of x0."""
    clipping = _CLIPPING.get(str(config.get("_class_name")))
    on = [clipping[0]] if clipping is not None and flag(config, *clipping) else []
    return [*on, "thresholding"] if flag(config, "thresholding", False) else on


def _vp(config: dict[str, Any], tokens: int | None) -> Meaning:
    if flag(config, "use_flow_sigmas", False):
        return _flow(config, tokens)
    schedule = _betas(config)
    predictions = {
        name: kind for name, kind in _VP.items() if name != "sample" or config["_class_name"] != "PNDMScheduler"
    }
    prediction = _chosen(config, predictions, "with a variance preserving schedule")
    if isinstance(prediction, Epsilon) and float(schedule.alpha(1.0)) < _LEAST_SIGNAL:
        raise UserError(
            f"has betas that leave {float(schedule.alpha(1.0)):.1g} of the signal at the last step, from "
            "which noise tells no x0 apart"
        )
    return schedule, prediction, TimestepInputs(float(schedule.steps))


def _betas(config: dict[str, Any]) -> DiscreteVP:
    betas, steps = word(_having(config, "beta_schedule"), "beta_schedule"), _steps(config)
    if betas not in _BETAS:
        raise UserError(f"has '{betas:.80}' for beta_schedule, which must be one of {', '.join(_BETAS)}")
    if config.get("trained_betas") is not None:
        raise UserError(
            "has trained_betas, a table of its own in the place of beta_schedule, which is not read here "
            "(it must be null)"
        )
    rescaled = flag(config, "rescale_betas_zero_snr", False)
    if rescaled and config.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(
            "has true for rescale_betas_zero_snr with prediction_type 'epsilon': no signal is left at the last step, "
            "where noise tells no x0 apart (it must be false)"
        )
    start, end = (real(_having(config, name), name, 0.0, 1.0) for name in ("beta_start", "beta_end"))
    if not 0 < start <= end < 1:
        raise UserError(
            f"has {start} for beta_start and {end} for beta_end, where 0 < beta_start <= beta_end < 1 must hold"
        )
    return (ZeroSNRVP if rescaled else DiscreteVP)(_BETAS[betas], steps, start, end)  # type: ignore[arg-type]


def _flow(config: dict[str, Any], tokens: int | None) -> Meaning:
    """x_t = (1 - sigma) x0 + sigma eps, told N sigma."""
    # Solvers that can also do flows write their own default, noise, where nothing else is said.
    usual = "epsilon" if flag(config, "use_flow_sigmas", False) else "flow_prediction"
    plain = {"prediction_type": usual, **config}
    prediction, steps = _chosen(plain, _FLOW, "of a flow"), _steps(config)
    for name in ("invert_sigmas", "stochastic_sampling"):
        if flag(config, name, False):
            raise UserError(f"has true for {name}, which is not read here (it must be false)")
    shift, epsilon = _shift(config, tokens), 1.0 / steps
    schedule = RectifiedFlow(epsilon) if shift == 1.0 else ShiftedFlow(shift, epsilon)
    return schedule, prediction, FlowInputs(float(steps))


def _shift(config: dict[str, Any], tokens: int | None) -> float:
    """s of sigma = s t / (1 + (s - 1) t); dynamic ones are e^mu, or mu, with mu linear in the
    number of tokens.
    """
    least, most = _SHIFTS
    if not flag(config, "use_dynamic_shifting", False):
        name = "shift" if "shift" in config else "flow_shift"
        return real({name: 1.0, **config}, name, least, most)
    if tokens is None:
        raise UserError(
            "has true for use_dynamic_shifting, by a number of tokens that this network does not have (it must be "
            "false)"
        )
    usual = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, **config}
    low, high = (real(usual, name, -_HIGHEST, _HIGHEST) for name in ("base_shift", "max_shift"))
    first, last = (whole_number(usual, name, 1, 2**31) for name in ("base_image_seq_len", "max_image_seq_len"))
    if not first < last:
        raise UserError(f"has {first} for base_image_seq_len and {last} for max_image_seq_len, which must be more")
    mu = low + (high - low) * (tokens - first) / (last - first)
    kind = word({"time_shift_type": "exponential", **config}, "time_shift_type")
    if kind not in ("exponential", "linear"):
        raise UserError(f"has '{kind:.80}' for time_shift_type, which must be exponential or linear")
    shift = math.exp(min(mu, 100.0)) if kind == "exponential" else mu
    if not least <= shift <= most:
        raise UserError(f"shifts times by {shift:.3g} at {tokens} tokens, which must be from {least:g} to {most:g}")
    return shift


def _edm(config: dict[str, Any], tokens: int | None) -> Meaning:
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise UserError(
            f"has {prediction!r:.80} for prediction_type; EDM's own is called 'epsilon' there, and no other "
            "is known here"
        )
    data = real(_having(config, "sigma_data"), "sigma_data", _LOWEST, _HIGHEST)
    return _levels(config), EDM(data), EDMInputs(data)


def _consistency(config: dict[str, Any], tokens: int | None) -> Meaning:
    schedule, data = _levels(config), real(_having(config, "sigma_data"), "sigma_data", _LOWEST, _HIGHEST)
    return schedule, Consistency(data, schedule.sigma_min), EDMInputs(data, 1000.0)


def _levels(config: dict[str, Any]) -> KarrasVE:
    low, high = (real(_having(config, name), name, _LOWEST, _HIGHEST) for name in ("sigma_min", "sigma_max"))
    if not low < high:
        raise UserError(f"has {low} for sigma_min and {high} for sigma_max, where sigma_min < sigma_max must hold")
    return KarrasVE(low, high)


def _steps(config: dict[str, Any]) -> int:
    return whole_number(_having(config, "num_train_timesteps"), "num_train_timesteps", 2, _MOST_STEPS)


def _chosen(config: dict[str, Any], predictions: Mapping[str, Prediction], where: str) -> Prediction:
    kind = word({"prediction_type": "epsilon", **config}, "prediction_type")
    if kind not in predictions:
        raise UserError(f"has '{kind:.80}' for prediction_type, which {where} must be one of {', '.join(predictions)}")
    return predictions[kind]


def _having(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration, in which an entry must be."""
    if name not in config:
        raise UserError(f"lacks the entry '{name}'")
    return config


_SCHEDULERS: Mapping[str, Callable[[dict[str, Any], int | None], Meaning]] = {
    **dict.fromkeys(("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"), _vp),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"), _vp),
    **dict.fromkeys(("HeunDiscreteScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler"), _vp),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), _flow),
    **dict.fromkeys(("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), _edm),
    "CMStochasticIterativeScheduler": _consistency,
}
