"""How well the reader of scenes reads handwriting that it has not seen, and what shuffled prompts
score.

    # some ten minutes of one core for each number of digits
    python benchmarks/scenes.py --digits 1 --out runs
    python benchmarks/scenes.py --digits 2 --out runs

The reader is made by its recipe, ``scenes-features``, where it is not there: on scenes of the
training part. It is measured on real scenes of the test part, apart for combinations that are held
out and for the others: the accuracy of each attribute and of all together, and the prompt accuracy
of the captions, in their order and shuffled. A prompt accuracy of samples cannot be above that of
real scenes by more than chance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fewstep.data.scenes import Scenes
from fewstep.data.scenes.placing import Combinations
from fewstep.metrics.prompted import prompt_accuracy
from fewstep.metrics.prompted.accuracy import ROWS
from fewstep.networks import Reader
from fewstep.networks.kinds.network_files import load_network
from fewstep.random import Key
from runner import Job, options_of, run_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=int, default=1, choices=(1, 2))
    parser.add_argument("--count", type=int, default=5000, help="scenes of each kind")
    options = options_of(parser, "runs", 1)
    torch.set_num_threads(1)
    name = f"scenes-features-{options.digits}"
    jobs = [
        Job(
            options.out / (name if seed == 0 else f"{name}-seed-{seed}"),
            "scenes-features",
            {"data.digits": options.digits, "training.seed": seed},
            task="pretrain",
        )
        for seed in range(options.seeds)
    ]
    run_all(jobs, options)
    rows = [measured(job.model, options.digits, options.count) for job in jobs]
    for seed, row in enumerate(rows):
        for which, figures in row.items():
            for what, shares in figures.items():
                shown = ", ".join(f"{key} {value:.2%}" for key, value in shares.items())
                print(f"seed {seed}, {which}, {what}: {shown}")
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"digits": options.digits, "count": options.count, "rows": rows}
    (options.results / f"scenes-{options.digits}.json").write_text(json.dumps(content, indent=1) + "\n")


@torch.no_grad()
def measured(model: Path, digits: int, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of a reader on real scenes of the test part, seen and held out."""
    reader = load_network(model)
    assert isinstance(reader, Reader)
    found: dict[str, dict[str, dict[str, float]]] = {}
    kinds: tuple[Combinations, ...] = ("seen", "held-out")
    for which in kinds:
        data, index = Scenes(count, digits, "test", which), torch.arange(count)
        pictures, captions = data.take(index), data.captions(index)
        told = [reader(block) for block in pictures.split(ROWS)]
        right = {
            name: torch.cat([logits[name].argmax(1) for logits in told]) == value
            for name, value in data.attributes(index).items()
        }
        spoken = torch.tensor([row for row, text in enumerate(captions) if text])
        prompts = [captions[row] for row in spoken.tolist()]
        order = Key(0, "scenes").permutation("shuffled", len(prompts)).tolist()
        found[which] = {
            "attributes": {
                **{name: float(hits.double().mean()) for name, hits in right.items()},
                "all": float(torch.stack(list(right.values())).all(dim=0).double().mean()),
            },
            "captions": prompt_accuracy(reader, pictures[spoken], prompts),
            "shuffled captions": prompt_accuracy(reader, pictures[spoken], [prompts[row] for row in order]),
        }
    return found


if __name__ == "__main__":
    main()
