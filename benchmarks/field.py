"""How the unbiased score estimate's error falls with the number of samples: the stable target field
of n samples against the exact score of ten Gaussians.

    python benchmarks/field.py                  # seconds

Per noise level, the mean squared error of the estimate of x0 over that at n = 1 (which is SDS: the
sample itself), on 4,000 noised samples of the mixture. The n - 1 fresh samples are the same for
all, so that the error of the last rows is one draw's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fewstep.data import random_mixture
from fewstep.objectives import FieldOfSamples
from fewstep.random import Key
from fewstep.schedule import KarrasVE
from fewstep.states import State, States, Step

COUNTS = (1, 4, 16, 64, 256, 1024, 4096)
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)


class Samples(States):
    """The mixture's own samples, so that a student that copies its input has the mixture's
    distribution.
    """

    def draw(self, step: Step) -> State:
        samples, _ = MIXTURE.sample(step.rows, step.key, step.start)
        return State(samples, torch.zeros(step.rows, dtype=torch.float64))


class Copy(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        return x


MIXTURE = random_mixture(KarrasVE())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    step, states = Step(Key(0, "field"), 4000), Samples()
    state = step.state(states)
    errors: dict[float, list[float]] = {level: [] for level in LEVELS}
    for count in COUNTS:
        fake = FieldOfSamples(Copy(), states, count)
        for level in LEVELS:
            t = MIXTURE.schedule.time_at_sigma(level).expand(step.rows)
            x_t = MIXTURE.schedule.add_noise(state.x, t, step.noise_like("noise", state.x))
            exact = MIXTURE(x_t, t, state.condition)
            errors[level].append(
                float(
                    (fake.estimate(step, MIXTURE.schedule, x_t, t, state.x, state.condition) - exact)
                    .square()
                    .sum(1)
                    .mean()
                )
            )
    print(f"{'samples':>8} " + " ".join(f"{f'sigma {level:g}':>10}" for level in LEVELS))
    for index, count in enumerate(COUNTS):
        print(f"{count:>8} " + " ".join(f"{errors[level][index] / errors[level][0]:>10.4f}" for level in LEVELS))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "field.json").write_text(
        json.dumps({"counts": COUNTS, "levels": LEVELS, "errors": [errors[level] for level in LEVELS]}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
