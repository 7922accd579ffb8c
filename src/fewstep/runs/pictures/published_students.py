"""Few-step students that others have published, sampled without a run: DisBack's and DMD2's
networks, LCM-LoRA and DMD2's adapter, folders that ``fewstep export`` wrote.

Such a file holds weights and does not say how it is sampled; its card does, and whoever asks must
say it: at which timesteps the network is called. From one to the next it goes by its estimate of
x_0, noised again, as ``LCMScheduler`` does; samples start from noise of unit variance at the first
one.

=========================================  ====================
student                                    timesteps
=========================================  ====================
DisBack's SDXL, DMD2's SDXL of one step    399
DMD2's SDXL of four steps, its adapter     999, 749, 499, 249
DMD2's Stable Diffusion 1.5                999
LCM, LCM-LoRA, four steps                  999, 759, 499, 259
=========================================  ====================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.data.prompts import read_prompts
from fewstep.errors import UserError
from fewstep.networks import DiffusersTextUNet
from fewstep.recipes.building.device import DeviceName, resolve_device
from fewstep.recipes.building.prompting import embedded, prompt_conditions
from fewstep.runs.sampler import Sampler, StudentSampler
from fewstep.schedule import Schedule
from fewstep.solvers.sampling import Sampling
from fewstep.states import Prior
from fewstep.system.ledger import print_sentence
from fewstep.timesteps import TimestepsGrid
from fewstep.values import Contradiction
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.pipelines import PipelinePlace, open_pipeline
from fewstep.zoo.pipelines.facts import FACTS, read_facts

MOST_DIGITS = 5
TOGETHER = 4
"""Pictures that are made at a time."""


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


@dataclass(frozen=True)
class PublishedStudent:
    """A pipeline at ``place``, its network's weights replaced by those in ``model`` unless None,
    with ``adapters`` added, called at ``timesteps``; those that an exported folder says, unless
    given. ``guidance``: the scale for a network that is told one.
    """

    place: PipelinePlace
    model: Path | None = None
    adapters: tuple[AddedAdapter, ...] = ()
    timesteps: tuple[int, ...] = ()
    guidance: float | None = None

    def pictured(self, prompts: Sequence[str] | None) -> Sampler:
        """What draws pictures of these prompts. Raises ``UserError`` without any, and what
        ``sampler`` raises.
        """
        if prompts is None:
            raise UserError("--base: draws what prompts say; give some by --prompt or --prompts.")
        return self.sampler(prompts).pictured

    def sampler(self, prompts: Sequence[str], device: DeviceName = "auto") -> StudentSampler:
        """What draws these prompts, by their numbers.

        Raises ``UserError`` for what cannot be read, and where timesteps or a scale are missing.
        """
        grid = self._grid()
        opened = open_pipeline(self.place.source, self.place.revision, self.place.variant)
        first = _time_of(grid, opened.sketch().schedule)
        opened = replace(opened if self.model is None else opened.with_network(self.model), adapters=self.adapters)
        for remark in opened.remarks:
            print_sentence(remark)
        on = resolve_device(device)
        codec = opened.codec().to(on)
        # The encoder is let go before the network is read.
        listed = embedded(opened, read_prompts(list(prompts)), "cut", on)
        denoiser = opened.denoiser().to(on)
        opened.check_together(denoiser, {name: shape[-1] for name, shape in listed.shapes.items()}, codec.channels)
        assert isinstance(denoiser.network, DiffusersTextUNet)
        sampling = Sampling("renoise", grid, len(grid.at), guidance=self._scale(denoiser.network))
        start = Prior(
            denoiser.schedule,
            denoiser.shape,
            first,
            1.0,
            prompt_conditions(listed, denoiser, codec.factor),
        )
        return StudentSampler(-math.inf, math.inf, denoiser, start, sampling, codec, TOGETHER)

    def _grid(self) -> TimestepsGrid:
        try:
            return TimestepsGrid(self.timesteps or self._said())
        except Contradiction as error:
            raise UserError(f"--timesteps: {error}.") from error

    def _said(self) -> tuple[int, ...]:
        """The timesteps that an exported folder says."""
        folder = Path(self.place.source)
        if self.model is not None or self.adapters or not (folder / FACTS).is_file():
            raise UserError(
                "--timesteps: is missing, and neither weights nor adapters say at which they were trained; take those "
                "of their card, such as 399, or 999,749,499,249."
            )
        facts = read_facts(folder)
        said = facts.get("timesteps")
        if not isinstance(said, list) or not said or not all(type(each) is int for each in said):
            raise UserError(f"{folder / FACTS}: names no timesteps; give them by --timesteps.")
        if facts.get("scheduler") != "LCMScheduler":
            raise UserError(
                f"{folder}: is sampled by {facts.get('scheduler')!s:.40}, as its card says; --base samples as "
                "LCMScheduler does, so that the run itself or diffusers must be asked."
            )
        return tuple(said)

    def _scale(self, network: DiffusersTextUNet) -> float | None:
        if network.waves is not None and self.guidance is None:
            raise UserError("--guidance: this network is told a scale; give the one that its card says, such as 8.")
        if network.waves is None and self.guidance is not None:
            raise UserError("--guidance: this network is told no scale; leave it out.")
        return self.guidance


def _time_of(grid: TimestepsGrid, schedule: Schedule) -> float:
    """The time of the first timestep. Raises ``UserError`` for one that the schedule has not."""
    try:
        return schedule.time_at_timestep(grid.at[0])
    except UserError as error:
        raise UserError(f"--timesteps: {error}") from error
