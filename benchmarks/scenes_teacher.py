"""How good the shipped text-to-image model of scenes is: whether its pictures show what their
prompts ask for, for combinations that it has seen and for those that were held out.

    # three minutes of one core
    python benchmarks/scenes_teacher.py

Pictures are made by DDIM with the scheduler's own timesteps, guided and not, and read by the
shipped reader; the prompts are evenly those of ``scene_prompts``. The ceiling is the same accuracy
on reconstructions of real scenes by the model's codec, of handwriting that neither model has seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.data.prompts import PromptConditions, embed, read_prompts
from fewstep.data.scenes import Scenes, scene_prompts
from fewstep.denoisers import Guided
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.random import Key
from fewstep.solvers import EULER, solve
from fewstep.zoo import scenes_reader
from fewstep.zoo.pipelines import TextPipeline, load_pipeline
from fewstep.zoo.shipped import shipped_pipeline

SIDE = 32
ROWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=shipped_pipeline("scenes"), help="of the pipeline")
    parser.add_argument("--count", type=int, default=400, help="pictures of each kind of prompts")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 1])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = load_pipeline(options.folder), []
    for held_out in (False, True):
        prompts = listed(scene_prompts(1, held_out), options.count)
        for steps in options.steps:
            for scale in options.guidance:
                found = prompt_accuracy(scenes_reader(), sampled(model, prompts, scale, steps), prompts)
                row = {"held_out": held_out, "steps": steps, "guidance": scale, "accuracy": found}
                rows.append(row)
                shown = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
                print(f"{'held out' if held_out else 'seen'}, {steps} steps, guidance {scale:g}: {shown}")
    kept = reconstructed(model, options.count)
    print(f"real scenes {kept['real']:.1%}, their reconstructions {kept['reconstructed']:.1%}")
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"count": options.count, "rows": rows, "codec": kept}
    (options.results / "scenes-teacher.json").write_text(json.dumps(content, indent=1) + "\n")


def listed(prompts: list[str], count: int) -> list[str]:
    """``count`` prompts, evenly over the list, some several times where it has fewer."""
    return [prompts[index * len(prompts) // count] for index in range(count)]


@torch.no_grad()
def sampled(model: TextPipeline, prompts: list[str], scale: float, steps: int) -> Tensor:
    """A picture a prompt, (N, 3, 32, 32), by ``steps`` of DDIM from the scheduler's timesteps."""
    import diffusers

    scheduler = diffusers.DDIMScheduler.from_pretrained(str(shipped_pipeline("scenes") / "scheduler"))
    scheduler.set_timesteps(steps)
    times = torch.tensor([*((int(index) + 1) / 1000 for index in scheduler.timesteps), 0.0], dtype=torch.float64)
    encoder = model.encoder
    embedded = embed(read_prompts(prompts), lambda: encoder, encoder.identity, say=lambda _: None)
    conditions = PromptConditions(embedded)
    denoiser = Guided(model.denoiser, scale, conditions) if scale != 1 else model.denoiser
    noise = Key(0, "scenes-teacher").normal("noise", (len(prompts), *model.denoiser.shape)).float()
    found = []
    for index in torch.arange(len(prompts)).split(ROWS):
        condition: Condition = conditions.of(index)
        found.append(model.codec.decode(solve(EULER, denoiser, noise[index], times, condition)))
    return torch.cat(found)


@torch.no_grad()
def reconstructed(model: TextPipeline, count: int) -> dict[str, float]:
    """The accuracy of captions of real scenes, and of these behind the codec."""
    scenes, index = Scenes(2 * count, part="test", combinations="all"), torch.arange(2 * count)
    captions = scenes.captions(index)
    spoken = torch.tensor([row for row, text in enumerate(captions) if text])[:count]
    pictures, texts = scenes.take(spoken), [captions[row] for row in spoken.tolist()]
    again = model.codec.decode(model.codec.encode(pictures))
    reader = scenes_reader()
    return {
        "real": prompt_accuracy(reader, pictures, texts)["all"],
        "reconstructed": prompt_accuracy(reader, again, texts)["all"],
    }


if __name__ == "__main__":
    main()
