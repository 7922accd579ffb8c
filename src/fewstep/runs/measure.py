"""Measures one model of a run on very many samples: what ``fewstep measure`` does, and how
published figures are made (50,000 samples against stored statistics of the data).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from fewstep.data import Dataset, SampleSpace
from fewstep.errors import UserError
from fewstep.keeping.origins import measured_origins
from fewstep.keeping.run_folder import RunFolder
from fewstep.metrics.diversity import relative_diversity
from fewstep.metrics.features import FeatureSpace
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.gathered import KEPT, Gathered, spaced
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.manifold import manifold_scores
from fewstep.metrics.quality import BREADTH_ROWS, NEIGHBOURHOODS
from fewstep.metrics.stored.reference import Reference, save_reference
from fewstep.random import Key
from fewstep.recipes.building.checksums import origins_of
from fewstep.recipes.building.parts import data_of
from fewstep.runs.blocks import Crew, Job, Workers
from fewstep.runs.evaluate import chosen
from fewstep.runs.loading import load, load_teacher
from fewstep.runs.pictures.image_sets import announce, said_of
from fewstep.runs.protocols.compared_moments import fitting_reference
from fewstep.runs.sampler import Sampler
from fewstep.runs.teacher_reference import teacher_moments
from fewstep.system.caches import content_digest, output
from fewstep.training import Listener
from fewstep.training.listeners import Several
from fewstep.training.saving.origin_checks import Origins

METRICS = ("fd", "kid", "is", "breadth", "accuracy")
KERNEL_SUBSET = 1000


def measure_many(
    run: Path | str,
    samples: int = 50_000,
    model: Literal["student", "teacher"] = "student",
    steps: int | None = None,
    reference: Path | str | None = None,
    metrics: Collection[str] | None = None,
    workers: Workers | None = None,
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """What ``docs/metrics.md`` defines of ``samples`` samples, in the feature space of the run's
    recipe and the data's class proportions; also written to ``measured-MODEL-STEPS.json``.

    ``metrics``: of ``METRICS``, all that the space allows unless given. ``reference``: a file of
    statistics for the Frechet distance (see ``load_reference``), unless given the data's own, or
    those of the teacher's samples where the recipe has 'evaluation.reference'. The result does not
    depend on the number of processes. Raises ``UserError`` for what a space cannot tell, and for a
    reference of another space.
    """
    folder, listener = RunFolder(Path(run)), Several(listeners)
    recipe = folder.read_distill_recipe()
    chosen(recipe.evaluation, samples=samples, teacher_steps=None if steps is None else [steps])
    data = data_of(recipe.data)
    announce(data, listener)
    sampler = (load_teacher(folder.path) if model == "teacher" else load(folder.path)).pictured
    space = recipe.evaluation.features.space(sampler.space if data is None else data)
    steps = sampler.usual_steps if steps is None else steps
    origins = measured_origins(folder, recipe, data, listener.say)
    stored: Reference | None = None
    source: dict[str, Any] = {}
    if reference is not None:
        stored = _stored(reference, space, sampler.space, origins["digests"])
    elif recipe.evaluation.reference is not None:
        moments = teacher_moments(recipe, load_teacher(folder.path), space, data, listener.say)
        stored, source = moments.reference(listener), {"teacher": moments.described}
    lacking = _lacking(space, sampler, data, stored is not None)
    wanted = _wanted(metrics, lacking)
    count = 0 if data is None else _data_count(data, wanted, stored is not None)
    with Crew(workers or Workers()) as crew:
        real = crew.gather(Job(folder.path, "data", count), listener) if count else None
        generated = crew.gather(Job(folder.path, model, samples, steps), listener)
    against = stored if stored is not None else Reference(real.moments.statistics()) if real is not None else None
    source |= {
        "file": None if reference is None else str(reference),
        "count": None if against is None else against.statistics.count,
    }
    if reference is not None:
        source |= {"sha256": content_digest(reference)}
    left_out = {name: why for name, why in lacking.items() if metrics is None}
    numbers = _numbers(wanted, generated, real, against, recipe.evaluation.seed, left_out)
    described = {
        "model": model,
        "steps": steps,
        "samples": samples,
        "space": space.name,
        "reference": source,
        "origins": origins,
    }
    result = {**described, **numbers, **({"left_out": left_out} if left_out else {}), **said_of(data)}
    folder.write(folder.path / f"measured-{model}-{steps}.json", json.dumps(result, indent=2) + "\n", listener.say)
    return result


def write_reference(
    run: Path | str, path: Path | str, workers: Workers | None = None, listeners: Sequence[Listener] = ()
) -> Path:
    """Writes the statistics of all of a run's data, or of the teacher's samples where the recipe
    has 'evaluation.reference', in the feature space of the recipe, for ``reference`` of later
    measurements.
    """
    folder = RunFolder(Path(run))
    recipe = folder.read_distill_recipe()
    if recipe.data is None and recipe.evaluation.reference is None:
        raise UserError(f"{run}: its recipe has no 'data' section, so that there are no statistics of data to write.")
    data = data_of(recipe.data)
    announce(data, Several(listeners))
    if Path(path).suffix == ".npz":
        raise UserError(
            f"{path}: reference statistics are written as safetensors; give the file another name, such as "
            f"{Path(path).stem}.safetensors."
        )
    if recipe.evaluation.reference is not None:
        teacher = load_teacher(folder.path)
        space = recipe.evaluation.features.space(teacher.pictured.space if data is None else data)
        reference = teacher_moments(recipe, teacher, space, data, Several(listeners).say).reference(Several(listeners))
    else:
        assert data is not None
        with Crew(workers or Workers()) as crew:
            gathered = crew.gather(Job(folder.path, "data", len(data)), Several(listeners))
        origins = origins_of(recipe, ("data", "evaluation"), data)
        space = recipe.evaluation.features.space(data)
        reference = Reference(gathered.moments.statistics(), space.name, origins)
    with output(path):
        save_reference(Path(path), reference)
    return Path(path)


def _lacking(space: FeatureSpace, sampler: Sampler, data: Dataset | None, stored: bool) -> dict[str, str]:
    """Why a metric cannot be measured, by its name, as far as that is known before anything is
    sampled.
    """
    found: dict[str, str] = {}
    if data is None:
        found |= dict.fromkeys(("kid", "breadth"), "there is no data to compare with")
        if not stored:
            found["fd"] = "there is neither data nor a reference to compare with"
    if space.head is None:
        found["is"] = f"the feature space '{space.name}' has no classifier"
    if not (space.labelled and sampler.classes and (data is None or data.labels is not None)):
        found["accuracy"] = "it needs a model with classes and a classifier of the data's classes"
    return found


def _wanted(metrics: Collection[str] | None, lacking: Mapping[str, str]) -> tuple[str, ...]:
    """What is measured, in the order of ``METRICS``."""
    if metrics is None:
        return tuple(name for name in METRICS if name not in lacking)
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"--metric: there is no metric '{name}'; it must be one of {', '.join(METRICS)}.")
        if name in lacking:
            raise UserError(
                f"--metric: '{name}' cannot be measured: {lacking[name]}; leave it out or set "
                "'evaluation.features' in the run's recipe."
            )
    return tuple(name for name in METRICS if name in metrics)


@torch.no_grad()
def _stored(path: Path | str, space: FeatureSpace, look: SampleSpace, origins: Origins) -> Reference:
    """The reference, checked before anything is sampled; its data may be others than the run's
    ``origins`` say.
    """
    dimensions = space.extract(torch.full((1, *look.shape), look.low)).shape[1]
    return fitting_reference(path, space, dimensions, origins)


def _data_count(data: Dataset, wanted: tuple[str, ...], stored: bool) -> int:
    """How many samples of the data are needed: all for its statistics, as many as are kept for
    scores that compare features, and none for the rest.
    """
    if "fd" in wanted and not stored:
        return len(data)
    return min(len(data), KEPT) if "kid" in wanted or "breadth" in wanted else 0


def _numbers(
    wanted: tuple[str, ...],
    generated: Gathered,
    real: Gathered | None,
    reference: Reference | None,
    seed: int,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """The figures that can be had; ``left_out`` takes the reasons of the others, none of which
    takes another along.
    """
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "fd": lambda: _distance(generated, reference),
        "kid": lambda: _kernel(generated, real, seed),
        "is": lambda: _inception(generated),
        "breadth": lambda: _breadth(generated, real, left_out),
        "accuracy": lambda: _accuracy(generated),
    }
    found: dict[str, Any] = {}
    for name in wanted:
        try:
            found |= makers[name]()
        except UserError as error:
            left_out[name] = str(error).removesuffix(".")
    return found


def _distance(generated: Gathered, reference: Reference | None) -> dict[str, Any]:
    assert reference is not None
    return {"fd": frechet_distance(generated.moments.statistics(), reference.statistics)}


def _kernel(generated: Gathered, real: Gathered | None, seed: int) -> dict[str, Any]:
    assert real is not None
    size = min(KERNEL_SUBSET, len(real.kept), len(generated.kept))
    return {
        "kid": {
            **asdict(kernel_distance(real.kept, generated.kept, size=size, key=Key(seed, "kernel-distance"))),
            "size": size,
        }
    }


def _inception(generated: Gathered) -> dict[str, Any]:
    assert generated.scores is not None
    return {"is": {**asdict(generated.scores.score()), "splits": len(generated.scores.counts)}}


def _accuracy(generated: Gathered) -> dict[str, Any]:
    assert generated.hits is not None
    return {"accuracy": generated.hits / generated.moments.count}


def _breadth(generated: Gathered, real: Gathered | None, left_out: dict[str, str]) -> dict[str, float]:
    """Neighbourhood scores (k = 5) and relative diversity of at most ``BREADTH_ROWS`` of each, as
    ``evaluate`` has them; either without the other where one cannot be had.
    """
    assert real is not None
    ours, theirs = (spaced(len(each.kept), BREADTH_ROWS) for each in (generated, real))
    labelled = generated.kept_labels is not None and real.kept_labels is not None
    own, other = (each.labels[chosen] if labelled else None for each, chosen in ((generated, ours), (real, theirs)))
    found: dict[str, float] = {}
    try:
        found |= asdict(manifold_scores(real.kept[theirs], generated.kept[ours]))
    except UserError as error:
        left_out |= dict.fromkeys(NEIGHBOURHOODS, str(error).removesuffix("."))
    try:
        found["diversity"] = relative_diversity(generated.kept[ours], own, real.kept[theirs], other)
    except UserError as error:
        left_out["diversity"] = str(error).removesuffix(".")
    return found
