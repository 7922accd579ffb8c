"""What a distilled adapter is worth elsewhere: beside a style, and on another fine-tune of the
model that it was distilled from.

    # some ten minutes of a core, after a run of an adapter
    python benchmarks/added_adapters.py --run runs/adapters/all-16-0

The model is the shipped one of scenes. Two more are trained here from it, by denoising scenes with
their captions: a *style*, an adapter of rank 8 that knows scenes on a dark ground alone, and a
*fine-tune*, a full copy that knows scenes on a light ground alone. The run's distilled adapter is
then added as ``fewstep sample --lora`` adds it: to the model itself, together with the style, and
to the fine-tune. Each is sampled in one step, and its origin in 25 guided ones.

Two figures tell whether both survive: the share of pictures whose ground is as the style or the
fine-tune has it (a sixth and less of the model's own), and prompt accuracy. Noise and prompts are
the same for all rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.data.scenes import scene_prompts
from fewstep.denoisers import adapter_of, copy_of, in_network, save_adapter
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.runs import load_teacher
from fewstep.runs.loading import adapted_teacher
from fewstep.runs.sampler import Sampler, TeacherSampler
from fewstep.zoo import scenes_reader
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.pipelines import load_pipeline
from fewstep.zoo.shipped import shipped_pipeline
from taught_scenes import greys, ground_of, taught

DARK, LIGHT = (-0.9, -0.75), (0.15, 0.3)
"""The grounds' greys; those of scenes are from -0.9 to 0.3."""
ADAPTER_RATE, COPY_RATE = 1e-3, 2e-4
RANK, SCALE = 8, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/adapters/all-16-0"), help="whose student is an adapter")
    parser.add_argument("--steps", type=int, default=300, help="of training of style and fine-tune")
    parser.add_argument("--pictures", type=int, default=360)
    parser.add_argument("--teacher-steps", type=int, default=25)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_pipeline(shipped_pipeline("scenes"))
    style = in_network(model.denoiser, AdaptedNetwork.fresh(AdaptedBase(model.denoiser.network), Form(RANK, RANK)))
    tuned = copy_of(model.denoiser)
    taught(model, style, greys(*DARK), ADAPTER_RATE, options.steps)
    taught(model, tuned, greys(*LIGHT), COPY_RATE, options.steps)
    teacher = load_teacher(options.run, prompts=scene_prompts(1, held_out=False))
    distilled = AddedAdapter(options.run)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "style.safetensors"
        save_adapter(file, adapter_of(style))
        added = AddedAdapter(file)
        fine_tune = replace(teacher, denoiser=tuned.eval())
        # It was not distilled, so that the teacher is sampled as before.
        styled = adapted_teacher(teacher, [added])
        assert isinstance(styled, TeacherSampler)
        many = options.teacher_steps
        made: dict[str, tuple[Sampler, int]] = {
            "model": (teacher.guided(SCALE), many),
            "model, distilled": (adapted_teacher(teacher, [distilled]), 1),
            "model, style": (styled.guided(SCALE), many),
            "model, distilled and style": (adapted_teacher(teacher, [distilled, added]), 1),
            "fine-tune": (fine_tune.guided(SCALE), many),
            "fine-tune, distilled": (adapted_teacher(fine_tune, [distilled]), 1),
            "fine-tune in one step": (fine_tune, 1),
        }
        rows = [
            {"model": name, "steps": steps, **measured(sampler, steps, options)}
            for name, (sampler, steps) in made.items()
        ]
    print(f"{'model':<28}{'steps':>6}{'dark ground':>13}{'light ground':>14}{'prompt accuracy':>17}")
    for row in rows:
        print(f"{row['model']:<28}{row['steps']:>6}{row['dark']:>13.1%}{row['light']:>14.1%}{row['accuracy']:>17.1%}")
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"run": options.run.name, "steps": options.steps, "pictures": options.pictures, "rows": rows}
    (options.results / "added-adapters.json").write_text(json.dumps(content, indent=1) + "\n")


def measured(sampler: Sampler, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """The share of pictures with a dark and with a light ground, and prompt accuracy."""
    texts = sampler.owner.texts
    numbers = torch.arange(options.pictures) % len(texts)
    drawn = sampler.pictured(options.pictures, seed=1, classes=numbers, steps=steps)
    grey = ground_of(drawn).median(1).values
    found = prompt_accuracy(scenes_reader(), drawn, [texts[number] for number in numbers.tolist()])
    return {
        "dark": float((grey < DARK[1] + 0.05).float().mean()),
        "light": float((grey > LIGHT[0] - 0.05).float().mean()),
        "accuracy": found["all"],
    }


if __name__ == "__main__":
    main()
