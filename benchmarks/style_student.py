"""A style for a few-step student, which must not lose its steps: four ways.

    # some six minutes of a core a seed, and ten more where the accelerator is not there yet
    python benchmarks/style_student.py --seeds 3 --out runs/style

The model is the shipped one of scenes. Its *accelerator* is the adapter of
``scenes-disback-lora``, which draws in one step; the runs of ``adapters.py`` are taken where
``--accelerators`` has them. The *style* is an adapter too, taught to the model, as styles are, by
denoising scenes on a brown ground, which the model never draws. Then, in one step:

* *before*: the accelerator alone;
* *added*: accelerator and style, nothing trained;
* *distilled*: the model with the style is the teacher, and the accelerator goes on from where it is
  by distribution matching against it;
* *naive*: the accelerator goes on by denoising the style's own pictures, as styles are taught.

Figures: the share of brown grounds; the Frechet distance to the samples in 25 guided steps of the
model with the style, of ``before`` to those of the model without it; prompt accuracy. The noise is
the same for all, seeds are paired; means and the ratio of the distance to that of ``before``, with
Student's interval. Runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.scenes import scene_prompts
from fewstep.denoisers import adapter_of, in_network, save_adapter
from fewstep.metrics.frechet import FeatureStatistics, features_of, frechet_distance
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.runs import load_teacher
from fewstep.runs.loading import adapted_teacher
from fewstep.runs.sampler import Sampler, TeacherSampler
from fewstep.zoo import scenes_reader
from fewstep.zoo.adapter_files import AddedAdapter, read_adapter
from fewstep.zoo.pipelines import load_pipeline
from fewstep.zoo.shipped import shipped_pipeline
from paired import ratio
from runner import Job, kept, options_of
from taught_scenes import ground_of, taught

RECIPE = "scenes-disback-lora"
WAYS = ("before", "added", "distilled", "naive")
STYLE_RANK, RATE, SCALE = 8, 1e-3, 3.0
LEAST = 0.05
"""By how much a brown ground's red stands above its blue, of 2; a grey's is 0. The codec was
trained on greys, and leaves some 0.1 of the style's 0.4.
"""


def browns(numbers: Tensor) -> Tensor:
    """The colours of grounds of the style."""
    tone = -0.75 + 0.3 * numbers
    return torch.stack([tone + 0.2, tone, tone - 0.2], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--style-steps", type=int, default=300, help="of training of the style")
    parser.add_argument("--steps", type=int, default=160, help="of the accelerator's further training, both ways")
    parser.add_argument("--guidance", type=float, default=1.75, help="that of scenes-disback-lora")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--teacher-steps", type=int, default=25)
    parser.add_argument("--accelerators", type=Path, help="a folder of runs all-16-SEED, such as runs/adapters")
    options = options_of(parser, "runs/style", 3)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    style = options.out / f"style-{options.style_steps}.safetensors"
    if not style.is_file():
        teach_style(style, options.style_steps)
    rows = []
    for seed in range(options.seeds):
        rows.append(of_seed(seed, style, options))
        print(
            f"[{seed + 1}/{options.seeds}] " + ", ".join(f"{way} {rows[-1][way]['fd']:.3f}" for way in WAYS), flush=True
        )
    show(rows)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"steps": options.steps, "pictures": options.pictures, "rows": rows, "over before": over_before(rows)}
    (options.results / "style-student.json").write_text(json.dumps(content, indent=1) + "\n")


def teach_style(path: Path, steps: int) -> None:
    model = load_pipeline(shipped_pipeline("scenes"))
    base = AdaptedBase(model.denoiser.network)
    style = in_network(model.denoiser, AdaptedNetwork.fresh(base, Form(STYLE_RANK, STYLE_RANK)))
    taught(model, style, browns, RATE, steps)
    save_adapter(path, adapter_of(style))


def of_seed(seed: int, style: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of all ways, kept beside the runs."""

    def make() -> dict[str, Any]:
        more = {"training.seed": seed, "training.health_every": 100_000, "evaluation.every": 100_000}
        folder = options.accelerators or options.out
        accelerator = Job(folder / f"all-16-{seed}", RECIPE, more)
        if not accelerator.done:
            accelerator.run(options.more)
        teacher = {
            "kind": "pipeline",
            "path": str(shipped_pipeline("scenes")),
            "loras": [{"path": str(style.resolve()), "weight": 1.0}],
        }
        settings = {
            **more,
            "teacher": teacher,
            "student.start": str(accelerator.folder.resolve()),
            "target": {"kind": "fixed", "guidance": {"kind": "constant", "scale": options.guidance}},
            "evaluation.reference": None,
            "training.steps": options.steps,
        }
        distilled = Job(options.out / f"distilled-{options.guidance:g}-{options.steps}-{seed}", RECIPE, settings)
        if not distilled.done:
            distilled.run({key: value for key, value in options.more.items() if key not in settings})
        naive = options.out / f"naive-{options.steps}-{seed}.safetensors"
        if not naive.is_file():
            teach_naively(naive, accelerator.folder, options.steps)
        return measured(seed, accelerator.folder, style, distilled.folder, naive, options)

    name = f"{options.guidance:g}-{options.steps}-{options.pictures}-{options.teacher_steps}-{seed}"
    return kept(options.out / f"measured-{name}.json", make)


def teach_naively(path: Path, accelerator: Path, steps: int) -> None:
    model = load_pipeline(shipped_pipeline("scenes"))
    file = read_adapter(accelerator, model.denoiser.network)
    base = AdaptedBase(model.denoiser.network)
    student = in_network(model.denoiser, AdaptedNetwork.holding(base, file.pairs))
    taught(model, student, browns, RATE, steps)
    save_adapter(path, adapter_of(student), file.extra)


def measured(
    seed: int, accelerator: Path, style: Path, distilled: Path, naive: Path, options: argparse.Namespace
) -> dict[str, Any]:
    teacher = load_teacher(accelerator, prompts=scene_prompts(1, held_out=False))
    styled = adapted_teacher(teacher, [AddedAdapter(style)])
    assert isinstance(styled, TeacherSampler)

    def with_adapters(*paths: Path) -> Sampler:
        return adapted_teacher(teacher, [AddedAdapter(path) for path in paths])

    def statistics_of(sampler: Sampler, noise: int, steps: int) -> tuple[FeatureStatistics, dict[str, float]]:
        texts = sampler.owner.texts
        numbers = torch.arange(options.pictures) % len(texts)
        drawn = sampler.pictured(options.pictures, seed=noise, classes=numbers, steps=steps)
        ground = ground_of(drawn)
        reader = scenes_reader()
        found = {
            "style": float((ground[:, 0] - ground[:, 2] > LEAST).float().mean()),
            "accuracy": prompt_accuracy(reader, drawn, [texts[number] for number in numbers.tolist()])["all"],
        }
        return FeatureStatistics.of(features_of(drawn, reader.features)), found

    # The references' noise is none that a student is drawn from.
    many = options.teacher_steps
    plain, of_plain = statistics_of(teacher.guided(SCALE), 2, many)
    wanted, of_wanted = statistics_of(styled.guided(SCALE), 2, many)
    ways: Mapping[str, tuple[Sampler, FeatureStatistics]] = {
        "before": (with_adapters(accelerator), plain),
        "added": (with_adapters(accelerator, style), wanted),
        # Its adapter was distilled on the model with the style, and so stands beside it.
        "distilled": (with_adapters(distilled, style), wanted),
        "naive": (with_adapters(naive), wanted),
    }
    found: dict[str, Any] = {"seed": seed, "teacher": of_plain, "teacher, style": of_wanted}
    for way, (sampler, reference) in ways.items():
        own, figures = statistics_of(sampler, 1, 1)
        found[way] = {"fd": frechet_distance(own, reference), **figures}
    return found


def over_before(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The distance of each way over that of the student before, seed by seed."""
    before = [row["before"]["fd"] for row in rows]
    return {way: ratio([row[way]["fd"] for row in rows], before) for way in WAYS[1:]}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"\n{'model':<18}{'steps':>6}{'brown ground':>14}{'prompt accuracy':>17}{'distance':>10}{'over before':>26}")
    over = over_before(rows)
    for name in ("teacher", "teacher, style", *WAYS):
        mean = {key: statistics.fmean(row[name][key] for row in rows) for key in rows[0][name]}
        line = f"{name:<18}{1 if name in WAYS else 25:>6}{mean['style']:>14.1%}{mean['accuracy']:>17.1%}"
        line += f"{mean['fd']:>10.3f}" if "fd" in mean else ""
        if name in over:
            each = over[name]
            between = "" if each["low"] is None else f" ({each['low']:.2f} to {each['high']:.2f})"
            line += f"{each['mean']:.2f}{between}".rjust(26)
        print(line)


if __name__ == "__main__":
    main()
