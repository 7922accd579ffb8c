"""Few-step students that others have published, sampled without a run: DisBack's and DMD2's
networks, LCM-LoRA and DMD2's adapter, folders that ``fewstep export`` wrote.

Weights do not say how they are sampled; their card does, and whoever asks must say it: at which
timesteps the network is called. From one to the next it goes by its estimate of x_0, noised again,
as ``LCMScheduler`` does; samples start from noise of unit variance at the first one.

=========================================  ====================
student                                    timesteps
=========================================  ====================
DisBack's SDXL, DMD2's SDXL of one step    399
DMD2's SDXL of four steps, its adapter     999, 749, 499, 249
DMD2's Stable Diffusion 1.5                999
LCM, LCM-LoRA, four steps                  999, 759, 499, 259
=========================================  ====================

A flow has sigmas in the place of timesteps: its times before the shift, as
``FlowMatchEulerDiscreteScheduler`` takes them. An exported folder says all of this itself, and a
scale of guidance (``zoo.pipelines.folder_sampling``).

A network that is told no scale may be guided by a second pass for the empty prompt, as the
pipelines of diffusers do: where the scale is above 1, and by the same sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.data.prompts import read_prompts
from fewstep.denoisers import Boundary, Denoiser, Guided, NetworkDenoiser
from fewstep.errors import UserError
from fewstep.networks import DenoisingNetwork
from fewstep.prediction import Flow
from fewstep.recipes.building.device import DeviceName, resolve_device
from fewstep.recipes.building.prompting import embedded, prompt_conditions
from fewstep.runs.sampler import Sampler, StudentSampler
from fewstep.schedule import Schedule
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.system.ledger import print_sentence
from fewstep.times import UniformGrid
from fewstep.timesteps import TimestepsGrid
from fewstep.values import Contradiction
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.pipelines import PipelinePlace, open_pipeline
from fewstep.zoo.pipelines.facts import FACTS
from fewstep.zoo.pipelines.folder_sampling import (
    MOST_LISTED,
    FolderSampling,
    check_sigmas,
    folder_sampling,
    jump_of_flow,
)

MOST_DIGITS = 5
TOGETHER = 4
"""Pictures that are made at a time."""
Say = Callable[[str], None]
_PLAIN = re.compile("[0-9]{1,6}([.][0-9]{1,20})?|[.][0-9]{1,20}")


def timesteps_said(text: str | None) -> tuple[int, ...]:
    """The timesteps of a command line, such as ``999,749,499,249``; none for None.

    Raises ``UserError`` for what is no list of whole numbers.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS for part in parts):
        raise UserError(f"--timesteps: '{text:.80}' is no list of timesteps; give some such as 999,749,499,249.")
    return tuple(map(int, parts))


def check_source(
    run: Path | None,
    base: object,
    of_base: Mapping[str, object],
    of_run: Mapping[str, object],
    named: tuple[str, str] = ("--base", "a pipeline"),
) -> None:
    """Raises ``UserError`` unless a command line names a run or a base, one of them, and options of
    the other are not given; options by their names, what is not given being None, false or empty.

    ``named``: the option that names a base, and what that is.
    """
    option, what = named
    if (run is not None) == bool(base):
        both = "give one of them, not both" if run is not None else f"give a run's folder, or {what} by {option}"
        raise UserError(f"RUN and {option}: {both}.")
    other = next((name for name, value in (of_run if base else of_base).items() if value), None)
    if other is not None:
        needs = f"is of a run, and {option} names {what}" if base else f"needs {option}"
        raise UserError(f"{other}: {needs}; leave it out.")


def sigmas_said(text: str | None) -> tuple[float, ...]:
    """The times before the shift of a command line, such as ``1,0.75,0.5,0.25``; none for None.

    Raises ``UserError`` for what is no list of falling numbers in (0, 1].
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MOST_LISTED or not all(_PLAIN.fullmatch(part) for part in parts):
        raise UserError(f"--sigmas: '{text:.80}' is no list of numbers; give some such as 1,0.75,0.5,0.25.")
    found = tuple(map(float, parts))
    check_sigmas(found, "--sigmas")
    return found


@dataclass(frozen=True)
class PublishedStudent:
    """A pipeline at ``place``, its network's weights replaced by those in ``model`` unless None,
    with ``adapters`` added, called at ``timesteps``, or a flow at ``sigmas``; those that an
    exported folder says, unless given. ``guidance``: the scale for a network that is told one, else
    of a second pass, which up to 1 is none.
    """

    place: PipelinePlace
    model: Path | None = None
    adapters: tuple[AddedAdapter, ...] = ()
    timesteps: tuple[int, ...] = ()
    guidance: float | None = None
    sigmas: tuple[float, ...] = ()

    def pictured(self, prompts: Sequence[str] | None) -> Sampler:
        """What draws pictures of these prompts. Raises ``UserError`` without any, and what
        ``sampler`` raises.
        """
        if prompts is None:
            raise UserError("--base: draws what prompts say; give some by --prompt or --prompts.")
        return self.sampler(prompts).pictured

    def sampler(
        self, prompts: Sequence[str], device: DeviceName = "auto", cache: Path | None = None, say: Say = print_sentence
    ) -> StudentSampler:
        """What draws these prompts, by their numbers. ``cache``: where their embeddings are kept,
        None for the machine's; ``say`` is told what is worth a line.

        Raises ``UserError`` for what cannot be read, and where times or a scale are missing, or
        contradict an exported folder.
        """
        said = self._said()
        opened = open_pipeline(self.place.source, self.place.revision, self.place.variant)
        sketch = opened.sketch()
        sampling, first = self._sampling(said, sketch, opened.scheduler[0])
        assert isinstance(sketch.network, DenoisingNetwork)
        told, guided = self._scales(said, sketch.network)
        opened = replace(opened if self.model is None else opened.with_network(self.model), adapters=self.adapters)
        for remark in opened.remarks:
            say(remark)
        on = resolve_device(device)
        codec = opened.codec().to(on)
        # The encoder is let go before the network is read.
        listed = embedded(opened, read_prompts(list(prompts)), "cut", on, cache, say)
        denoiser = opened.denoiser().to(on)
        if said is not None and said.size is not None:
            denoiser = _of_size(denoiser, said.size, codec.factor)
        opened.check_together(denoiser, {name: shape[-1] for name, shape in listed.shapes.items()}, codec.channels)
        conditions = prompt_conditions(listed, denoiser, codec.factor)
        start = Prior(denoiser.schedule, denoiser.shape, first, 1.0, conditions)
        student: Denoiser = Boundary(denoiser) if said is not None and said.boundary else denoiser
        model = student if guided is None else Guided(student, guided, conditions)
        return StudentSampler(-math.inf, math.inf, model, start, replace(sampling, guidance=told), codec, TOGETHER)

    def _said(self) -> FolderSampling | None:
        """What an exported folder says; None for weights that are not its own.

        Raises ``UserError`` where nothing says when the network is called.
        """
        folder = Path(self.place.source)
        if self.model is None and not self.adapters and (folder / FACTS).is_file():
            return folder_sampling(folder)
        if not self.timesteps and not self.sigmas:
            raise UserError(
                "--timesteps: is missing, and neither weights nor adapters say at which they were trained; take those "
                "of their card, such as 399, or 999,749,499,249; of a flow its --sigmas, such as 1,0.75,0.5,0.25."
            )
        return None

    def _sampling(
        self, said: FolderSampling | None, sketch: NetworkDenoiser, scheduler: Mapping[str, Any]
    ) -> tuple[Sampling, float]:
        """How it is sampled, and its first time."""
        if isinstance(sketch.prediction, Flow):
            if self.timesteps:
                raise UserError(
                    "--timesteps: this is a flow, whose times are said before their shift; give them by --sigmas, such "
                    "as 1,0.75,0.5,0.25."
                )
            sigmas = self.sigmas or (() if said is None else said.sigmas)
            if not sigmas:
                raise _says_another("no flow", "a flow")
            jump = jump_of_flow(scheduler) if said is None else said.jump
            return Sampling(jump, UniformGrid(), len(sigmas), held=sigmas), sigmas[0]
        if self.sigmas:
            raise UserError("--sigmas: this is no flow, and its network is called at --timesteps; give these.")
        timesteps = self.timesteps or (() if said is None else said.timesteps)
        if not timesteps:
            raise _says_another("a flow", "no flow")
        try:
            grid = TimestepsGrid(timesteps)
        except Contradiction as error:
            raise UserError(f"--timesteps: {error}.") from error
        jump = "renoise" if said is None else said.jump
        return Sampling(jump, grid, len(grid.at)), _time_of(grid, sketch.schedule)

    def _scales(self, said: FolderSampling | None, network: DenoisingNetwork) -> tuple[float | None, float | None]:
        """The scale that the network is told, and that of a second pass; None for none."""
        given = self.guidance
        if said is not None:
            own = said.guidance if network.reads_guidance else None
            if given is not None and given != own and (own is not None or given > 1):
                what = "makes no second pass for guidance" if own is None else f"is told a scale of {own:g}"
                raise UserError(
                    f"--guidance: is {given:g}, and the student of this folder {what}, as its {FACTS} says; leave it "
                    "out."
                )
            given = own
        if not network.reads_guidance:
            return None, given if given is not None and given > 1 else None
        if given is None and network.told is None:
            raise UserError("--guidance: this network is told a scale; give the one that its card says, such as 8.")
        return given, None


def _says_another(said: str, found: str) -> UserError:
    return UserError(
        f"{FACTS}: says that the student is {said}, and the scheduler's file that it is {found}; 'fewstep doctor' on "
        "the folder says what was changed."
    )


def _of_size(denoiser: NetworkDenoiser, size: tuple[int, int], factor: int) -> NetworkDenoiser:
    """The same of pictures of that height and width in pixels; a transformer's file names another.

    Raises ``UserError`` for sides that latents do not have.
    """
    if any(side % factor for side in size):
        raise UserError(
            f"{FACTS}: says pictures of {size[0]} x {size[1]} pixels, and the codec makes multiples of {factor}; "
            "export the run again."
        )
    shape = (denoiser.shape[0], *(side // factor for side in size))
    return NetworkDenoiser(denoiser.network, denoiser.schedule, denoiser.prediction, denoiser.inputs, shape)


def _time_of(grid: TimestepsGrid, schedule: Schedule) -> float:
    """The time of the first timestep. Raises ``UserError`` for one that the schedule has not."""
    try:
        return schedule.time_at_timestep(grid.at[0])
    except UserError as error:
        raise UserError(f"--timesteps: {error}") from error
