"""Where is the path worth its price? DisBack against Diff-Instruct and the warm ablation, where the
paper's reasons hold.

    python benchmarks/disback.py --study plane --out runs/disback
    python benchmarks/disback.py --study fastgan --out runs/disback
    python benchmarks/disback.py --study foreign --out runs/disback

Every run of a study has the same number of network evaluations of one sample (a forward 1, a
backward 2); the path is paid from them. Seeds are paired: a seed sets weights and draws, and
evaluation noise is the same for all. Runs measure themselves (one draw of 5,000) every twentieth of
the way, the mismatch degree of their students beside it. Reported: the gain in the median of the
last quarter and at the very end (1 minus the geometric mean of the paired ratios, with Student's 95
% interval), the evaluations to fixed levels over Diff-Instruct's, the mismatch over training (the
paper's Fig. 4), and the gain by noise level. A study prints its hours before it starts; a run that
is there is not repeated, and a run that was cut off goes on. Studies:

- plane: a generator from random weights; times' mean and the rate's decay in six cells, and in one
  cell a longer path and wider times, to find which of these matters.
- fastgan: another architecture than the teacher's, from random weights; measured rules for
  recording and switching.
- foreign: a student that starts as the teacher of other digits (inverted, rotated), 40 % of its
  updates on nodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paired import gain, shown

if TYPE_CHECKING:
    from fewstep.runs.compare import Measured

# A step of recording: the student's sample 1, the degrading teacher's forward and backward 3.
RECORDING = 4
FIXED = {"target": {"kind": "fixed"}}
DIFF_INSTRUCT = "diff-instruct"


@dataclass(frozen=True)
class Arm:
    """``recorded``: the steps of recording that are paid from the budget (for measured rules a
    bound).
    """

    name: str
    target: Mapping[str, Any]
    recorded: int = 0


@dataclass(frozen=True)
class Cell:
    """Overrides that all arms of a comparison share."""

    name: str
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Study:
    """``steps`` of Diff-Instruct are the budget, each of ``cost`` evaluations of one sample.

    ``levels``: fixed distances.

    ``seconds``: of one run on one idle core of the machine that docs/benchmarks.md names.
    """

    recipe: str
    cells: tuple[Cell, ...]
    first_seed: int
    seeds: int
    steps: int
    cost: float
    levels: tuple[float, ...]
    seconds: float
    shared: Mapping[str, Any] = field(default_factory=dict)


def times(mean: float, std: float) -> dict[str, Any]:
    """The noise levels at which both scores are compared, and at which the fake score learns."""
    values = {"mean": mean, "std": std}
    return {f"{section}.times.{key}": value for section in ("method", "method.fake") for key, value in values.items()}


def path(nodes: int, record: int, switch: int | Sequence[int]) -> dict[str, Any]:
    """A path of fixed rules."""
    return {"target.nodes": nodes, "target.record.steps": record, "target.switch.steps": switch}


def plane_arms(record: int = 20) -> tuple[Arm, ...]:
    warm = path(2, 4 * record, 1)
    return (
        Arm(DIFF_INSTRUCT, FIXED),
        Arm("disback", path(5, record, 50), 4 * record),
        Arm("warm", warm, 4 * record),
    )


def plane_cell(mean: float, decay: float, std: float = 0.8, record: int = 20, suffix: str = "") -> Cell:
    name = f"mean {mean:g}, {'decay' if decay else 'constant rate'}{suffix}"
    return Cell(name, {**times(mean, std), "method.optimizer.decay": decay}, plane_arms(record))


# The recipe's own decay is over the last half.
PLANE = (
    plane_cell(-1.2, 0.0),
    plane_cell(-0.6, 0.0),
    plane_cell(0.0, 0.0),
    plane_cell(-1.2, 0.5),
    plane_cell(-0.6, 0.5),
    plane_cell(0.0, 0.5),
    plane_cell(-1.2, 0.0, record=50, suffix=", a node every 50"),
    plane_cell(-1.2, 0.0, std=1.2, suffix=", std 1.2"),
)
MEASURED_RULES = {
    "target.nodes": 5,
    "target.record": {"kind": "distance", "distance": 0.25, "floor": 0.05, "max_steps": 100},
    "target.switch": {"kind": "plateau", "window": 10, "improvement": 0.02, "min_steps": 20, "max_steps": 80},
}
FASTGAN = (
    Cell(
        "mean -1.6, constant rate",
        {**times(-1.6, 0.8), "method.optimizer.decay": 0.0},
        # What is recorded is not known beforehand: its evaluations are left unspent, which favours
        # Diff-Instruct.
        (Arm(DIFF_INSTRUCT, FIXED), Arm("disback", MEASURED_RULES, 0)),
    ),
)


def foreign_cell(name: str, out: Path, steps: int) -> Cell:
    """40 % of the student's updates on the three nodes between the last one and the teacher."""
    student = {"kind": "network", "start": str(foreign_teacher(name, out)), "network": NETWORK}
    arms = (Arm(DIFF_INSTRUCT, FIXED), Arm("disback", path(5, 10, round(0.4 * steps / 3)), 40))
    return Cell(name, {"student": student, "method.optimizer.decay": 0.0}, arms)


NETWORK: dict[str, Any] = {}


def study_of(name: str, options: argparse.Namespace) -> Study:
    if name == "plane":
        batch = {"training.batch": 256}
        return Study("mixture2d-disback", PLANE, 201, 20, 1400, 6, (8, 4, 2), 20, batch)
    if name == "fastgan":
        return Study("digits-fastgan-disback", FASTGAN, 201, 5, 2000, 6, (40, 20, 10), 480)
    steps = options.steps or 700
    NETWORK.update(teacher_network())
    cells = tuple(foreign_cell(each, options.out, steps) for each in ("inverted", "rotated"))
    return Study("digits-disback", cells, 201, 10, 700, 8, (40, 20, 10, 5), 110)


def teacher_network() -> dict[str, Any]:
    """The recipe's word for the shipped digits teacher's network."""
    from fewstep.networks import describe_network
    from fewstep.zoo import shipped_denoiser

    described = describe_network(shipped_denoiser("digits").network)
    return {key: described[key] for key in ("kind", "channels", "width", "depth", "embedding", "patch")}


def foreign_teacher(name: str, out: Path) -> Path:
    """A file of the exact teacher of other digits: D(x) = -D0(-x) of inverted, or D(R x) = R D0(x)
    of turned ones.

    Every layer of the network commutes with a half turn once its kernels are turned; a change of
    sign goes into the first and the last convolution. So that no training, and no second teacher's
    error, comes between.
    """
    import torch

    from fewstep.condition import Condition
    from fewstep.denoisers import copy_of, save_model
    from fewstep.zoo import shipped_denoiser

    original = shipped_denoiser("digits")
    other = copy_of(original)
    with torch.no_grad():
        if name == "inverted":
            for tensor in (other.network.enter.weight, other.network.leave.weight, other.network.leave.bias):
                tensor.neg_()
        else:
            for tensor in other.network.parameters():
                if tensor.ndim == 4:
                    tensor.copy_(tensor.rot90(2, (2, 3)))
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        t, condition = original.schedule.time_at_sigma(1.0).expand(4), Condition(labels=torch.arange(4))
        turned = (lambda value: -value) if name == "inverted" else (lambda value: value.rot90(2, (2, 3)))
        worst = float((other(turned(x), t, condition) - turned(original(x, t, condition))).abs().max())
    if worst > 1e-4:
        sys.exit(f"the teacher of {name} digits is off by {worst:.1e}")
    file = out.absolute() / f"{name}.safetensors"
    if not file.is_file():
        save_model(file, other)
    return file


@dataclass(frozen=True)
class Run:
    """A run of one arm with one seed."""

    cell: Cell
    arm: Arm
    seed: int
    folder: Path
    settings: Mapping[str, Any]

    @property
    def done(self) -> bool:
        return (self.folder / "student.safetensors").is_file()


def runs_of(study: Study, name: str, options: argparse.Namespace) -> list[Run]:
    """In the order in which they are run: seed by seed within a cell's round, so that an early stop
    leaves whole comparisons.
    """
    found = []
    cells = [cell for cell in study.cells if options.cells is None or cell.name in options.cells]
    for seed in range(study.first_seed, study.first_seed + (options.seeds or study.seeds)):
        for cell in cells:
            for arm in cell.arms:
                folder = options.out / name / slug(cell.name) / f"{arm.name}-{seed}"
                found.append(Run(cell, arm, seed, folder, settings_of(study, cell, arm, seed, options)))
    return found


def settings_of(study: Study, cell: Cell, arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    total = options.steps or study.steps
    steps = arm.recorded + round((total * study.cost - RECORDING * arm.recorded) / study.cost)
    values = {**study.shared, "training.seed": seed, "evaluation.every": max(1, total // 20)}
    values |= {
        "training.health_every": max(1, total // 10),
        "training.checkpoint_every": 100_000,
        **cell.settings,
        **arm.target,
    }
    if "student" not in cell.settings:
        values["student.seed"] = seed
    return {**values, **options.more, "training.steps": steps}


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)


def carry_out(folder: str, recipe: str, settings: Mapping[str, Any]) -> float:
    """One run, in a process that has imported everything already; the seconds it took."""
    import torch

    from fewstep.runs import distill

    torch.set_num_threads(1)
    began = time.monotonic()
    distill(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()], out=folder, resume=True)
    return time.monotonic() - began


def run_all(study: Study, runs: Sequence[Run], jobs: int) -> None:
    waiting = [run for run in runs if not run.done]
    hours = len(waiting) * study.seconds / 3600
    print(
        f"{len(waiting)} of {len(runs)} runs to do: about {hours:.1f} hours of one core, {jobs} at a time", flush=True
    )
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        started = [pool.submit(carry_out, str(run.folder), study.recipe, run.settings) for run in waiting]
        for number, (run, future) in enumerate(zip(waiting, started, strict=True), 1):
            print(f"[{number}/{len(waiting)}] {run.folder}: {future.result():.0f} s", flush=True)


@dataclass(frozen=True)
class Found:
    """What one run logged: its curve, and mismatch degrees over evaluations."""

    curve: Measured
    mismatch: tuple[tuple[int, float], ...]

    def reaches(self, level: float) -> int | None:
        """The evaluations from which two measurements in a row are at or below the level."""
        found = self.curve.reaches(level)
        return None if found is None else found[1]


def read(run: Run) -> Found:
    from fewstep.runs.compare import measured
    from fewstep.studies import mismatch_over_training

    mismatch = tuple((evaluations, degree) for _, evaluations, degree in mismatch_over_training(run.folder))
    return Found(measured(run.folder), mismatch)


def by_level(run: Run) -> dict[str, list[float]]:
    """The teacher's mismatch degree on the finished student's samples, by noise level; kept beside
    the run.
    """
    kept = run.folder / "by-level.json"
    if not kept.is_file():
        import torch

        from fewstep.metrics import assessed_mismatch
        from fewstep.random import Key
        from fewstep.recipes.building.frozen_teachers import build_teacher
        from fewstep.runs import RunFolder, load
        from fewstep.runs.sampler import labels_for

        torch.set_num_threads(1)
        recipe, key = RunFolder(run.folder).read_distill_recipe(), Key(0, "by-level")
        teacher = build_teacher(recipe.teacher, recipe.data.open())
        labels = labels_for(1000, None, teacher.classes)
        samples = load(run.folder).draw(key, 1000, labels, 1)
        degree = assessed_mismatch(teacher, samples, labels, key)
        kept.write_text(json.dumps({"levels": degree.levels, "degrees": degree.degrees, "reliable": degree.reliable}))
    return json.loads(kept.read_text())


def rows_of(study: Study, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row a cell and arm, over the seeds of which all arms are done."""
    for cell in study.cells:
        own = [run for run in runs if run.cell.name == cell.name]
        seeds = sorted({run.seed for run in own if all(other.done for other in own if other.seed == run.seed)})
        if not seeds:
            continue
        arms = {arm.name: [run for run in own if run.arm.name == arm.name and run.seed in seeds] for arm in cell.arms}
        found = {name: [read(run) for run in chosen] for name, chosen in arms.items()}
        degrees = {name: [by_level(run) for run in chosen] for name, chosen in arms.items()}
        for name, ours in found.items():
            theirs = found[DIFF_INSTRUCT]
            row: dict[str, Any] = {"cell": cell.name, "arm": name, "seeds": seeds}
            row["last_quarter"] = [each.curve.level for each in ours]
            row["end"] = [each.curve.fd[-1] for each in ours]
            row["evaluations"] = [each.curve.evaluations[-1] for each in ours]
            row["curves"] = [{"evaluations": each.curve.evaluations, "fd": each.curve.fd} for each in ours]
            row["mismatch_over_training"] = [each.mismatch for each in ours]
            row["mismatch_by_level"] = degrees[name]
            if name != DIFF_INSTRUCT:
                row["gain_last_quarter"] = gain(row["last_quarter"], [each.curve.level for each in theirs])
                row["gain_end"] = gain(row["end"], [each.curve.fd[-1] for each in theirs])
                row["to_level"] = {str(level): time_to(level, ours, theirs) for level in study.levels}
                row["to_its_level"] = time_to(None, ours, theirs)
                row["gain_by_level"] = gains_by_level(degrees[name], degrees[DIFF_INSTRUCT])
            yield row


def time_to(level: float | None, ours: Sequence[Found], theirs: Sequence[Found]) -> dict[str, Any]:
    """Evaluations to a level over Diff-Instruct's on the seeds where both reach it; None: its own
    last quarter, of its seed.
    """
    pairs = [
        (a.reaches(b.curve.level if level is None else level), b.reaches(b.curve.level if level is None else level))
        for a, b in zip(ours, theirs, strict=True)
    ]
    both = [(a, b) for a, b in pairs if a and b]
    found: dict[str, Any] = {
        "reached": sum(a is not None for a, _ in pairs),
        "theirs_reached": sum(b is not None for _, b in pairs),
    }
    if both:
        found["median_ratio"] = statistics.median(a / b for a, b in both)
        found |= {"gain": gain([a for a, _ in both], [b for _, b in both])}
    return found


def gains_by_level(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    levels = ours[0]["levels"]
    return [
        {"level": level, **gain([each["degrees"][i] for each in ours], [each["degrees"][i] for each in theirs])}
        for i, level in enumerate(levels)
    ]


def show(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"\n{name}: medians; gains over Diff-Instruct with 95 % interval, and the seeds on which an arm is lower")
    print(
        f"{'cell':<40} {'arm':<14} {'last quarter':>12} {'end':>7} {'gain, last quarter':>30} "
        f"{'gain, end':>30} {'evaluations to its level':>26}"
    )
    for row in rows:
        medians = f"{statistics.median(row['last_quarter']):>12.2f} {statistics.median(row['end']):>7.2f}"
        gains = ["", ""] if row["arm"] == DIFF_INSTRUCT else [shown(row["gain_last_quarter"]), shown(row["gain_end"])]
        reached = row.get("to_its_level", {})
        ratio = (
            f"{reached['median_ratio']:.2f} ({reached['reached']} of {len(row['seeds'])})"
            if "median_ratio" in reached
            else ""
        )
        print(f"{row['cell']:<40} {row['arm']:<14} {medians} {gains[0]:>30} {gains[1]:>30} {ratio:>26}")


def draw(name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Pictures of each cell: distance and mismatch over evaluations, and the gain by noise
    level.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure = Figure(figsize=(12, 3.2 * len(cells)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cells), 3, squeeze=False)
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row["arm"] for row in rows))}
    for (distance, mismatch, levels), cell in zip(panels, cells, strict=True):
        for row in (row for row in rows if row["cell"] == cell):
            curves = row["curves"]
            medians = [statistics.median(column) for column in zip(*(curve["fd"] for curve in curves), strict=False)]
            distance.plot(
                curves[0]["evaluations"][: len(medians)], medians, label=row["arm"], color=colours[row["arm"]]
            )
            tracks = row["mismatch_over_training"]
            medians = [statistics.median(value for _, value in column) for column in zip(*tracks, strict=False)]
            mismatch.plot(
                [evaluations for evaluations, _ in tracks[0]][: len(medians)],
                medians,
                label=row["arm"],
                color=colours[row["arm"]],
            )
            if row["arm"] != DIFF_INSTRUCT:
                by = row["gain_by_level"]
                levels.plot(
                    [each["level"] for each in by], [each["mean"] for each in by], marker="o", color=colours[row["arm"]]
                )
                if by[0]["low"] is not None:
                    bounds = ([each[key] for each in by] for key in ("low", "high"))
                    levels.fill_between([each["level"] for each in by], *bounds, alpha=0.15, color=colours[row["arm"]])
        for panel in (distance, mismatch):
            panel.set_yscale("log")
            panel.set_xlabel("thousands of network evaluations of one sample")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        levels.set_xscale("log")
        levels.axhline(0, color="black", linewidth=0.6)
        distance.set_title(f"{cell}: Frechet distance", fontsize=9)
        mismatch.set_title("mismatch degree over the data's", fontsize=9)
        levels.set_title("gain in mismatch by noise level, %", fontsize=9)
        distance.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"disback-{name}.png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=["plane", "fastgan", "foreign"], required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/disback"))
    parser.add_argument("--seeds", type=int, help="the study's own number unless given")
    parser.add_argument("--cells", nargs="*", help="names of cells; all unless given")
    parser.add_argument(
        "--steps", type=int, help="Diff-Instruct's steps, which set the budget; the study's own unless given"
    )
    parser.add_argument("--set", action="append", default=[], help="KEY=JSON, for every run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only-show", action="store_true", help="tables of what is there")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.more = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    study = study_of(options.study, options)
    runs = runs_of(study, options.study, options)
    if not options.only_show:
        run_all(study, runs, options.jobs)
    rows = list(rows_of(study, runs))
    show(options.study, rows)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {"study": options.study, "steps": options.steps or study.steps, "rows": rows}
    (options.results / f"disback-{options.study}.json").write_text(json.dumps(content) + "\n")
    if rows:
        draw(options.study, rows, options.results)


if __name__ == "__main__":
    main()
