"""A pipeline's folder, read without its weights, and what a call of it means for guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.denoisers import NetworkDenoiser
from fewstep.doctor.student_folders.called_timesteps import USUAL, AskedScheduler, asked_scheduler
from fewstep.networks import DenoisingNetwork
from fewstep.zoo.diffusers_weights import read_configuration
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER
from fewstep.zoo.pipelines.pipeline import OpenedPipeline, open_pipeline
from fewstep.zoo.pipelines.pipeline_kinds import KINDS
from fewstep.zoo.pipelines.rebuilding import tokens_in

SCALES = ("guidance_scale", "true_cfg_scale")
_LIKE = 1e-2
"""Timesteps of flows are float32."""
_SHOWN = 12


@dataclass(frozen=True, eq=False)
class CheckedFolder:
    """A folder that was read without its weights. ``sketch``: its denoiser on the meta device.
    ``pipeline``: its class. ``scheduler``: that of its index, of ``config``. ``tokens``: of a
    sample, None for a U-Net. ``facts``: what its ``fewstep.json`` says, None without.
    """

    folder: Path
    opened: OpenedPipeline
    sketch: NetworkDenoiser
    pipeline: str
    scheduler: AskedScheduler
    config: Mapping[str, Any]
    tokens: int | None
    facts: Mapping[str, Any] | None

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the pictures that the pipeline makes unless told."""
        factor = self.opened.codec_sketch().factor
        return self.sketch.shape[1] * factor, self.sketch.shape[2] * factor

    @property
    def network(self) -> DenoisingNetwork:
        """On the meta device."""
        network = self.sketch.network
        assert isinstance(network, DenoisingNetwork)
        return network

    def second_pass(self, call: Mapping[str, Any]) -> float | None:
        """The scale of the second pass that a call makes, as the pipeline counts it; None where it
        makes none.
        """
        usual = USUAL[self.pipeline]
        said = {name: call.get(name, usual.get(name)) for name in SCALES}
        if "true_cfg_scale" in usual:
            return _above(said["true_cfg_scale"], 1.0) if call.get("negative_prompt") is not None else None
        if self.network.reads_guidance:
            return None
        return _above(said["guidance_scale"], KINDS[self.pipeline].unguided)

    def told(self, call: Mapping[str, Any]) -> Any:
        """The scale that a network is told by a call; None for one that is told none."""
        if not self.network.reads_guidance:
            return None
        return call.get("guidance_scale", USUAL[self.pipeline].get("guidance_scale"))


def checked_folder(folder: Path, facts: Mapping[str, Any] | None) -> CheckedFolder:
    """The folder, read without its weights. Raises ``UserError`` naming what is wrong."""
    opened = open_pipeline(folder)
    sketch = opened.sketch()
    index = read_configuration(folder / INDEX)
    entry = index.get("scheduler")
    # Of the two diffusers takes the index's.
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    pipeline = str(index["_class_name"])
    tokens = tokens_in(sketch.network, sketch.shape)  # type: ignore[arg-type]
    config = opened.scheduler[0]
    scheduler = asked_scheduler(named, config, folder / SCHEDULER, pipeline, tokens)
    return CheckedFolder(folder, opened, sketch, pipeline, scheduler, config, tokens, facts)


def as_listed(timesteps: Any) -> str:
    """Timesteps in a sentence, of which there may be many, or none."""
    if not isinstance(timesteps, (list, tuple)) or not all(type(each) in (int, float) for each in timesteps):
        return "no timesteps"
    shown = [f"{each:.6g}" for each in timesteps]
    return ", ".join(shown if len(shown) <= _SHOWN else [*shown[:4], "...", *shown[-2:]])


def is_alike(found: Sequence[float], said: Any) -> bool:
    """Whether these are the timesteps that were said."""
    return (
        isinstance(said, list)
        and len(said) == len(found)
        and all(type(b) in (int, float) and abs(a - b) <= _LIKE for a, b in zip(found, said, strict=True))
    )


def _above(value: Any, least: float) -> float | None:
    return float(value) if type(value) in (int, float) and value > least else None
