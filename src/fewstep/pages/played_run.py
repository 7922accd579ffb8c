"""A run whose student and teacher are asked for one picture at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.condition import Conditions
from fewstep.cost import metered
from fewstep.data.prompts import read_prompts
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.recipes import DistillRecipe
from fewstep.recipes.building.device import DeviceName, resolve_device
from fewstep.recipes.building.frozen_teachers import with_prompts
from fewstep.recipes.building.parts import data_of
from fewstep.recipes.building.prompting import embedded, prompt_conditions
from fewstep.recipes.config import TEACHER_STEPS
from fewstep.runs.loading import load_beside, teacher_of
from fewstep.runs.pictures.plane import scatter_png
from fewstep.runs.pictures.sample_files import picture_png
from fewstep.runs.sampler import Sampler, StudentSampler, TeacherSampler

POINTS = 500
"""Samples of a picture of points."""
SUGGESTED = 50
"""Prompts of the run that the page offers."""


@dataclass(frozen=True)
class Wish:
    """What is to be drawn: ``prompt`` or the class ``number``, None for what the model is not
    asked; ``steps`` of the model, and the scale ``guidance``, None where it takes none.
    """

    teacher: bool
    seed: int
    steps: int
    prompt: str | None = None
    number: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class DrawnPicture:
    """A PNG, with the milliseconds that its samples took, and their network evaluations, of one
    sample each.
    """

    png: bytes
    milliseconds: float
    evaluations: float


@dataclass(eq=False)
class PlayedRun:
    """``teacher``, not guided, and ``student`` of the run in ``folder``.

    ``teacher_steps`` and ``teacher_guidance``: what the page begins with, as the recipe measures
    the teacher. ``names`` of classes, by number; ``prompts``: some to begin with, none where the
    models draw no prompts. ``telling``: what makes conditions of a prompt, None there too.
    """

    folder: Path
    teacher: TeacherSampler
    student: StudentSampler
    teacher_steps: int = TEACHER_STEPS
    teacher_guidance: float = 1.0
    names: Sequence[str] = ()
    prompts: Sequence[str] = ()
    telling: Callable[[str], Conditions] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._told: tuple[str, Conditions] | None = None

    @classmethod
    def opened(cls, run: Path, prompt: str | None = None, device: DeviceName = "auto") -> PlayedRun:
        """Of a run's folder; ``prompt``: the first that the page shows, one of the run's own unless
        given.

        Raises ``UserError`` for what is no run that has ended, and for a prompt where there are
        none.
        """
        recipe = RunFolder(Path(run)).read_distill_recipe()
        prompts: Sequence[str] = () if prompt is None else (prompt,)
        if recipe.prompts is not None and prompt is None:
            prompts = recipe.prompts.alone(recipe.data).texts[:SUGGESTED]
        # Of the run's own prompts the first alone is embedded.
        recipe = with_prompts(recipe, prompts[:1] or None)
        data = data_of(recipe.data)
        teacher = teacher_of(recipe, data, device)
        student = load_beside(run, teacher, device)
        telling = None if recipe.prompts is None else _telling(recipe, teacher, device)
        names = () if data is None else data.names
        steps, guidance = recipe.evaluation.teacher_steps[:1] or [teacher.usual_steps], recipe.evaluation.guidance
        return cls(
            Path(run), teacher, student, steps[0], 1.0 if guidance is None else guidance, names, prompts, telling
        )

    @property
    def classes(self) -> int:
        """How many classes there are to choose from; 0 with prompts."""
        return 0 if self.telling else max(self.teacher.classes, self.student.classes)

    def about(self) -> dict[str, Any]:
        """What the page must know of the run."""
        named = [self.names[i] if i < len(self.names) else f"class {i}" for i in range(self.classes)]
        return {
            "run": self.folder.absolute().name,
            "prompts": list(self.prompts),
            "classes": named,
            "points": len(self.student.pictured.shape) != 3,
            "student": {"steps": self.student.usual_steps, "guidance": self.student.sampling.guidance},
            "teacher": {
                "steps": self.teacher_steps,
                "guidance": self.teacher_guidance if self.teacher.classes else None,
            },
        }

    def drawn(self, wish: Wish) -> DrawnPicture:
        """The picture, when no other is being drawn: the first sample that ``fewstep sample`` draws
        of that seed. Raises ``UserError`` where a model cannot draw it.
        """
        with self._lock:
            sampler = self._sampler(wish)
            count = 1 if len(sampler.shape) == 3 else POINTS
            number = wish.number if sampler.classes and self.telling is None else None
            began = time.perf_counter()
            with metered() as meter:
                samples = sampler(count, wish.seed, number, wish.steps)
            spent = 1e3 * (time.perf_counter() - began)
        if count == 1:
            png = picture_png(samples[0], sampler.low, sampler.high)
        else:
            png = scatter_png(samples, sampler.low, sampler.high)
        return DrawnPicture(png, spent, meter.evaluations / count)

    def _sampler(self, wish: Wish) -> Sampler:
        conditions = self._conditions(wish.prompt)
        if wish.teacher:
            teacher = self.teacher if conditions is None else replace(self.teacher, conditions=conditions)
            return teacher.guided(wish.guidance).pictured
        student = self.student
        if conditions is not None and student.owner.texts:
            student = student.told(conditions, student.codec, student.batch)
        return (student if wish.guidance is None else student.guided(wish.guidance)).pictured

    def _conditions(self, prompt: str | None) -> Conditions | None:
        """Those of a prompt; the last one's are kept, since both models are asked for it."""
        if self.telling is None:
            return None
        if prompt is None:
            raise UserError("prompt: is missing; write what to draw.")
        if self._told is None or self._told[0] != prompt:
            self._told = prompt, self.telling(prompt)
        return self._told[1]


def _telling(recipe: DistillRecipe, teacher: TeacherSampler, device: DeviceName) -> Callable[[str], Conditions]:
    """What embeds a prompt, as it is embedded for ``fewstep sample``."""
    text, codec = recipe.teacher.text_model(), teacher.codec
    assert text is not None
    assert codec is not None
    assert recipe.prompts is not None
    too_long, on = recipe.prompts.too_long, resolve_device(device)

    def told(prompt: str) -> Conditions:
        listed = embedded(text, read_prompts([prompt]), too_long, on)
        return prompt_conditions(listed, teacher.denoiser, codec.factor)

    return told
