"""The report of a run: one HTML file that needs nothing else, beside what it reports on."""

from __future__ import annotations

from pathlib import Path

from fewstep.report import curves, measured, story
from fewstep.report.gather import Run, gather
from fewstep.report.page import render
from fewstep.runs import RunFolder


def write_run_report(folder: Path) -> Path:
    """Writes ``report.html`` into the run folder and returns its path.

    A run that was not evaluated yet, or kept no samples, has a report that says so. The same folder
    gives the same bytes. Raises ``UserError`` when the folder holds no run.
    """
    folder = Path(folder)
    path = folder / "report.html"
    RunFolder(folder).write(path, _page(gather(folder)))
    return path


def _page(run: Run) -> str:
    history, stages = run.history, run.history.stages()
    return render(
        "run.html.j2",
        run=run,
        method=story.method(run.recipe),
        target=story.target(run),
        summary=story.summary(run),
        tiles=story.tiles(run),
        facts=story.facts(run),
        evaluation=measured.evaluated_table(run),
        mismatch=measured.mismatch_rows(run),
        reading=measured.reading_of_table(run),
        shift=measured.shift_tables(run),
        shift_reading=measured.reading_of_shift(run),
        path=story.path(run),
        charts=curves.main_charts(run),
        more_charts=curves.other_charts(history),
        health_charts=curves.health_charts(history),
        verdict=story.verdict(history),
        warnings=history.warnings(),
        switches=history.switches(),
        costs=story.costs(stages),
        settings=story.settings(run.recipe),
    )
