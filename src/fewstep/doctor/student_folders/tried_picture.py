"""One picture of a pipeline's folder, by our own sampler: are the network's values finite, and is
it a picture?

What is embedded goes into a folder that is gone afterwards, so that nothing stays on disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.doctor.student_folders.card_call import card_call, read_card
from fewstep.doctor.student_folders.card_checkup import card_scheduler
from fewstep.doctor.student_folders.checked_folder import CheckedFolder
from fewstep.errors import UserError, is_out_of_memory
from fewstep.random import Key
from fewstep.runs.pictures.published_students import PublishedStudent
from fewstep.zoo.pipelines import PipelinePlace
from fewstep.zoo.pipelines.facts import CARD, FACTS
from fewstep.zoo.pipelines.folder_sampling import FLOW, check_sigmas, is_timesteps
from fewstep.zoo.pipelines.pipeline_kinds import KINDS

PROMPT = "a red fox in the snow"
SMALL = 2**28
"""Bytes of files up to which a picture is tried unasked."""
_LEVELS = 127.5


def tried_picture(checked: CheckedFolder, attempt: bool) -> Finding:
    """What came of a picture; a note where none was tried: of a large folder unless ``attempt``,
    and of one that our sampler does not know.
    """
    folder = checked.folder
    try:
        student = _student(checked)
    except UserError as error:
        return note(folder, f"no picture was tried: {error}.")
    room = sum(path.stat().st_size for path in checked.opened.files.values())
    if room > SMALL and not attempt:
        return note(
            folder,
            f"no picture was tried, since its files are {room / 2**30:.1f} GiB: that takes up to twice as much memory, "
            "and may take some minutes without a GPU.",
            f"'fewstep doctor {folder} --try' tries one.",
        )
    try:
        with tempfile.TemporaryDirectory() as kept:
            return _drawn(folder, student, Path(kept), checked.network.part)
    except UserError as error:
        return refused(folder, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return note(
            folder,
            f"no picture was drawn: there is not enough memory for files of {room / 2**30:.1f} GiB in float32.",
            "Try it on a machine that has more.",
        )


def _student(checked: CheckedFolder) -> PublishedStudent:
    """The folder as our sampler takes it. Raises ``UserError``, the end of a sentence, where it
    does not.
    """
    place = PipelinePlace(str(checked.folder))
    if checked.facts is not None:
        return PublishedStudent(place)
    path = checked.folder / CARD
    call = card_call(read_card(path)) if path.is_file() else None
    if call is None or call.unknown:
        raise UserError("no card says by which call")
    scheduler = card_scheduler(checked, call)
    given = call.arguments
    told: Any = checked.told(given)
    scale: Any = checked.second_pass(given) if told is None else told
    guidance = float(scale) if type(scale) in (int, float) else None
    if guidance is not None and told is None:
        # As ours counts, for which a scale of 1 is none.
        guidance += 1 - KINDS[checked.pipeline].unguided
    if scheduler.name == "LCMScheduler":
        timesteps = [round(each) for each in scheduler.timesteps(given)]
        if is_timesteps(timesteps):
            return PublishedStudent(place, timesteps=tuple(timesteps), guidance=guidance)
    if scheduler.name == FLOW and call.scheduler is None and isinstance(given.get("sigmas"), list):
        sigmas = tuple(map(float, given["sigmas"]))
        check_sigmas(sigmas, CARD)
        return PublishedStudent(place, guidance=guidance, sigmas=sigmas)
    raise UserError(
        f"by its card {scheduler.name} samples it, and of what has no {FACTS} our sampler knows LCMScheduler, and "
        "flows whose call gives sigmas"
    )


@torch.no_grad()
def _drawn(folder: Path, student: PublishedStudent, cache: Path, part: str) -> Finding:
    sampler = student.sampler([PROMPT], cache=cache, say=lambda _: None)
    latents = sampler.draw(Key(0, "sample"), 1, torch.zeros(1, dtype=torch.long), sampler.usual_steps)
    if not bool(torch.isfinite(latents).all()):
        return problem(
            folder / part,
            "emits values that are not finite.",
            "Get the folder from its source again, or export the run again in another type.",
        )
    codec = sampler.codec
    assert codec is not None
    picture = codec.decode(latents.to(next(codec.parameters()).device)).cpu()
    if not bool(torch.isfinite(picture).all()):
        return problem(
            folder / "vae", "makes a picture of values that are not finite.", "Get the folder from its source again."
        )
    height, width = picture.shape[2:]
    steps = f"{sampler.usual_steps} step{'s' if sampler.usual_steps > 1 else ''}"
    if _is_one_colour(picture):
        return problem(
            folder,
            f"its picture of {height} x {width} pixels, drawn in {steps}, is of one colour.",
            "Look at it by 'fewstep sample --base'; the weights may be damaged, or not those of the scheduler.",
        )
    return ok(folder, f"a picture of {height} x {width} pixels was drawn in {steps}; its values are finite.")


def _is_one_colour(picture: Tensor) -> bool:
    """Whether all pixels of a picture (1, C, H, W) in [-1, 1] are the same in 256 levels."""
    levels = (picture.clamp(-1, 1) * _LEVELS).round().flatten(2)
    return bool((levels == levels[..., :1]).all())
