"""Measures a run of a scenes student, for ``scenes_students`` and ``ddil_text``: prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    folder, pictures, *steps = (Path(sys.argv[1]), *map(int, sys.argv[2:]))
    torch.set_num_threads(1)
    print(json.dumps(measured(folder, pictures, *steps)))


def measured(folder: Path, pictures: int, steps: int = 1) -> dict[str, Any]:
    """The figures of the run's student in so many steps."""
    from fewstep.data.scenes import scene_prompts
    from fewstep.metrics.prompted import prompt_accuracy
    from fewstep.report.history import History
    from fewstep.runs import evaluate, load
    from fewstep.training.reporting.log import read_log
    from fewstep.zoo import scenes_reader

    found = evaluate(folder, student_steps=[steps])
    student = found["student"][str(steps)]
    if "fd" not in student:
        sys.exit(f"{folder}: has no Frechet distance: its recipe has neither data nor 'evaluation.reference'.")
    unseen = scene_prompts(1, held_out=True)
    sampler = load(folder, prompts=unseen).pictured
    numbers = torch.arange(pictures) % len(unseen)
    drawn = sampler(pictures, seed=1, classes=numbers, steps=steps)
    held_out = prompt_accuracy(scenes_reader(), drawn, [unseen[number] for number in numbers.tolist()])
    # What trains the student, whatever its stages are called.
    log = read_log(folder / "metrics.jsonl")
    lines = [line for line in log if line.get("stage") not in (None, "record")]
    first, last = lines[0], lines[-1]
    return {
        "fd": student["fd"],
        "accuracy": student["prompt_accuracy"]["all"],
        "held_out": held_out["all"],
        "diversity": student.get("prompt_diversity_ratio"),
        "teacher": {steps: each.get("prompt_accuracy") for steps, each in found["teacher"].items()},
        "first_gap": History.of(log).first_gap(),
        "seconds_a_step": (last["seconds"] - first["seconds"]) / max(last["step"] - first["step"], 1),
        "evaluations": last["evaluations"],
    }


if __name__ == "__main__":
    main()
