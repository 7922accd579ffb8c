"""The layout of a run on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.denoisers.model_files import PRETRAINED, STUDENT
from fewstep.errors import UserError
from fewstep.recipes import DistillRecipe, Recipe
from fewstep.recipes.reading.source import load_saved
from fewstep.system.files import read_metadata, write_text
from fewstep.system.ledger import keeping, print_sentence
from fewstep.training.saving.best_student import NAME
from fewstep.training.saving.checkpoint import CHECKPOINTS

Which = Literal["last", "best"]
"""Which of a run's students: the one that it ended with, or the best that it had."""


@dataclass(frozen=True)
class RunFolder:
    """``path`` and the names in it."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def log(self) -> Path:
        """A line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What a run goes on from."""
        return self.path / CHECKPOINTS

    @property
    def degradation(self) -> Path:
        """The degradation path of a backtracked target."""
        return self.path / "path"

    @property
    def student(self) -> Path:
        """The averaged student, with what is needed to rebuild it."""
        return self.path / STUDENT

    @property
    def best(self) -> Path:
        """The best student, of a run that keeps it ('training.keep_best'), in the same form."""
        return self.student.with_stem(f"{self.student.stem}.best")

    def student_of(self, which: Which) -> Path:
        """The file of the last student or of the best."""
        return self.best if which == "best" else self.student

    def adapter_of(self, which: Which) -> Path:
        """The adapter alone of the last student or of the best."""
        return self.adapter.with_stem(f"{self.adapter.stem}.best") if which == "best" else self.adapter

    def evaluation_of(self, which: Which) -> Path:
        """What ``evaluate`` found of the last student or of the best."""
        return self.evaluation.with_stem(f"{self.evaluation.stem}.best") if which == "best" else self.evaluation

    def read_best(self) -> dict[str, Any]:
        """What the file of the best student says of it: its ``step``, the ``measure`` by which it
        was kept, and the ``figure`` of the draw that chose nothing.

        Raises ``UserError`` where there is no such file.
        """
        if not self.best.is_file():
            raise UserError(
                f"{self.path}: has no {self.best.name}; a run keeps its best student where its recipe has "
                "'training.keep_best'."
            )
        found = read_metadata(self.best).get(NAME)
        if not isinstance(found, dict) or not {"step", "measure", "figure"} <= found.keys():
            raise UserError(f"{self.best}: does not say of which step it is; it is not a best student's file.")
        return found

    @property
    def teacher(self) -> Path:
        """The teacher, of a run that was given one as an object."""
        return self.path / "teacher.safetensors"

    @property
    def pipeline(self) -> Path:
        """The same, of a run that was given a pipeline of diffusers'."""
        return self.path / "teacher"

    @property
    def adapter(self) -> Path:
        """The low-rank adapter of a student that is one, alone."""
        return self.path / "adapter.safetensors"

    @property
    def model(self) -> Path:
        """What a pretraining made."""
        return self.path / PRETRAINED

    @property
    def samples(self) -> Path:
        """Pictures."""
        return self.path / "samples"

    @property
    def evaluation(self) -> Path:
        """What ``evaluate`` found."""
        return self.path / "evaluation.json"

    @property
    def origins(self) -> Path:
        """Checksums of what the run is made from."""
        return self.path / "origins.json"

    @property
    def passed_over(self) -> Path:
        """What of the data was passed over, where there is such a thing."""
        return self.path / "passed-over.json"

    def write(self, path: Path, text: str, say: Callable[[str], None] = print_sentence) -> None:
        """Writes a result into the folder; what stands under its name and no command of ours wrote
        is kept, and ``say`` told.
        """
        with keeping(self.path, say):
            write_text(path, text)

    def read_recipe(self) -> Recipe:
        """The recipe of an existing run; raises ``UserError`` when the folder is no run."""
        if not self.recipe.is_file():
            raise UserError(
                f"{self.path.absolute()}: is not a run folder (it has no recipe.yaml); give the folder that "
                "'fewstep distill' wrote."
            )
        return load_saved(self.recipe)

    def read_distill_recipe(self) -> DistillRecipe:
        """The recipe of an existing distillation."""
        recipe = self.read_recipe()
        if not isinstance(recipe, DistillRecipe):
            raise UserError(f"{self.path}: is a pretraining run; this needs a run of 'fewstep distill'.")
        return recipe
