"""Pairs of pictures by two models: the same prompt or class and the same seed, kept in a folder.

The folder is made once, whole or not at all: ``study.json`` says which models there are and what
each pair shows, ``pictures/`` has a PNG for each, and ``answers/`` takes what raters say. Neither
pictures nor ``study.json`` are ever written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.condition import Conditions
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder
from fewstep.runs.pictures.asked_pictures import pictured_by
from fewstep.runs.pictures.sample_files import captions_below, picture_png
from fewstep.runs.sampler import Sampler, labels_for
from fewstep.system.caches import content_digest
from fewstep.system.files import readable
from fewstep.system.folders import new_folder

MODELS = ("A", "B")
MOST_PAIRS = 10_000
USUAL_PAIRS = 128
"""As in the paper."""
_STUDY, _PICTURES, _ANSWERS = "study.json", "pictures", "answers"
_FORMAT = 1
_DECIDE = ("model", "sha256", "guidance")
_MOST_BYTES, _MOST_PICTURE = 2**26, 2**26
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class AskedModel:
    """What draws one picture of each pair: a run's student, or its ``teacher`` guided by the scale
    ``guidance``.
    """

    run: Path
    teacher: bool = False
    guidance: float | None = None

    def prompted(self) -> bool:
        """Whether it draws what prompts say; raises ``UserError`` for what is no run."""
        return RunFolder(self.run).read_distill_recipe().prompts is not None

    def opened(self, prompts: Sequence[str] | None) -> Sampler:
        """What draws; raises ``UserError`` where its samples are no pictures."""
        sampler = pictured_by(self.run, self.teacher, False, self.guidance, prompts)
        if len(sampler.shape) != 3:
            raise UserError(f"{self.run}: its samples are points, and no pictures to choose among; use another run.")
        return sampler

    def described(self) -> dict[str, Any]:
        """What is noted of it; ``sha256``: of the student's file, or of the recipe that names the
        teacher.
        """
        folder = RunFolder(self.run)
        decides = folder.recipe if self.teacher else folder.student
        return {
            "run": str(self.run),
            "model": "teacher" if self.teacher else "student",
            "guidance": self.guidance,
            "sha256": content_digest(decides),
        }


@dataclass(frozen=True)
class PairStudy:
    """The pairs in ``folder``; pair i shows ``captions[i]``, empty where nothing was asked for.

    ``models``: what is known of A and B. ``seed``: of the samples, and of each rater's order.
    """

    folder: Path
    seed: int
    models: Mapping[str, Mapping[str, Any]]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def answers(self) -> Path:
        """The folder of what raters said."""
        return self.folder / _ANSWERS

    def picture(self, pair: int, model: str) -> bytes:
        """The PNG of a pair by a model; raises ``UserError`` where it is gone or no PNG."""
        path = self.folder / _PICTURES / _name(pair, model)
        with readable(path):
            size = path.stat().st_size
            content = path.read_bytes() if path.is_file() and size <= _MOST_PICTURE else b""
        if not content.startswith(_PNG):
            raise UserError(f"{path}: is no PNG picture; restore it from a copy.")
        return content

    def check_asked(
        self, a: AskedModel, b: AskedModel, seed: int, prompts: Sequence[str] | None, pairs: int | None = None
    ) -> None:
        """Raises ``UserError`` unless it is the study that a command asks for, by the arguments of
        ``drawn_study``.
        """
        for name, asked in zip(MODELS, (a, b), strict=True):
            kept, given = self.models[name], asked.described()
            other = next((key for key in _DECIDE if kept.get(key) != given[key]), None)
            if other is not None:
                raise UserError(
                    f"{self.folder}: holds pairs with another model {name} ({kept['run']}); give another folder by "
                    "--out, or leave the runs out to go on with these."
                )
        if self.seed != seed:
            raise UserError(f"{self.folder}: holds pairs of --seed {self.seed}; give that, or another folder by --out.")
        if prompts is not None and tuple(prompts) != self.captions:
            raise UserError(f"{self.folder}: holds pairs of other prompts; give those, or another folder by --out.")
        if prompts is None and pairs not in (None, len(self)):
            raise UserError(
                f"{self.folder}: holds {len(self)} pairs; give that by --pairs, or another folder by --out."
            )


def drawn_study(
    folder: Path, a: AskedModel, b: AskedModel, prompts: Sequence[str] | None, pairs: int | None, seed: int
) -> PairStudy:
    """Draws the pairs of a new study: one of each of ``prompts``, or ``pairs`` (128 unless given)
    of the classes in turn.

    Raises ``UserError`` where the models cannot be set side by side, and where ``folder`` holds
    something, before anything is drawn.
    """
    asked = dict(zip(MODELS, (a, b), strict=True))
    prompted = {name: each.prompted() for name, each in asked.items()}
    described = {name: each.described() for name, each in asked.items()}
    _check_two(a, b, prompted, described)
    if prompted["A"] == (prompts is None):
        raise UserError(
            f"--prompts: {a.run} draws what prompts say; give a file of them."
            if prompts is None
            else f"--prompts: {a.run} is told no prompts; leave the prompts out."
        )
    count = (USUAL_PAIRS if pairs is None else pairs) if prompts is None else len(prompts)
    if not 1 <= count <= MOST_PAIRS:
        raise UserError(f"--pairs: {count:,} pairs cannot be shown; give 1 to {MOST_PAIRS:,}.")
    alike = _Alike.of(a.opened(prompts))
    captions = captions_below(alike.owner, labels_for(count, None, alike.owner.count)) or [""] * count
    with new_folder(folder) as aside:
        for name in (_PICTURES, _ANSWERS):
            (aside / name).mkdir()
        # Only one of two large models is in memory at a time; B is compared with A before both are
        # drawn.
        for model in reversed(MODELS):
            for pair, content in enumerate(_drawn(asked[model], prompts, alike, count, seed)):
                (aside / _PICTURES / _name(pair, model)).write_bytes(content)
        said = {"format": _FORMAT, "seed": seed, "models": described, "captions": captions}
        (aside / _STUDY).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return study_at(folder)


def study_at(folder: Path) -> PairStudy:
    """The study in a folder; raises ``UserError`` where it holds none."""
    path = Path(folder) / _STUDY
    if not path.is_file():
        raise UserError(f"{folder}: holds no pairs (it has no {_STUDY}); give two runs to draw some.")
    with readable(path):
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    match said:
        case {"format": 1, "seed": int(seed), "models": {"A": dict(a), "B": dict(b)}, "captions": list(captions)}:
            texts = all(isinstance(each, str) for each in captions)
            if texts and 0 < len(captions) <= MOST_PAIRS and all(isinstance(each.get("run"), str) for each in (a, b)):
                return PairStudy(Path(folder), seed, {"A": a, "B": b}, tuple(captions))
    raise UserError(f"{path}: is no list of pairs of ours; restore it from a copy, or give another folder by --out.")


def is_study(folder: Path) -> bool:
    """Whether a folder holds pairs."""
    return (Path(folder) / _STUDY).is_file()


@dataclass(frozen=True)
class _Alike:
    """What must be alike in two models: the ``shape`` of pictures, and what they are asked for."""

    shape: tuple[int, ...]
    owner: Conditions

    @classmethod
    def of(cls, sampler: Sampler) -> _Alike:
        return cls(sampler.shape, sampler.owner)


def _drawn(asked: AskedModel, prompts: Sequence[str] | None, alike: _Alike, count: int, seed: int) -> Iterator[bytes]:
    """The PNG of each pair by a model; raises ``UserError`` for one that is not ``alike``."""
    sampler = asked.opened(prompts)
    if (sampler.shape, sampler.classes) != (alike.shape, alike.owner.count):
        raise UserError(
            f"{asked.run}: makes pictures of {sampler.shape} in {sampler.classes} classes, and the other model of "
            f"{alike.shape} in {alike.owner.count}; give two that make the same."
        )
    for part in sampler.in_parts(count, seed):
        for sample in part:
            yield picture_png(sample, sampler.low, sampler.high)


def _check_two(
    a: AskedModel, b: AskedModel, prompted: Mapping[str, bool], described: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises ``UserError`` unless there are two models that can be asked for the same."""
    if prompted["A"] != prompted["B"]:
        raise UserError(f"{a.run} and {b.run}: one of them draws what prompts say, the other does not; give two alike.")
    if all(described["A"][key] == described["B"][key] for key in _DECIDE):
        raise UserError(f"{a.run} and {b.run}: are one model; give two that differ.")


def _name(pair: int, model: str) -> str:
    return f"{pair:05d}-{model}.png"
