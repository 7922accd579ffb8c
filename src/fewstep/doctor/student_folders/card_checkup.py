"""The call in a folder's card: does it sample the student as ``fewstep.json`` says, and what does
it make of the scheduler where there is none?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.doctor.student_folders.called_timesteps import USUAL, AskedScheduler, asked_scheduler
from fewstep.doctor.student_folders.card_call import CardCall, card_call, read_card
from fewstep.doctor.student_folders.checked_folder import SCALES, CheckedFolder, as_listed, is_alike
from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.pipelines.facts import CARD, FACTS
from fewstep.zoo.pipelines.folder_sampling import call_of
from fewstep.zoo.pipelines.index import SCHEDULER

_TIMES = ("timesteps", "sigmas", "num_inference_steps")
_EXACT = ("eta", "use_resolution_binning")


def check_card(checked: CheckedFolder) -> list[Finding]:
    """The findings of the card's call."""
    path = checked.folder / CARD
    call = _call_in(path)
    if isinstance(call, Finding):
        return [call]
    try:
        scheduler = card_scheduler(checked, call)
    except UserError as error:
        return [note(path, f"puts in another scheduler, which is not known here: {error}")]
    if checked.facts is None:
        return list(_alone(checked, call, scheduler))
    found = list(_compared(checked, call, scheduler, call_of(checked.facts, checked.folder / FACTS)))
    return found or [ok(path, f"its call samples the student as {FACTS} says.")]


def _call_in(path: Path) -> CardCall | Finding:
    """The card's call, or why none is compared."""
    if not path.is_file():
        return note(path, "there is no card, so that nobody is told by which call the folder is sampled.")
    try:
        call = card_call(read_card(path))
    except UserError as error:
        return refused(path, error)
    if call is None:
        return note(path, "has no Python that calls a pipeline, so that no call is compared.")
    if call.scheduler == "":
        return note(path, "puts in another scheduler by an expression, which is not computed and not compared.")
    return call


def card_scheduler(checked: CheckedFolder, call: CardCall) -> AskedScheduler:
    """The scheduler that a card's call asks, the folder's unless it puts in another. Raises
    ``UserError`` for one that is not known.
    """
    if call.scheduler is None:
        return checked.scheduler
    config = {**checked.config, **call.settings}
    return asked_scheduler(call.scheduler, config, checked.folder / CARD, checked.pipeline, checked.tokens)


def _compared(
    checked: CheckedFolder, card: CardCall, scheduler: AskedScheduler, said: Mapping[str, Any]
) -> Iterator[Finding]:
    """The card's call against that of ``fewstep.json``."""
    assert checked.facts is not None
    path, given, trained = checked.folder / CARD, card.arguments, checked.facts.get("timesteps")
    if card.scheduler is not None and scheduler.name != checked.facts.get("scheduler"):
        yield problem(
            path,
            f"puts in a {scheduler.name}, and {FACTS} says {shown_foreign(checked.facts.get('scheduler'))}.",
            "Take the line out of the card; the folder's scheduler is the student's.",
        )
    yield from _unknown(path, card)
    # Where both say the same, what is wrong with it is said of fewstep.json.
    is_same = card.scheduler is None and all(given.get(name) == said.get(name) for name in _TIMES)
    if not is_same and not card.unknown & {*_TIMES, "**"}:
        yield from _times(path, scheduler, given, trained, said)
    if not card.unknown & {*SCALES, "negative_prompt", "**"}:
        yield from _guidance(checked, path, given, said)
    height, width = checked.pixels
    usual = {**USUAL[checked.pipeline], "height": height, "width": width}
    for name in ("height", "width", *_EXACT):
        if name not in said or name in card.unknown or "**" in card.unknown:
            continue
        has = given.get(name, usual.get(name))
        if has != said[name]:
            gives = f"gives {shown_foreign(has)} for {name}" if name in given else f"gives no {name}"
            yield problem(
                path,
                f"its call {gives}, and {FACTS} says {shown_foreign(said[name])}.",
                f"Write {name}={said[name]!r}.",
            )


def _times(
    path: Path, scheduler: AskedScheduler, given: Mapping[str, Any], trained: Any, said: Mapping[str, Any]
) -> Iterator[Finding]:
    remedy = next((f"Write {name}={said[name]!r}." for name in ("timesteps", "sigmas") if name in said), "")
    remedy = remedy or f"Write the arguments of {FACTS}'s call."
    try:
        found = scheduler.timesteps(given)
    except UserError as error:
        yield problem(path, f"its call cannot be made: {error}.", remedy)
        return
    if not is_alike(found, trained):
        has = next((name for name in _TIMES if name in given), None)
        gives = "gives no times" if has is None else f"gives {has}={given[has]!r:.80}"
        yield problem(
            path,
            f"its call {gives}, by which {scheduler.name} calls the network at {as_listed(found)}, and the student was "
            f"trained at {as_listed(trained)}.",
            remedy,
        )


def _guidance(
    checked: CheckedFolder, path: Path, given: Mapping[str, Any], said: Mapping[str, Any]
) -> Iterator[Finding]:
    name = next((each for each in SCALES if each in said), SCALES[0])
    remedy = f"Write {name}={said[name]!r}." if name in said else f"Write the arguments of {FACTS}'s call."
    scale, told, wanted = checked.second_pass(given), checked.told(given), checked.told(said)
    if scale is not None:
        gives = "" if set(SCALES) & given.keys() else f"gives no {name}, so that it "
        yield problem(
            path,
            f"its call {gives}makes a second pass for guidance of {scale:g}, and the student makes none.",
            remedy,
        )
    elif told != wanted:
        yield problem(
            path,
            f"its call tells the network a guidance of {shown_foreign(told)}, and {FACTS} says "
            f"{shown_foreign(wanted)}.",
            remedy,
        )


def _alone(checked: CheckedFolder, card: CardCall, scheduler: AskedScheduler) -> Iterator[Finding]:
    """What the card's call makes of the scheduler, where nothing says what was trained."""
    path, given = checked.folder / CARD, card.arguments
    yield from _unknown(path, card)
    if card.unknown & {*_TIMES, "**"}:
        return
    try:
        found = scheduler.timesteps(given)
    except UserError as error:
        yield problem(path, f"its call cannot be made: {error}.", f"Ask its source, or change {SCHEDULER}.")
        return
    whose = "the folder's" if card.scheduler is None else "the card's"
    sentence = f"by its call {whose} {scheduler.name} calls the network at {as_listed(found)}"
    scale, told = checked.second_pass(given), checked.told(given)
    if scale is not None:
        sentence += f", with a second pass for guidance of {scale:g}"
    elif told is not None:
        sentence += f", which is told a guidance of {shown_foreign(told)}"
    own_grid = scheduler.name == "LCMScheduler" and given.get("timesteps") is None
    advice = (
        "This is LCMScheduler's own grid; a student that was trained at others (DMD2's 999, 749, 499, 249) needs "
        "'timesteps' in the call."
    )
    yield note(path, f"{sentence}.", advice if own_grid else "")


def _unknown(path: Path, card: CardCall) -> Iterator[Finding]:
    names = sorted(card.unknown & {*_TIMES, *SCALES, "height", "width", "**"})
    if names:
        yield note(path, f"its call gives {', '.join(names)} by an expression, which is not computed and not compared.")
