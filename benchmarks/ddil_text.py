"""Does DDIL help text to image? PD, DMD2 and LCM with an adapter at four steps on scenes, each
thresholded, with and without DDIL's states; and who makes which transition (Tables 5 to 7).

    # some eight minutes of a core a run; it says the hours before it starts
    python benchmarks/ddil_text.py --seeds 3 --out runs/ddil-text
    python benchmarks/ddil_text.py --only-show --out runs/ddil-text

The DDIL paper thresholds by default (Garrepalli et al. 2024, App. A), so that its gain is that of
both over ``reflected``. All runs have the network evaluations of one sample that ``--budget`` says;
collecting is paid from them, and a rehearsal counts what a step takes. The student of LCM is an
adapter that is not told the guidance scale, as LCM-LoRA is. Each student is measured at four steps:
the Frechet distance to the guided teacher's own samples, prompt accuracy of seen prompts and of
held-out combinations, and diversity as the paper measures it (distance between ten pictures of one
prompt, fifty prompts), over the teacher's. ``--shared`` students of PD with DDIL share generations
with the teacher of 32 steps, as the paper's Tables 5, 6 and 7 have it.

Seeds are paired, evaluation noise is the same for all; means over seeds, gains with Student's 95 %
interval. Runs whose figures are there are not repeated, and a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from paired import gain, shown
from runner import Job, options_of, studied
from scenes_students import cells, figures, of_seeds

STEPS = 4
SHOWN = ("fd", "accuracy", "held_out", "diversity")
ADAPTER = {"kind": "lora", "rank": 16, "scale": None, "alpha": 16.0, "first_sigma": None, "first_timestep": 999}
ROLLED_OUT = {"kind": "ddil", "collected": 1.0, "student": 0.5, "later_collected": 1.0, "later_student": 0.8}


@dataclass(frozen=True)
class Task:
    """A ``recipe`` with ``settings``, with thresholds; ``ddil``: the recipe's states with DDIL's.

    ``paper``: the paper's distances without and with DDIL, both with thresholds (Tables 2 and 3).
    """

    recipe: str
    ddil: Mapping[str, Any]
    paper: tuple[float, float]
    settings: Mapping[str, Any] = field(default_factory=dict)


TASKS: Mapping[str, Task] = {
    "pd4": Task("scenes-pd", {}, (23.34, 22.42)),
    "dmd2-4": Task(
        "scenes-dmd2-4step",
        {"states": {**ROLLED_OUT, "first_part": 0.6, "capacity": 32, "collect": 32, "keep": "ring"}},
        (29.32, 27.72),
    ),
    "lcm4-adapter": Task(
        "scenes-lcm",
        {},
        (24.25, 22.86),
        {
            "student": ADAPTER,
            "method.guidance": None,
            "target": {"kind": "fixed", "guidance": {"kind": "constant", "scale": 3.0}},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=tuple(TASKS), default=list(TASKS), help="these tasks alone")
    parser.add_argument("--budget", type=float, default=120_000, help="network evaluations of one sample, a run")
    parser.add_argument("--pictures", type=int, default=400, help="of held-out prompts")
    parser.add_argument("--shared", type=int, default=1, help="students whose generations the teacher shares")
    parser.add_argument("--shared-samples", type=int, default=300, help="a row of those tables")
    parser.add_argument("--only-show", action="store_true", help="tables of the runs that are there")
    options = options_of(parser, "runs/ddil-text", 3)
    steps = {(task, ddil): steps_within(task, ddil, options) for task in options.only for ddil in (False, True)}
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = {(arm, seed): job_of(*arm, seed, steps[arm], options) for seed in range(options.seeds) for arm in steps}
    how = {"pictures": options.pictures, "steps": STEPS}
    found = studied(jobs, options, partial(figures, **how), 1 / 7, **how)
    rows = [
        {
            "task": task,
            "ddil": ddil,
            "steps": steps[task, ddil],
            **of_seeds(found, (task, ddil), options.seeds),
        }
        for task, ddil in steps
    ]
    sharing = {place: job for place, job in jobs.items() if place[0] == ("pd4", True) and place[1] < options.shared}
    compared = {task: compare(rows, task) for task in options.only}
    samples = options.shared_samples
    tables = [*studied(sharing, options, partial(shared, samples=samples), 1 / 7, shared=samples).values()]
    show(rows, compared, tables)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"budget": options.budget, "rows": rows, "ddil over reflected": compared, "shared": tables}
    (options.results / "ddil-text.json").write_text(json.dumps(content, indent=1) + "\n")


def settings_of(name: str, ddil: bool) -> tuple[str, dict[str, Any]]:
    """A recipe and its settings; what DDIL changes is a recipe's or is said."""
    task = TASKS[name]
    recipe = f"{task.recipe}-ddil" if ddil and not task.ddil else task.recipe
    return recipe, {"reflected": {"kind": "static"}, **task.settings, **(task.ddil if ddil else {})}


def steps_within(name: str, ddil: bool, options: argparse.Namespace) -> int:
    """The steps that the budget buys: counted by a rehearsal."""
    from fewstep.planning import plan_recipe

    recipe, settings = settings_of(name, ddil)
    said = {**settings, **options.more}
    plan = plan_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in said.items()])
    return max(1, round(sum(plan.steps.values()) * options.budget / plan.evaluations))


def job_of(name: str, ddil: bool, seed: int, steps: int, options: argparse.Namespace) -> Job:
    recipe, settings = settings_of(name, ddil)
    more = {"training.seed": seed, "training.health_every": 100_000, "evaluation.every": 100_000}
    folder = options.out / f"{name}-{'ddil' if ddil else 'reflected'}-{steps}-{seed}"
    return Job(folder, recipe, {**settings, **more, "training.steps": steps})


def shared(job: Job, samples: int) -> Mapping[str, Any]:
    """Tables 5 to 7 of a run."""
    from fewstep.studies import measure_shift

    return measure_shift(job.folder, samples=samples)


def compare(rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """DDIL against thresholds alone, seed by seed: the gain in distance, and of the others by how
    much they are larger.
    """
    plain, ddil = (
        dict(zip(row["seeds"], row["figures"], strict=True))
        for wanted in (False, True)
        for row in rows
        if (row["task"], row["ddil"]) == (task, wanted)
    )
    seeds = sorted(plain.keys() & ddil.keys())
    if not seeds:
        return {}

    def both(name: str, seed: int) -> bool:
        return None not in (ddil[seed][name], plain[seed][name])

    found: dict[str, Any] = {"fd": gain([ddil[seed]["fd"] for seed in seeds], [plain[seed]["fd"] for seed in seeds])}
    for name in SHOWN[1:]:
        found[name] = [ddil[seed][name] - plain[seed][name] for seed in seeds if both(name, seed)]
    return found


def show(
    rows: Sequence[Mapping[str, Any]], compared: Mapping[str, Mapping[str, Any]], tables: Sequence[Mapping[str, Any]]
) -> None:
    print(f"\n{'task':<14}{'states':<12}{'steps':>6}{'seeds':>6}" + "".join(f"{key:>26}" for key in SHOWN))
    for row in rows:
        states = "ddil" if row["ddil"] else "usual"
        print(f"{row['task']:<14}{states:<12}{row['steps']:>6}{len(row['seeds']):>6}" + cells(row, SHOWN))
    for task, each in compared.items():
        without, with_ddil = TASKS[task].paper
        if each:
            paper = 100 * (1 - with_ddil / without)
            print(f"{task}: DDIL's distance is lower by {shown(each['fd'])}; the paper's by {paper:.1f} %")
    for table in tables:
        for name in ("mixing", "teacher_then_student", "student_then_teacher"):
            print(f"\n{name}, {table['samples']} samples")
            for row in table[name]:
                setting = row.get("probability", row.get("time"))
                print(f"{setting:>8.3g}{row['fd']:>10.1f}{row.get('prompt_accuracy', float('nan')):>10.1%}")


if __name__ == "__main__":
    main()
