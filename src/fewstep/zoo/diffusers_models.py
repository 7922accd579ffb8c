"""diffusers' unconditional and class-conditional image models: a ``UNet2DModel`` and the scheduler that says what its output means.

==================================================  =========================================  =================================  =====================================
scheduler                                           schedule                                   prediction                         inputs
==================================================  =========================================  =================================  =====================================
``DDPMScheduler``, ``DDIMScheduler`` and their kin  ``DiscreteVP`` of its betas                ``Epsilon``, ``X0`` or ``V``       ``TimestepInputs``: index i
``EDMEulerScheduler``, ``EDMDPMSolverMultistep-``   ``KarrasVE(sigma_min, sigma_max)``         ``EDM``                            ``EDMInputs``
``DPMSolverMultistepScheduler``, flow sigmas        ``RectifiedFlow``                          ``Velocity`` or ``X0``             ``TimestepInputs``: t times N
``CMStochasticIterativeScheduler``                  ``KarrasVE(sigma_min, sigma_max)``         ``Consistency``                    ``EDMInputs``, its label times 1000
==================================================  =========================================  =================================  =====================================

What a scheduler does besides (clipping x0, its grid and rule of sampling) is a sampler's business and stays out. Only safetensors are read, no pickled weights
(see ``diffusers_files``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers import EDMInputs, NetworkDenoiser, TimestepInputs, freeze
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.networks import build
from fewstep.networks.bounds import MOST_UNITS
from fewstep.networks.store import load_strictly
from fewstep.prediction import EDM, X0, Consistency, Epsilon, Prediction, V, Velocity
from fewstep.schedule import DiscreteVP, KarrasVE, RectifiedFlow, Schedule
from fewstep.zoo.diffusers_files import Choice, Files, find, read_index, read_json

Meaning = tuple[Schedule, Prediction, Inputs]

_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS: Mapping[str, Prediction] = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
_FLOW_PREDICTIONS: Mapping[str, Prediction] = {"flow_prediction": Velocity(), "sample": X0()}
# What diffusers' average of weights writes into the configuration of the network that it averages.
_OF_AVERAGES = frozenset({"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"})
# Attention's layers had other names in the first releases of diffusers.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(source: str | Path, revision: str | None = None, choice: Choice | None = None, classes: int | None = None) -> NetworkDenoiser:
    """The frozen denoiser in a pipeline's folder, or under an id of the hub (``owner/name``, there at ``revision``: a commit pins it).

    ``classes``: how many there are. A network that embeds one more keeps the last embedding for "no class", as is usual for classifier-free guidance: it is the label -1 here.

    Raises ``UserError`` naming the file for a missing or malformed one, a scheduler that is not in the table, weights that do not fit, and when diffusers is missing.
    """
    files = find(source, revision, choice)
    config = read_json(files.config)
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{files.config}: is the configuration of a {config.get('_class_name')}; only UNet2DModel is read here.")
    schedule, prediction, inputs = _meaning(read_json(files.scheduler), files.scheduler)
    arguments = {name: value for name, value in config.items() if not name.startswith("_") and name not in _OF_AVERAGES}
    shape, known = _shape(arguments, files.config), _classes(arguments, classes, files.config)
    with torch.random.fork_rng(devices=[]):
        network = _built(arguments, known, files.config)
    load_strictly(network, _tensors(files), str(files.index or files.weights[0]))
    return freeze(NetworkDenoiser(network, schedule, prediction, inputs, shape, known))


def files_of(source: str | Path, revision: str | None = None, choice: Choice | None = None) -> dict[str, Path]:
    """The files that ``load`` would read, by names that do not say where the folder is.

    Raises ``UserError`` as it does.
    """
    files = find(source, revision, choice)
    read = (files.config, *files.weights, *(() if files.index is None else (files.index,)))
    found = {path.name: path for path in read if path.is_file()}
    return found | ({"scheduler": files.scheduler} if files.scheduler.is_file() else {})


def _built(arguments: Mapping[str, Any], classes: int, path: Path) -> nn.Module:
    try:
        return build({"kind": "diffusers-unet2d", "config": arguments, "classes": classes})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _tensors(files: Files) -> dict[str, Tensor]:
    """The state dict of ``DiffusersUNet``, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = None if files.index is None else read_index(files.index)
    tensors: dict[str, Tensor] = {}
    for path in files.weights:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; pickled weights (.bin) are not read, save the model with safe_serialization.")
        try:
            part = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: is not a readable safetensors file ({error}); it may have been cut short.") from error
        stray = next((name for name in part if index is not None and index.get(name) != path.name), None)
        if stray is not None:
            raise UserError(f"{path}: holds the tensor '{stray}', of which {files.index} says otherwise; get the folder from its source again.")
        tensors |= part
    lacking = sorted(set(index or ()) - set(tensors))
    if lacking:
        raise UserError(f"{files.index}: names the tensor '{lacking[0]}', which is not in its file; get the folder from its source again.")
    return {f"unet.{_renamed(name)}": value.float() for name, value in tensors.items()}


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    head, _, last = layer.rpartition(".")
    return f"{head}.{_OLD_NAMES[last]}.{kind}" if ".attentions." in f".{name}" and last in _OLD_NAMES else name


def _shape(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    sides = size if isinstance(size, list) else [size, size]
    counts = [*sides, channels]
    if len(sides) != 2 or not all(type(count) is int and 1 <= count <= MOST_UNITS for count in counts) or config.get("out_channels", 3) != channels:
        raise UserError(
            f"{path}: must have a sample_size and as many out_channels as in_channels, in whole numbers from 1; "
            f"it has {json.dumps(size):.40}, {json.dumps(config.get('out_channels', 3)):.40} and {json.dumps(channels):.40}."
        )
    return (channels, *sides)


def _classes(config: Mapping[str, Any], classes: int | None, path: Path) -> int:
    """How many classes the network knows, the embedding of "no class" not counted."""
    embedded = config.get("num_class_embeds")
    if embedded is None:
        return 0
    if type(embedded) is not int or not 1 <= embedded <= MOST_UNITS:
        raise UserError(f"{path}: 'num_class_embeds' must be a whole number from 1, it is {json.dumps(embedded):.40}.")
    return embedded - 1 if classes is not None and embedded == classes + 1 and classes > 0 else embedded


def _meaning(config: Mapping[str, Any], path: Path) -> Meaning:
    name = str(config.get("_class_name"))
    if name not in _SCHEDULERS:
        raise UserError(f"{path}: is the configuration of a {name}; it must be one of {', '.join(_SCHEDULERS)}.")
    try:
        return _SCHEDULERS[name](config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _number(config: Mapping[str, Any], name: str) -> float:
    """An entry that is a finite number: what JSON writes as text, true or NaN is refused."""
    if name not in config:
        raise UserError(f"lacks the entry '{name}'; get the folder from its source again.")
    value = config[name]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise UserError(f"'{name}' must be a number, it is {json.dumps(value):.40}; correct it, or get the folder from its source again.")
    return float(value)


def _count(config: Mapping[str, Any], name: str) -> int:
    value = _number(config, name)
    if not value.is_integer() or value > MOST_UNITS:
        raise UserError(f"'{name}' must be a whole number up to {MOST_UNITS:,}, it is {value:g}; correct it, or get the folder from its source again.")
    return int(value)


def _set(config: Mapping[str, Any], name: str) -> bool:
    """Whether a switch is on; a text is refused, since 'false' would be on."""
    value = config.get(name)
    if value not in (None, True, False) or isinstance(value, float):
        raise UserError(f"'{name}' must be true or false, it is {json.dumps(value):.40}; correct it, or get the folder from its source again.")
    return bool(value)


def _word(config: Mapping[str, Any], name: str, usual: str | None = None) -> str:
    if name not in config and usual is None:
        raise UserError(f"lacks the entry '{name}'; get the folder from its source again.")
    value = config.get(name, usual)
    return value if isinstance(value, str) else json.dumps(value)


def _vp(config: Mapping[str, Any]) -> Meaning:
    betas, kind = _word(config, "beta_schedule"), _word(config, "prediction_type", "epsilon")
    if betas not in _BETAS or config.get("trained_betas") is not None or _set(config, "rescale_betas_zero_snr"):
        raise UserError(f"its betas ({betas}, trained or rescaled ones) are not known; beta_schedule must be one of {', '.join(_BETAS)}, as it was trained.")
    if kind not in _PREDICTIONS:
        raise UserError(f"prediction_type is '{kind}'; it must be one of {', '.join(_PREDICTIONS)}.")
    steps = _count(config, "num_train_timesteps")
    schedule = DiscreteVP(_BETAS[betas], steps, _number(config, "beta_start"), _number(config, "beta_end"))  # type: ignore[arg-type]
    return schedule, _PREDICTIONS[kind], TimestepInputs(float(steps))


def _vp_or_flow(config: Mapping[str, Any]) -> Meaning:
    """The solvers of DPM's family, which run a rectified flow where ``use_flow_sigmas`` is on: alpha = 1 - sigma, and the timestep is sigma times their number."""
    if not _set(config, "use_flow_sigmas"):
        return _vp(config)
    kind = _word(config, "prediction_type", "epsilon")
    if kind not in _FLOW_PREDICTIONS:
        known = ", ".join(_FLOW_PREDICTIONS)
        what = f"'use_flow_sigmas' is true, which makes it a rectified flow, and prediction_type is '{kind}'"
        raise UserError(f"{what}, which is not a flow's; it must be one of {known}, or use_flow_sigmas false.")
    steps = _count(config, "num_train_timesteps")
    if steps < 2:
        raise UserError(f"'num_train_timesteps' must be at least 2, it is {steps}.")
    return RectifiedFlow(1 / steps), _FLOW_PREDICTIONS[kind], TimestepInputs(float(steps), 0.0)


def _edm(config: Mapping[str, Any]) -> Meaning:
    kind = _word(config, "prediction_type", "epsilon")
    if kind != "epsilon":
        raise UserError(f"prediction_type is '{kind}'; EDM's own is called 'epsilon' there, and no other is known here.")
    data = _number(config, "sigma_data")
    return KarrasVE(_number(config, "sigma_min"), _number(config, "sigma_max")), EDM(data), EDMInputs(data)


def _consistency(config: Mapping[str, Any]) -> Meaning:
    data, lowest = _number(config, "sigma_data"), _number(config, "sigma_min")
    return KarrasVE(lowest, _number(config, "sigma_max")), Consistency(data, lowest), EDMInputs(data, 1000.0)


_SCHEDULERS: Mapping[str, Callable[[Mapping[str, Any]], Meaning]] = {
    **dict.fromkeys(("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"), _vp),
    "DPMSolverMultistepScheduler": _vp_or_flow,
    **dict.fromkeys(("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), _edm),
    "CMStochasticIterativeScheduler": _consistency,
}
