"""diffusers' unconditional and class-conditional image models: a ``UNet2DModel`` and the scheduler that says what its output means.

==================================================  =========================================  =================================  =====================================
scheduler                                           schedule                                   prediction                         inputs
==================================================  =========================================  =================================  =====================================
``DDPMScheduler``, ``DDIMScheduler`` and their kin  ``DiscreteVP`` of its betas                ``Epsilon``, ``X0`` or ``V``       ``TimestepInputs``: index i
``EDMEulerScheduler``, ``EDMDPMSolverMultistep-``   ``KarrasVE(sigma_min, sigma_max)``         ``EDM``                            ``EDMInputs``
``CMStochasticIterativeScheduler``                  ``KarrasVE(sigma_min, sigma_max)``         ``Consistency``                    ``EDMInputs``, its label times 1000
==================================================  =========================================  =================================  =====================================

What a scheduler does besides (clipping x0, its grid and rule of sampling) is a sampler's business and stays out. Only safetensors are read, no pickled weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers import EDMInputs, NetworkDenoiser, TimestepInputs, freeze
from fewstep.denoisers.inputs import Inputs
from fewstep.errors import UserError
from fewstep.locations import folder_or_id
from fewstep.networks import build
from fewstep.networks.store import load_strictly
from fewstep.prediction import EDM, X0, Consistency, Epsilon, Prediction, V
from fewstep.schedule import DiscreteVP, KarrasVE, Schedule

Meaning = tuple[Schedule, Prediction, Inputs]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS: Mapping[str, Prediction] = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
# Attention's layers had other names in the first releases of diffusers.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(source: str | Path, revision: str | None = None) -> NetworkDenoiser:
    """The frozen denoiser in a pipeline's folder, or under an id of the hub (``owner/name``, there at ``revision``: a commit pins it).

    Raises ``UserError`` naming the file for a missing or malformed one, a scheduler that is not in the table, weights that do not fit, and when diffusers is missing.
    """
    folder = _folder(source, revision)
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _json(inner / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{inner / 'config.json'}: is the configuration of a {config.get('_class_name')}; only UNet2DModel is read here.")
    place = next((p for p in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json") if p.is_file()), folder / "scheduler" / "scheduler_config.json")
    schedule, prediction, inputs = _meaning(_json(place), place)
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        network = build({"kind": "diffusers-unet2d", "config": arguments, "classes": arguments.get("num_class_embeds") or 0})
    load_strictly(network, _weights(inner / _WEIGHTS), str(inner / _WEIGHTS))
    return freeze(NetworkDenoiser(network, schedule, prediction, inputs, _shape(arguments, inner / "config.json"), arguments.get("num_class_embeds") or 0))


def files_of(source: str | Path, revision: str | None = None) -> dict[str, Path]:
    """The files of the network and of its scheduler, by names that do not say where the folder is.

    Raises ``UserError`` as it does.
    """
    folder = _folder(source, revision)
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    found = {path.name: path for pattern in ("config.json", "*.safetensors", "*.index.json") for path in inner.glob(pattern)}
    for path in (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            found["scheduler"] = path
    return found


def _folder(source: str | Path, revision: str | None) -> Path:
    """A local folder, or the hub's snapshot."""
    found = folder_or_id(str(source), "models")
    if os.path.isabs(found):
        return Path(found)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{source}: fetching from the hub needs diffusers: pip install 'fewstep[diffusers]'.") from error
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", f"*{_WEIGHTS}"]))
    # The hub's own exceptions derive from these.
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: could not be fetched from the hub ({str(error).splitlines()[0]}); check the id and the revision, or give a local folder.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is missing or not JSON; the folder must hold a pipeline that diffusers saved, a UNet2DModel and its scheduler.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no configuration; get the folder from its source again.")
    return content


def _weights(path: Path) -> dict[str, Tensor]:
    """The state dict of ``DiffusersUNet``, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: there is no such file; pickled weights (.bin) are not read, save the model with safe_serialization.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}); it may have been cut short.") from error
    return {f"unet.{_renamed(name)}": value.float() for name, value in tensors.items()}


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    head, _, last = layer.rpartition(".")
    return f"{head}.{_OLD_NAMES[last]}.{kind}" if ".attentions." in f".{name}" and last in _OLD_NAMES else name


def _shape(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list) or len(sides) != 2 or config.get("out_channels", 3) != channels:
        raise UserError(f"{path}: must have a sample_size and as many out_channels as in_channels; it has {size}, {config.get('out_channels', 3)} and {channels}.")
    return (channels, *sides)


def _meaning(config: Mapping[str, Any], path: Path) -> Meaning:
    name = str(config.get("_class_name"))
    if name not in _SCHEDULERS:
        raise UserError(f"{path}: is the configuration of a {name}; it must be one of {', '.join(_SCHEDULERS)}.")
    try:
        return _SCHEDULERS[name](config)
    except KeyError as error:
        raise UserError(f"{path}: lacks the entry {error}; get the folder from its source again.") from error
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def _vp(config: Mapping[str, Any]) -> Meaning:
    betas, kind = config["beta_schedule"], config.get("prediction_type", "epsilon")
    if betas not in _BETAS or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise UserError(f"its betas ({betas}, trained or rescaled ones) are not known; beta_schedule must be one of {', '.join(_BETAS)}, as it was trained.")
    if kind not in _PREDICTIONS:
        raise UserError(f"prediction_type is '{kind}'; it must be one of {', '.join(_PREDICTIONS)}.")
    schedule = DiscreteVP(_BETAS[betas], config["num_train_timesteps"], config["beta_start"], config["beta_end"])  # type: ignore[arg-type]
    return schedule, _PREDICTIONS[kind], TimestepInputs(float(config["num_train_timesteps"]))


def _edm(config: Mapping[str, Any]) -> Meaning:
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise UserError(f"prediction_type is '{config['prediction_type']}'; EDM's own is called 'epsilon' there, and no other is known here.")
    data = float(config["sigma_data"])
    return KarrasVE(config["sigma_min"], config["sigma_max"]), EDM(data), EDMInputs(data)


def _consistency(config: Mapping[str, Any]) -> Meaning:
    data, lowest = float(config["sigma_data"]), float(config["sigma_min"])
    return KarrasVE(lowest, config["sigma_max"]), Consistency(data, lowest), EDMInputs(data, 1000.0)


_SCHEDULERS: Mapping[str, Callable[[Mapping[str, Any]], Meaning]] = {
    **dict.fromkeys(("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"), _vp),
    **dict.fromkeys(("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), _edm),
    "CMStochasticIterativeScheduler": _consistency,
}
