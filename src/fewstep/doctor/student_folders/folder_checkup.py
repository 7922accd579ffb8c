"""Is a few-step pipeline's folder sampled as its student was trained: scheduler, times, guidance?

Three say how: ``fewstep.json`` of an exported folder, the scheduler's file, and the call in the
card. The timesteps of a call are what the scheduler itself makes of it. A downloaded folder has no
``fewstep.json``; then the card is compared with the scheduler alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.doctor.findings import Finding, note, ok, problem, refused
from fewstep.doctor.student_folders.called_timesteps import AskedScheduler
from fewstep.doctor.student_folders.card_checkup import check_card
from fewstep.doctor.student_folders.checked_folder import CheckedFolder, as_listed, checked_folder, is_alike
from fewstep.doctor.student_folders.tried_picture import tried_picture
from fewstep.errors import UserError
from fewstep.zoo.nvidia.machine import shown_foreign
from fewstep.zoo.pipelines.facts import CARD, FACTS, changed_files, read_facts
from fewstep.zoo.pipelines.folder_sampling import call_of
from fewstep.zoo.pipelines.index import INDEX, SCHEDULER
from fewstep.zoo.pipelines.sampled_by import needs_of

_CHANGED = {"missing": "there is no such file.", "changed": "is not the file that was written: its SHA-256 differs."}
_AGAIN = "Restore it from a copy, or export the run again into a new folder."
_DECIDES = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "original_inference_steps",
    "timestep_scaling",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "clip_sample",
    "thresholding",
    "shift",
    "use_dynamic_shifting",
    "stochastic_sampling",
    "shift_terminal",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""Settings of schedulers that decide the sampling."""


def is_pipeline_folder(path: Path) -> bool:
    """Whether a folder is a pipeline's that diffusers or ``fewstep export`` wrote."""
    return (path / FACTS).is_file() or (path / INDEX).is_file()


def check_student_folder(folder: Path, attempt: bool) -> Iterator[Finding]:
    """The findings of a pipeline's folder; ``attempt``: a picture is tried also of a large one.

    Raises ``UserError`` for a ``fewstep.json`` that cannot be read.
    """
    facts = read_facts(folder) if (folder / FACTS).is_file() else None
    changed = {} if facts is None else changed_files(folder, facts)
    if facts is None:
        yield note(
            folder,
            f"has no {FACTS}: at which timesteps its student was trained, and whether with a second pass for guidance, "
            "is not known, so that its card is compared with its scheduler alone.",
        )
    else:
        yield from _files(folder, facts, changed)
    try:
        checked = checked_folder(folder, facts)
    except UserError as error:
        # What is missing was said already.
        if not changed:
            yield refused(folder, error)
        return
    found = [*_scheduler(checked), *check_card(checked)]
    yield from found
    if changed or any(each.level == "problem" and each.place != str(folder / CARD) for each in found):
        yield note(folder, "no picture was tried, since what is wrong above decides it.")
        return
    yield tried_picture(checked, attempt)


def _files(folder: Path, facts: Mapping[str, Any], changed: Mapping[str, str]) -> Iterator[Finding]:
    """Of the files that ``fewstep export`` wrote, against ``fewstep.json``."""
    for name, what in changed.items():
        yield problem(folder / name, _CHANGED[what], _AGAIN)
    if not changed:
        yield ok(
            folder / FACTS,
            f"{len(facts['files'])} files are as they were written: a student of timesteps "
            f"{as_listed(facts.get('timesteps'))}, {facts.get('dtype')}, of the run {facts.get('run')}.",
        )
    parts = sorted({folder / Path(name).parts[0] for name in facts["files"] if "/" in name})
    for path in sorted(each for part in parts for each in part.rglob("*") if each.is_file()):
        if path.relative_to(folder).as_posix() not in facts["files"]:
            yield note(
                path,
                "was not exported, and diffusers may read it in the place of what was.",
                "Take it away if it is not yours.",
            )


def _scheduler(checked: CheckedFolder) -> list[Finding]:
    """The scheduler against what ``fewstep.json`` says."""
    facts, asked, where = checked.facts, checked.scheduler, checked.folder / SCHEDULER
    if facts is None:
        return []
    said = facts.get("scheduler")
    names = {where: checked.config.get("_class_name"), checked.folder / INDEX: asked.name}
    found = [
        problem(
            place,
            f"names {shown_foreign(name)} for the scheduler, and {FACTS} says {shown_foreign(said)}, which jumps as "
            "the student was trained to.",
            _AGAIN,
        )
        for place, name in names.items()
        if name != said
    ]
    if found:
        return found
    found = [*_settings(facts, asked), *_own_call(checked, facts)]
    unsaid = [] if "settings" in facts else [_unsaid(checked.folder)]
    if found:
        return [*found, *unsaid]
    return [
        ok(
            where,
            f"is the {asked.name} that {FACTS} says, and calls the network at {as_listed(facts.get('timesteps'))}.",
        ),
        *unsaid,
    ]


def _unsaid(folder: Path) -> Finding:
    return note(
        folder / FACTS,
        "does not say the scheduler's settings, as earlier versions did not: those that every student of its scheduler "
        "needs are compared, and not betas, prediction, shift and noise.",
    )


def _settings(facts: Mapping[str, Any], asked: AskedScheduler) -> Iterator[Finding]:
    said = facts.get("settings")
    has: Mapping[str, Any] = asked.scheduler.config
    needed = needs_of(asked.name, int(has["num_train_timesteps"]))
    wanted = {**needed, **(said if isinstance(said, dict) else {})}
    for name in _DECIDES:
        if name in wanted and name in has and has[name] != wanted[name]:
            yield problem(
                asked.where,
                f"has {shown_foreign(has[name])} for {name}, and the student of {FACTS} needs "
                f"{shown_foreign(wanted[name])}: it is sampled otherwise than it was trained.",
                f"Write {shown_foreign(wanted[name])} there, or restore the file from a copy.",
            )


def _own_call(checked: CheckedFolder, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The call of ``fewstep.json`` against its timesteps, and its guidance."""
    where, trained = checked.folder / FACTS, facts.get("timesteps")
    call = call_of(facts, where)
    try:
        found = checked.scheduler.timesteps(call)
    except UserError as error:
        yield problem(where, f"its call cannot be made: {error}.", "Export the run again into a new folder.")
        return
    if not is_alike(found, trained):
        own = "" if "timesteps" in call or "sigmas" in call else ", its own grid"
        yield problem(
            where,
            f"the student was trained at {as_listed(trained)}, and by its call {checked.scheduler.name} calls the "
            f"network at {as_listed(found)}{own}.",
            "Give the timesteps in the call (of a flow its sigmas), or export the run again.",
        )
    scale = checked.second_pass(call)
    if scale is not None:
        yield problem(
            where,
            f"its call makes a second pass for guidance of {scale:g}, and the student was trained without.",
            "Give the scale that makes none, or export the run again.",
        )
