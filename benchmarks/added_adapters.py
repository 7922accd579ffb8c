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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data.prompts import PromptConditions, embed, read_prompts
from fewstep.data.scenes import Scenes, scene_prompts
from fewstep.data.scenes.drawing import pictured
from fewstep.denoisers import NetworkDenoiser, adapter_of, copy_of, in_network, save_adapter
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.networks.adapters import AdaptedBase, AdaptedNetwork, Form
from fewstep.random import Key
from fewstep.runs import load_teacher
from fewstep.runs.loading import adapted_teacher
from fewstep.runs.sampler import Sampler, TeacherSampler
from fewstep.schedule import expand
from fewstep.zoo import scenes_reader
from fewstep.zoo.adapter_files import AddedAdapter
from fewstep.zoo.pipelines import TextPipeline, load_pipeline
from fewstep.zoo.shipped import shipped_pipeline

DARK, LIGHT = (-0.9, -0.75), (0.15, 0.3)
"""The grounds' greys; those of scenes are from -0.9 to 0.3."""
ADAPTER_RATE, COPY_RATE = 1e-3, 2e-4
RANK, BATCH, SCALE = 8, 32, 3.0


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
    taught(model, style, DARK, ADAPTER_RATE, options.steps)
    taught(model, tuned, LIGHT, COPY_RATE, options.steps)
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


def taught(model: TextPipeline, student: NetworkDenoiser, ground: tuple[float, float], rate: float, steps: int) -> None:
    """Trains the student on scenes of that ground, by the mean square of its error in velocity."""
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step, (latents, condition) in enumerate(batches(model, ground, steps)):
        key = Key(0, "taught", step)
        schedule = student.schedule
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * key.uniform("time", len(latents)).double()
        noised = schedule.add_noise(latents, t, key.normal("noise", latents.shape).float())
        error = student(noised, t, condition) - latents
        loss = (error.square() * expand(1 / schedule.sigma(t).square(), error)).mean()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    student.requires_grad_(False).eval()


def batches(model: TextPipeline, ground: tuple[float, float], steps: int) -> Iterator[tuple[Tensor, Any]]:
    """Latents of scenes of that ground, and the conditions of their captions."""
    scenes, encoder = Scenes(20_000), model.encoder
    indices = [Key(0, "scenes", step).permutation("scene", len(scenes))[:BATCH] for step in range(steps)]
    captions = [scenes.captions(index) for index in indices]
    every = sorted({text for texts in captions for text in texts if text})
    conditions = PromptConditions(embed(read_prompts(every), lambda: encoder, encoder.identity, say=lambda _: None))
    for index, texts in zip(indices, captions, strict=True):
        arranged = scenes.arrangement(index)
        tone = ground[0] + (ground[1] - ground[0]) * Key(0, "ground").uniform("tone", BATCH, int(index[0])).float()
        with torch.no_grad():
            latents = model.codec.encode(pictured(replace(arranged, tone=tone)))
        yield latents, conditions.of(torch.tensor([every.index(text) if text else -1 for text in texts]))


def measured(sampler: Sampler, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """The share of pictures with a dark and with a light ground, and prompt accuracy."""
    texts = sampler.owner.texts
    numbers = torch.arange(options.pictures) % len(texts)
    drawn = sampler.pictured(options.pictures, seed=1, classes=numbers, steps=steps)
    edge = torch.cat([drawn[:, :, 0], drawn[:, :, -1], drawn[:, :, :, 0], drawn[:, :, :, -1]], dim=2)
    grey = edge.flatten(1).median(1).values
    found = prompt_accuracy(scenes_reader(), drawn, [texts[number] for number in numbers.tolist()])
    return {
        "dark": float((grey < DARK[1] + 0.05).float().mean()),
        "light": float((grey > LIGHT[0] - 0.05).float().mean()),
        "accuracy": found["all"],
    }


if __name__ == "__main__":
    main()
