"""One distillation in this process, and what collecting trajectories took of it: evaluations, and
seconds of the processor.

    python benchmarks/collecting.py RECIPE --out RUN --set states.kind=ddil

Both are taken within one run, so that the machine's other work does not show. What is left out:
measurements, checkpoints, and what happens before the first step. Written to RUN/collecting.json; a
run that was cut off and goes on counts from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fewstep.cost import metered
from fewstep.runs import distill
from fewstep.states import Dagger
from fewstep.training import Trainer


@dataclass
class Spent:
    """What calls of a method took."""

    evaluations: int = 0
    seconds: float = 0.0

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, and its calls added up."""

        def call(*arguments: Any) -> Any:
            began = time.process_time()
            with metered() as meter:
                result = method(*arguments)
            self.evaluations += meter.evaluations
            self.seconds += time.process_time() - began
            return result

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    collecting, steps = Spent(), Spent()
    # A step of the trainer is the whole of a step; nothing public stands around it alone.
    with (
        patch.object(Dagger, "fresh", collecting.counted(Dagger.fresh)),
        patch.object(Trainer, "_step", steps.counted(Trainer._step)),
    ):
        distill(options.recipe, options.set, out=options.out, resume=True)
    rest = Spent(steps.evaluations - collecting.evaluations, steps.seconds - collecting.seconds)
    found = {"collecting": vars(collecting), "rest": vars(rest)}
    (options.out / "collecting.json").write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
