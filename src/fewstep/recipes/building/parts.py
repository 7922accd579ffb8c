"""From sections of a recipe to the parts they name: the pieces that several builders share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fewstep.condition import Conditions
from fewstep.data import Dataset, SampleSpace
from fewstep.errors import UserError
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.quality import Evaluator
from fewstep.recipes import config
from fewstep.schedule import Schedule
from fewstep.times import Grid
from fewstep.training.settings import Settings
from fewstep.values import name_of


def fitting_grid(
    choice: config.SolverChoice, schedule: Schedule, key: str, steps: Sequence[int], first: float | None = None
) -> Grid:
    """The grid of a solver that a recipe names under ``key``, which takes each number of ``steps``.

    Raises ``UserError`` where it cannot take them from time ``first``, where the teacher's noise
    starts unless given: before anything is trained.
    """
    try:
        for count in steps or (1,):
            choice.grid.times(schedule, count, first)
    except UserError as error:
        raise UserError(f"'{key}.grid: {name_of(choice.grid)}' does not fit the teacher's schedule: {error}") from error
    return choice.grid


def check_guidance(evaluation: config.Evaluation, conditions: int) -> None:
    """Raises ``UserError`` where a measured teacher of no ``conditions`` is to be guided."""
    scales = {
        "evaluation.guidance": evaluation.guidance,
        "evaluation.reference.guidance": evaluation.reference_guidance,
    }
    key = next((key for key, scale in scales.items() if scale not in (None, 1.0)), None)
    if key is not None and not conditions:
        raise UserError(
            f"'{key}' needs a teacher with classes or prompts to be guided to; leave it out, or use another teacher."
        )


def check_kept_best(
    choice: config.KeepBest | None,
    evaluation: config.Evaluation,
    data: Dataset | None,
    conditions: Conditions,
    space: FeatureSpace,
) -> None:
    """Raises ``UserError`` where a recipe cannot measure by what its best student is to be kept."""
    if choice is None:
        return
    lacking = {"fd": "", "prompt-accuracy": "", "diversity": ""}
    if evaluation.reference is None and (data is None or len(data) < 2):
        lacking["fd"] = "there are no two samples of data to compare with; give 'data' or 'evaluation.reference'"
    if not conditions.texts:
        lacking["prompt-accuracy"] = "the student is told no prompts; name another measure"
    elif space.readings is None:
        lacking["prompt-accuracy"] = (
            "the feature space tells no attributes of pictures; set 'evaluation.features.kind' to 'reader'"
        )
    if lacking[choice.measure]:
        raise UserError(
            f"'training.keep_best.measure: {choice.measure}' cannot be measured: {lacking[choice.measure]}."
        )


def build_settings(training: config.Training, spread: config.Distributed | None = None) -> Settings:
    """The loop's settings; ``spread``: over processes, as usual unless given."""
    spread = spread or config.Distributed()
    usual = Settings(
        training.batch, training.seed, training.precision, training.log_every, training.checkpoint_every, training.keep
    )
    return replace(
        usual,
        accumulate=training.accumulate,
        mode=spread.mode,
        replicas=spread.replicas,
        checkpoints=spread.checkpoints,
        offload=training.offload,
    )


def data_of(choice: config.DataChoice | None) -> Dataset | None:
    """The data set of a recipe that may have none."""
    return None if choice is None else choice.open()


def build_evaluator(
    choice: config.Evaluation, data: Dataset | None, device: torch.device | str = "cpu", like: SampleSpace | None = None
) -> Evaluator:
    """What measures samples, its network on a device; without data, samples that look ``like``
    that.
    """
    look = like if data is None else data.space
    assert look is not None
    return evaluator_in(choice.features.space(look, device), choice, data, look.classes)


def evaluator_in(space: FeatureSpace, choice: config.Evaluation, data: Dataset | None, classes: int) -> Evaluator:
    """What measures samples of so many ``classes`` in a feature space."""
    return Evaluator(
        data,
        space.extract,
        space.classify if space.labelled else None,
        choice.samples,
        choice.seed,
        classes,
        readings=space.readings,
    )
