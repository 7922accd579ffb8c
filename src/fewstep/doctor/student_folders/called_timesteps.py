"""At which timesteps a pipeline's call has the network called: the scheduler of diffusers is asked
itself, built from its configuration under the bounds of ``meaning_of``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.schedule import ShiftedFlow
from fewstep.zoo.diffusers_schedulers import meaning_of
from fewstep.zoo.pipelines.folder_sampling import MOST_LISTED
from fewstep.zoo.pipelines.pipeline_kinds import KINDS

_TIMES: Mapping[str, Any] = {"timesteps": None, "sigmas": None}
_PIXART = {"num_inference_steps": 20, **_TIMES, "guidance_scale": 4.5, "eta": 0.0, "use_resolution_binning": True}
USUAL: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": {"num_inference_steps": 50, **_TIMES, "guidance_scale": 7.5, "eta": 0.0},
    "StableDiffusionXLPipeline": {"num_inference_steps": 50, **_TIMES, "guidance_scale": 5.0, "eta": 0.0},
    "StableDiffusion3Pipeline": {"num_inference_steps": 28, "sigmas": None, "guidance_scale": 7.0},
    "FluxPipeline": {"num_inference_steps": 28, "sigmas": None, "guidance_scale": 3.5, "true_cfg_scale": 1.0},
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "SanaPipeline": _PIXART,
    "QwenImagePipeline": {"num_inference_steps": 50, "sigmas": None, "guidance_scale": None, "true_cfg_scale": 4.0},
    "ZImagePipeline": {"num_inference_steps": 50, "sigmas": None, "guidance_scale": 5.0},
    "DiTPipeline": {"num_inference_steps": 50, "guidance_scale": 4.0},
}
"""What each pipeline takes of what decides the sampling, and what where a call does not say: to ask
the classes of diffusers themselves takes seconds.
"""
_BROKEN = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, ImportError)


@dataclass(frozen=True, eq=False)
class AskedScheduler:
    """A ``scheduler`` of diffusers', which a pipeline of the class ``pipeline`` calls with ``mu``:
    the logarithm of a shift by the number of tokens, None where its shift is a number. ``where``:
    its file, for sentences.
    """

    scheduler: Any
    pipeline: str
    mu: float | None
    where: Path

    @property
    def name(self) -> str:
        """Its class."""
        return type(self.scheduler).__name__

    def timesteps(self, call: Mapping[str, Any]) -> tuple[float, ...]:
        """Where the network is called, by the arguments of a call.

        Raises ``UserError`` for arguments that the scheduler does not take.
        """
        arguments = {name: call[name] for name in ("timesteps", "sigmas") if call.get(name) is not None}
        steps = call.get("num_inference_steps")
        if not arguments:
            steps = USUAL[self.pipeline]["num_inference_steps"] if steps is None else steps
            arguments = {"num_inference_steps": _steps(steps)}
            if KINDS[self.pipeline].own_sigmas:
                count = arguments["num_inference_steps"]
                arguments = {"sigmas": [1 - index / count for index in range(count)]}
        if len(arguments) > 1:
            raise UserError("timesteps and sigmas are both given, and diffusers takes one of them")
        for name, value in arguments.items():
            self._check(name, value)
        more = {} if self.mu is None else {"mu": self.mu}
        try:
            with quiet_diffusers():
                self.scheduler.set_timesteps(**arguments, **more)
                return tuple(float(each) for each in self.scheduler.timesteps)
        except _BROKEN as error:
            raise UserError(f"{self.name} does not take {_shown(arguments)} ({_first_line(error)})") from error

    def _check(self, name: str, value: Any) -> None:
        if name not in USUAL[self.pipeline]:
            raise UserError(f"{self.pipeline} takes no {name}")
        taken = inspect.signature(self.scheduler.set_timesteps).parameters
        if name not in taken:
            raise UserError(f"{self.name} takes no {name}, and diffusers refuses the call")
        if name != "num_inference_steps" and not (isinstance(value, list) and 0 < len(value) <= MOST_LISTED):
            raise UserError(f"{name} must be a list of 1 to {MOST_LISTED} numbers")


def asked_scheduler(
    name: object, config: Mapping[str, Any], where: Path, pipeline: str, tokens: int | None
) -> AskedScheduler:
    """The scheduler of the class ``name`` that diffusers makes of a configuration.

    Raises ``UserError`` for a class that is not known, and for a configuration that makes none.
    """
    read = {**config, "_class_name": name}
    schedule = meaning_of(read, where, tokens)[0]
    import diffusers

    own = dict(read)
    if pipeline == "StableDiffusionPipeline" and "steps_offset" in own:
        # As that pipeline does to any scheduler.
        own["steps_offset"] = 1
    try:
        with quiet_diffusers():
            scheduler: Any = getattr(diffusers, str(name)).from_config(own)
    except _BROKEN as error:
        raise UserError(f"{where}: makes no {name} ({_first_line(error)}); correct its values.") from error
    mu = None
    if config.get("use_dynamic_shifting") is True:
        shift = schedule.shift if isinstance(schedule, ShiftedFlow) else 1.0
        mu = shift if config.get("time_shift_type") == "linear" else math.log(shift)
    return AskedScheduler(scheduler, pipeline, mu, where)


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Inside, diffusers says nothing but errors."""
    from diffusers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)


def _steps(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_LISTED:
        raise UserError(f"num_inference_steps must be a whole number from 1 to {MOST_LISTED}")
    return value


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.80}" for name, value in arguments.items())


def _first_line(error: Exception) -> str:
    return f"{str(error).partition(chr(10))[0]:.160}"
