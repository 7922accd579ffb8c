"""What the runs of a study of the path found: rows, tables and pictures (see ``disback.py``)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disback_studies import DIFF_INSTRUCT, Run, Study
from paired import gain, shown

if TYPE_CHECKING:
    from fewstep.runs.compare import Measured


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
        assert recipe.data is not None
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
