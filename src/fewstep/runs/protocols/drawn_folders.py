"""A picture of each prompt and seed in a folder: what papers take figures of.

The picture of prompt i of the k-th seed is a function of the folder's seed, i and k alone, to
rounding: the first prompts, and the first of several seeds, are the same pictures in any set.
``drawn.json`` says by content what draws them; a command that was stopped goes on with what is
missing. Nothing in the folder is replaced.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.tree import CAPTIONS
from fewstep.errors import UserError
from fewstep.keeping.run_folder import RunFolder, Which
from fewstep.metrics.inception import as_bytes
from fewstep.random import GENERATOR, Key
from fewstep.recipes.building.checksums import origins_of
from fewstep.runs.pictures.published_students import PublishedStudent
from fewstep.runs.protocols.picture_sets import digest_of_texts
from fewstep.runs.sampler import Sampler
from fewstep.system.caches import content_digest
from fewstep.system.files import readable, write_bytes, write_text
from fewstep.training import Listener
from fewstep.zoo.adapter_files import AddedAdapter

RECORD = "drawn.json"
MOST_SEEDS = 1000


@dataclass(frozen=True, eq=False)
class PromptPictures:
    """The pictures of all prompts of a text-to-image ``sampler``, ``seeds`` of each, in ``steps``
    steps; ``made``: by content, what draws them.
    """

    sampler: Sampler
    made: Mapping[str, Any]
    seed: int = 0
    seeds: int = 1
    steps: int | None = None

    def name(self, number: int, turn: int) -> str:
        """The file of a prompt's picture of the seed number ``turn``."""
        return f"{number:06d}.png" if self.seeds == 1 else f"{number:06d}-{turn:03d}.png"

    def draw(self, folder: Path, listener: Listener) -> int:
        """Draws the pictures that are not in the folder yet, with their prompts in
        ``metadata.jsonl``; returns how many there are.

        Raises ``UserError`` for a folder with anything else in it, and for a model without prompts.
        """
        texts, owner = self.sampler.owner.texts, self.sampler
        if not texts or len(owner.shape) != 3 or not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(
                f"--folder: takes 1 to {MOST_SEEDS} pictures of each prompt of a text-to-image model; give such a run, "
                "or leave it out."
            )
        self._begin(folder, texts)
        with listener:
            listener.stage("pictures", self.seeds * len(texts), 0)
            done = 0
            for turn in range(self.seeds):
                for start in range(0, len(texts), owner.together):
                    numbers = torch.arange(start, min(start + owner.together, len(texts)))
                    self._block(folder, numbers, turn)
                    done += len(numbers)
                    listener.step(done, f"{done:,} pictures")
        return done

    def _block(self, folder: Path, numbers: Tensor, turn: int) -> None:
        """Pictures that are made together: all of them anew, if one is missing, since the bits of
        each depend on that.
        """
        files = [folder / self.name(number, turn) for number in numbers.tolist()]
        if all(map(os.path.lexists, files)):
            return
        sampler = self.sampler
        steps = sampler.usual_steps if self.steps is None else self.steps
        drawn = sampler.draw(Key(self.seed, "sample", turn), len(numbers), numbers, steps, int(numbers[0]))
        levels = as_bytes(drawn.clamp(sampler.low, sampler.high), sampler.low, sampler.high)
        for file, each in zip(files, levels.permute(0, 2, 3, 1), strict=True):
            if not os.path.lexists(file):
                write_bytes(file, _png(each))

    def _begin(self, folder: Path, texts: Sequence[str]) -> None:
        """Writes down what the folder holds; raises ``UserError`` where it holds anything else."""
        record = {
            "drawn_by": dict(self.made),
            "prompts": digest_of_texts(tuple(texts)),
            "count": len(texts),
            "seed": self.seed,
            "seeds": self.seeds,
            "steps": self.sampler.usual_steps if self.steps is None else self.steps,
            "noise": GENERATOR,
        }
        content = json.dumps(record, indent=2) + "\n"
        path = folder / RECORD
        if not path.is_file():
            held = min((each.name for each in folder.iterdir()), default="") if folder.is_dir() else ""
            if held:
                raise UserError(f"{folder}: holds '{held}' already, and no pictures of prompts; give a new folder.")
            write_text(path, content)
        with readable(path):
            written = path.read_text(encoding="utf-8", errors="replace")
        if written != content:
            raise UserError(
                f"{folder}: holds pictures of other prompts, or that something else drew ({RECORD} says what); give a "
                "new folder."
            )
        if not (folder / CAPTIONS).is_file():
            rows = [
                json.dumps({"file_name": self.name(number, turn), "text": text})
                for number, text in enumerate(texts)
                for turn in range(self.seeds)
            ]
            write_text(folder / CAPTIONS, "\n".join(rows) + "\n")


def check_alone(others: Mapping[str, object]) -> None:
    """Raises ``UserError`` for an option, given by its name, that goes with no folder of
    pictures.
    """
    other = next((name for name, value in others.items() if value), None)
    if other is not None:
        raise UserError(f"{other} and --folder: a folder holds a picture of each prompt; leave one of them out.")


def what_draws(
    student: PublishedStudent | None,
    run: Path | None,
    teacher: bool,
    guidance: float | None,
    adapters: Sequence[AddedAdapter],
    which: Which = "last",
) -> dict[str, Any]:
    """What draws pictures, by content: a ``student`` without a run, of whose base an id of the hub
    is taken by its revision, or a run's student, ``which`` of its two, or its ``teacher``.
    """
    shared = {"guidance": guidance, "adapters": [[content_digest(each.path), each.weight] for each in adapters]}
    if student is None:
        assert run is not None
        folder = RunFolder(run)
        own = {} if teacher else {"student": content_digest(folder.student_of(which))}
        return {"teacher": origins_of(folder.read_distill_recipe(), ("teacher",)), **own, **shared}
    place = student.place
    local = Path(place.source).expanduser()
    return {
        "base": content_digest(local) if local.is_dir() else [place.source, place.revision],
        "variant": place.variant,
        "model": None if student.model is None else content_digest(student.model),
        "timesteps": list(student.timesteps),
        **({"sigmas": list(student.sigmas)} if student.sigmas else {}),
        **shared,
    }


def _png(levels: Tensor) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(levels.contiguous().numpy()).save(stream, format="PNG")
    return stream.getvalue()
